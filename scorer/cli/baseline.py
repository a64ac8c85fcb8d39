"""The hand-written loop that `scorer bench` compares with: a thread pool over the parts.

    python -m scorer.cli.baseline JOB.json

It has no Dask, no digests, no ledger and no recovery. With scorer's reader, packing, writer and fsync it is the
upper bound for scorer's speed. With the defaults of ONNX Runtime and pyarrow it is the loop that most people write.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq

from scorer.arrow import decode_schema
from scorer.binding.features.pack import pack
from scorer.binding.features.unpack import unpack
from scorer.dataset import conditions as conditions_
from scorer.dataset import reader
from scorer.dataset.cursors import InputCache
from scorer.errors import OptionsError
from scorer.events import Stages
from scorer.model.session import Session
from scorer.output.writer import Encoded, write_once
from scorer.plan.frozen import FrozenPlan
from scorer.scoring import batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.plan.parts import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The settings of one loop."""

    threads: int
    batch_rows: int
    batch_tokens: int | None
    like_scorer: bool
    """Use scorer's session options, writer and order of texts; otherwise the libraries' defaults."""


class _DefaultSession:
    """An ONNX Runtime session with default options."""

    def __init__(self, path: str, threads: int) -> None:
        options = ort.SessionOptions()
        if threads > 1:  # else the runtime starts a thread pool of its own for each thread
            options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model, with the arguments of `InferenceSession.run`."""
        return self._session.run(names, feeds)  # type: ignore[no-any-return]


def score(plan: FrozenPlan, out: str, loop: Loop) -> Stages:
    """Score every part into its own file; return the seconds by stage."""
    (scorer,) = plan.scorers
    session = Session(scorer.session) if loop.like_scorer else _DefaultSession(scorer.session.path, loop.threads)
    cache = InputCache()
    os.makedirs(out, exist_ok=True)
    if loop.threads == 1:
        spent = [_part(part, plan, session, cache, out, loop) for part in plan.parts()]
    else:
        with ThreadPoolExecutor(loop.threads) as pool:
            spent = list(pool.map(lambda part: _part(part, plan, session, cache, out, loop), plan.parts()))
    total = Stages()
    for one in spent:
        total += one
    return total


def _part(
    part: Part, plan: FrozenPlan, session: Session | _DefaultSession, cache: InputCache, out: str, loop: Loop
) -> Stages:  # fmt: skip
    times = [time.perf_counter()]
    schema = decode_schema(plan.read_schema)
    conditions = tuple(conditions_.parse(text) for text in plan.conditions)
    rows = reader.read_all(part.sources, schema, conditions, (loop.batch_rows,), cache)
    times.append(time.perf_counter())
    binding = plan.scorers[0].binding
    packs = pack(binding.feeds, rows.table)
    order, edges = batches.order_by_length(packs) if loop.like_scorer else None, rows.edges[0]
    lengths = batches.lengths_of(packs)
    if order is not None and lengths is not None and loop.batch_tokens is not None:
        edges = batches.token_edges(lengths[order], loop.batch_tokens)
    infer, results = 0.0, []
    for start, stop in pairwise(edges.tolist()):
        chosen = slice(start, stop) if order is None else order[start:stop]
        feeds = {name: packed.batch(chosen) for name, packed in packs.items()}
        started = time.perf_counter()
        tensors = batches.run_model(session, binding, feeds)
        results.append([batches.apply_steps(fetch, tensors, feeds) for fetch in binding.fetches])
        infer += time.perf_counter() - started
    times.append(time.perf_counter())
    columns = [c for i, fetch in enumerate(binding.fetches) for c in unpack(fetch, [result[i] for result in results])]
    if order is not None:
        back = pa.array(np.argsort(order))
        columns = [column.take(back) for column in columns]
    table = rows.table.select(list(plan.kept))
    for name, column in zip(binding.outputs, columns, strict=True):
        table = table.append_column(name, column)
    times.append(time.perf_counter())
    path = os.path.join(out, part.name.replace("/", "__"))
    if loop.like_scorer:
        write_once(path, Encoded.of(table, plan.storage))
    else:
        pq.write_table(table, path, compression=plan.storage.codec)
    times.append(time.perf_counter())
    decode, packed_, unpacked, written = (b - a for a, b in pairwise(times))
    return Stages(decode=decode, pack=packed_ - infer, infer=infer, unpack=unpacked, write=written)


def refuse_unsupported(plan: FrozenPlan) -> None:
    """Raise for a plan that the loop cannot run, such as one with a transform, several models, or a table."""
    unsupported = plan.transform is not None or len(plan.scorers) > 1 or plan.table is not None or bool(plan.joins)
    fixed = any(scorer.binding.fixed_batch is not None for scorer in plan.scorers)
    if unsupported or fixed or any(fetch.kind == "ragged" for fetch in plan.fetches):
        raise OptionsError(
            "the hand-written loop cannot run this job",
            where="scorer bench",
            expected="columns in, columns out",
            found="a transform, several models, a fixed batch, outputs of varying length, a table or a joined table",
            hint="run bench on a job without it",
        )


def main() -> None:
    """Run the job file in `argv[1]`; print the seconds by stage as one line of JSON."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    plan = FrozenPlan.from_dict(job["plan"])
    loop = Loop(**job["loop"])
    plan = replace(plan, scorers=(replace(plan.scorers[0], batch_rows=loop.batch_rows),))
    spent = score(plan, job["output"], loop)
    print(json.dumps({"stages": spent.to_dict()}), flush=True)  # noqa: T201 - read by bench
    with suppress(BrokenPipeError):
        os._exit(0)  # scorer exits in the same way, without teardown


if __name__ == "__main__":
    main()
