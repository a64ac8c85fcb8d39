"""The first rows of the input, and what they show when they go through the model: the shapes of its outputs."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from scorer.binding.features import steps
from scorer.binding.features.pack import pack
from scorer.binding.outputs import fetch_of
from scorer.binding.spec import Fetch
from scorer.errors import BatchError, BindingError, ScorerError, ShapeMismatch
from scorer.scoring import batches as batches_

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding.features.packed import Packed
    from scorer.binding.outputs import FetchRequest
    from scorer.binding.spec import Binding
    from scorer.model.session import Session
    from scorer.model.spec import ModelSpec


SAMPLE_ROWS = 256
_FEW, _FEW_TEXTS = 8, 2  # rows show an output's shape; long texts are work and take room


def outputs(
    session: Session, binding: Binding, wanted: Sequence[FetchRequest], table: pa.Table, model: ModelSpec, prefix: str
) -> tuple[tuple[Fetch, ...], list[ScorerError]]:
    """How each wanted output becomes columns, learnt from rows that really went through."""
    few = table.slice(0, _FEW if binding.pictures else SAMPLE_ROWS)
    rows = binding.fixed_batch or max(2, min(_FEW_TEXTS if binding.texts else _FEW, few.num_rows))
    asked = [Fetch(tensor=one.tensor, kind="", columns=(), type="") for one in wanted]
    tried = _tried(binding, few, rows)
    batches = _ran(session, asked, tried, many=binding.texts)
    if not batches:
        what, hint = (
            "the model refuses the first rows of the input",
            "check --feed: order, types and values of the columns",
        )
        raise BindingError(what, model.path, "a batch that runs", _complaint(session, asked, tried[0]), hint)
    problems: list[ScorerError] = []
    fetches: list[Fetch] = []
    for i, one in enumerate(wanted):
        raw = [(feeds, results[i]) for feeds, results in batches]
        try:
            _check_padding(one, [values for _, values in raw])
            stepped = [(feeds, steps.apply(one.steps, values, feeds)) for feeds, values in raw]
            ragged = _ragged(one, binding, stepped)
            fetches.append(fetch_of(one, stepped[0][1], rows, model, prefix, ragged=ragged))
        except ScorerError as error:
            problems.append(error)
    return tuple(fetches), problems


def _ran(
    session: Session, asked: Sequence[Fetch], tried: Sequence[dict[str, np.ndarray]], *, many: bool
) -> list[tuple[dict[str, np.ndarray], list[Any]]]:
    """Batches that the model takes, with what it gave: the first, or all; rows that it refuses are the run's affair."""
    ran: list[tuple[dict[str, np.ndarray], list[Any]]] = []
    for feeds in tried:
        if many or not ran:
            with suppress(BatchError):
                ran.append((feeds, batches_.call(session, asked, feeds, None)))
    return ran


def _complaint(session: Session, asked: Sequence[Fetch], feeds: dict[str, np.ndarray]) -> str:
    try:
        batches_.call(session, asked, feeds, None)
    except BatchError as error:
        return error.found
    return ""


def _ragged(one: FetchRequest, binding: Binding, batches: Sequence[tuple[dict[str, np.ndarray], Any]]) -> bool:
    """Whether rows are as long as their texts; refused where no single axis says how long."""
    texts = {
        (f.columns, f.setting("tokenizer"), f.setting("max_length")): f.tensor
        for f in binding.feeds
        if f.kind == "text"
    }
    arrays = [(feeds, values) for feeds, values in batches if isinstance(values, np.ndarray)]
    if not texts or len({values.shape[1:] for _, values in arrays}) <= 1:
        return False
    tensor = next(iter(texts.values()))
    second = all(v.ndim > 1 and v.shape[1] == feeds[tensor].shape[-1] for feeds, v in arrays)
    others = {values.shape[2:] for _, values in arrays}
    if len(texts) > 1 or not second or len(others) > 1:
        what, hint = (
            f"output {one.tensor!r} changes its shape with the length of the texts",
            "pool it, or leave it out with --fetch",
        )
        shapes = " and ".join(sorted({str(list(values.shape)) for _, values in arrays}))
        raise ShapeMismatch(what, f"--fetch {one.tensor}", "[N, tokens, ...] of one text", shapes, hint)
    return True


def _check_padding(one: FetchRequest, batches: Sequence[Any]) -> None:
    """Refuse steps that would take padding for values: those over a last axis that is as long as the longest row."""
    step = next((step for step in one.steps if step.startswith(steps.OVER_VALUES)), None)
    lengths = {batch.shape[-1] for batch in batches if isinstance(batch, np.ndarray) and batch.ndim > 1}
    if step is not None and len(lengths) > 1:
        what = f"step {step} would count padding: the last axis of {one.tensor!r} is that of tokens"
        hint = "leave the step out: rows come without their padding"
        raise ShapeMismatch(what, f"--fetch {one.tensor}|{step}", "[N, ..., k]", f"k from {sorted(lengths)}", hint)


def as_output(few: pa.Table, fed: pa.Table, binding: Binding, session: Session, schema: pa.Schema) -> pa.Table:
    """A few rows as the output will hold them, to learn their encoded size."""
    scored = batches_.score(fed, batches_.grid(fed.num_rows, max(fed.num_rows, 1)), binding, session)
    columns = {name: few[name] for name in binding.kept}
    columns |= dict(zip(binding.outputs, scored.columns, strict=True))
    return pa.table({name: columns[name] for name in schema.names if name in columns})


def _tried(binding: Binding, table: pa.Table, rows: int) -> list[dict[str, np.ndarray]]:
    """Batches to learn shapes from: the first rows that can be fed, then made-up ones; of texts, several lengths."""
    made = [batches_.fabricated(binding, rows, length) for length in (2, 3)]
    if all(feed.kind != "text" or feed.shape != (None,) for feed in binding.feeds):
        del made[1:]
    if not table.num_rows:
        return made
    packs = pack(binding.feeds, table)
    for packed in packs.values():
        packed.batch(slice(0, table.num_rows))  # some find out only now that a row is bad
    lost = {row for packed in packs.values() for row in packed.bad}
    good = [row for row in range(table.num_rows) if row not in lost]
    if not good:
        return made
    order = batches_.by_length(packs)
    if order is None:
        chosen = [[good[i % len(good)] for i in range(rows)]]
        return [*_batches(packs, chosen), *made]
    ranked = [row for row in order.tolist() if row not in lost]
    return [*_batches(packs, [[ranked[0]] * rows, [ranked[-1]] * rows]), *made]


def _batches(packs: dict[str, Packed], chosen: list[list[int]]) -> list[dict[str, np.ndarray]]:
    return [{name: packed.batch(np.array(some)) for name, packed in packs.items()} for some in chosen]
