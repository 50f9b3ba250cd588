"""What mining finds of what was planted in the made-up shop, over seeds and rates of noise.

    python benchmarks/synthetic_recovery.py                          # 3 seeds, 2 rates of noise, about 10 minutes
    python benchmarks/synthetic_recovery.py --events 200000 --seeds 0   # a quick look

For each shop: `pertinent data synthesize`, then `pertinent mine` of its log, catalog and judgments with default
settings, and what is in the tables that it wrote is held against the truth:

- the click model (`positions`): the largest difference between fitted and planted examination, over positions;
- neighbor lists of queries (`neighbors_query`) against planted aliases: precision (share of the neighbors of
  aliases that the alias stands for) and recall (share of what aliases stand for that is in their lists), over
  all aliases and over those that were searched often enough for the threshold to be within reach; for other
  thresholds the lists are made again from the table `daily`;
- interests: the share of shoppers with ten clicks or more whose most clicked department is a planted
  favorite, beside the share that would be right with the favorites of the next shopper.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pertinent.artifact import write_json
from pertinent.data.files import query_parquet
from pertinent.data.synthetic import SynthesizeConfig, synthesize
from pertinent.mining.engines import DuckDBEngine, open_engine, read_parquet
from pertinent.mining.neighbors import NeighborConfig, neighbors
from pertinent.mining.run import MineConfig, mine, read_mined
from pertinent.mining.sources import LogConfig

if TYPE_CHECKING:
    from ibis import Table

THRESHOLDS = ((100, 0.2), (100, 0.1), (20, 0.2), (20, 0.1), (20, 0.05))
EASY_CLICKS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_250_000, help="of which five sixths are impressions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.05, 0.3])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    results = []
    for noise in arguments.noise:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                results.append({"noise": noise, "seed": seed, **one_shop(Path(folder), arguments.events, seed, noise)})
            print(results[-1], file=sys.stderr)
    about = {"events": arguments.events, "seeds": arguments.seeds, "machine": platform.machine()}
    write_json(arguments.out, {"about": about, "summary": summary(results), "results": results})


def one_shop(folder: Path, events: int, seed: int, noise: float) -> dict[str, Any]:
    """Make a shop, mine it, and hold the results against the truth."""
    started = time.perf_counter()
    shop = synthesize(SynthesizeConfig(out=str(folder / "shop"), events=events, seed=seed, noise=noise))
    made = time.perf_counter()
    mined = mine(
        MineConfig(
            log=LogConfig(path=str(shop.path / "log.parquet")),
            items=str(shop.path / "items.parquet"),
            judged=(str(shop.path / "judgments.parquet"),),
            out=str(folder / "mined"),
            progress=False,
        )
    )
    ended = time.perf_counter()
    with open_engine(DuckDBEngine(), folder / "work") as connection:
        lists = aliases_found(shop.path, mined.path, read_parquet(connection, mined.file("daily.parquet")))
    checks = mined.json("checks.json")["checks"]
    return {
        "impressions": shop.metrics["view_rows"],
        "clicks": shop.metrics["click_rows"],
        "mistakes_share": shop.metrics["share_of_clicks_by_mistake"],
        "seconds_to_make": round(made - started, 1),
        "seconds_to_mine": round(ended - made, 1),
        "checks_found": {str(entry["check"]): entry["rows"] for entry in checks if entry["rows"]},
        "examination_error": examination_error(shop.path, mined.path),
        "neighbors": lists,
        "interests": interests_found(shop.path),
    }


def examination_error(shop: Path, mined: Path) -> float:
    """The largest difference between planted and fitted examination."""
    rows = query_parquet(
        {"truth": shop / "truth" / "positions.parquet"},
        "SELECT examination FROM read_parquet($truth) ORDER BY position",
    )[1]
    fitted = read_mined(mined, "positions").sort_by("position")["propensity"].to_numpy()
    return round(float(np.abs(fitted - np.array(rows)[:, 0]).max()), 4)


def aliases_found(shop: Path, mined: Path, daily: Table) -> list[dict[str, Any]]:
    """Precision and recall of neighbor lists at several thresholds, first those of the mined table itself."""
    meant = defaultdict(set)
    for query, item in query_parquet(
        {"a": shop / "truth" / "aliases.parquet"}, "SELECT query, item_id FROM read_parquet($a)"
    )[1]:
        meant[query].add(item)
    searches = dict(
        query_parquet(
            {"j": shop / "judgments.parquet"},
            "SELECT query, any_value(frequency) FROM read_parquet($j) WHERE source = 'alias' GROUP BY query",
        )[1]
    )
    found = []
    until = int(daily.day.max().to_pyarrow().as_py()) + 1
    for exposures, ctr in THRESHOLDS:
        config = NeighborConfig(min_exposures=exposures, min_ctr=ctr)
        own = config == NeighborConfig()
        rows = read_mined(mined, "neighbors_query") if own else neighbors(daily, until, config, "query").to_pyarrow()
        lists = defaultdict(set)
        for query, item in zip(rows["query"].to_pylist(), rows["neighbor"].to_pylist(), strict=True):
            lists[query].add(item)
        often = [query for query in meant if searches[query] >= 2 * exposures]
        found.append(
            {
                "min_exposures": exposures,
                "min_ctr": ctr,
                "precision": _share([len(lists[q] & meant[q]) for q in meant], [len(lists[q]) for q in meant]),
                "recall": _share([len(lists[q] & meant[q]) for q in meant], [len(meant[q]) for q in meant]),
                "aliases_searched_often": len(often),
                "recall_of_these": _share([len(lists[q] & meant[q]) for q in often], [len(meant[q]) for q in often]),
            }
        )
    return found


def interests_found(shop: Path) -> dict[str, Any]:
    """How often a shopper's most clicked department is a planted favorite, of that shopper or the next."""
    clicks = defaultdict[str, Counter[str]](Counter)
    for user, department, count in query_parquet(
        {"log": shop / "log.parquet", "items": shop / "truth" / "items.parquet"},
        "SELECT user_id, department, count(*) FROM read_parquet($log) JOIN read_parquet($items) USING (item_id) "
        "WHERE level = 'click' GROUP BY ALL ORDER BY ALL",
    )[1]:
        clicks[user][department] = count
    favorites = defaultdict[str, set[str]](set)
    for user, department in query_parquet(
        {"i": shop / "truth" / "interests.parquet"},
        "SELECT user_id, value FROM read_parquet($i) WHERE kind = 'department'",
    )[1]:
        favorites[user].add(department)
    users = sorted(user for user, counts in clicks.items() if counts.total() >= EASY_CLICKS)
    tops = [clicks[user].most_common(1)[0][0] for user in users]
    others = [*users[1:], *users[:1]]
    return {
        "shoppers": len(users),
        "own_favorite": _share(
            [top in favorites[user] for user, top in zip(users, tops, strict=True)], [1] * len(users)
        ),
        "of_the_next": _share(
            [top in favorites[user] for user, top in zip(others, tops, strict=True)], [1] * len(users)
        ),
    }


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Worst and mean over the seeds, for each rate of noise."""
    rows = []
    for noise in dict.fromkeys(result["noise"] for result in results):
        seeds = [result for result in results if result["noise"] == noise]
        rows.append(
            {
                "noise": noise,
                "largest_examination_error": max(result["examination_error"] for result in seeds),
                "neighbors": [
                    {
                        "min_exposures": exposures,
                        "min_ctr": ctr,
                        **{
                            name: round(statistics.mean(result["neighbors"][place][name] for result in seeds), 3)
                            for name in ("precision", "recall", "recall_of_these")
                        },
                    }
                    for place, (exposures, ctr) in enumerate(THRESHOLDS)
                ],
                "own_favorite": round(statistics.mean(result["interests"]["own_favorite"] for result in seeds), 3),
                "of_the_next": round(statistics.mean(result["interests"]["of_the_next"] for result in seeds), 3),
            }
        )
    return rows


def _share(part: list[int] | list[bool], whole: list[int]) -> float:
    return round(sum(part) / sum(whole), 4) if sum(whole) else 0.0


if __name__ == "__main__":
    main()
