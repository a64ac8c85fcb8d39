"""The parts, the batch rows, the forecast and the two hashes: everything decided before a row is scored.

Pure: reads nothing, starts nothing. A frozen plan is loaded again, never made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer import html
from scorer.binding import Binding
from scorer.errors import DifferentPlan, PreflightError, ScorerError
from scorer.features import Feed, Fetch
from scorer.options import FIELDS
from scorer.reader import Source
from scorer.session import SessionSpec
from scorer.transforming import Transform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scorer.dataset import Dataset, File
    from scorer.model import ModelSpec
    from scorer.options import Options

FORMAT = 1
BATCH_ROWS = 4096  # a dense net's best, a tree ensemble's good; used where nothing was probed
PARTS_PER_THREAD = 4  # the last part may be late by a quarter of a thread's work
MIN_SECONDS = 0.1  # of scoring in a part: 3 ms of Dask are then 3 %
MAX_SECONDS = 10.0
MIN_ROWS = 65_536  # of a part when the speed is unknown
_SLICE = 1.5  # a row group is sliced when it is this much larger than a part

Runs = tuple[tuple[int, int], ...]
"""Run lengths: (value, times)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """An input file and how it is cut; a million parts stay small as run lengths."""

    path: str
    folder: str
    size: int
    mtime_ns: int
    row_groups: Runs
    parts: Runs
    hive: tuple[tuple[str, str | None], ...] = ()


_FILE_FIELDS = tuple(field.name for field in dataclasses.fields(PlannedFile))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One unit of work: one Dask partition, one output file."""

    index: int
    name: str
    """Path inside the output."""
    source: Source

    @property
    def rows(self) -> int:
        """Rows before any filter."""
        return self.source.stop - self.source.start

    @property
    def place(self) -> str:
        """Where it is in the input, for errors."""
        return f"part {self.index}: {self.source.path}, rows {self.source.start} to {self.source.stop}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPlan:
    """What decides the scores and the output's bytes; written to plan.json."""

    request: dict[str, Any]
    """What was asked, hashed: inputs, model, and each option that changes scores."""
    files: tuple[PlannedFile, ...]
    conditions: tuple[str, ...]
    binding: Binding
    session: SessionSpec
    batch_rows: int
    read_schema: str
    """Columns that are read: fed, kept and filtered on (base64 of Arrow's own form)."""
    output_schema: str
    codec: str
    dictionaries: tuple[str, ...]
    transform: Transform | None = None
    fed_schema: str = ""
    """Columns that the transform gives and that are fed; '' without one."""
    trials: tuple[str, ...] = ()
    """What tuning tried, in words."""
    trial_sessions: int = 0
    """Sessions that tuning made besides the resident one."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Recorded, not hashed."""
    plan_hash: str = ""
    """Names parts and staging; reckoned once, when it is not given."""

    def __post_init__(self) -> None:
        """Reckon the hash over everything but versions."""
        if not self.plan_hash:
            data = self.to_dict()
            del data["versions"], data["plan_hash"]
            object.__setattr__(self, "plan_hash", _hash(data))

    @property
    def request_hash(self) -> str:
        """Equal for equal requests on equal inputs."""
        return _hash(self.request)

    @property
    def n_parts(self) -> int:
        """Parts in all."""
        return sum(times for file in self.files for _, times in file.parts)

    @property
    def rows(self) -> int:
        """Rows that are read, before any filter."""
        return sum(rows * times for file in self.files for rows, times in file.parts)

    def parts(self) -> Iterator[Part]:
        """Every part in input order."""
        width = max(5, len(str(max(self.n_parts - 1, 0))))
        index = 0
        for file in self.files:
            start = 0
            prefix = f"{file.folder}/" if file.folder else ""
            for rows, times in file.parts:
                for _ in range(times):
                    source = Source(
                        path=file.path, size=file.size, mtime_ns=file.mtime_ns,
                        start=start, stop=start + rows, hive=file.hive,
                    )  # fmt: skip
                    yield Part(index=index, name=f"{prefix}part-{index:0{width}d}.parquet", source=source)
                    start += rows
                    index += 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; files are short lists, because there may be 100,000."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "files"}
        plain |= {"binding": dataclasses.asdict(self.binding), "session": dataclasses.asdict(self.session)}
        plain["transform"] = None if self.transform is None else dataclasses.asdict(self.transform)
        return {**plain, "files": [[getattr(file, name) for name in _FILE_FIELDS] for file in self.files]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FrozenPlan:
        """The inverse of `to_dict`; ValueError when the data does not have the hash that it claims."""
        binding = data["binding"]
        feeds = tuple(Feed(**_frozen(feed)) for feed in binding["feeds"])
        fetches = tuple(Fetch(**_frozen(fetch)) for fetch in binding["fetches"])
        changed = {
            "binding": Binding(**binding | {"feeds": feeds, "fetches": fetches, "kept": tuple(binding["kept"])}),
            "transform": None if data["transform"] is None else Transform(**_frozen(data["transform"])),
            "session": SessionSpec(**data["session"] | {"files": tuple(data["session"]["files"])}),
            "files": tuple(_file_from(file) for file in data["files"]),
            **{name: tuple(data[name]) for name in ("conditions", "dictionaries", "trials")},
        }
        plan = cls(**data | changed | {"plan_hash": ""})
        if plan.plan_hash != data["plan_hash"]:
            raise ValueError(data["plan_hash"])
        return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the run will take, each as a range; from a timed sample."""

    seconds: tuple[float, float]
    memory_bytes: tuple[int, int]
    output_bytes: tuple[int, int]
    rows_per_s: float
    """Of scoring alone, one thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `prepare` found out: what would be done, or every reason why it cannot be."""

    options: Options
    output: str
    work_dir: str
    problems: tuple[ScorerError, ...] = ()
    notes: tuple[str, ...] = ()
    frozen: FrozenPlan | None = None
    """None when there are problems."""
    model: ModelSpec | None = None
    canary: str = ""
    """Whether rows depend on their neighbours, in words."""
    forecast: Forecast | None = None
    done: bool = False
    """The output is there already, from this very request."""
    resumes: bool = False
    """An earlier run of this plan is unfinished."""

    def check(self) -> FrozenPlan:
        """The frozen plan, or all problems at once."""
        if self.problems:
            raise PreflightError(self.problems)
        if self.frozen is None:
            msg = f"a plan without problems and without parts: {self!r}"
            raise AssertionError(msg)
        return self.frozen

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        frozen = self.frozen
        return {
            "output": self.output,
            "problems": [problem.to_dict() for problem in self.problems],
            "notes": list(self.notes),
            "canary": self.canary,
            "done": self.done,
            "resumes": self.resumes,
            "asked": {name: _plain(value) for name, value in self.options.asked().items()},
            "input": None if frozen is None else _input_facts(frozen),
            "feed": None if frozen is None else [dataclasses.asdict(feed) for feed in frozen.binding.feeds],
            "fetch": None if frozen is None else [dataclasses.asdict(fetch) for fetch in frozen.binding.fetches],
            "keep": None if frozen is None else list(frozen.binding.kept),
            "batch_rows": None if frozen is None else frozen.batch_rows,
            "trials": None if frozen is None else list(frozen.trials),
            "trial_sessions": None if frozen is None else frozen.trial_sessions,
            "device": None if frozen is None else frozen.session.device,
            "model": None if self.model is None else {"path": self.model.path, "digest": self.model.digest},
            "plan": None if frozen is None else frozen.plan_hash,
            "forecast": None if self.forecast is None else dataclasses.asdict(self.forecast),
        }

    def _repr_html_(self) -> str:
        return html.facts("Plan", self.to_dict())


def request_of(options: Options, dataset: Dataset, model: ModelSpec, files: dict[str, str]) -> dict[str, Any]:
    """What is hashed: inputs, model, other files by digest, and the options that change scores or output."""
    asked = options.to_dict()
    inputs = [[f.path, f.folder, f.size, f.mtime_ns, _hash(f.row_groups)] for f in dataset.files]
    chosen = {name: _plain(asked[name]) for name, field in FIELDS.items() if field.metadata["scores"]}
    return {"format": FORMAT, "input": _hash(inputs), "model": model.digest, "files": files, **chosen}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the fields of two requests that are not equal."""
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def refuse_different(path: str, before: dict[str, Any], now: dict[str, Any]) -> DifferentPlan:
    """An unfinished run of another request, with what differs."""
    words = {
        "input": "the input's files, sizes or times",
        "model": "the model's contents",
        "files": "the contents of a file that the flags name",
    }
    old, new = (_described(differences(before, now), side, words) for side in (before, now))
    what, hint = "an unfinished run of a different plan is here", "repeat that command, or discard it with --overwrite"
    return DifferentPlan(what, path, f"the earlier request: {old}", f"this request: {new}", hint)


def _described(names: Sequence[str], request: dict[str, Any], words: dict[str, str]) -> str:
    """The fields of a request that another one does not share."""
    told = (
        words.get(name) or f"{name} = {request.get(name) if request.get(name) is not None else 'default'}"
        for name in names
    )
    return ", ".join(told)


def part_rows(rows: int, row_bytes: float, part_bytes: int, threads: int, rows_per_s: float | None) -> int:
    """Rows of a part: memory first, then enough parts for all threads, then worthwhile ones."""
    by_memory = max(1, int(part_bytes / max(row_bytes, 1e-9)))
    shared = math.ceil(rows / (threads * PARTS_PER_THREAD))
    worth = MIN_ROWS if rows_per_s is None else max(1, int(rows_per_s * MIN_SECONDS))
    longest = max(worth, int(rows_per_s * MAX_SECONDS)) if rows_per_s else by_memory
    return max(1, min(by_memory, max(shared, worth), longest))


def cut(row_groups: Sequence[int], target: int, grid: int, limit: int | None = None) -> list[int]:
    """Rows of each part of one file.

    Parts are runs of row groups, or slices of one large row group that start on the batch grid:

        row groups  |----|----|--|------------------------|
        parts       |---------|--|-------|-------|--------|
    """
    parts: list[int] = []
    held = 0
    left = sum(row_groups) if limit is None else min(limit, sum(row_groups))
    if left == 0:
        return [0]
    for full in row_groups:
        group = min(full, left)
        left -= group
        if held and held + group > target:
            parts.append(held)
            held = 0
        if group > target * _SLICE and group > grid:
            parts += _slices(group, target, grid)
        else:
            held += group
    return [*parts, held] if held else parts


def run_lengths(values: Iterable[int]) -> Runs:
    """Consecutive equal values as (value, times)."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return tuple((value, times) for value, times in runs)


def plan_files(files: Sequence[File], target: int, grid: int, limit: int | None) -> tuple[PlannedFile, ...]:
    """Every file with its cuts; files beyond the limit are left out."""
    planned = []
    left = limit
    for file in files:
        parts = cut(file.row_groups, target, grid, left)
        planned.append(
            PlannedFile(
                path=file.path, folder=file.folder, size=file.size, mtime_ns=file.mtime_ns,
                row_groups=run_lengths(file.row_groups), parts=run_lengths(parts),
                hive=tuple(file.hive.items()),
            )
        )  # fmt: skip
        if left is not None:
            left -= sum(parts)
            if left <= 0:
                break
    return tuple(planned)


def _slices(rows: int, target: int, grid: int) -> list[int]:
    """Nearly equal slices on the batch grid."""
    many = max(1, math.ceil(rows / target))
    step = max(grid, math.ceil(rows / many / grid) * grid)
    whole, rest = divmod(rows, step)
    return [step] * whole + ([rest] if rest else [])


def _frozen(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Lists as tuples, all the way down; a mapping stays one at its top."""
    if isinstance(value, dict):
        return {name: _frozen(one) for name, one in value.items()}
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _file_from(values: list[Any]) -> PlannedFile:
    data = dict(zip(_FILE_FIELDS, values, strict=True))
    pairs = {name: tuple((a, b) for a, b in data[name]) for name in ("row_groups", "parts", "hive")}
    return PlannedFile(**data | pairs)


def _input_facts(frozen: FrozenPlan) -> dict[str, Any]:
    return {"files": len(frozen.files), "rows": frozen.rows, "parts": frozen.n_parts}


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    return json.loads(json.dumps(value))


def _hash(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
