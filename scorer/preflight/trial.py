"""Score the first rows of the input: the shapes and types of the outputs, and whether rows are independent.

For the second, the same rows are scored as one batch, in halves, and in another order; the scores must agree within a
tolerance.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scorer.binding.axes import from_model
from scorer.binding.elements import fitted, unused_labels
from scorer.binding.features import steps
from scorer.binding.features.pack import pack
from scorer.binding.outputs import fetch_of
from scorer.binding.spec import Fetch
from scorer.errors import BatchError, BindingError, ScorerError, ShapeMismatch
from scorer.preflight import axes as axes_
from scorer.scoring import batches as batches_
from scorer.scoring.compare import changed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.binding.elements import Batch
    from scorer.binding.features.packed import Packed
    from scorer.binding.outputs import FetchRequest
    from scorer.binding.spec import Binding
    from scorer.model.resident import Engine
    from scorer.model.spec import ModelSpec


SAMPLE_ROWS = 256
_FIRST_COMPARED, _FIRST_TEXTS, _MORE_ROWS = 8, 4, (32, 128, 256)  # rows of the independence check
_MORE_CONVERTED = (8,)  # of texts and pictures: a larger batch would need far more memory than one of the run
_MOST_S, _LEAST_S = 0.6, 0.4  # for the check
_SHARE = 0.05  # of the run's work in one thread: what the check may take between those limits
_FEW, _FEW_TEXTS = 8, 2  # rows are enough to see an output's shape; long texts need time and memory


def outputs(
    session: Engine, binding: Binding, wanted: Sequence[FetchRequest], table: pa.Table, model: ModelSpec, prefix: str
) -> tuple[Binding, list[ScorerError]]:
    """Return the binding with how each requested output becomes columns, and what is wrong with them.

    Rows are scored to see shapes and types, and which axis of an output holds the rows.
    """
    few = table.slice(0, _FEW if binding.pictures else SAMPLE_ROWS)
    rows = binding.fixed_batch or max(2, min(first_rows(binding), few.num_rows))
    raw = _without_outputs(binding, wanted, model)
    candidates = _trial_batches(binding, few, rows)
    tried = _run_batches(session, raw, candidates, every=binding.texts or binding.any_size)
    if not tried:
        raise BindingError(
            "the model fails on the first rows of the input",
            where=model.path,
            expected="a batch that the model accepts",
            found=_runtime_error(session, raw, candidates[0]),
            hint="check --feed: order, types and values of the columns",
        )
    requested = dict(binding.batch_axes)
    trial = axes_.Trial(session, raw, model, rows, tried, real=bool(few.num_rows))
    axes, wrong = axes_.output_axes(trial, requested)
    batches = [(feeds, from_model(results, axes, model.path)) for feeds, results in tried]
    problems = list(wrong.values())
    fetches: list[Fetch] = []
    for one in wanted:
        results = [(feeds, values[one.tensor]) for feeds, values in batches]
        try:
            if binding.texts:
                _check_padding(one, [values for _, values in results])
            fit, stepped = fitted(one, results, model)
            ragged = _is_ragged(one, binding, stepped)
            if one.tensor not in wrong:
                fetches.append(fetch_of(fit, stepped[0][1], rows, model, prefix, ragged=ragged))
        except ScorerError as error:
            problems += [] if one.tensor in wrong else [error]
    binding = replace(binding, fetches=tuple(fetches), batch_axes=tuple((requested | axes).items()))
    return binding, problems or unused_labels(wanted, [batches[0][1][one.tensor] for one in wanted])


def _without_outputs(binding: Binding, wanted: Sequence[FetchRequest], model: ModelSpec) -> Binding:
    """Return the binding with outputs as the model returns them: without steps and turned axes."""
    inputs = {tensor.name for tensor in model.inputs}
    return replace(
        binding,
        fetches=tuple(
            Fetch(tensor=name, kind="", columns=(), type="") for name in dict.fromkeys(one.tensor for one in wanted)
        ),
        batch_axes=tuple((name, axis) for name, axis in binding.batch_axes if name in inputs),
    )


def first_rows(binding: Binding) -> int:
    """Return the rows of the first batch that the model gets."""
    return binding.fixed_batch or (_FEW_TEXTS if binding.texts else _FEW)


def _run_batches(
    session: Engine, binding: Binding, candidates: Sequence[dict[str, np.ndarray]], *, every: bool
) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Return the batches that the model accepts, with its outputs: the first one or every one.

    A batch that the model rejects is skipped: the run finds its bad rows.
    """
    ran: list[tuple[dict[str, np.ndarray], dict[str, Any]]] = []
    for feeds in candidates:
        if every or not ran:
            with suppress(BatchError):
                ran.append((feeds, batches_.run_model(session, binding, feeds)))
    return ran


def _runtime_error(session: Engine, binding: Binding, feeds: dict[str, np.ndarray]) -> str:
    try:
        batches_.run_model(session, binding, feeds)
    except BatchError as error:
        return error.found
    return ""


def _is_ragged(one: FetchRequest, binding: Binding, batches: Sequence[Batch]) -> bool:
    """Whether the rows of an output are lists of any length: as long as their text, or by the size of their picture.

    Raises `ShapeMismatch` if they differ otherwise.
    """
    texts = {
        (f.columns, f.setting("tokenizer"), f.setting("max_length")): f.tensor
        for f in binding.feeds
        if f.kind == "text"
    }
    arrays = [(feeds, values) for feeds, values in batches if isinstance(values, np.ndarray)]
    if not (texts or binding.any_size) or len({values.shape[1:] for _, values in arrays}) <= 1:
        return False
    others = {values.shape[2:] for _, values in arrays}
    if binding.any_size:  # each row is scored alone, and nothing is padded
        fits, expected, cause = all(v.ndim > 1 for _, v in arrays), "[N, steps, ...]", "the size of the pictures"
    else:
        tensor = next(iter(texts.values()))
        fits = len(texts) == 1 and all(v.ndim > 1 and v.shape[1] == feeds[tensor].shape[-1] for feeds, v in arrays)
        expected, cause = "[N, tokens, ...] and one text column", "the length of the texts"
    if not fits or len(others) > 1:
        raise ShapeMismatch(
            f"output {one.tensor!r} changes its shape with {cause}",
            where=f"--fetch {one.tensor}",
            expected=expected,
            found=" and ".join(sorted({str(list(values.shape)) for _, values in arrays})),
            hint="pool it, or leave it out with --fetch",
        )
    return True


def _check_padding(one: FetchRequest, batches: Sequence[Any]) -> None:
    """Refuse a step over the last axis if that axis is as long as the batch's longest text: it would count padding."""
    step = next((step for step in one.steps if step.startswith(steps.OVER_VALUES)), None)
    lengths = {batch.shape[-1] for batch in batches if isinstance(batch, np.ndarray) and batch.ndim > 1}
    if step is not None and len(lengths) > 1:
        raise ShapeMismatch(
            f"step {step} would count padding: the last axis of {one.tensor!r} is the tokens",
            where=f"--fetch {one.tensor}|{step}",
            expected="[N, ..., k]",
            found=f"k from {sorted(lengths)}",
            hint="remove the step: scorer cuts the padding off each row",
        )


def scores_of(fed: pa.Table, binding: Binding, session: Engine) -> tuple[pa.Array, ...]:
    """Return the output columns of a few rows."""
    edges = batches_.grid(fed.num_rows, binding.fixed_batch or max(fed.num_rows, 1))
    return tuple(batches_.score(fed, edges, binding, session).columns)


def as_output(few: pa.Table, kept: Sequence[str], scores: Mapping[str, pa.Array], schema: pa.Schema) -> pa.Table:
    """Return a few rows as the output will contain them, from which their encoded size is measured."""
    columns = {name: few[name] for name in kept} | dict(scores)
    return pa.table({name: columns[name] for name in schema.names if name in columns})


def _trial_batches(binding: Binding, table: pa.Table, rows: int) -> list[dict[str, np.ndarray]]:
    """Return batches that show shapes: first of real rows, then of made-up values.

    Texts have several lengths, and pictures of any size several sizes.
    """
    made_up = [batches_.placeholder_feeds(binding, rows, length) for length in (2, 3)]
    if not binding.any_size and all(feed.kind != "text" or feed.shape != (None,) for feed in binding.feeds):
        del made_up[1:]
    if not table.num_rows:
        return made_up
    packs = pack(binding.feeds, table)
    for packed in packs.values():
        packed.batch(slice(0, table.num_rows))  # some converters find bad rows only now
    bad = {row for packed in packs.values() for row in packed.bad}
    good = [row for row in range(table.num_rows) if row not in bad]
    if not good:
        return made_up
    order = batches_.order_by_length(packs)
    if order is None and binding.any_size:
        each = sorted(_batches(packs, [[row] for row in good]), key=lambda feeds: sum(v.size for v in feeds.values()))
        return [each[0], each[-1], *made_up]
    if order is None:
        chosen = [[good[i % len(good)] for i in range(rows)]]
        return [*_batches(packs, chosen), *made_up]
    ranked = [row for row in order.tolist() if row not in bad]
    return [*_batches(packs, [[ranked[0]] * rows, [ranked[-1]] * rows]), *made_up]


def _batches(packs: dict[str, Packed], chosen: list[list[int]]) -> list[dict[str, np.ndarray]]:
    return [{name: packed.batch(np.array(rows)) for name, packed in packs.items()} for rows in chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Independence:
    """The result of the check: the largest change of a score, relative to what is allowed."""

    rows: int
    column: str
    """The output column that changed most."""
    difference: float
    """Its largest change; for labels, the share that changed."""
    allowed: float
    """The tolerance for `difference`."""
    manner: str
    """How the rows were batched when it changed: "in halves" or "in another order"."""
    row_s: float
    """Seconds per row, in one batch."""
    bad: dict[str, int]
    """Rows that could not be scored, counted by reason."""
    scores: tuple[pa.Array, ...] = field(default=(), compare=False, repr=False)
    """The output columns of the rows."""

    @property
    def independent(self) -> bool:
        """Whether every score stayed within the tolerance."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        """One line for the plan."""
        if self.independent:
            change = f"largest difference {self.difference:.2g}"
            return f"{self.rows} rows as one batch, as halves and in another order: {change}"
        return (
            f"a row's score depends on the other rows in its batch: {self.column!r} changes by {self.difference:.2g} "
            f"(allowed: {self.allowed:.2g}) when {self.rows} rows are scored {self.manner}"
        )


def try_rows(session: Engine, binding: Binding, table: pa.Table, ahead: int) -> Independence | None:
    """Check the first rows of a run of `ahead` rows; None if there are no two rows to compare."""
    if binding.fixed_batch == 1 or table.num_rows < 2:  # noqa: PLR2004 - the smallest batch that can mix rows
        return None
    few = table.slice(0, _FIRST_TEXTS if binding.texts else _FIRST_COMPARED)
    whole, row_s = _timed(session, binding, few)
    for most in (
        _MORE_CONVERTED if binding.texts or binding.pictures else _MORE_ROWS
    ):  # small batches, and the first call above all, overstate the seconds per row
        budget = min(_MOST_S, max(_LEAST_S, _SHARE * ahead * row_s))
        rows = int(min(most, table.num_rows, budget / 3 / max(row_s, 1e-9))) // 2 * 2
        if rows <= few.num_rows:
            break
        few = table.slice(0, rows)
        whole, row_s = _timed(session, binding, few)
    rows = few.num_rows
    order = np.random.default_rng(rows).permutation(rows)
    halves = _score(session, binding, few, (rows + 1) // 2).columns
    mixed = _score(session, binding, few.take(order), rows).columns
    mixed = [column.take(pa.array(np.argsort(order))) for column in mixed]
    bad = Counter(reason for _, reason in whole.bad.values())
    results = [
        Independence(
            rows=rows,
            column=name,
            difference=change,
            allowed=allowed,
            manner=manner,
            row_s=row_s,
            bad=bad,
            scores=tuple(whole.columns),
        )
        for other, manner in ((halves, "in halves"), (mixed, "in another order"))
        for name, a, b in zip(binding.outputs, whole.columns, other, strict=True)
        for change, allowed in [changed(a, b)]
    ]
    return max(results, key=lambda result: result.difference / result.allowed, default=None)


def _timed(session: Engine, binding: Binding, table: pa.Table) -> tuple[batches_.Scored, float]:
    """Return the scores of the rows as one batch, and the seconds per row."""
    started = time.perf_counter()
    whole = _score(session, binding, table, table.num_rows)
    return whole, (time.perf_counter() - started) / table.num_rows


def _score(session: Engine, binding: Binding, table: pa.Table, batch_rows: int) -> batches_.Scored:
    edges = batches_.grid(table.num_rows, binding.fixed_batch or batch_rows)
    return batches_.score(table, edges, binding, session)
