"""verify --rescore and replay: score rows of a finished output again, by the recorded plan, and compare."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scorer.arrow import digest, python_values
from scorer.dataset import conditions
from scorer.display.blocks import Facts, Table
from scorer.display.words import cut, plural, quoted_list
from scorer.errors import CommitError, OptionsError, PreflightError, ScorerError
from scorer.host.limits import limits_as_errors
from scorer.host.versions import versions
from scorer.output.existing import Files
from scorer.output.ledger import read_receipts
from scorer.output.writer import open_part
from scorer.plan.prepared import as_one
from scorer.scoring import replay as replay_
from scorer.scoring.compare import changed
from scorer.scoring.job import JOBS, Spec
from scorer.scoring.part import rescored
from scorer.storage.refusals import explaining
from scorer.storage.stores import exists
from scorer.tables.deleted import NAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from scorer.events import Receipt
    from scorer.output.place import Place
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """The result of scoring some rows again."""

    rows: int
    parts: int
    equal: int
    """Rows whose scores all have the same bits as before."""
    difference: float
    """The largest difference of a score."""
    faults: tuple[str, ...]

    def __str__(self) -> str:
        """Return the result in one line."""
        if not self.rows:
            return "no row"
        same = "all have the same bits" if self.equal == self.rows else f"{self.equal:,} have the same bits"
        checked = f"{plural(self.rows, 'row')} of {plural(self.parts, 'part')}"
        return f"{checked}: {same}, largest difference {self.difference:.2g}"


def rescore(
    files: Files, place: Place, plans: Sequence[FrozenPlan], ledger: Sequence[Mapping[str, Any]], rows: int
) -> Rescored:
    """Score `rows` random rows again, each with its whole part; the model and the input must be unchanged.

    `plans` are those of all generations of the output.
    """
    chosen = _choose_rows(ledger, rows)
    found = _Compared()
    for recorded in plans:
        if not any(recorded.first_part <= part < recorded.first_part + recorded.n_parts for part in chosen):
            continue
        plan, spec = _plan_and_spec(place, recorded)
        JOBS.add(spec)
        try:
            for part in plan.parts():
                if part.index in chosen:
                    found.compare(files, plan, part, spec.key, chosen[part.index])
        finally:
            JOBS.remove(spec.key)
    return Rescored(
        rows=found.checked, parts=len(chosen), equal=found.equal, difference=found.largest, faults=tuple(found.faults)
    )


@dataclass(slots=True)
class _Compared:
    """What was found so far."""

    checked: int = 0
    equal: int = 0
    largest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def compare(self, files: Files, plan: FrozenPlan, part: Part, key: str, rows: Sequence[int]) -> None:
        """Score a part again and compare these rows of it."""
        try:
            old, new = _old_and_new_scores(files, plan, part, key)
        except (ScorerError, OSError, KeyError, pa.ArrowException) as error:
            where = error.where if isinstance(error, ScorerError) else ""  # such as one of several models
            why = str(error).splitlines()[0] + (f" ({where})" if where else "")
            self.faults.append(f"{part.name}: cannot be scored again: {why}")
            return
        if len(old) != len(new):
            self.faults.append(f"{part.name}: {len(new)} rows are scored now, and the output has {len(old)}")
            return
        at = pa.array(sorted(rows))
        same, change, beyond = _compare(old.take(at), new.take(at))
        self.checked, self.equal, self.largest = self.checked + len(at), self.equal + same, max(self.largest, change)
        self.faults += [f"{part.name}: column {name!r} now differs by {by:.2g}" for name, by in beyond]


def _choose_rows(ledger: Sequence[Mapping[str, Any]], rows: int) -> dict[int, list[int]]:
    """Choose random output rows, by part. Without a seed, so that each check takes other rows."""
    ends = list(accumulate(row["scored"] for row in ledger))
    total = ends[-1] if ends else 0
    chosen: dict[int, list[int]] = defaultdict(list)
    for at in random.sample(range(total), min(rows, total)):
        place = bisect_right(ends, at)
        chosen[ledger[place]["part"]].append(at - (ends[place - 1] if place else 0))
    return chosen


def _old_and_new_scores(files: Files, plan: FrozenPlan, part: Part, key: str) -> tuple[pa.Table, pa.Table]:
    """Return the part's scores as written, and as scored now."""
    names = list(plan.outputs)
    with open_part(files.source(part.name, whole=True)) as parquet:
        old = parquet.read(columns=names)
    return old, rescored(key, part).select(names)


def _compare(old: pa.Table, new: pa.Table) -> tuple[int, float, list[tuple[str, float]]]:
    """Return the number of rows with equal bits, the largest difference, and the columns beyond the tolerance."""
    same = np.ones(len(old), bool)
    largest, beyond = 0.0, []
    for name in old.column_names:
        one, other = old[name].combine_chunks(), new[name].combine_chunks()
        same &= [digest(one.slice(i, 1)) == digest(other.slice(i, 1)) for i in range(len(one))]
        change, allowed = changed(one, other)
        largest = max(largest, change)
        if change > allowed:
            beyond.append((name, change))
    return int(same.sum()), largest, beyond


_PROOF = ("plan.json", "ledger.parquet", "manifest.json")
_SHOWN_VALUES, _SHOWN_LETTERS = 8, 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One row of an output, from the input to its scores. Values are plain data for JSON."""

    output: str
    row: int
    """Number of the row in the output, over all its files."""
    part: str
    row_of_part: int
    file: str
    row_of_file: int
    model: str | dict[str, str]
    """Where the model is; with several models, a dict by name, as in `digest`."""
    model_name: str | dict[str, str]
    """Its name in a tracking store, with the version; '' for other models."""
    digest: str | dict[str, str]
    engine: str
    planned: dict[str, str]
    """The versions that planned the run."""
    here: dict[str, str]
    """The versions of this process."""
    values: dict[str, Any]
    """What was read from the input to feed the model."""
    fed: dict[str, dict[str, Any]]
    """Type, shape and values of each input tensor, for the row alone."""
    returned: dict[str, dict[str, Any]]
    """The same of each output tensor."""
    scores: dict[str, dict[str, Any]]
    """For each output column: as stored, as computed again with the whole part, and whether the bits are equal."""
    faults: tuple[str, ...]
    """The columns that differ by more than is allowed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the replay as data for JSON."""
        return asdict(self)

    def _models(self) -> list[tuple[str, str]]:
        paths, tracked, digests = (
            value if isinstance(value, dict) else {"": value} for value in (self.model, self.model_name, self.digest)
        )
        return [
            (
                f"model {name}".rstrip(),
                f"{tracked[name] + ' at ' if tracked[name] else ''}{path} ({digests[name][:16]})",
            )
            for name, path in paths.items()
        ]

    def blocks(self) -> list[Facts | Table]:
        """Return the replay as blocks for text."""
        changes = [f"{name} {old} to {self.here.get(name, 'none')}" for name, old in self.planned.items()
                   if self.here.get(name) != old]  # fmt: skip
        facts = [
            ("row", f"{self.row:,} of {self.output}: row {self.row_of_part:,} of {self.part}"),
            ("from", f"row {self.row_of_file:,} of {self.file}"),
            *self._models(),
            ("engine", self.engine),
            ("versions", f"changed since: {', '.join(changes)}" if changes else "those of the run"),
            *(("fault", fault) for fault in self.faults),
        ]
        both = [("input", *item) for item in self.fed.items()] + [("output", *item) for item in self.returned.items()]
        tensors = [(role, name, f"{one['type']} {one['shape']}", _short(one["values"])) for role, name, one in both]
        scores = [(name, _short(one["stored"]), _short(one["again"]), "yes" if one["equal"] else "no")
                  for name, one in self.scores.items()]  # fmt: skip
        return [
            Facts(facts),
            Table(("column", "value"), ("name", ""), [(name, _short(value)) for name, value in self.values.items()]),
            Table(("", "tensor", "type and shape", "values"), ("", "name", "", ""), tensors),
            Table(("score", "stored", "computed again", "same bits"), ("name", "", "", ""), scores),
        ]


@limits_as_errors()
def replay(place: Place, row: int | None, where: Sequence[str] = ()) -> Replay:
    """Score one row of a finished output again: the row of this number, or the first one that meets the conditions.

    The input and the model must be unchanged. Its whole part is scored, by ONNX Runtime.
    """
    if (row is None) == (not where):
        raise OptionsError(
            "replay needs one row",
            where="scorer replay",
            expected="--row N or --where CONDITION",
            found="neither" if row is None else "both",
            hint="--row 0 is the first row of the output",
        )
    with explaining(CommitError):
        last = _published(place)
        receipts = [one for _, one in sorted(_receipts(place).items())]
        receipt, at, stored = _find(Files(place.output), receipts, row, where)
        index = receipt.proof.part
        recorded = next(
            one for one in place.generations(last) if one.first_part <= index < one.first_part + one.n_parts
        )
        plan, spec = _plan_and_spec(place, recorded)
        JOBS.add(spec)
        try:
            found = replay_.replay(spec.key, next(one for one in plan.parts() if one.index == index), at)
        finally:
            JOBS.remove(spec.key)
    before = sum(one.proof.counts.scored for one in receipts if one.proof.part < index)
    return _replay(place, plan, receipt.name, before + at, at, stored, found)


def _published(place: Place) -> FrozenPlan:
    """Return the plan of a finished output; raise if its proof is missing or damaged."""
    missing = [name for name in _PROOF if not exists(place.folder / name)]
    plan = None if missing or place.pending() is not None else place.published()
    if plan is not None:
        return plan
    raise CommitError(
        "there is no finished output with its proof",
        where=str(place.folder),
        expected=f"{', '.join(_PROOF)} of a finished run",
        found=f"without {quoted_list(missing)}" if missing else "files that do not belong together",
        hint="see `scorer verify OUT`; give --work-dir if the run had one",
    )


def _receipts(place: Place) -> dict[int, Receipt]:
    """Return the receipts of a finished run by part; raise if its ledger is missing or damaged."""
    try:
        return read_receipts(place.folder / "ledger.parquet")
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CommitError(
            "the ledger of the output cannot be read", where=str(place.folder), expected="ledger.parquet",
            found=cut(str(error)), hint="see `scorer verify OUT`",
        ) from error  # fmt: skip


def _plan_and_spec(place: Place, recorded: FrozenPlan) -> tuple[FrozenPlan, Spec]:
    """Return the plan with ONNX Runtime for all of the model, so that it checks the compiled trees, and the job."""
    plan = recorded.with_sessions(trees=False)
    spec = Spec.of(plan, place.staging(plan.plan_hash))
    return plan, replace(spec, deleted=str(place.proof_of(recorded) / NAME) if spec.deleted else "")


def _find(
    files: Files, receipts: Sequence[Receipt], row: int | None, where: Sequence[str]
) -> tuple[Receipt, int, pa.Table]:
    """Return the receipt of the row's part, the number of the row in the part, and the row as it is stored."""
    parsed, problems = conditions.parse_all(where)
    left = row
    for receipt in receipts if not problems else ():
        scored = receipt.proof.counts.scored
        if left is not None and left >= scored:
            left -= scored
        elif receipt.size:
            table = _stored(files, receipt)
            at = _place(table, left, parsed, problems)
            if at is not None:
                return receipt, at, table.slice(at, 1)
            if problems:
                break
    if problems:
        raise PreflightError(problems)
    rows = sum(receipt.proof.counts.scored for receipt in receipts)
    raise OptionsError(
        "the output has no such row",
        where="--where" if where else "--row",
        expected="a condition that a row meets" if where else f"a number from 0 to {rows - 1:,}",
        found=quoted_list(where) if where else f"{row:,}",
        hint="the numbers and columns are those of the output",
    )


def _stored(files: Files, receipt: Receipt) -> pa.Table:
    """Return the rows of a part as they are stored; raise if it does not have those of the ledger."""
    try:
        with open_part(files.source(receipt.name, whole=True)) as parquet:
            table = parquet.read()
        found = f"{len(table):,} rows"
    except (OSError, pa.ArrowException) as error:
        table, found = None, cut(str(error))
    if table is None or len(table) != receipt.proof.counts.scored:
        raise CommitError(
            "a file of the output does not have the rows of its ledger", where=receipt.name,
            expected=f"{receipt.proof.counts.scored:,} rows", found=found, hint="see `scorer verify OUT`",
        )  # fmt: skip
    return table


def _place(
    table: pa.Table, row: int | None, parsed: Sequence[conditions.Condition], problems: list[ScorerError]
) -> int | None:
    """Return the number of the row in a part: `row` itself, or the first one that meets the conditions."""
    if row is not None:
        return row if row < len(table) else None
    problems += conditions.check(parsed, table.schema, "output")
    if problems:
        return None
    met = np.flatnonzero(conditions.mask(parsed, table).to_numpy())
    return int(met[0]) if len(met) else None


def _replay(
    place: Place, plan: FrozenPlan, part: str, row: int, at: int, stored: pa.Table, found: replay_.Row
) -> Replay:
    scores, faults = {}, []
    for name in plan.outputs:
        old, new = stored[name].combine_chunks(), found.scores[name].combine_chunks()
        by, allowed = changed(old, new)
        faults += [f"column {name!r} now differs by {by:.2g}"] if by > allowed else []
        scores[name] = {
            "stored": _plain(python_values(old)[0]), "again": _plain(python_values(new)[0]),
            "equal": digest(old) == digest(new),
        }  # fmt: skip
    names = {one.name: plan.tracked_names.get(one.name, "") for one in plan.scorers}
    intra_op = plan.scorers[0].session.intra_op
    each = (f"{one.batch_rows:,} rows" if one.batch_tokens is None else f"{one.batch_tokens:,} tokens"
            for one in plan.scorers)  # fmt: skip
    return Replay(
        output=str(place.output), row=row, part=part, row_of_part=at, file=found.file,
        row_of_file=found.number, model_name=as_one(names),
        model=as_one({one.name: one.session.path for one in plan.scorers}),
        digest=as_one({one.name: one.session.digest for one in plan.scorers}),
        engine=f"ONNX Runtime on {plan.device}, {intra_op} thread, batches of {' and '.join(dict.fromkeys(each))}",
        planned=dict(plan.versions), here=versions(),
        values={name: _plain(python_values(found.values[name])[0]) for name in found.values.column_names},
        fed={name: _tensor(value) for name, value in found.fed.items()},
        returned={name: _tensor(value) for name, value in found.returned.items()},
        scores=scores, faults=tuple(faults),
    )  # fmt: skip


def _tensor(value: Any) -> dict[str, Any]:  # noqa: ANN401 - an array, or a list of maps
    """Return the type, the shape and the values of a tensor."""
    if not isinstance(value, np.ndarray):
        return {"type": "maps", "shape": [len(value)], "values": _plain(value)}
    return {"type": str(value.dtype), "shape": list(value.shape), "values": _plain(value.tolist())}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value
    """Return a value as data for JSON; numbers that JSON does not have, and bytes, become text."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _short(value: Any) -> str:  # noqa: ANN401 - data for JSON
    """Return a value as one line: of nested lists, the first values in their order."""
    flat: list[Any] = []
    rest = [value]
    while rest and len(flat) <= _SHOWN_VALUES:
        one = rest.pop(0)
        rest = [*one, *rest] if isinstance(one, list) else rest
        flat += [] if isinstance(one, list) else [one]
    texts = [f"{one:.9g}" if isinstance(one, float) else str(one) for one in flat[:_SHOWN_VALUES]]
    return cut(", ".join(texts) + (", ..." if len(flat) > _SHOWN_VALUES or rest else ""), _SHOWN_LETTERS)
