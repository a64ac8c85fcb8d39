"""The bare ceiling, the usual loops, the peers and this tool, side by side: whole processes, turn by turn.

What counts is the marginal rate: the rows over the time beyond a run of a thousand rows, so that nobody's
imports are counted. Results are compared before a time is shown.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from scorer.api.pipeline import prepare_options
from scorer.arrow import decode_schema
from scorer.cli import baseline
from scorer.cluster.connect import planned_threads
from scorer.dataset.listing import PROOF
from scorer.errors import BatchError, ModelError, PlanError
from scorer.host.versions import versions
from scorer.model.resident import SESSIONS
from scorer.options.request import as_flags
from scorer.preflight import trial, tuning
from scorer.scoring import batches
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scorer.options.request import Options
    from scorer.plan.frozen import FrozenPlan


FEW_ROWS = 1000
_USUAL_ROWS = {True: 32, False: 4096}  # of a batch, where rows are converted and where they are numbers
_CURVE = tuple(4**n for n in range(9))
_CURVE_S = 0.3  # for each point
_LOOK_S = 0.05
_NOT_HERE = 77  # a peer's exit code when it is not installed, or cannot do this
CEILING, AGAIN, TOOL = "ceiling", "ceiling again", "scorer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to score the same rows."""

    name: str
    seconds: float
    """Of the whole process, median."""
    few_seconds: float
    """The same for the first thousand rows."""
    rows_per_s: float
    """Beyond those."""
    ratio: float
    """The ceiling's time beyond those over this one's: 1 is as fast, median over the turns."""
    low: float
    high: float
    """The 90 % interval of the mean ratio."""
    peak_bytes: int
    """The most memory of all its processes together."""
    agrees: str
    """How its scores compare with the ceiling's."""
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What was measured."""

    rows: int
    turns: int
    contenders: tuple[Contender, ...]
    left_out: dict[str, str]
    """Peers that did not run, with the reason."""
    curve: dict[int, float]
    """Rows/s of scoring alone in one thread, by batch rows."""
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        return asdict(self)


@dataclass(slots=True)
class _Runs:
    """The commands of one contender and what they took."""

    command: Callable[[str, str], list[str]]
    """Of a job's name, 'all' or 'few', and an output folder."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"all": [], "few": []})
    peak: int = 0
    agrees: str = ""
    stages: dict[str, float] = field(default_factory=dict)


def bench(options: Options, turns: int, peers: Path | None = None, python: str = sys.executable) -> Bench:
    """Measure; raises when contenders disagree about a score."""
    with tempfile.TemporaryDirectory(prefix="scorer-bench-", dir=_beside(options)) as folder:
        at = Path(folder)
        plans = _plans(options, at)
        runs = {name: _Runs(command) for name, command in _loops(options, plans, at).items()}
        left_out: dict[str, str] = {}
        for script in sorted(peers.glob("[!_]*.py")) if peers else ():
            runs[script.stem.replace("_", " ")] = _Runs(_peer(script, python, plans, at))
        for name in list(runs):
            complaint = _warm(name, runs[name], at)
            if complaint:
                left_out[name] = complaint
                del runs[name]
        for name, run in runs.items():
            run.agrees = _compared(at / CEILING, at / name, plans["all"])
        _take_turns(runs, turns, at)
        return Bench(
            rows=plans["all"].rows,
            turns=turns,
            contenders=tuple(_contender(name, run, runs, plans["all"].rows) for name, run in runs.items()),
            left_out=left_out,
            curve=curve(plans["all"]),
            machine={"threads": planned_threads(options.cluster), "memory_bytes": psutil.virtual_memory().total}
            | versions(),
        )


def curve(plan: FrozenPlan) -> dict[int, float]:
    """Rows/s by batch rows, of scoring alone, in one thread; up to what the first rows and a moment allow."""
    session = SESSIONS.session(plan.session)
    first = next(plan.parts())
    with open_parquet(first.source.path) as parquet:
        table = parquet.read_row_groups([0], use_threads=False)
    table = table.slice(0, tuning.PROBE_ROWS * 4).select([n for n in plan.binding.fed if n in table.column_names])
    if plan.transform is not None or set(plan.binding.fed) - set(table.column_names) or not table.num_rows:
        return {}
    rates: dict[int, float] = {}
    for batch_rows in _CURVE:
        rows = min(table.num_rows, max(batch_rows, trial.SAMPLE_ROWS))
        if rows < batch_rows:
            break
        best, began = float("inf"), time.perf_counter()
        while time.perf_counter() - began < _CURVE_S:
            started = time.perf_counter()
            few = table.slice(0, max(batch_rows, min(rows, int(_CURVE_S / best * rows) if rates else batch_rows)))
            try:
                batches.score(few, batches.grid(few.num_rows, batch_rows), plan.binding, session)
            except (BatchError, ModelError):
                return rates
            best = min(best, (time.perf_counter() - started) / few.num_rows)
        rates[batch_rows] = round(1 / best, 1)
    return rates


def _beside(options: Options) -> str:
    """Where outputs would go, so that the same disk is measured."""
    return os.path.dirname(os.path.abspath(options.out.output or options.input[0]))


def _plans(options: Options, at: Path) -> dict[str, FrozenPlan]:
    """The plan of the whole run, and of its first thousand rows in a file of their own."""
    whole = replace(options, out=replace(options.out, output=str(at / "planned"), overwrite=False, work_dir=None))
    plan = prepare_options(whole).check()
    baseline.refuse_what_a_loop_cannot(plan)
    if plan.rows < 2 * FEW_ROWS:
        what, hint = "there are too few rows to tell a speed", "bench on more of them"
        raise PlanError(what, ", ".join(options.input), f"at least {2 * FEW_ROWS:,}", f"{plan.rows:,} rows", hint)
    first = plan.files[0].path
    with open_parquet(first) as parquet:
        rows = next(parquet.iter_batches(batch_size=FEW_ROWS))
        pq.write_table(pa.Table.from_batches([rows]), at / "few.parquet")
    few = replace(whole, input=(str(at / "few.parquet"),), rows=replace(whole.rows, limit=None))
    small = prepare_options(few).check()
    return {
        "all": plan,
        "few": replace(small, batch_rows=plan.batch_rows, batch_tokens=plan.batch_tokens, plan_hash=""),
    }


def _loops(options: Options, plans: Mapping[str, FrozenPlan], at: Path) -> dict[str, Callable[[str, str], list[str]]]:
    """The tool, and loops with the tool's tricks, with none of them but threads, and with none at all."""
    plan = plans["all"]
    threads = planned_threads(options.cluster)
    usual = _USUAL_ROWS[plan.binding.texts or plan.binding.pictures]
    same = baseline.Loop(threads=threads, batch_rows=plan.batch_rows, batch_tokens=plan.batch_tokens, as_we_do=True)
    pool = baseline.Loop(threads=threads, batch_rows=usual, batch_tokens=None, as_we_do=False)
    plain = replace(pool, threads=1)
    asked = as_flags(options.asked(), {"output", "overwrite", "work_dir"})
    flags = [word for flag in asked for word in flag]

    def loop(how: baseline.Loop) -> Callable[[str, str], list[str]]:
        def command(which: str, out: str) -> list[str]:
            job = {"plan": plans[which].to_dict(), "loop": asdict(how), "output": out}
            return [sys.executable, "-m", "scorer.cli.baseline", _job(at, job)]

        return command

    def tool(which: str, out: str) -> list[str]:
        source = list(options.input) if which == "all" else [str(at / "few.parquet")]
        return [sys.executable, "-m", "scorer", "run", *source, "--model", options.model, *flags,
                "--output", out, "--overwrite", "--quiet", "--json"]  # fmt: skip

    return {CEILING: loop(same), TOOL: tool, AGAIN: loop(same), "usual pool": loop(pool), "usual loop": loop(plain)}


def _peer(script: Path, python: str, plans: Mapping[str, FrozenPlan], at: Path) -> Callable[[str, str], list[str]]:
    """A peer's script with all it needs to know, and nothing of ours."""

    def command(which: str, out: str) -> list[str]:
        plan = plans[which]
        binding = plan.binding
        job = {
            "input": [file.path for file in plan.files], "model": plan.session.path, "output": out,
            "columns": decode_schema(plan.read_schema).names, "keep": list(binding.kept),
            "feeds": [asdict(feed) for feed in binding.feeds], "fetches": [asdict(fetch) for fetch in binding.fetches],
            "batch_rows": plan.batch_rows, "row_group_rows": plan.storage.row_group_rows, "codec": plan.storage.codec,
        }  # fmt: skip
        return [python, str(script), _job(at, job)]

    return command


def _job(at: Path, job: Mapping[str, Any]) -> str:
    path = at / "job.json"
    path.write_text(json.dumps(job))
    return str(path)


def _warm(name: str, run: _Runs, at: Path) -> str:
    """One run of each that is not timed: files are read once, memory is looked at, results are kept."""
    for which in ("few", "all"):
        code, said, _, run.peak = _started(run.command(which, str(at / name)), at, at / name, watch=True)
        if code:
            lines = said.strip().splitlines() or ["no word"]
            if code != _NOT_HERE and name in {CEILING, AGAIN, TOOL}:
                what, hint = f"the {name} does not run", "score a few rows with `scorer run` first"
                raise PlanError(what, "scorer bench", "an output", "\n".join(lines[-5:]), hint)
            return lines[-1][:300]
    last = (said.strip().splitlines() or ["{}"])[-1]
    run.stages = json.loads(last).get("stages", {}) if last.startswith("{") else {}
    return ""


def _take_turns(runs: Mapping[str, _Runs], turns: int, at: Path) -> None:
    """Everybody once in each turn, there and back, so that drift favours nobody."""
    for turn in range(turns):
        names = list(runs) if turn % 2 == 0 else list(runs)[::-1]
        for which in ("few", "all"):
            for name in names:
                out = at / "timed"
                code, said, seconds, _ = _started(runs[name].command(which, str(out)), at, out)
                if code:
                    what, hint = f"{name} ran once and not again", "look at what it says"
                    raise PlanError(what, "scorer bench", "an output", said[-500:], hint)
                runs[name].seconds[which].append(seconds)


def _started(command: Sequence[str], at: Path, out: Path, *, watch: bool = False) -> tuple[int, str, float, int]:
    """Exit code, words, seconds and the most memory of all processes, if that is looked at.

    The disk is idle at first: who waits for it would otherwise pay for those before who did not. Nothing is
    remembered of the run before, such as what tuning found.
    """
    cache = at / "cache"
    for left in (out, out.with_name(out.name + PROOF), cache):
        shutil.rmtree(left, ignore_errors=True)
    os.sync()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    clean["XDG_CACHE_HOME"] = str(cache)
    with (at / "said").open("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=clean)  # noqa: S603 - built above
        peak = 0
        while watch and process.poll() is None:
            peak = max(peak, _held(process.pid))
            time.sleep(_LOOK_S)
        code = process.wait()
        seconds = time.perf_counter() - began
        said.seek(0)
        return code, said.read(), seconds, peak


def _held(pid: int) -> int:
    """Memory of a process and all under it."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:  # one of them has just ended
        return total
    return total


def _compared(expected: Path, found: Path, plan: FrozenPlan) -> str:
    """How the scores of two outputs compare; raises where they do not."""
    worst, order = 0.0, "in order"
    for name in plan.binding.outputs:
        ours, theirs = (_column(folder, name) for folder in (expected, found))
        if len(ours) != len(theirs):
            _disagree(found.name, name, f"{len(ours):,} rows", f"{len(theirs):,}")
        if ours.dtype.kind not in "fiu":
            if sorted(map(str, ours.tolist())) != sorted(map(str, theirs.tolist())):
                _disagree(found.name, name, "the ceiling's values", "others")
            continue
        moved = _moved(ours, theirs)
        if not moved <= _tolerance(ours):
            order, moved = "in another order", _moved(np.sort(ours, axis=0), np.sort(theirs, axis=0))
        if not moved <= _tolerance(ours):
            _disagree(found.name, name, "the ceiling's values", f"others by {moved:.2g}")
        worst = max(worst, moved)
    return f"{'equal' if worst == 0 else f'within {worst:.1g}'}, {order}"


def _moved(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.nanmax(np.abs(ours.astype(np.float64) - theirs), initial=0.0))


def _tolerance(values: np.ndarray) -> float:
    return 1e-4 * float(np.nanmax(np.abs(values), initial=1e-30))


def _disagree(name: str, column: str, expected: str, found: str) -> None:
    what, hint = f"{name} gives other scores, so its time says nothing", "find out which of them is right"
    raise PlanError(what, f"column {column!r}", expected, found, hint)


def _column(folder: Path, name: str) -> np.ndarray:
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    column = pa.chunked_array([c for path in files for c in pq.read_table(path, columns=[name])[name].chunks])
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks])
    return np.asarray(column.to_numpy())


def _contender(name: str, run: _Runs, runs: Mapping[str, _Runs], rows: int) -> Contender:
    seconds, few = statistics.median(run.seconds["all"]), statistics.median(run.seconds["few"])
    base = runs[CEILING].seconds
    start = statistics.median(base["few"])
    ratios = [
        (theirs - start) / max(ours - few, 1e-9) for theirs, ours in zip(base["all"], run.seconds["all"], strict=True)
    ]
    low, high = _interval(ratios)
    return Contender(
        name=name, seconds=seconds, few_seconds=few, rows_per_s=(rows - FEW_ROWS) / max(seconds - few, 1e-9),
        ratio=statistics.median(ratios), low=low, high=high, peak_bytes=run.peak, agrees=run.agrees, stages=run.stages,
    )  # fmt: skip


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the mean, 90 %."""
    if len(values) < 2:  # noqa: PLR2004 - one value has no spread
        return values[0], values[0]
    free = len(values) - 1
    student = 1.645 + 1.524 / free + 1.6 / free**2  # the 95 % point of Student's t, to 2 % from two degrees of freedom
    half = student * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half
