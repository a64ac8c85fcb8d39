"""End the process before and after every request that a run sends to an object store, then repeat the command.

    python tests/faults/stop_at_every_request.py            # every request; with a number n, every n-th one

A run with four parts and a quarantine is scored onto a store: a new output, and one that replaces an older output. Each
request is interrupted twice: once the process ends just before it is sent, once just after it was answered. The script
checks what a reader would find, repeats the command, and requires an exact result. It prints a line for each request:
the request, what was there, and the result.

It starts SeaweedFS; if AWS_ENDPOINT_URL is set, it uses that server instead, with the credentials of the environment.
The oracle is pyarrow's own client, and sums that need no runtime. Each step is in a process of its own, because a
process whose clients have started threads must not be forked.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from stop_at_every_step import BAD, ENDED, MODEL, ROWS, in_a_child, make_input

import scorer
import scorer.api.pipeline
import scorer.output.publish_objects  # imported before the forks, so that no child has to import it
from scorer.output.place import SUCCESS
from scorer.storage import objects  # noqa: F401 - likewise

VERBS = ("put", "get", "list", "list_with_delimiter", "head", "copy", "delete")
OLD_ROWS = 3
PROOF_FILES = {"events.jsonl", "plan.json", "ledger.parquet", "manifest.json", "report.json", "report.html"}
GOOD = [row for row in range(ROWS) if row != BAD + 20]


class Requests:
    """Counts the requests of this process, and ends it at one of them."""

    def __init__(self, at: int, *, after: bool, told: int) -> None:
        self.at, self.after, self.told = at, after, told
        self.sent = 0
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Wrap the functions of the client, in this process only."""
        import obstore

        for name in VERBS:
            setattr(obstore, name, self._around(name, getattr(obstore, name)))

    def _around(self, name, function):
        def sent(store, *args, **options):
            with self._lock:
                number, self.sent = self.sent, self.sent + 1
            if number != self.at:
                return function(store, *args, **options)
            os.write(self.told, f"{name} {_steady(args)}".encode())
            try:
                if not self.after:
                    return None
                answer = function(store, *args, **options)
                return list(answer) if name == "list" else answer  # the request is sent when the first page is read
            finally:
                os._exit(ENDED)

        return sent


def _steady(args: tuple) -> str:
    """Return what a request is about, without what changes from run to run."""
    what = args[0] if args else ""
    if isinstance(what, list):
        return f"{len(what)} objects, {_steady((what[0],))}" if what else "nothing"
    pieces = ["work" if piece.startswith("work-") else piece for piece in f"{what}".split("/")[1:]]
    to = f" -> {_steady((args[1],))}" if len(args) > 1 and isinstance(args[1], str) else ""
    return "/".join(pieces) + to


def store() -> pyarrow.fs.FileSystem:
    """Return pyarrow's client."""
    return pyarrow.fs.S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"], region="us-east-1",
        scheme="http", endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
        allow_bucket_creation=True, retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(10),
    )  # fmt: skip


def names_below(files: pyarrow.fs.FileSystem, top: str) -> list[str]:
    """Return the names of all objects below a folder."""
    found = files.get_file_info(pyarrow.fs.FileSelector(top, recursive=True, allow_not_found=True))
    return sorted(one.path.removeprefix(f"{top}/") for one in found if one.type is pyarrow.fs.FileType.File)


def score(source: Path, output: str, *, overwrite: bool, success_file: bool = False) -> None:
    """Run once; the same call is interrupted and then repeated."""
    scorer.run(
        source, MODEL, output, cluster="synchronous", feed="x=a,b,c", max_bad_rows=1, file_rows=10, tune=False,
        batch_rows=5, overwrite=overwrite, success_file=success_file,
    )  # fmt: skip


def rows_of(files: pyarrow.fs.FileSystem, output: str) -> list[tuple[int, float]]:
    """Return ids and scores of all rows in the output, read part by part in the order of their names."""
    names = [name for name in names_below(files, output) if name.endswith(".parquet")]
    tables = [pq.read_table(f"{output}/{name}", filesystem=files, columns=["id", "total"]) for name in names]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def expected(kind: str) -> list[tuple[int, float]]:
    """Return the rows of the new output or of the old one."""
    return [(row, 3.0 * row) for row in GOOD] if kind == "new" else [(row, 3.0) for row in range(OLD_ROWS)]


def describe(output: str) -> str:
    """Describe what a reader finds; a manifest over something incomplete is said in capitals."""
    files, output = store(), output.removeprefix("s3://")
    proof = names_below(files, f"{output}.scorer")
    parts = [name for name in names_below(files, output) if name != SUCCESS]
    staged = sum("/parts/" in name for name in proof)
    there = f"{len(parts)} in OUT, {staged} staged"
    if "lock" in proof:
        there += ", lease"
    if "manifest.json" not in proof:
        return there
    with files.open_input_stream(f"{output}.scorer/manifest.json") as file:
        manifest = json.loads(file.read())
    kind = "new" if manifest["rows"] == ROWS else "old"
    complete = rows_of(files, output) == expected(kind)
    return f"{there}, manifest: {kind}" if complete else f"{there}, MANIFEST OVER SOMETHING ELSE"


def faults_of(output: str, *, success_file: bool) -> str:
    """Return the faults of a finished output; empty if it is exact."""
    files, output = store(), output.removeprefix("s3://")
    wrong = [] if rows_of(files, output) == expected("new") else ["other rows or scores"]
    proof = names_below(files, f"{output}.scorer")
    bad = [name for name in proof if name.startswith("quarantine/")]
    if len(bad) != 1 or pq.read_table(f"{output}.scorer/{bad[0]}", filesystem=files)["id"].to_pylist() != [BAD + 20]:
        wrong.append("another quarantine")
    if {*proof} - {*bad} != PROOF_FILES:
        wrong.append(f"left behind: {sorted({*proof} - {*bad} ^ PROOF_FILES)}")
    ledger = pq.read_table(f"{output}.scorer/ledger.parquet", filesystem=files)
    named = dict(zip(ledger["name"].to_pylist(), ledger["size"].to_pylist(), strict=True))
    found = {name: files.get_file_info(f"{output}/{name}").size for name in names_below(files, output)}
    if found != named | ({SUCCESS: 0} if success_file else {}):
        wrong.append(f"OUT is not what the ledger says: {found}")
    return "; ".join(wrong)


def interrupt(bucket: str, folder: Path, at: int, *, after: bool, overwrite: bool) -> list[str] | None:
    """Interrupt at one request and repeat; return the request, what was there then, and the faults at the end.

    None if the run sends no such request.
    """
    output, success_file = f"{bucket}/{uuid.uuid4().hex[:8]}/out", overwrite
    source, old = folder / "in.parquet", folder / "old.parquet"
    if overwrite:
        code, text = in_a_child(lambda: score(old, output, overwrite=False, success_file=success_file))
        assert code == 0, text
    reader, told = os.pipe()

    def run() -> None:
        Requests(at, after=after, told=told).watch()
        score(source, output, overwrite=overwrite, success_file=success_file)

    code, text = in_a_child(run)
    os.close(told)
    with os.fdopen(reader, "rb") as answer:
        request = answer.read().decode()
    if code == 0:
        return None
    assert code == ENDED, (at, code, text)
    code, state = in_a_child(lambda: describe(output))
    assert code == 0, state
    code, text = in_a_child(lambda: score(source, output, overwrite=overwrite, success_file=success_file))
    if code == 0:
        code, text = in_a_child(lambda: faults_of(output, success_file=success_file))
    return [request, state, f"exit {code}: {text[-2000:]}" if code else text]


def prepare(folder: Path) -> None:
    """Write the input, and that of the older output."""
    make_input(folder / "in.parquet")
    old = pa.table({"id": np.arange(OLD_ROWS), **{c: np.ones(OLD_ROWS) for c in "abc"}})
    pq.write_table(old, folder / "old.parquet")


@contextlib.contextmanager
def server():
    """Set the environment for a store, start one unless there is one, and yield it."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from services.stores import S3, seaweed

    if "AWS_ENDPOINT_URL" in os.environ:
        yield S3(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
        return
    with seaweed() as started:
        os.environ.update(started.environment)
        yield started


def main() -> None:
    """Print the table; exit with 1 if a line is not exact."""
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    wrong = total = lies = 0
    with server(), tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        bucket = f"s3://b{uuid.uuid4().hex[:12]}"
        in_a_child(lambda: store().create_dir(bucket.removeprefix("s3://")))
        for overwrite in (False, True):
            print("\nreplacing another output" if overwrite else "without an older output")
            for after in (False, True):
                at = int(overwrite) + 2 * int(after)
                at %= every
                while True:
                    done = interrupt(bucket, Path(folder), at, after=after, overwrite=overwrite)
                    if done is None:
                        break
                    request, state, fault = done
                    total, wrong, lies = total + 1, wrong + bool(fault), lies + ("MANIFEST" in state)
                    when = "after" if after else "before"
                    print(f"{when:6} {at:3} {request:90} -> {state:45} -> {fault or 'exact'}", flush=True)
                    at += every
    said = f"{lies} manifests over something incomplete, {wrong} not exact after the same command"
    print(f"\n{total} interruptions, {said}")
    sys.exit(bool(wrong or lies))


if __name__ == "__main__":
    main()
