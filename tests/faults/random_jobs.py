"""Run random jobs and compare everything they write with an oracle of pyarrow, numpy and ONNX Runtime.

    python tests/faults/random_jobs.py 20000 --seed 1 --processes 2
    python tests/faults/random_jobs.py 1 --case 1-4711     one case again, with its job and a shorter version of it

A case is a table in some files, a model and flags (tests/support/random_jobs.py). The oracle
(tests/support/plain_scoring.py) says what must come out: columns, types, order, bits, quarantine, counts, folders, or
a refusal. Prints JSON at the end, and exits with 1 if a case differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from support.plain_scoring import Expected, Job, UnreadableInput, close, expected, plain, same
from support.random_jobs import arguments, random_job
from support.random_tables import File, natural, write_files

import scorer
from scorer.errors import PreflightError, ScorerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PIECE = 500
"""Cases of one process."""
CODECS = {"none": "UNCOMPRESSED", "lz4": "LZ4"}


def run_case(job: Job, folder: Path) -> tuple[str, list[str]]:
    """Run the job in the folder; return ("done", "refused", "unreadable", "failed") and the differences."""
    write_files(folder / "in", job.files)
    (folder / "model.onnx").write_bytes(job.model.data)
    try:
        wanted = expected(job, folder / "in")
    except UnreadableInput:
        return "unreadable", []
    try:
        report = scorer.run(**arguments(job, folder))
    except ScorerError as error:
        problems = error.problems if isinstance(error, PreflightError) else (error,)
        found = {type(problem).__name__ for problem in problems}
        different = [] if found & wanted.refusals else [f"refused, expected {wanted.refusals or 'rows'}: {error}"]
        different += ["refused, but wrote an output"] if (folder / "out").exists() else []
        return "refused", different
    if wanted.refusals:
        return "done", [f"done, expected {wanted.refusals}"]
    return "done", [*compare(job, wanted, folder, report)]


def compare(job: Job, wanted: Expected, folder: Path, report) -> Iterator[str]:
    """Yield every difference of an output and its proof from what was expected."""
    counts = {name: getattr(report.counts, name) for name in wanted.counts}
    if counts != wanted.counts:
        yield f"counts {counts}, expected {wanted.counts}"
    if "could not be written" in (folder / "out.scorer" / "report.html").read_text("utf-8")[:100]:
        yield "no report.html"
    verdict = scorer.verify(folder / "out", deep=True)
    yield from (f"verify: {fault}" for fault in verdict.faults)
    out = folder / "out"
    paths = sorted(out.rglob("*"), key=lambda path: path.name)
    if odd := [path.name for path in paths if path.is_file() and path.suffix != ".parquet"]:
        yield f"files {odd} in the output"
    parts = [(path, pq.ParquetFile(path)) for path in paths if path.is_file()]
    tables = [parquet.read() for _, parquet in parts]
    inside = [os.path.relpath(path.parent, out) for path, _ in parts]
    folders = [f if f != "." else "" for f, table in zip(inside, tables, strict=True) for _ in range(len(table))]
    if folders != wanted.folders:
        yield f"rows in folders {folders[:5]}, expected {wanted.folders[:5]}"
    for table in tables:
        schema = [(field.name, field.type) for field in table.schema]
        if schema != wanted.schema:
            yield f"schema {schema}, expected {wanted.schema}"
            return
    for i, (name, kind) in enumerate(wanted.schema):
        yield from compare_column(name, kind, [t.column(i) for t in tables], wanted)
    yield from compare_storage(job, folder, [parquet for _, parquet in parts])
    yield from compare_quarantine(wanted, folder)


def compare_column(name: str, kind: pa.DataType, found: list, wanted: Expected) -> Iterator[str]:
    """Yield the first difference of a column."""
    one = pa.concat_arrays([pa.array([], plain(pa.array([], kind)).type), *map(plain, found)])
    other = pa.concat_arrays(list(map(plain, wanted.columns[name])))
    if name in wanted.rough and close(one, other):
        return
    if not same(one, other):
        pairs = zip(one.to_pylist(), other.to_pylist(), strict=False)
        rows = [(i, a, b) for i, (a, b) in enumerate(pairs) if repr(a) != repr(b)][:3]
        yield f"column {name!r} ({kind}), {len(one)} rows, expected {len(other)}; row, found, expected: {rows}"


def compare_storage(job: Job, folder: Path, parts: list[pq.ParquetFile]) -> Iterator[str]:
    """Yield differences in the codec and in the size of row groups."""
    codec, most = job.more.get("compression", "source"), job.more.get("row_group_rows", 2**40)
    first = min(job.files, key=lambda file: natural(file.path))
    kept = pq.read_schema(folder / "in" / first.path).metadata or {}
    for parquet in parts:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
        if any(group.num_rows > most for group in groups):
            yield f"row groups of {max(group.num_rows for group in groups)}, expected at most {most}"
        used = {g.column(i).compression for g in groups for i in range(g.num_columns)}
        if codec != "source" and used - {CODECS.get(codec, codec.upper())}:
            yield f"codecs {used}, expected {codec}"
        if not kept.items() <= (parquet.schema_arrow.metadata or {}).items():
            yield f"metadata {parquet.schema_arrow.metadata}, expected {kept}"


def compare_quarantine(wanted: Expected, folder: Path) -> Iterator[str]:
    """Yield differences in the rows of the quarantine."""
    paths = sorted((folder / "out.scorer" / "quarantine").glob("*"))
    tables = [pq.ParquetFile(path).read() for path in paths]
    rows = [
        (row["_file"], row["_row"], row["_stage"])
        for table in tables
        for row in table.select(["_file", "_row", "_stage"]).to_pylist()
    ]
    if sorted(rows) != sorted(wanted.bad):
        yield f"quarantine {rows[:4]}, expected {wanted.bad[:4]}"
        return
    order, other_order = (
        pa.array([i for _, i in sorted(zip(x, range(len(x)), strict=True))], pa.int64()) for x in (rows, wanted.bad)
    )
    own = {"_file", "_row", "_stage", "_error"}
    names = [name for name in wanted.aside[0].column_names if name not in own] if rows else []
    for i, name in enumerate(names):  # by place: two columns may have one name
        at = [j for j, other in enumerate(wanted.aside[0].column_names) if other not in own][i]
        one = pa.concat_arrays([plain(table.column(i)) for table in tables]).take(order)
        other = pa.concat_arrays([plain(table.column(at)) for table in wanted.aside]).take(other_order)
        if not same(one, other):
            yield f"column {name!r} in quarantine: {one.to_pylist()[:4]}, expected {other.to_pylist()[:4]}"


def shorter(job: Job) -> Iterator[Job]:
    """Yield versions of the job with one thing less."""
    plain_values = {"where": [], "limit": None, "fetches": [], "prefix": "", "row_id": False, "on_null": {}, "more": {},
                    "on_lossy": "error", "batch_rows": None, "max_nan_rows": None, "keep": []}  # fmt: skip
    for name, value in plain_values.items():
        if getattr(job, name) != value:
            yield dataclasses.replace(job, **{name: value})
    for name in job.more:
        yield dataclasses.replace(job, more={k: v for k, v in job.more.items() if k != name})
    if len(job.files) > 1:
        for file in job.files:
            yield dataclasses.replace(job, files=[one for one in job.files if one is not file])
    whole = [File(file.path, [file.table], file.options) for file in job.files]
    if any(len(file.groups) > 1 for file in job.files):
        yield dataclasses.replace(job, files=whole)
    for keep in (lambda t: t.slice(0, len(t) // 2), lambda t: t.slice(len(t) // 2)):
        if sum(len(file.table) for file in job.files) > 1:
            yield dataclasses.replace(
                job, files=[File(f.path, list(map(keep, f.groups)), f.options) for f in job.files]
            )
    used = {*(job.keep or []), *(n for names in job.feeds.values() for n in names), *(c for c, *_ in job.where)}
    for name in dict.fromkeys(job.files[0].table.column_names):
        if name not in used:
            files = [File(f.path, [_without(group, name) for group in f.groups], f.options) for f in job.files]
            yield dataclasses.replace(job, files=files)
    yield from _plainer_files(job)


def _without(table: pa.Table, name: str) -> pa.Table:
    return table.select([i for i, other in enumerate(table.column_names) if other != name])


def _plainer_files(job: Job) -> Iterator[Job]:
    """Yield the job with one option of its files left out."""
    for name in job.files[0].options:
        files = [File(f.path, f.groups, {k: v for k, v in f.options.items() if k != name}) for f in job.files]
        yield dataclasses.replace(job, files=files)


def shrunk(job: Job, still: Callable[[Job], bool], seconds: float = 30) -> Job:
    """Return a short version of the job for which `still` holds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = next((one for one in shorter(job) if time.monotonic() < until and still(one)), None)
        if found is None:
            break
        job = found
    return job


def outcome(job: Job, where: Path) -> tuple[str, list[str]]:
    """Return the status and the differences of a job, tracebacks included, in a new folder that is removed."""
    folder = Path(tempfile.mkdtemp(dir=where))
    try:
        return run_case(job, folder)
    except Exception:  # noqa: BLE001 - every exception but ScorerError is a difference
        return "failed", [traceback.format_exc(limit=-6)]
    finally:
        shutil.rmtree(folder)


def differs(job: Job, where: Path, status: str) -> bool:
    """Return whether the job still differs, with the same status."""
    found, different = outcome(job, where)
    return found == status and bool(different)


def describe(job: Job) -> str:
    """Return the job as text."""
    table = job.files[0].table
    files = [(file.path, [len(group) for group in file.groups], file.options) for file in job.files]
    flags = {k: v for k, v in arguments(job, Path("DIR")).items() if v not in (None, "", False)}
    inputs = [(i.name, i.type, i.shape) for i in job.model.inputs]
    return f"model {job.model.kind} {inputs} -> {job.model.outputs}\nflags {flags}\nfiles {files}\n{table.schema}"


def run_many(cases: list[str], where: Path) -> Counter[str]:
    """Run the cases; print each that differs, and return the counts."""
    found: Counter[str] = Counter()
    for seed in cases:
        job = random_job(seed)
        status, different = outcome(job, where)
        found["cases"] += 1
        found[status] += 1
        found[f"by {job.more['cluster']}"] += 1
        if different:
            found["different"] += 1
            print(f"DIFFERENT: case {seed}\n  " + "\n  ".join(different), file=sys.stderr, flush=True)
    return found


def run_in_processes(cases: range, seed: str, processes: int) -> Counter[str]:
    """Run the cases by copies of this script, several at a time; print the progress."""

    def run_piece(first: int) -> Counter[str]:
        count = min(_PIECE, cases.stop - first)
        command = [sys.executable, "-X", "faulthandler", __file__, str(count), "--seed", seed, "--first", str(first)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode in {0, 1}:
            return Counter(json.loads(done.stdout))
        print(f"DIED: cases {first} to {first + count - 1}, exit code {done.returncode}", file=sys.stderr, flush=True)
        return Counter({"cases": count, "different": 1, "processes that died": 1})

    found: Counter[str] = Counter()
    with ThreadPoolExecutor(processes) as pool:
        for counts in pool.map(run_piece, cases[::_PIECE]):
            found += counts
            print(f"{found['cases']:,} cases, {found['different']} different", file=sys.stderr, flush=True)
    return found


@contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a new folder, in memory where possible: every run syncs its files, which is slow on a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def repeat_case(seed: str, where: Path) -> int:
    """Run one case again and print it, and a shorter version if it differs; return the exit code."""
    job = random_job(seed)
    status, different = outcome(job, where)
    print(f"{describe(job)}\n{status}\n" + "\n".join(different))
    if not different:
        return 0
    job = shrunk(job, lambda one: differs(one, where, status))
    print(f"\nshorter:\n{describe(job)}\n{job.files[0].table.to_pylist()[:5]}\n" + "\n".join(outcome(job, where)[1]))
    return 1


def main() -> None:
    """Run the cases of the command line, and print the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=int)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--case", help="the seed of one case, as printed")
    asked = parser.parse_args()
    warnings.simplefilter("error", RuntimeWarning)  # numpy's, which a user would see
    started = time.monotonic()
    with working_folder() as where:
        os.environ["XDG_CACHE_HOME"] = str(where)  # tuning neither reads nor writes the user's cache
        if asked.case:
            sys.exit(repeat_case(asked.case, where))
        if asked.cases > _PIECE:
            found = run_in_processes(range(asked.first, asked.first + asked.cases), asked.seed, asked.processes)
        else:
            found = run_many([f"{asked.seed}-{asked.first + n}" for n in range(asked.cases)], where)
    found["seconds"] = round(time.monotonic() - started)
    print(json.dumps(dict(sorted(found.items())), indent=1))
    sys.exit(found["different"] > 0)


if __name__ == "__main__":
    main()
