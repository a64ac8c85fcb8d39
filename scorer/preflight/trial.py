"""Score the first rows of the input to learn the shapes and types of the model's outputs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding.elements import Batch
    from scorer.binding.features.packed import Packed
    from scorer.binding.outputs import FetchRequest
    from scorer.binding.spec import Binding
    from scorer.model.resident import Engine
    from scorer.model.spec import ModelSpec


SAMPLE_ROWS = 256
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


def as_output(few: pa.Table, scores: Sequence[pa.Array], binding: Binding, schema: pa.Schema) -> pa.Table:
    """Return a few rows as the output will contain them, from which their encoded size is measured."""
    columns = {name: few[name] for name in binding.kept}
    columns |= dict(zip(binding.outputs, scores, strict=True))
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
