"""Training of networks that read behavior: judgments or days of a log, and the neighbors that were known then."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pertinent.data.neighbors import MINED, NeighborHistory, NeighborLists
from pertinent.errors import ConfigError, DataError
from pertinent.objectives.contrastive import neighbor_target
from pertinent.objectives.mutual import mutual_views
from pertinent.objectives.spec import ViewLosses, needs_groups
from pertinent.training.collate import BatchPlan, TrainingSet, network_inputs
from pertinent.training.fit import FREE_TO_CHANGE, FitConfig, FitResult, frozen, run_loop
from pertinent.training.trainer import Trainee, Trainer, has_both

if TYPE_CHECKING:
    from pertinent.lexicon.pairs import PairTokenizer
    from pertinent.models.barl_ase import Views

logger = logging.getLogger(__name__)


class ViewTrainee(Trainee):
    """A network of two views as the Trainer sees it: it gives both, not only the logit."""

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.network.views(*network_inputs(batch))  # type: ignore[operator]


class ViewTrainer(Trainer):
    """Adds the losses between the two views, and between neighbors and targets, to the objective."""

    trainee_class = ViewTrainee

    def __init__(self, *parts: Any, losses: ViewLosses) -> None:
        self.losses, self.skipped = losses, 0
        super().__init__(*parts)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """``L_BCE + contrast (L_con + L_con) + mutual L_mut``; raises TrainingError where not finite."""
        views = model(inputs)
        logits = views.logit[:, None]
        parts = self._parts(logits, inputs, self.progress)
        more = view_losses(self.losses, views, inputs["group"], inputs["item"])
        if "contrast_items" not in more and self.losses.contrast:
            self.skipped += 1
            if self.skipped == 1:
                logger.warning(
                    "a batch has fewer than %d distinct targets, the contrastive term is left out of it; "
                    "take a larger batch_size",
                    self.losses.min_targets,
                )
        loss = self._sum(parts) + sum(self._weight(name) * part for name, part in more.items())
        self.note(inputs, loss, {**dict(zip(self.names, parts, strict=True)), **more})
        return (loss, logits) if return_outputs else loss

    def _weight(self, name: str) -> float:
        return self.losses.mutual if name == "mutual" else self.losses.contrast


def view_losses(settings: ViewLosses, views: Views, query_ids: Tensor, item_ids: Tensor) -> dict[str, Tensor]:
    """The terms of a batch by name, before their weights (BARL-ASe, section 5).

    Neighbor items describe the query, neighbor queries the item. Equal ids are no negatives of each
    other. A pair that lacks neighbors on a side takes no part in that side's contrast, nor in the mutual
    term. With fewer than ``min_targets`` distinct queries, or items, that side's contrast is left out.
    """
    parts: dict[str, Tensor] = {}
    sides = {
        "contrast_items": (views.neighbor_items, views.query, query_ids, views.has_items),
        "contrast_queries": (views.neighbor_queries, views.item, item_ids, views.has_queries),
    }
    for name, (neighbors, targets, ids, present) in sides.items():
        if settings.contrast and len(ids.unique()) >= settings.min_targets:
            parts[name] = neighbor_target(
                neighbors, targets, ids, present, settings.temperature, settings.symmetric, settings.decoupled
            )
    if settings.mutual:
        both = views.has_items & views.has_queries
        parts["mutual"] = mutual_views(views.text, views.behavior, settings.mutual_space, both, settings.mutual_pull)
    return parts


def fit_views(
    network: nn.Module,
    pairs: PairTokenizer,
    training: TrainingSet,
    config: FitConfig,
    losses: ViewLosses,
    validation: TrainingSet | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    title: str = "training",
) -> FitResult:
    """Train a network of two views in place; otherwise as `pertinent.training.fit.fit`.

    Both sets need neighbors, see `NeighborHistory`. Raises ConfigError for a network without views.
    """
    if not hasattr(network, "views"):
        raise ConfigError(f"model.type: {type(network).__name__} reads no neighbors; use barl_ase, or leave them out")
    if training.neighbors is None or (validation is not None and validation.neighbors is None):
        raise DataError("the training set has no neighbors", fix="make it with a NeighborHistory")
    if config.adversarial is not None:
        raise ConfigError("adversarial: is not made for networks with two views; leave it out")
    if config.round_weights is not None:
        raise ConfigError("round_weights: is not made for networks with two views; leave it out")
    started = time.perf_counter()
    plan = BatchPlan(
        training.size_keys,
        training.query_rows if needs_groups(config.objective) else None,
        config.batch_size,
        config.group_limit,
        config.epochs,
        config.max_steps,
        config.seed,
    )
    choose = validation is not None and has_both(validation.relevant)

    def make_trainer(*parts: Any) -> ViewTrainer:
        known = (network, pairs, training, validation, plan, config.objective, None, None, choose, None)
        return ViewTrainer(*known, *parts, losses=losses)

    fields = set(FitConfig.model_fields) - FREE_TO_CHANGE
    identity = {
        **config.model_dump(mode="json", include=fields),
        "views": losses.plain(),
        "training pairs": training.fingerprint(),
        "validation pairs": None if validation is None else validation.fingerprint(),
    }
    validates = validation is not None and len(validation) > 0
    with frozen(network, config.frozen):
        return run_loop(network, config, plan, make_trainer, validates, identity, folder, resume, title, started)


def history_before(mined: str | Path, days: Sequence[int], titles: Mapping[str, str], keep: int) -> NeighborHistory:
    """The neighbor lists that were known on each of some days (since 1970), from the days before it alone.

    They are made by the rules that the mined artifact was made with. Raises ArtifactError for another folder.
    """
    import ibis

    from pertinent.artifact import open_artifact
    from pertinent.mining.engines import read_parquet
    from pertinent.mining.neighbors import Key, NeighborConfig, neighbors

    artifact = open_artifact(mined, MINED, verify=False)
    config = NeighborConfig.build(artifact.config.get("neighbors", {}), str(mined))
    if config.by == "debiased":
        raise ConfigError("neighbors.by=debiased has no lists by day; mine with neighbors.by=ctr")
    connection = ibis.duckdb.connect()

    def lists(daily: Any, day: int, key: Key) -> dict[str, list[str]]:
        rows = neighbors(daily, day, config, key).order_by([key, "rank"]).select(key, "neighbor").to_pyarrow()
        found: dict[str, list[str]] = {}
        for name, neighbor in zip(rows[key].to_pylist(), rows["neighbor"].to_pylist(), strict=True):
            found.setdefault(name, []).append(neighbor)
        return found

    try:
        daily = read_parquet(connection, artifact.path / "daily.parquet")
        known = [
            NeighborLists(day, lists(daily, day, "query"), lists(daily, day, "item_id")) for day in sorted(set(days))
        ]
    finally:
        connection.disconnect()
    return NeighborHistory(known, titles, keep)
