"""`scorer bench`: scorer, hand-written loops and other tools on the same job, each in its own process.

The rate that is compared is marginal: a run of the first thousand rows is subtracted, so that start-up and imports
do not count. The scores are compared before any time is shown.
"""

from __future__ import annotations

import json
import math
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
from scorer.cluster.kinds.sizes import planned_threads
from scorer.dataset.listing import PROOF
from scorer.display.words import cut
from scorer.errors import BatchError, ModelError, PlanError
from scorer.host.versions import versions
from scorer.locations import is_url
from scorer.model.copies import readable
from scorer.model.resident import SESSIONS
from scorer.options.request import as_flags
from scorer.preflight import trial, tuning
from scorer.scoring import batches
from scorer.scoring.compare import TOLERANCE
from scorer.storage.footers import open_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scorer.options.fields import Options
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.scorers import Scorer


FEW_ROWS = 1000
_USUAL_ROWS = {True: 32, False: 4096}  # rows of a usual batch: for texts and pictures, and for numbers
_CURVE = tuple(4**n for n in range(9))
_CURVE_S = 0.3  # seconds for each batch size
_MEMORY_INTERVAL_S = 0.05
_NOT_INSTALLED = 77  # a peer's exit code when it is not installed, or cannot do this
BOUND, BOUND_AGAIN, SCORER = "upper bound", "upper bound again", "scorer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to score the same rows."""

    name: str
    seconds: float
    """Median time of the whole process."""
    few_seconds: float
    """Median time of a process that scores only the first thousand rows."""
    rows_per_s: float
    """Rows per second beyond the first thousand."""
    ratio: float
    """The upper bound's time beyond the first thousand rows, divided by this one's. Median over the turns."""
    low: float
    high: float
    """90 % interval of the mean ratio."""
    peak_bytes: int
    """Peak memory of all its processes together."""
    agrees: str
    """How its scores compare with the upper bound's."""
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The result of a benchmark."""

    rows: int
    turns: int
    contenders: tuple[Contender, ...]
    left_out: dict[str, str]
    """Peers that did not run, with the reasons."""
    curve: dict[int, float]
    """Rows per second of scoring alone in one thread, by batch size."""
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


@dataclass(slots=True)
class _Runs:
    """The commands of one contender and their measurements."""

    command: Callable[[str, str], list[str]]
    """Returns the command for a job ('all' or 'few') and an output folder."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"all": [], "few": []})
    peak: int = 0
    agrees: str = ""
    stages: dict[str, float] = field(default_factory=dict)


def bench(options: Options, turns: int, peers: Path | None = None, python: str = sys.executable) -> Bench:
    """Measure all contenders; raise an error if their scores differ."""
    with tempfile.TemporaryDirectory(prefix="scorer-bench-", dir=_output_parent(options)) as folder:
        at = Path(folder)
        plans = _plans(options, at)
        runs = {name: _Runs(command) for name, command in _commands(options, plans, at).items()}
        left_out: dict[str, str] = {}
        for script in sorted(peers.glob("[!_]*.py")) if peers else ():
            runs[script.stem.replace("_", " ")] = _Runs(_peer(script, python, plans, at))
        for name in list(runs):
            reason = _warm_up(name, runs[name], at)
            if reason:
                left_out[name] = reason
                del runs[name]
        for name, run in runs.items():
            run.agrees = _compare(at / BOUND, at / name, plans["all"])
        _run_turns(runs, turns, at)
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
    """Return rows per second by batch size, for scoring alone in one thread.

    The sizes end where the first row group has too few rows or the model refuses a batch.
    """
    (scorer,) = plan.scorers
    session = SESSIONS.session(scorer.session)
    first = next(plan.parts())
    with open_parquet(first.sources[0].id) as parquet:
        table = parquet.read_row_groups([0], use_threads=False)
    table = table.slice(0, tuning.PROBE_ROWS * 4).select([n for n in scorer.binding.read if n in table.column_names])
    if plan.transform is not None or set(scorer.binding.read) - set(table.column_names) or not table.num_rows:
        return {}
    rates: dict[int, float] = {}
    for batch_rows in _CURVE:
        rows = min(table.num_rows, max(batch_rows, trial.SAMPLE_ROWS))
        if rows < batch_rows:
            break
        best, first_started = float("inf"), time.perf_counter()
        while time.perf_counter() - first_started < _CURVE_S:
            started = time.perf_counter()
            few = table.slice(0, max(batch_rows, min(rows, int(_CURVE_S / best * rows) if rates else batch_rows)))
            try:
                batches.score(few, batches.grid(few.num_rows, batch_rows), scorer.binding, session)
            except (BatchError, ModelError):
                return rates
            best = min(best, (time.perf_counter() - started) / few.num_rows)
        rates[batch_rows] = round(1 / best, 1)
    return rates


def _output_parent(options: Options) -> str:
    """Return the folder beside which outputs are written, so that the same disk is measured."""
    beside = options.out.output or options.input[0]
    return os.getcwd() if is_url(beside) else os.path.dirname(os.path.abspath(beside))


def _plans(options: Options, at: Path) -> dict[str, FrozenPlan]:
    """Plan the whole run, and a run of its first thousand rows from a separate file."""
    whole = replace(options, out=replace(options.out, output=str(at / "planned"), overwrite=False, work_dir=None))
    plan = prepare_options(whole).check()
    baseline.refuse_unsupported(plan)
    plan = _with_local_model(plan)
    if plan.rows < 2 * FEW_ROWS:
        raise PlanError(
            "the input has too few rows to measure a speed",
            where=", ".join(options.input),
            expected=f"at least {2 * FEW_ROWS:,}",
            found=f"{plan.rows:,} rows",
            hint="run bench on a larger input",
        )
    with open_parquet(plan.files[0].id) as parquet:
        rows = next(parquet.iter_batches(batch_size=FEW_ROWS))
        pq.write_table(pa.Table.from_batches([rows]), at / "few.parquet")
    few = replace(whole, input=(str(at / "few.parquet"),), rows=replace(whole.rows, limit=None))
    small = _with_local_model(prepare_options(few).check())
    return {
        "all": plan,
        "few": replace(small, scorers=(_like(small.scorers[0], plan.scorers[0]),), plan_hash=""),
    }


def _like(scorer: Scorer, other: Scorer) -> Scorer:
    """Return a model of a plan with the batches that another plan has for it."""
    return replace(scorer, batch_rows=other.batch_rows, batch_tokens=other.batch_tokens)


def _with_local_model(plan: FrozenPlan) -> FrozenPlan:
    """Return the plan with the copy of a model that is behind a URL, because loops and other tools read files."""
    (path,) = {scorer.session.path for scorer in plan.scorers}
    return replace(plan.with_sessions(path=readable(path)), plan_hash="") if is_url(path) else plan


def _commands(
    options: Options, plans: Mapping[str, FrozenPlan], at: Path
) -> dict[str, Callable[[str, str], list[str]]]:
    """Return the commands of scorer and of three loops: scorer's settings, threads only, and a plain loop."""
    plan = plans["all"]
    threads = planned_threads(options.cluster)
    (scorer,) = plan.scorers
    usual = _USUAL_ROWS[scorer.binding.texts or scorer.binding.pictures]
    same = baseline.Loop(
        threads=threads, batch_rows=scorer.batch_rows, batch_tokens=scorer.batch_tokens, like_scorer=True
    )
    pool = baseline.Loop(threads=threads, batch_rows=usual, batch_tokens=None, like_scorer=False)
    plain = replace(pool, threads=1)
    asked = as_flags(options.non_defaults(), {"output", "overwrite", "work_dir"})
    flags = [word for flag in asked for word in flag]

    def loop(settings: baseline.Loop) -> Callable[[str, str], list[str]]:
        def command(which: str, out: str) -> list[str]:
            job = {"plan": plans[which].to_dict(), "loop": asdict(settings), "output": out}
            return [sys.executable, "-P", "-m", "scorer.cli.baseline", _job(at, job)]

        return command

    def tool(which: str, out: str) -> list[str]:
        source = list(options.input) if which == "all" else [str(at / "few.parquet")]
        return [sys.executable, "-P", "-m", "scorer", "run", *source, "--model", str(options.model[0]), *flags,
                "--output", out, "--overwrite", "--quiet", "--json"]  # fmt: skip

    return {
        BOUND: loop(same),
        SCORER: tool,
        BOUND_AGAIN: loop(same),
        "default pool": loop(pool),
        "default loop": loop(plain),
    }


def _peer(script: Path, python: str, plans: Mapping[str, FrozenPlan], at: Path) -> Callable[[str, str], list[str]]:
    """Return the command of a peer's script; its job file has all it needs, without importing scorer."""

    def command(which: str, out: str) -> list[str]:
        plan = plans[which]
        columns = dict.fromkeys([*decode_schema(plan.read_schema).names, *plan.fed])
        job = {
            "input": [file.path for file in plan.files], "model": plan.scorers[0].session.path, "output": out,
            "columns": list(columns), "keep": list(plan.kept),
            "feeds": [asdict(feed) for feed in plan.feeds], "fetches": [asdict(fetch) for fetch in plan.fetches],
            "batch_rows": plan.batch_rows, "row_group_rows": plan.storage.row_group_rows, "codec": plan.storage.codec,
        }  # fmt: skip
        return [python, str(script), _job(at, job)]

    return command


def _job(at: Path, job: Mapping[str, Any]) -> str:
    path = at / "job.json"
    path.write_text(json.dumps(job))
    return str(path)


def _warm_up(name: str, run: _Runs, at: Path) -> str:
    """Run both jobs once without timing them; return the reason if the contender cannot run.

    This fills the disk cache, measures the memory, and keeps the outputs for the comparison.
    """
    for which in ("few", "all"):
        code, printed, _, run.peak = _run_process(run.command(which, str(at / name)), at, at / name, watch=True)
        if code:
            lines = printed.strip().splitlines() or ["no output"]
            if code != _NOT_INSTALLED and name in {BOUND, BOUND_AGAIN, SCORER}:
                raise PlanError(
                    f"{name!r} failed",
                    where="scorer bench",
                    expected="an output",
                    found="\n".join(lines[-5:]),
                    hint="try the job with `scorer run --limit 1000` first",
                )
            return cut(lines[-1], 300)
    last = (printed.strip().splitlines() or ["{}"])[-1]
    run.stages = json.loads(last).get("stages", {}) if last.startswith("{") else {}
    return ""


def _run_turns(runs: Mapping[str, _Runs], turns: int, at: Path) -> None:
    """Run each contender once a turn, in alternating order, so that drift favours none of them."""
    for turn in range(turns):
        names = list(runs) if turn % 2 == 0 else list(runs)[::-1]
        for which in ("few", "all"):
            for name in names:
                out = at / "timed"
                code, printed, seconds, _ = _run_process(runs[name].command(which, str(out)), at, out)
                if code:
                    raise PlanError(
                        f"{name!r} failed when it ran again",
                        where="scorer bench",
                        expected="an output",
                        found=printed[-500:],
                        hint="repair what its output names, then run bench again",
                    )
                runs[name].seconds[which].append(seconds)


def _run_process(command: Sequence[str], at: Path, out: Path, *, watch: bool = False) -> tuple[int, str, float, int]:
    """Run a command; return its exit code, output, seconds and, with `watch`, the peak memory of its processes.

    The disk is synced first: a contender that waits for it would otherwise also wait for the writes of the one
    before. The cache folder is emptied, so that no run reuses the tuning results of an earlier one.
    """
    cache = at / "cache"
    for folder in (out, out.with_name(out.name + PROOF), cache):
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    clean["XDG_CACHE_HOME"] = str(cache)
    with (at / "printed").open("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, env=clean)  # noqa: S603 - built above
        peak = 0
        while watch and process.poll() is None:
            peak = max(peak, _memory_of(process.pid))
            time.sleep(_MEMORY_INTERVAL_S)
        code = process.wait()
        seconds = time.perf_counter() - started
        printed.seek(0)
        return code, printed.read(), seconds, peak


def _memory_of(pid: int) -> int:
    """Return the memory of a process and its children."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:  # one of them has just ended
        return total
    return total


def _compare(expected: Path, found: Path, plan: FrozenPlan) -> str:
    """Describe how the scores of two outputs compare; raise an error if they differ."""
    worst, order = 0.0, "in order"
    for name in plan.outputs:
        reference, scores = (_column(folder, name) for folder in (expected, found))
        if len(reference) != len(scores):
            _refuse_difference(found.name, name, f"{len(reference):,} rows", f"{len(scores):,}")
        if reference.dtype.kind not in "fiu":
            if sorted(map(str, reference.tolist())) != sorted(map(str, scores.tolist())):
                _refuse_difference(found.name, name, "the upper bound's values", "other values")
            continue
        difference = _largest_difference(reference, scores)
        if not difference <= _tolerance(reference):
            order, difference = (
                "in another order",
                _largest_difference(np.sort(reference, axis=0), np.sort(scores, axis=0)),
            )
        if not difference <= _tolerance(reference):
            _refuse_difference(found.name, name, "the upper bound's values", f"a difference of {difference:.2g}")
        worst = max(worst, difference)
    return f"{'equal' if worst == 0 else f'within {worst:.1g}'}, {order}"


def _largest_difference(reference: np.ndarray, scores: np.ndarray) -> float:
    """Return the largest difference of two scores; infinite if only one of them is NaN, or an infinity."""
    one, other = reference.astype(np.float64), scores.astype(np.float64)
    numbers = np.isfinite(one) & np.isfinite(other)
    if not np.array_equal(one[~numbers], other[~numbers], equal_nan=True):
        return math.inf
    return float(np.max(np.abs(one[numbers] - other[numbers]), initial=0.0))


def _tolerance(values: np.ndarray) -> float:
    """Return the difference that the finite scores allow."""
    return TOLERANCE * float(np.max(np.abs(values[np.isfinite(values)].astype(np.float64)), initial=1e-30))


def _refuse_difference(name: str, column: str, expected: str, found: str) -> None:
    raise PlanError(
        f"{name!r} computes different scores, so its time cannot be compared",
        where=f"column {column!r}",
        expected=expected,
        found=found,
        hint="find out which scores are right, then run bench again",
    )


def _column(folder: Path, name: str) -> np.ndarray:
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    column = pa.chunked_array([c for path in files for c in pq.read_table(path, columns=[name])[name].chunks])
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks])
    return np.asarray(column.to_numpy())


def _contender(name: str, run: _Runs, runs: Mapping[str, _Runs], rows: int) -> Contender:
    seconds, few = statistics.median(run.seconds["all"]), statistics.median(run.seconds["few"])
    base = runs[BOUND].seconds
    base_few = statistics.median(base["few"])
    pairs = zip(base["all"], run.seconds["all"], strict=True)
    ratios = [(base_all - base_few) / max(own_all - few, 1e-9) for base_all, own_all in pairs]
    low, high = _interval(ratios)
    return Contender(
        name=name, seconds=seconds, few_seconds=few, rows_per_s=(rows - FEW_ROWS) / max(seconds - few, 1e-9),
        ratio=statistics.median(ratios), low=low, high=high, peak_bytes=run.peak, agrees=run.agrees, stages=run.stages,
    )  # fmt: skip


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 90 % interval of the mean."""
    if len(values) < 2:  # noqa: PLR2004 - one value has no spread
        return values[0], values[0]
    free = len(values) - 1
    student = 1.645 + 1.524 / free + 1.6 / free**2  # the 95 % point of Student's t, to 2 % from two degrees of freedom
    half = student * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half
