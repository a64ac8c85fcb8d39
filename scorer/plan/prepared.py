"""What `prepare` found: the plan, the problems, the notes, the forecast; as data and as a person reads it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.binding.spec import feed_words, fetch_words
from scorer.display import html, tables
from scorer.display.blocks import Facts, Table, Words
from scorer.display.words import duration, name_list, plural, size
from scorer.errors import PreflightError, ScorerError
from scorer.host import devices

if TYPE_CHECKING:
    from scorer.model.spec import ModelSpec
    from scorer.options.request import Options
    from scorer.plan.frozen import FrozenPlan

_HELD_UP = 1.3  # times as much by two threads as by one: less, and the interpreter's lock is why


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
            "asked": {name: as_json_value(value) for name, value in self.options.asked().items()},
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
            rows = f"{frozen.rows:,} rows in {plural(len(frozen.files), 'file')}, {plural(frozen.n_parts, 'part')}"
            device = devices.described(frozen.session.device, self.nodes)
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


def _batch_rows(frozen: FrozenPlan) -> str:
    tried = f" (tried {'; '.join(frozen.trials)})" if frozen.trials else ""
    if frozen.batch_tokens is not None:
        return f"as many as have {frozen.batch_tokens} tokens{tried}"
    return f"{frozen.batch_rows:,}{tried}"


def _kept(frozen: FrozenPlan) -> str:
    copied = len(frozen.storage.copied)
    how = f"; {plural(copied, 'column')} copied as stored" if copied else ""
    return (name_list(frozen.binding.kept) or "none") + how


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


def as_json_value(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return a value as it comes back from JSON: tuples become lists."""
    return json.loads(json.dumps(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the run will take, each as a range; from a timed sample."""

    seconds: tuple[float, float]
    memory_bytes: tuple[int, int]
    output_bytes: tuple[int, int]
    rows_per_s: float
    """Of scoring alone, one thread."""
    memory: str
    """How the memory is reckoned."""
