"""One query against many real titles: the native engine against what else a user could run, turn by turn.

    python benchmarks/engine_levels.py                            # L3-H128, 3,000 titles
    python benchmarks/engine_levels.py --network h384 --titles 600

The networks, titles and weights are those of ``engine_vs_sentence_transformers.py``: time does not depend on what
weights hold. Contestants take turns in an order that changes each turn; ratios are medians of the ratios of each
turn. Beside wall time there is processor time, of all threads together: on a machine that others use it says more.
All scores must be equal to 1e-4, but for those of 8-bit products.

- ``sentence-transformers``: ``CrossEncoder.predict`` as it is.
- ``sentence-transformers openvino``: the same with its backend ``openvino`` in float32, where ``--openvino`` names an
  interpreter that has ``sentence-transformers[openvino]``: it needs other versions of what is installed here. Its time
  is taken in its own process, without the way there. ``openvino bf16`` is what it does unasked where the processor has
  such products: faster, and not equal.
- ``onnxruntime``: fused graph, length buckets, one single-threaded worker a core, from an export of the network as it
  is.
- ``onnx``: the backend of this name, the same but for a last layer that computes ``[CLS]`` alone.
- ``ctranslate2 int8``: its encoder over tokenized pairs, sorted by length; only where the package is installed.
- ``native``, ``native int8``: the backends of these names; they and those of ONNX Runtime read an index: only the
  query is tokenized. Random weights pass no gate, so all parts are computed in 8 bits: that measures time, not quality.
- ``one-way``, ``last layer``, each also in int8: the same network as late joins, where titles never read the query from
  the second layer on, or both read each other in the last layer only. The index keeps the states of titles. They are
  other models (titles have places of their own, too) with other scores, equal to their own scores of texts.

``cold`` starts a new process, loads model and index and scores all titles once: seconds, and its peak memory.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from engine_vs_sentence_transformers import LAYOUT, QUERY, networks, processor, real_titles

from pertinent.artifact import write_artifact, write_json
from pertinent.engine.backends import available_cores
from pertinent.engine.export import write_graph
from pertinent.engine.index import ItemIndex
from pertinent.engine.native_backend import NATIVE_GATE_FILE
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.interchange import export_hugging_face
from pertinent.models.store import build_network, save_network
from pertinent.records import Item

NETWORKS = {"h128": "L3-H128", "h384": "L3-H384 (MiniLM 0,2,4)"}
PARTS = [f"layer {layer} {part}" for layer in range(3) for part in ("attention", "feed-forward")]
LATE_JOINS: dict[str, dict[str, Any]] = {
    "one-way": {"join_layer": 1, "one_way": True},
    "last layer": {"join_layer": 2, "one_way": False},
}
STATES_DIFFER = 1e-3  # states are kept as float16
OPENVINO = """
import json, sys, time
from sentence_transformers import CrossEncoder
folder, length, precision = sys.argv[1], int(sys.argv[2]), sys.argv[3]
texts = [tuple(pair) for pair in json.loads(input())]
model = CrossEncoder(folder, max_length=length, device="cpu", backend="openvino",
                     model_kwargs={"ov_config": {"INFERENCE_PRECISION_HINT": precision}})
for line in sys.stdin:
    wall, used = time.perf_counter(), time.process_time()
    found = model.predict(texts, show_progress_bar=False)
    taken = [time.perf_counter() - wall, time.process_time() - used]
    print(json.dumps({"taken": taken, "scores": found.tolist()}), flush=True)
"""
COLD = """
import json, re, sys, time
from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer
scorer = Scorer.load(sys.argv[1], sys.argv[2])
scorer.score_index(sys.argv[4], ItemIndex.open(sys.argv[3], scorer.pairs))
assert "torch" not in sys.modules
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps([time.time(), int(peak[1]) / 1024 if peak else None, time.process_time()]))
"""


def contestants(
    network: Any, pairs: PairTokenizer, items: list[Item], folder: Path, cores: int, openvino: Path | None
) -> dict[str, Callable[[], Any]]:
    from sentence_transformers import CrossEncoder

    export_hugging_face(network, pairs, folder / "hf")
    with write_artifact(folder / "model", "model", {}) as aside:
        save_network(aside, network, pairs)
        write_graph(network, aside)
        write_json(aside / NATIVE_GATE_FILE, {"passed": True, "cheap": PARTS, "reasons": []})
    plain = copy.deepcopy(network)
    plain.encoder.forward = functools.partial(whole_layers, plain.encoder)
    with write_artifact(folder / "plain", "model", {}) as aside:
        save_network(aside, network, pairs)
        write_graph(plain, aside)
    scorers = {name: Scorer.load(folder / "model", name, cores) for name in ("onnx", "native", "native-int8")}
    scorers["onnxruntime"] = Scorer.load(folder / "plain", "onnx", cores)
    index = ItemIndex.build(items, pairs, folder / "index", scorers["native"].version)
    theirs = CrossEncoder(str(folder / "hf"), max_length=LAYOUT.length, device="cpu")
    texts = [(QUERY, item.title) for item in items]

    def rival() -> Any:
        torch.set_num_threads(cores)  # another contestant has set the OpenMP of this process to one
        return theirs.predict(texts, show_progress_bar=False)

    runs: dict[str, Callable[[], Any]] = {
        "sentence-transformers": rival,
        "onnxruntime": lambda: scorers["onnxruntime"].score_index(QUERY, index),
        "onnx": lambda: scorers["onnx"].score_index(QUERY, index),
        "native": lambda: scorers["native"].score_index(QUERY, index),
        "native int8": lambda: scorers["native-int8"].score_index(QUERY, index),
    }
    for name, joins in LATE_JOINS.items():
        runs |= late_join(network, pairs, items, folder / name.replace(" ", "-"), name, joins, cores)
    if openvino is not None:
        runs["sentence-transformers openvino"] = Elsewhere(openvino, folder / "hf", "f32", texts)
        runs["openvino bf16"] = Elsewhere(openvino, folder / "hf", "bf16", texts)
    fast = ctranslate2_int8(network, pairs, items, folder, cores)
    return runs if fast is None else {**runs, "ctranslate2 int8": fast}


def whole_layers(encoder: Any, states: Any, mask: Any, first_only: bool = False, segment_ids: Any = None) -> Any:
    """All tokens through all layers, as an export of the network does it."""
    return type(encoder).forward(encoder, states, mask, False, segment_ids)


class Elsewhere:
    """sentence-transformers with its backend ``openvino`` in a process of another interpreter."""

    def __init__(self, python: Path, folder: Path, precision: str, texts: list[tuple[str, str]]) -> None:
        self.command = [str(python), "-c", OPENVINO, str(folder), str(LAYOUT.length), precision]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.taken = (0.0, 0.0)
        self._send(json.dumps(texts))

    def __call__(self) -> Any:
        self._send("go")
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"taken"'):
                answer = json.loads(line)
                self.taken = tuple(answer["taken"])
                return answer["scores"]
        sys.exit(f"error: {self.command[0]} ended with {self.process.wait()}: has it sentence-transformers[openvino]?")

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def late_join(
    network: Any, pairs: PairTokenizer, items: list[Item], folder: Path, name: str, joins: dict[str, Any], cores: int
) -> dict[str, Callable[[], Any]]:
    """The network as a late join, from the states of an index; its scores of texts must be the same."""
    pairs = PairTokenizer(pairs.tokenizer, pairs.config.model_copy(update={"positions": "block"}))
    late = build_network({**network.config.plain(), **joins}).eval()
    late.load_state_dict(network.state_dict())
    with write_artifact(folder / "model", "model", {}) as aside:
        save_network(aside, late, pairs)
        write_json(aside / NATIVE_GATE_FILE, {"passed": True, "cheap": PARTS, "reasons": []})
    scorers = {kind: Scorer.load(folder / "model", kind, cores) for kind in ("native", "native-int8")}
    exact = scorers["native"]
    index = ItemIndex.build(items, pairs, folder / "index", exact.version, state_writer=exact.state_writer)
    some = np.arange(min(200, len(items)))
    apart = np.abs(exact.score_index(QUERY, index, some) - exact.score(QUERY, [items[row].title for row in some])).max()
    print(f"{name}: scores from states and from texts differ by {apart:.1e} at most", flush=True)
    if not apart <= STATES_DIFFER:
        sys.exit(f"error: that is more than {STATES_DIFFER}")
    return {
        name: lambda: exact.score_index(QUERY, index),
        f"{name} int8": lambda: scorers["native-int8"].score_index(QUERY, index),
    }


def ctranslate2_int8(
    network: Any, pairs: PairTokenizer, items: list[Item], folder: Path, cores: int
) -> Callable[[], Any] | None:
    try:
        import ctranslate2
    except ImportError:
        return None
    config = json.loads((folder / "hf" / "config.json").read_text())
    write_json(folder / "hf" / "config.json", {**config, "position_embedding_type": "absolute"})  # it asks for this
    converter = ctranslate2.converters.TransformersConverter(str(folder / "hf"))
    converter.convert(str(folder / "ct2"), quantization="int8")
    encoder = ctranslate2.Encoder(str(folder / "ct2"), device="cpu", inter_threads=cores, intra_threads=1)
    query, titles = pairs.encode_queries([QUERY]), pairs.encode_items([item.title for item in items])
    first = [pairs.cls_id, *query.ids.tolist(), pairs.sep_id]
    ids = [[*first, *titles.row(row).tolist(), pairs.sep_id] for row in range(len(items))]
    order = np.argsort([len(row) for row in ids], kind="stable")
    batches = [order[start : start + 32] for start in range(0, len(order), 32)]
    weight, bias = (p.detach().numpy() for p in (network.classifier.weight, network.classifier.bias))

    def part(batch: Any) -> Any:
        rows = [ids[row] for row in batch]
        kinds = [[0] * len(first) + [1] * (len(row) - len(first)) for row in rows]
        pooled = np.array(encoder.forward_batch(rows, token_type_ids=kinds).pooler_output)
        return pooled @ weight[0] + bias[0]

    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(cores)

    def run() -> Any:
        logits = np.zeros(len(ids), np.float32)
        for batch, found in zip(batches, pool.map(part, batches), strict=True):
            logits[batch] = found
        return 1 / (1 + np.exp(-logits))

    return run


def take_turns(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds of each run, by name."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(turns):
        order = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for name in order:
            wall, used = time.perf_counter(), time.process_time()
            run = runs[name]
            run()
            taken = (time.perf_counter() - wall, time.process_time() - used)
            seconds[name].append(run.taken if isinstance(run, Elsewhere) else taken)
    return seconds


def cold_start(folder: Path, backend: str) -> dict[str, float]:
    command = [sys.executable, "-c", COLD, str(folder / "model"), backend, str(folder / "index"), QUERY]
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ended, peak, used = json.loads(done.stdout)
    return {"seconds": round(ended - started, 2), "processor_seconds": round(used, 2), "peak_mb": round(peak, 1)}


def measure(
    network: Any, pairs: PairTokenizer, items: list[Item], turns: int, cores: int, openvino: Path | None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        runs = contestants(network, pairs, items, folder, cores, openvino)
        scores = {name: np.asarray(run(), dtype=np.float64) for name, run in runs.items()}  # also the warm-up
        differences = {name: float(np.abs(found - scores["native"]).max()) for name, found in scores.items()}
        exact = [name for name in runs if not name.endswith(("int8", "bf16")) and name not in LATE_JOINS]
        wrong = [name for name in exact if not differences[name] <= 1e-4]
        if wrong:
            sys.exit(f"error: scores of {', '.join(wrong)} differ from those of native: {differences}")
        seconds = take_turns(runs, turns)
        for run in runs.values():
            if isinstance(run, Elsewhere):
                run.process.kill()
                run.process.wait()
        cold = {name: cold_start(folder, name) for name in ("onnx", "native", "native-int8")}
    rows = {
        name: {
            "median_ms": round(1e3 * statistics.median(wall for wall, _ in times), 1),
            "median_processor_ms": round(1e3 * statistics.median(used for _, used in times), 1),
            "native_is_faster": ratio(times, seconds["native"], 0),
            "native_uses_less": ratio(times, seconds["native"], 1),
            "native_int8_is_faster": ratio(times, seconds["native int8"], 0),
            "native_int8_uses_less": ratio(times, seconds["native int8"], 1),
            "largest_difference": differences[name],
        }
        for name, times in seconds.items()
    }
    return {"rows": rows, "cold": cold}


def earlier_runs(out: Path, about: dict[str, Any]) -> list[dict[str, float]]:
    """How much faster native was than each, in the runs that the file already has of the same, with their turns."""
    if not out.exists():
        return []
    before = json.loads(out.read_text(encoding="utf-8"))
    if {**before["about"], "turns": 0} != {**about, "turns": 0}:
        return []
    last = {"turns": before["about"]["turns"]}
    last |= {name: row["native_is_faster"] for name, row in before["rows"].items()}
    return [*before.get("earlier_runs", []), last]


def ratio(theirs: list[tuple[float, float]], ours: list[tuple[float, float]], which: int) -> float:
    return round(statistics.median(a[which] / b[which] for a, b in zip(theirs, ours, strict=True)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="h128")
    parser.add_argument("--titles", type=int, default=3_000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help="an interpreter with OpenVINO for the rival")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cores = available_cores()
    torch.set_num_threads(cores)
    network, pairs = networks()[NETWORKS[args.network]]
    items = real_titles(args.titles, pairs)
    found = measure(network, pairs, items, args.turns, cores, args.openvino)
    print(f"{NETWORKS[args.network]}: 1 query x {len(items)} titles, {cores} cores, {args.turns} turns, medians")
    print(f"{'':32}{'wall ms':>10}{'cpu ms':>10}{'native wall':>13}{'native cpu':>12}{'int8 wall':>11}{'int8 cpu':>10}")
    for name, row in found["rows"].items():
        print(
            f"{name:32}{row['median_ms']:>10.1f}{row['median_processor_ms']:>10.1f}"
            f"{row['native_is_faster']:>12.2f}x{row['native_uses_less']:>11.2f}x"
            f"{row['native_int8_is_faster']:>10.2f}x{row['native_int8_uses_less']:>9.2f}x"
        )
    for name, row in found["cold"].items():
        print(
            f"cold start, {name}: {row['seconds']} s ({row['processor_seconds']} s of processor), {row['peak_mb']} MB"
        )
    out = args.out or Path(__file__).with_name(f"engine_levels_{args.network}.json")
    about = {"query": QUERY, "titles": len(items), "turns": args.turns, "cores": cores, "processor": processor()}
    earlier = earlier_runs(out, about)
    write_json(out, {"about": about, "earlier_runs": earlier, "network": NETWORKS[args.network], **found})
    print(f"written to {out}")


if __name__ == "__main__":
    main()
