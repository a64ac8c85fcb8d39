"""The loop that an expert would write by hand: a pool of threads over the parts, and nothing that proves anything.

    python -m scorer.cli.baseline JOB.json

No Dask, no marks, no digests, no ledger. With the tool's own reader, packing, writer and fsync it is the ceiling
that `scorer bench` measures against; with everybody's defaults it is what people run today.
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
    """How a loop goes about it."""

    threads: int
    batch_rows: int
    batch_tokens: int | None
    as_we_do: bool
    """The tool's session options, writer and order of texts; else everybody's defaults."""


class _Everybodys:
    """A session as one gets it without asking for anything."""

    def __init__(self, path: str, threads: int) -> None:
        options = ort.SessionOptions()
        if threads > 1:  # whoever starts threads keeps the runtime from starting as many for each
            options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """As the runtime's own."""
        return self._session.run(names, feeds)  # type: ignore[no-any-return]


def score(plan: FrozenPlan, out: str, loop: Loop) -> Stages:
    """Every part, each to a file of its own."""
    session = Session(plan.session) if loop.as_we_do else _Everybodys(plan.session.path, loop.threads)
    opened = InputCache()
    os.makedirs(out, exist_ok=True)
    if loop.threads == 1:
        spent = [_part(part, plan, session, opened, out, loop) for part in plan.parts()]
    else:
        with ThreadPoolExecutor(loop.threads) as pool:
            spent = list(pool.map(lambda part: _part(part, plan, session, opened, out, loop), plan.parts()))
    total = Stages()
    for one in spent:
        total += one
    return total


def _part(
    part: Part, plan: FrozenPlan, session: Session | _Everybodys, opened: InputCache, out: str, loop: Loop
) -> Stages:  # fmt: skip
    times = [time.perf_counter()]
    schema = decode_schema(plan.read_schema)
    conditions = tuple(conditions_.parse(text) for text in plan.conditions)
    rows = reader.read(part.source, schema, conditions, loop.batch_rows, opened)
    times.append(time.perf_counter())
    binding = plan.binding
    packs = pack(binding.feeds, rows.table)
    order, edges = batches.by_length(packs) if loop.as_we_do else None, rows.edges
    lengths = batches.lengths_of(packs)
    if order is not None and lengths is not None and loop.batch_tokens is not None:
        edges = batches.budgeted(lengths[order], loop.batch_tokens)
    infer, results = 0.0, []
    names = list(dict.fromkeys(fetch.tensor for fetch in binding.fetches))
    for start, stop in pairwise(edges.tolist()):
        chosen = slice(start, stop) if order is None else order[start:stop]
        feeds = {name: packed.batch(chosen) for name, packed in packs.items()}
        began = time.perf_counter()
        given = dict(zip(names, session.run(names, feeds), strict=True))
        results.append([batches.stepped(fetch, given, feeds) for fetch in binding.fetches])
        infer += time.perf_counter() - began
    times.append(time.perf_counter())
    columns = [c for i, fetch in enumerate(binding.fetches) for c in unpack(fetch, [result[i] for result in results])]
    if order is not None:
        back = pa.array(np.argsort(order))
        columns = [column.take(back) for column in columns]
    table = rows.table.select(list(binding.kept))
    for name, column in zip(binding.outputs, columns, strict=True):
        table = table.append_column(name, column)
    times.append(time.perf_counter())
    path = os.path.join(out, part.name.replace("/", "__"))
    if loop.as_we_do:
        write_once(path, Encoded.of(table, plan.storage))
    else:
        pq.write_table(table, path, compression=plan.storage.codec)
    times.append(time.perf_counter())
    decode, packed_, unpacked, written = (b - a for a, b in pairwise(times))
    return Stages(decode=decode, pack=packed_ - infer, infer=infer, unpack=unpacked, write=written)


def refuse_what_a_loop_cannot(plan: FrozenPlan) -> None:
    """Bad rows, fixed batches and transforms are what a tool is for."""
    odd = plan.transform is not None or plan.binding.fixed_batch is not None
    if odd or any(fetch.kind == "ragged" for fetch in plan.binding.fetches):
        what, hint = "there is no plain loop to compare with", "bench a plan without it"
        found = "a transform, a fixed batch or outputs as long as their texts"
        raise OptionsError(what, "scorer bench", "columns in, columns out", found, hint)


def main() -> None:
    """One line of JSON: the seconds by stage."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    plan = FrozenPlan.from_dict(job["plan"])
    loop = Loop(**job["loop"])
    plan = replace(plan, batch_rows=loop.batch_rows)
    spent = score(plan, job["output"], loop)
    print(json.dumps({"stages": spent.to_dict()}), flush=True)  # noqa: T201 - read by bench
    with suppress(BrokenPipeError):
        os._exit(0)  # as quick to leave as the tool is


if __name__ == "__main__":
    main()
