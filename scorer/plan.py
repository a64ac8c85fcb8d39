"""The parts, the batch rows, the forecast and the two hashes: everything decided before a row is scored.

Pure: reads nothing, starts nothing. A frozen plan is loaded again, never made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer import devices, html, tables
from scorer.advice import feed_words, fetch_words
from scorer.binding import Binding
from scorer.blocks import Facts, Table, Words
from scorer.errors import DifferentPlan, PreflightError, ScorerError
from scorer.features import Feed, Fetch
from scorer.options import FIELDS
from scorer.parts import PlannedFile
from scorer.quantities import duration, many, size, some_of
from scorer.reader import Source
from scorer.session import SessionSpec
from scorer.storage import Storage
from scorer.transforming import Transform, reads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scorer.dataset import Dataset
    from scorer.forecast import Forecast
    from scorer.model import ModelSpec
    from scorer.options import Options

FORMAT = 3
_HELD_UP = 1.3  # times as much by two threads as by one: less, and the interpreter's lock is why
_FILE_FIELDS = tuple(field.name for field in dataclasses.fields(PlannedFile))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One unit of work: one Dask partition, one output file."""

    index: int
    name: str
    """Path inside the output."""
    source: Source

    def __dask_tokenize__(self) -> tuple[int, str]:
        """What tells it from its run's other parts; else Dask looks at every field of every part: half of its time."""
        return self.index, self.name

    def __reduce__(self) -> tuple[Callable[..., Part], tuple[Any, ...]]:
        """Flat, for it is packed and unpacked four times on its way: a dataclass goes through its fields each time."""
        own = self.source
        return _part, (self.index, self.name, own.path, own.size, own.mtime_ns, own.start, own.stop, own.hive)

    @property
    def rows(self) -> int:
        """Rows before any filter."""
        return self.source.stop - self.source.start

    @property
    def place(self) -> str:
        """Where it is in the input, for errors."""
        return f"part {self.index}: {self.source.path}, rows {self.source.start} to {self.source.stop}"


def _part(index: int, name: str, *source: Any) -> Part:  # noqa: ANN401 - as `__reduce__` has them
    path, size, mtime_ns, start, stop, hive = source
    own = Source(path=path, size=size, mtime_ns=mtime_ns, start=start, stop=stop, hive=hive)
    return Part(index=index, name=name, source=own)


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
    storage: Storage
    transform: Transform | None = None
    fed_schema: str = ""
    """Columns that the transform gives and that are fed; '' without one."""
    batch_tokens: int | None = None
    """What batches of texts are cut by instead."""
    trials: tuple[str, ...] = ()
    """What tuning tried, in words."""
    together: float | None = None
    """How much more two threads score than one, where that was tried."""
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
    def reads(self) -> tuple[str, ...]:
        """Columns that are fed, or go through the transform first."""
        return reads(self.transform, self.binding.fed)

    @property
    def unread(self) -> set[str]:
        """Kept columns that are copied from whole row groups and not decoded."""
        return set(self.storage.copied) - set(self.reads)

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

    @property
    def most_rows(self) -> int:
        """Rows of the largest part, before any filter."""
        return max((rows for file in self.files for rows, _ in file.parts), default=0)

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
        plain |= {name: dataclasses.asdict(getattr(self, name)) for name in ("binding", "session", "storage")}
        del plain["session"]["gpu"]  # that is the affair of each process
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
            "storage": Storage(**_frozen(data["storage"])),
            "session": SessionSpec(**data["session"] | {"files": tuple(data["session"]["files"])}),
            "files": tuple(_file_from(file) for file in data["files"]),
            **{name: tuple(data[name]) for name in ("conditions", "trials")},
        }
        plan = cls(**data | changed | {"plan_hash": ""})
        if plan.plan_hash != data["plan_hash"]:
            raise ValueError(data["plan_hash"])
        return plan


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
    nodes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Of the model, by the device that they run on; {} where all are on the processor."""
    done: bool = False
    """The output is there already, from this very request."""
    resumes: bool = False
    """An earlier run of this plan is unfinished."""
    spawns: bool = False
    """Whether worker processes can start here unasked: they import the script that asks, again."""

    @property
    def cluster(self) -> str:
        """Who does the work, as asked; unasked, processes where threads hold each other up."""
        asked = self.options.cluster.cluster
        if asked is not None:
            return asked
        together = None if self.frozen is None else self.frozen.together
        free = not self.options.cluster.scheduler and self.options.cluster.threads is None
        return "processes" if together is not None and together < _HELD_UP and free and self.spawns else "embedded"

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
            "copied": None if frozen is None else list(frozen.storage.copied),
            "batch_rows": None if frozen is None else frozen.batch_rows,
            "batch_tokens": None if frozen is None else frozen.batch_tokens,
            "trials": None if frozen is None else list(frozen.trials),
            "trial_sessions": None if frozen is None else frozen.trial_sessions,
            "device": None if frozen is None else frozen.session.device,
            "nodes": self.nodes,
            "cluster": self.cluster,
            "model": None if self.model is None else {"path": self.model.path, "digest": self.model.digest},
            "plan": None if frozen is None else frozen.plan_hash,
            "forecast": None if self.forecast is None else dataclasses.asdict(self.forecast),
        }

    def blocks(self) -> list[Facts | Table]:
        """As a person reads it, the problems apart."""
        frozen = self.frozen
        told, bound = [("output", self.output)], []
        if frozen is not None:
            where = self.options.cluster.scheduler or self.cluster
            rows = f"{frozen.rows:,} rows in {many(len(frozen.files), 'file')}, {many(frozen.n_parts, 'part')}"
            device = devices.words(frozen.session.device, self.nodes)
            told = [("input", rows), ("model", f"{self.model.path if self.model else ''} on {device}"), *told]
            told += [("keep", _kept(frozen))]
            told += [("where", text) for text in frozen.conditions]
            told += [("batch rows", _batch_rows(frozen)), ("cluster", where), ("plan", frozen.plan_hash[:16])]
            bound = _bound(frozen)
        if self.forecast is not None:
            bound.append(_foreseen(self.forecast))
        more = [("canary", self.canary)] if self.canary and self.canary not in self.notes else []
        more += [("note", note) for note in self.notes]
        if self.done:
            more += [("state", "done already: nothing would be scored")]
        elif self.resumes:
            more += [("state", "an earlier run is unfinished: the rest would be scored")]
        return [Facts(told), *bound, Facts(more)]

    def __str__(self) -> str:
        """As the command line prints it, however wide."""
        shown = [
            tables.facts(block.pairs) if isinstance(block, Facts) else tables.table(block.head, block.rows)
            for block in self.blocks()
        ]
        return "\n\n".join([*map(str, self.problems), *("\n".join(lines) for lines in shown if lines)])

    def _repr_html_(self) -> str:
        found = [block for problem in self.problems for block in _problem(problem)]
        state = "cannot be run" if self.problems else ""
        return html.card("Plan", [*found, *self.blocks()], state)


def request_of(options: Options, dataset: Dataset, model: ModelSpec, files: dict[str, str]) -> dict[str, Any]:
    """What is hashed: inputs, model, other files by digest, and the options that change scores or output."""
    asked = options.to_dict()
    inputs = [[f.path, f.folder, f.size, f.mtime_ns, _hash(f.row_groups)] for f in dataset.files]
    asked["device"] = devices.parse(options.session.device).name  # which of several makes no difference
    chosen = {name: _plain(asked[name]) for name, field in FIELDS.items() if field.metadata["scores"]}
    return {"format": FORMAT, "input": _hash(inputs), "model": model.digest, "files": files, **chosen}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the fields of two requests that are not equal."""
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def told_apart(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between an earlier request and this one, with both values where they can be shown."""
    words = {
        "input": "the input's files, sizes or times of change",
        "model": "the model's contents",
        "files": "the contents of a file that the flags name, such as that of --transform or a tokenizer",
    }
    told = (
        words.get(name) or f"{name} = {_shown(before.get(name))}, now {_shown(now.get(name))}"
        for name in differences(before, now)
    )
    return "; ".join(told)


def refuse_different(path: str, before: dict[str, Any], now: dict[str, Any]) -> DifferentPlan:
    """An unfinished run of another request, with what differs."""
    what, hint = "an unfinished run of a different plan is here", "repeat that command, or discard it with --overwrite"
    return DifferentPlan(what, path, "this very request", f"another one: {told_apart(before, now)}", hint)


def _shown(value: object) -> str:
    return "default" if value in (None, "") else str(value)


def _frozen(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Lists as tuples, all the way down; a mapping stays one at its top."""
    if isinstance(value, dict):
        return {name: _frozen(one) for name, one in value.items()}
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _file_from(values: list[Any]) -> PlannedFile:
    data = dict(zip(_FILE_FIELDS, values, strict=True))
    pairs = {name: tuple((a, b) for a, b in data[name]) for name in ("row_groups", "parts", "hive")}
    return PlannedFile(**data | pairs)


def _batch_rows(frozen: FrozenPlan) -> str:
    tried = f" (tried {'; '.join(frozen.trials)})" if frozen.trials else ""
    if frozen.batch_tokens is not None:
        return f"as many as have {frozen.batch_tokens} tokens{tried}"
    return f"{frozen.batch_rows:,}{tried}"


def _kept(frozen: FrozenPlan) -> str:
    copied = len(frozen.storage.copied)
    how = f"; {many(copied, 'column')} copied as stored" if copied else ""
    return (some_of(frozen.binding.kept) or "none") + how


def _bound(frozen: FrozenPlan) -> list[Table]:
    """What feeds the model, and what becomes of what it gives."""
    feeds = [(feed.tensor, feed.dtype, feed_words(feed), feed.rule) for feed in frozen.binding.feeds]
    fetches = [fetch_words(fetch) for fetch in frozen.binding.fetches]
    return [
        Table(("tensor", "type", "fed from", "chosen"), ("name", "", "", ""), feeds),
        Table(("tensor", "becomes", "type"), ("name", "", ""), fetches),
    ]


def _foreseen(fore: Forecast) -> Table:
    """What it will take, at the least and at the most, and how that is reckoned."""
    rows = [
        ("time", *map(duration, fore.seconds), f"{fore.rows_per_s:,.0f} rows/s in one thread, from a few rows"),
        ("memory", *map(size, fore.memory_bytes), fore.memory),
        ("disk", *map(size, fore.output_bytes), "encoded like a few rows"),
    ]
    return Table(("forecast", "least", "most", "reckoned"), ("name", "n", "n", ""), rows)


def _problem(problem: ScorerError) -> list[Words | Facts]:
    """A reason against the run."""
    told = [(name, getattr(problem, name)) for name in ("where", "expected", "found", "hint")]
    return [Words("", lead=problem.what, tone="bad"), Facts([(name, text) for name, text in told if text])]


def _input_facts(frozen: FrozenPlan) -> dict[str, Any]:
    return {"files": len(frozen.files), "rows": frozen.rows, "parts": frozen.n_parts}


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    return json.loads(json.dumps(value))


def _hash(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
