"""End the process before and after every step of the commit protocol on disk, then resume the run.

    python tests/faults/stop_at_every_step.py          # every step; with a number n, every n-th step
    python tests/faults/stop_at_every_step.py 1 generation conversion

First the steps of a run with two parts and a quarantine are recorded: each mkdir, open for writing, fsync, link, rename
and removal. It is a first run, one that replaces another output, and one with --new-only that adds a generation to an
output with or without generations, or that replaces or removes rows of earlier ones. Then each step is interrupted
twice: once the process ends just before it, once just after it. The script checks what is on disk, repeats the request,
and requires an exact result. It prints a line for each step: the step, what was on disk, and the result.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import scorer
import scorer.api.pipeline  # imported before the forks, so that no child has to import it
from scorer.api.verification import check as verify
from scorer.output import existing, staging
from scorer.output.place import Place
from scorer.storage import files

MODEL = Path(__file__).parent.parent / "models" / "sum3.onnx"
ROWS, BAD, OLD = 40, 7, 3
ENDED = 9
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where syncing costs nothing
MODES = {
    "fresh": "without an older output",
    "overwrite": "replacing another output",
    "generation": "adding a generation",
    "conversion": "adding a generation to an output that has none",
    "replacing": "replacing the rows of changed files in an output with generations",
    "replacing flat": "replacing the rows of changed files in an output without generations",
    "removing": "removing the rows of files that are gone, without new ones",
}
NOT_REACHED = "not interrupted"
GROWING = ("generation", "conversion")
REPLACING = ("replacing", "replacing flat", "removing")


@dataclass
class Steps:
    """Counts the disk operations below a folder, and ends the process at one of them."""

    top: str
    at: int = -1
    after: bool = False
    taken: list[str] = None  # type: ignore[assignment]

    def watch(self) -> None:
        """Wrap the functions that change files, in this process only."""
        self.taken = []
        for name in ("link", "rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
            setattr(os, name, self._around(name, getattr(os, name)))
        files.rename = self._around("exchange", files.rename)
        staging.Journal.add = self._around("receipt", staging.Journal.add)
        plain = io.open

        def opened(file, mode="r", *args, **options):
            if isinstance(mode, str) and set(mode) & set("wax+"):
                return self._around("open", plain)(file, mode, *args, **options)
            return plain(file, mode, *args, **options)

        builtins.open = io.open = opened

    def _around(self, name, function):
        def stepped(*args, **options):
            place = self._place(name, args, options)
            if place is None:
                return function(*args, **options)
            number = len(self.taken)
            self.taken.append(f"{name} {place}")
            if number == self.at and not self.after:
                os._exit(ENDED)
            result = None
            try:
                result = function(*args, **options)
            finally:
                if number == self.at:
                    if name == "open" and result is not None:  # leave half a file
                        result.write(b"PAR1 half" if "b" in args[1] else "half")
                        result.flush()
                    os._exit(ENDED)
            return result

        return stepped

    def _place(self, name, args, options):
        """Return the path below the folder, without what changes from run to run; None for other paths."""
        if name == "receipt":
            return args[1].name
        path = args[-1] if name in {"link", "rename", "replace"} else args[1] if name == "exchange" else args[0]
        if isinstance(path, int):
            with suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{path}")
        elif options.get("dir_fd") is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{options['dir_fd']}"), path)
        path = os.fspath(path) if not isinstance(path, int) else ""
        if not path.startswith(self.top):
            return None
        pieces = path.removeprefix(self.top).lstrip("/").split("/")
        return "/".join(_steady(piece) for piece in pieces)


def _steady(name: str) -> str:
    """Return a file name without hashes, tokens and process ids."""
    if name.startswith("work-"):
        return "work"
    if name.endswith(".crash"):
        return "PROCESS.crash"
    if name.startswith("lock."):
        return "lock.TOKEN"
    head, _, rest = name.partition(".")
    attempt, dot, tail = rest.partition(".")
    return f"{head}.ATTEMPT.{tail}" if dot and len(attempt) == 12 else name


def make_input(path: Path) -> Path:
    """Write an input of two parts, with one bad row in the second."""
    columns = {"id": np.arange(ROWS), **{c: np.arange(ROWS, dtype=np.float64) for c in "abc"}}
    columns["a"][BAD + 20] = 1e300  # no float32 holds it
    pq.write_table(pa.table(columns), path, row_group_size=20)
    return path


def score(source: Path, output: Path, mode: str) -> None:
    """Run once; the same call is interrupted and then repeated."""
    scorer.run(
        source, MODEL, output, cluster="synchronous", feed="x=a,b,c", max_bad_rows=1, part_bytes=4096, file_rows=20,
        tune=False, batch_rows=8, overwrite=mode == "overwrite", new_only=mode in GROWING + REPLACING,
        **({"on_changed": "rescore", "on_gone": "remove"} if mode in REPLACING else {}),
    )  # fmt: skip


def in_a_child(function) -> tuple[int, str]:
    """Call the function in a fork; return its exit code and the text that it returned."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 0
        try:
            text = function() or ""
        except BaseException:  # noqa: BLE001 - the parent shows it
            code, text = 1, traceback.format_exc()
        os.write(writer, text.encode()[-60_000:])
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read().decode()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


def describe(output: Path) -> str:
    """Describe the files that the ended process left."""
    place = Place.of(str(output), None)
    work = list(place.folder.glob("work-*")) if place.folder.exists() else []
    staged = sum(1 for _ in place.folder.glob("work-*/parts/**/*.parquet"))
    there = "no OUT"
    if output.exists():
        rows = rows_in(output)
        there = f"OUT with {rows} rows"
    temps = sum(1 for _ in place.folder.glob("work-*/tmp/*"))
    doing = (
        "publishing" if any((w / "publish.json").exists() for w in work) else "staging" if work else "no work folder"
    )
    return f"{there}, {doing}, {staged} parts, {temps} temps"


def rows_in(output: Path) -> int:
    """Return the number of rows of an output."""
    return sum(pq.read_metadata(path).num_rows for path in output.rglob("*.parquet"))


def faults_of(output: Path, mode: str) -> str:
    """Return the faults of a finished output; empty if it is exact."""
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(output.rglob("*.parquet"))])
    good = [row for row in range(ROWS) if row != BAD + 20]
    old = range(OLD) if mode in GROWING else ()
    wrong = []
    if table["id"].to_pylist() != [*old, *good] or table["total"].to_pylist() != [
        *(3.0 for _ in old),
        *(3.0 * row for row in good),
    ]:
        wrong.append("other rows or scores")
    verdict = verify(Place.of(str(output), None), deep=True)
    wrong += verdict.faults
    bad = pq.read_table(Path(f"{output}.scorer") / "quarantine")
    if bad["id"].to_pylist() != [BAD + 20]:
        wrong.append("another quarantine")
    left = sorted(os.listdir(f"{output}.scorer"))
    generations = ["generation=0001", "generation=0002"] if mode in GROWING + REPLACING else []
    proof = set(existing.PROOF_FILES) - {existing.NAME}  # which only tables with deleted rows have
    if left != sorted(["events.jsonl", *proof, *generations]):
        wrong.append(f"left behind: {left}")
    beside = sorted(name for name in os.listdir(output.parent) if name not in {"in", "old"})
    if beside != [output.name, f"{output.name}.scorer"]:
        wrong.append(f"left beside: {beside}")
    return "; ".join(wrong)


def prepare(folder: Path, mode: str) -> tuple[Path, Path]:
    """Write an input and, except for a first run, an older output; return both paths."""
    source, output = folder / "in", folder / "out"
    source.mkdir()
    if mode == "removing":
        make_input(source / "b.parquet")
    if mode != "fresh":
        older = folder / "old" if mode == "overwrite" else source
        older.mkdir(exist_ok=True)
        write_old(older / "a.parquet")
        if mode in {"replacing", "replacing flat"}:
            write_old(older / "b.parquet")
        first = "fresh" if mode in {"overwrite", "conversion", "replacing flat"} else "generation"
        code, text = in_a_child(lambda: score(older, output, first))
        assert code == 0, text
    if mode in REPLACING:
        (source / "a.parquet").unlink()
    if mode != "removing":
        make_input(source / "b.parquet")
    return source, output


def write_old(path: Path) -> None:
    """Write an input whose rows are in an older output."""
    columns = {"id": np.arange(OLD), **{c: np.ones(OLD) for c in "abc"}}
    pq.write_table(pa.table(columns), path, row_group_size=20)


def rows_before(mode: str) -> int:
    """Return the rows of the older output."""
    return {"fresh": 0, "removing": OLD + ROWS - 1}.get(mode, OLD * (1 + mode.startswith("replacing")))


def record_steps(mode: str) -> list[str]:
    """Return the steps of an uninterrupted run."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        source, output = prepare(Path(folder), mode)

        def run() -> str:
            steps = Steps(top=folder)
            steps.watch()
            score(source, output, mode)
            return "\n".join(steps.taken)

        code, text = in_a_child(run)
        assert code == 0, text
        return text.splitlines()


def interrupt(at: int, mode: str, *, after: bool) -> tuple[str, str]:
    """Interrupt at one step and repeat; return (the state after the interruption, the faults at the end)."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        source, output = prepare(Path(folder), mode)

        def run() -> None:
            Steps(top=folder, at=at, after=after).watch()
            score(source, output, mode)

        code, text = in_a_child(run)
        if code == 0:  # of a slow run, the lock's heartbeats were recorded too
            return NOT_REACHED, faults_of(output, mode)
        assert code == ENDED, (at, code, text)
        state = describe(output)
        if output.exists():
            before, new = rows_before(mode), ROWS - 1
            whole = {before + new} if mode in GROWING else {new}
            assert rows_in(output) in whole | {before} - {0}, f"half an output: {state}"
        code, text = in_a_child(lambda: score(source, output, mode))
        return state, f"exit {code}: {text.splitlines()[-1]}" if code else faults_of(output, mode)


def main() -> None:
    """Print the table; exit with 1 if a line is not exact."""
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    modes = sys.argv[2:] or list(MODES)
    wrong = total = 0
    for number, mode in enumerate(modes):
        print(f"\n{MODES[mode]}")
        for at, step in list(enumerate(record_steps(mode)))[number % every :: every]:
            for after in (False, True):
                state, fault = interrupt(at, mode, after=after)
                total, wrong = total + (state != NOT_REACHED), wrong + bool(fault)
                print(f"{'after' if after else 'before':6} {step:62} -> {state:52} -> {fault or 'exact'}")
    print(f"\n{total} interruptions, {wrong} not exact after the same command")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
