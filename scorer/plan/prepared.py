"""The result of `prepare`: the plan, the problems, the notes and the forecast, as data, text and HTML."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.binding.spec import feed_words, fetch_words
from scorer.display import html, tables
from scorer.display.blocks import Facts, Table, Words
from scorer.display.words import duration, name_list, plural, size
from scorer.errors import PreflightError, ScorerError
from scorer.host import devices
from scorer.locations import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scorer.binding.spec import Feed
    from scorer.model.spec import ModelSpec
    from scorer.options.fields import Options
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.gates import Gates
    from scorer.plan.scorers import Scorer

_GIL_LIMITED = 1.3  # two threads that score less than 1.3 times what one does are limited by the GIL


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do, or every reason why it cannot be done."""

    options: Options
    output: str
    work_dir: str
    problems: tuple[ScorerError, ...] = ()
    notes: tuple[str, ...] = ()
    frozen: FrozenPlan | None = None
    """None if there are problems."""
    models: dict[str, ModelSpec] = dataclasses.field(default_factory=dict)
    """What the models' files say, by the models' names; '' is the name of an only model. {} if one cannot be read."""
    canary: str = ""
    """The result of the batch-independence check, in words; '' if no check was made."""
    forecast: Forecast | None = None
    deleted: bytes = b""
    """The contents of the file with the numbers of deleted rows; nothing if the input has none."""
    nodes: dict[str, int] = dataclasses.field(default_factory=dict)
    """The number of the model's nodes on each device; {} if all run on the CPU."""
    trees: str = ""
    """How the model's tree ensembles are scored, in words; '' if it has none."""
    weights: str = ""
    """How worker processes share the model's weights, in words; '' if each holds a copy of its own."""
    done: bool = False
    """Whether the output of this request is published already."""
    resumes: bool = False
    """Whether an earlier run of this plan is unfinished."""
    spawns: bool = False
    """Whether scorer may start worker processes on its own: they import the calling script again."""
    gates: Gates | None = None
    """What is measured of the scores, and what must hold to publish them; None without gates."""
    matched: tuple[Feed, ...] = ()
    """If there are problems: the inputs of the model for which columns were found."""
    folder_flags: tuple[str, ...] = ()
    """The flags that the model's folder stands for, as words of a command."""

    @property
    def cluster(self) -> str:
        """The requested cluster; without one, processes if the GIL limits threads, else threads of this process."""
        return cluster_of(self.options, None if self.frozen is None else self.frozen.together, spawns=self.spawns)

    @property
    def requests(self) -> Requests | None:
        """About how many requests a run makes to object stores; None if it makes none."""
        found = None if self.frozen is None else Requests.of(self.frozen, self.output)
        return found if found is not None and found.reads + found.writes else None

    def check(self) -> FrozenPlan:
        """Return the frozen plan; if there are problems, raise all of them at once."""
        if self.problems:
            raise PreflightError(self.problems)
        if self.frozen is None:
            msg = f"a plan with neither problems nor parts: {self!r}"
            raise AssertionError(msg)
        return self.frozen

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as data for JSON."""
        frozen = self.frozen
        return {
            "output": self.output,
            "problems": [problem.to_dict() for problem in self.problems],
            "notes": list(self.notes),
            "canary": self.canary,
            "done": self.done,
            "resumes": self.resumes,
            "asked": {name: as_json_value(value) for name, value in self.options.non_defaults().items()},
            "input": None if frozen is None else _input_facts(frozen),
            "feed": None
            if frozen is None
            else _by_scorer(frozen, lambda one: list(map(dataclasses.asdict, one.binding.feeds))),
            "fetch": None
            if frozen is None
            else _by_scorer(frozen, lambda one: list(map(dataclasses.asdict, one.binding.fetches))),
            **({} if frozen is None or frozen.target is None else {"target": frozen.target.facts()}),
            **({} if frozen is None or not frozen.joins else {"join": [join.facts() for join in frozen.joins]}),
            "keep": None if frozen is None else list(frozen.kept),
            "copied": None if frozen is None else list(frozen.storage.copied),
            "batch_rows": None if frozen is None else _by_scorer(frozen, lambda one: one.batch_rows),
            "batch_tokens": None if frozen is None else _by_scorer(frozen, lambda one: one.batch_tokens),
            "trials": None if frozen is None else _by_scorer(frozen, lambda one: list(one.trials)),
            "trial_sessions": None if frozen is None else frozen.trial_sessions,
            "device": None if frozen is None else frozen.device,
            "nodes": self.nodes,
            "trees": self.trees,
            "weights": self.weights,
            "unused": "" if frozen is None else frozen.unused,
            "cluster": self.cluster,
            "model": as_one({name: one.identity for name, one in self.models.items()}),
            "folder_flags": list(self.folder_flags),
            "plan": None if frozen is None else frozen.plan_hash,
            "forecast": None if self.forecast is None else dataclasses.asdict(self.forecast),
            **({} if self.gates is None else {"gates": self.gates.to_dict()}),
            "requests": None if self.requests is None else dataclasses.asdict(self.requests),
        }

    def blocks(self) -> list[Facts | Table]:
        """Return the plan as facts and tables, without the problems."""
        frozen = self.frozen
        facts, bindings = [("output", self.output)], []
        if frozen is not None:
            where = self.options.cluster.scheduler or self.cluster
            rows = f"{frozen.rows:,} rows in {plural(len(frozen.files), 'file')}, {plural(frozen.n_parts, 'part')}"
            device = devices.described(frozen.device, self.nodes)
            table = [] if frozen.table is None else [("table", frozen.table.name)]
            models = [(f"model {name}".rstrip(), f"{one.words} on {device}") for name, one in self.models.items()]
            facts = [("input", rows), *table, *models, *facts]
            facts += [("from folder", shlex.join(self.folder_flags))] if self.folder_flags else []
            more = (("trees", self.trees), ("weights", self.weights), ("unused", frozen.unused))
            facts += [(name, text) for name, text in more if text]
            facts += [("keep", _kept(frozen))]
            facts += [("join", f"{join.name} = {join.words}") for join in frozen.joins]
            facts += [("where", text) for text in frozen.conditions]
            facts += [("batch rows", "; ".join(map(_batch_rows, frozen.scorers)))]
            facts += [("cluster", where), ("plan", frozen.plan_hash[:16])]
            facts += [("output table", str(frozen.target))] if frozen.target is not None else []
            bindings = _binding_tables(frozen)
        if self.forecast is not None:
            bindings.append(_forecast_table(self.forecast))
        last = [("batches", self.canary)] if self.canary and self.canary not in self.notes else []
        last += [("requests", str(self.requests))] if self.requests is not None and not self.done else []
        last += [] if self.gates is None else self.gates.facts()
        last += [("note", note) for note in self.notes]
        if self.done:
            last += [("state", "already done: a run would score nothing")]
        elif self.resumes:
            last += [("state", "an earlier run is unfinished: a run would score the rest")]
        return [Facts(facts), *bindings, Facts(last)]

    def __str__(self) -> str:
        """Return the plan as the command line prints it, at full width."""
        shown = [
            tables.facts(block.pairs) if isinstance(block, Facts) else tables.table(block.head, block.rows)
            for block in self.blocks()
        ]
        return "\n\n".join([*map(str, self.problems), *("\n".join(lines) for lines in shown if lines)])

    def _repr_html_(self) -> str:
        problems = [block for problem in self.problems for block in _problem_blocks(problem)]
        state = "cannot be run" if self.problems else ""
        return html.card("Plan", [*problems, *self.blocks()], state)


def cluster_of(options: Options, together: float | None, *, spawns: bool) -> str:
    """Return the requested cluster; without one, processes if two threads gain little, else threads of this process."""
    requested = options.cluster.cluster
    if requested is not None:
        return requested
    free = not options.cluster.scheduler and options.cluster.threads is None
    return "processes" if together is not None and together < _GIL_LIMITED and free and spawns else "embedded"


def _by_scorer(frozen: FrozenPlan, value: Callable[[Scorer], Any]) -> Any:  # noqa: ANN401 - any value for JSON
    """Return a value of the only model, or the values of several by their names."""
    return as_one({scorer.name: value(scorer) for scorer in frozen.scorers})


def as_one(values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any value for JSON
    """Return the value of an only model, which has no name; else the values by name, and None if there is none."""
    return values[""] if "" in values else dict(values) or None


def _batch_rows(scorer: Scorer) -> str:
    tried = f" (tried {'; '.join(scorer.trials)})" if scorer.trials else ""
    named = f"{scorer.name}: " if scorer.name else ""
    if scorer.batch_tokens is not None:
        return f"{named}as many as fit into {scorer.batch_tokens:,} tokens{tried}"
    return f"{named}{scorer.batch_rows:,}{tried}"


def _kept(frozen: FrozenPlan) -> str:
    copied = len(frozen.storage.copied)
    how = f"; {plural(copied, 'column')} copied as stored" if copied else ""
    return (name_list(frozen.kept) or "none") + how


def _binding_tables(frozen: FrozenPlan) -> list[Table]:
    """Return two tables: the columns that feed each tensor, and the columns that each output tensor becomes."""
    feeds = [
        (scorer.tensor(feed.tensor), feed.dtype, feed_words(feed), feed.rule)
        for scorer in frozen.scorers
        for feed in scorer.binding.feeds
    ]
    each = [(scorer, fetch_words(fetch)) for scorer in frozen.scorers for fetch in scorer.binding.fetches]
    fetches = [(scorer.tensor(tensor), *more) for scorer, (tensor, *more) in each]
    return [
        Table(("tensor", "type", "fed from", "chosen"), ("name", "", "", ""), feeds),
        Table(("tensor", "becomes", "type"), ("name", "", ""), fetches),
    ]


def _forecast_table(forecast: Forecast) -> Table:
    """Return the forecast: the low and the high end of each range, and what they were estimated from."""
    speed = f"{forecast.rows_per_s:,.0f} rows/s in one thread, on a few rows"
    rows = [
        ("time", *map(duration, forecast.seconds), "; ".join(filter(None, (speed, forecast.network)))),
        ("memory", *map(size, forecast.memory_bytes), forecast.memory),
        ("disk", *map(size, forecast.output_bytes), "the encoded size of a few rows"),
    ]
    return Table(("forecast", "low", "high", "estimated from"), ("name", "n", "n", ""), rows)


def _problem_blocks(problem: ScorerError) -> list[Words | Facts]:
    facts = [(name, getattr(problem, name)) for name in ("where", "expected", "found", "hint")]
    return [Words("", lead=problem.what, tone="bad"), Facts([(name, text) for name, text in facts if text])]


def _input_facts(frozen: FrozenPlan) -> dict[str, Any]:
    facts: dict[str, Any] = {"files": len(frozen.files), "rows": frozen.rows, "parts": frozen.n_parts}
    if frozen.table is not None:
        table = frozen.table
        state = {"kind": table.kind, "location": table.location, "id": table.table_id, "version": table.version}
        facts |= {"deleted": frozen.deleted, "table": state}
    return facts | ({"files_left_out": len(frozen.left_out)} if frozen.left_out else {})


def as_json_value(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return a value as it comes back from JSON: tuples become lists."""
    return json.loads(json.dumps(value))


_PIECE_BYTES = 2_000_000  # an input is read in pieces of about this size
_PER_PART, _PER_RUN = 2.005, 20  # a part is written, copied and removed with 999 others
_WRITE_PRICE, _READ_PRICE = 5.0, 0.4
"""Dollars for a million requests: usual list prices of stores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """About how many requests a run makes to object stores, and what they cost."""

    writes: int
    """Writes, copies and listings, which have one price."""
    reads: int
    dollars: float

    @classmethod
    def of(cls, frozen: FrozenPlan, output: str) -> Requests:
        """Return the requests for the inputs and the output that are on stores."""
        stored = [file for file in frozen.files if is_url(file.id.path)]
        reads = sum(
            2 + max(math.ceil(file.id.size / _PIECE_BYTES), sum(times for _, times in file.parts)) for file in stored
        )
        writes = math.ceil(len(stored) / 1000)
        if is_url(output):
            writes += int(_PER_PART * frozen.n_parts) + _PER_RUN
            reads += frozen.n_parts + _PER_RUN
        return cls(writes=writes, reads=reads, dollars=(writes * _WRITE_PRICE + reads * _READ_PRICE) / 1e6)

    def __str__(self) -> str:
        """Return the numbers and the price in words."""
        price = f"about {self.dollars:,.2f} dollars" if self.dollars >= _CENT else "less than a cent"
        return (
            f"about {plural(self.writes, 'write')} and {plural(self.reads, 'read')}: {price}, "
            f"at {_WRITE_PRICE:g} dollars per million writes and {_READ_PRICE:g} per million reads"
        )


_CENT = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The estimated time, memory and disk space of a run, each as a range; from a timed sample."""

    seconds: tuple[float, float]
    memory_bytes: tuple[int, int]
    output_bytes: tuple[int, int]
    rows_per_s: float
    """Speed of scoring alone, in one thread."""
    memory: str
    """How the memory was estimated, in words."""
    network: str = ""
    """What comes from stores and how fast, in words; empty if nothing does or the speed is unknown."""
    ahead: int | None = None
    """Parts that a worker reads or writes beside those that it scores, if --memory has no room for the usual number."""
