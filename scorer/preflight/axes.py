"""Find the axis that holds the rows of each output: the one that follows the number of rows in a batch.

Only an output whose first axis may be another one costs a call of the model, one for all outputs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.binding.axes import axis_line, no_axis, other_axes
from scorer.errors import BatchError, ScorerError, ShapeMismatch
from scorer.scoring import batches as batches_

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.binding.axes import Axes
    from scorer.binding.spec import Binding
    from scorer.model.resident import Engine
    from scorer.model.spec import ModelSpec


_RTOL = 1e-3  # of the largest value: rows at other places of a batch may differ by rounding


@dataclass(slots=True)
class Trial:
    """The batches that were tried, of `rows` rows each, with the outputs as the model returned them."""

    session: Engine
    binding: Binding
    """Fetches each output without steps; its axes are those of the inputs."""
    model: ModelSpec
    rows: int
    batches: Sequence[tuple[dict[str, np.ndarray], dict[str, Any]]]
    real: bool
    """Whether the first batch has rows of the input."""
    _another: dict[str, Any] | None = field(default=None, init=False)

    def outputs(self, name: str) -> list[Any]:
        """Return what the batches gave for one output."""
        return [results[name] for _, results in self.batches]

    def another(self) -> dict[str, Any]:
        """Return the outputs of a second batch; {} if the model refuses it.

        It has one row more than the first, or if the model takes no other number of rows, its rows rolled by one.
        """
        if self._another is None:
            feeds, self._another = self.batches[0][0], {}
            shared = {feed.tensor for feed in self.binding.feeds if feed.shared}
            changed = {name: value if name in shared else self._changed(value) for name, value in feeds.items()}
            with suppress(BatchError):
                self._another = batches_.run_model(self.session, self.binding, changed)
        return self._another

    def _changed(self, value: np.ndarray) -> np.ndarray:
        if self.binding.fixed_batch is not None:
            return np.roll(value, 1, axis=0)
        return np.concatenate([value, value[:1]])


def output_axes(trial: Trial, requested: Axes) -> tuple[dict[str, int], dict[str, ScorerError]]:
    """Return the axis of the rows of each output, where it is requested or not the first; and problems by output."""
    found: dict[str, int] = {}
    problems: dict[str, ScorerError] = {}
    for fetch in trial.binding.fetches:
        name = fetch.tensor
        try:
            if name in requested:
                _check(trial, name, requested[name])
                found[name] = requested[name]
            else:
                axis = _axis(trial, name)
                found |= {name: axis} if axis else {}
        except ScorerError as error:
            problems[name] = error
    return found, problems


def note(binding: Binding, requested: Sequence[str]) -> list[str]:
    """Return a note about rows that are not on the first axis, without those that --batch-axis names."""
    shown = [
        f"{name!r} on axis {axis}" for name, axis in binding.batch_axes if axis and f"{name}={axis}" not in requested
    ]
    return [f"rows are not on the first axis, as the shapes show: {', '.join(shown)}"] if shown else []


def _axis(trial: Trial, name: str) -> int:
    """Return the axis of the rows if it is certain, else 0; raise if the first axis does not follow them either."""
    arrays, rows = trial.outputs(name), trial.rows
    first = arrays[0]
    if not all(isinstance(array, np.ndarray) and array.ndim for array in arrays):
        return 0
    others = other_axes(first.shape, rows)
    if trial.binding.fixed_batch == 1:
        return _axis_of_one(trial, name)
    if not others:
        return 0
    if trial.binding.fixed_batch is not None:
        return _axis_of_fixed(trial, name, [0, *others] if first.shape[0] == rows else others)
    follow = _following(trial, name)
    named = _named_axis(trial, name, first.ndim)
    if follow is None:
        return named if named in others and first.shape[0] != rows else 0
    if 0 in follow:
        return 0
    if len(follow) == 1 or named in follow:
        return named if named in follow else follow[0]
    if first.shape[0] == rows:
        raise _no_rows(trial, name, 0, follow)
    return 0


def _axis_of_one(trial: Trial, name: str) -> int:
    """Return the axis of the rows in batches of one row: the one that always has the size 1, the first if it does.

    Of several, any will do if the rows get the same shape.
    """
    shapes = [array.shape for array in trial.outputs(name)]
    if all(shape[0] == 1 for shape in shapes):
        return 0
    ones = [axis for axis in range(min(map(len, shapes))) if all(shape[axis] == 1 for shape in shapes)]
    turned = {tuple((*shape[:axis], *shape[axis + 1 :]) for shape in shapes) for axis in ones}
    if len(turned) == 1 and len({len(shape) for shape in shapes}) == 1:
        return ones[0]
    if shapes[0][0] == 1:
        raise _no_rows(trial, name, 0, ones)
    return 0


def _axis_of_fixed(trial: Trial, name: str, fits: Sequence[int]) -> int:
    """Return the only axis of those that fit the batch along which the values move as its rows do; 0 if unclear."""
    first, second = trial.outputs(name)[0], trial.another().get(name)
    if not trial.real:
        return fits[0] if len(fits) == 1 else 0
    if not isinstance(second, np.ndarray) or second.shape != first.shape or np.array_equal(first, second):
        return 0
    moved = [axis for axis in fits if _nearly_equal(np.roll(first, 1, axis=axis), second)]
    return moved[0] if len(moved) == 1 else 0


def _nearly_equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind not in "fiu":
        return np.array_equal(a, b)
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=0))
    return np.allclose(a, b, rtol=_RTOL, atol=_RTOL * largest, equal_nan=True)


def _following(trial: Trial, name: str) -> list[int] | None:
    """Return the axes that are as long as the batch, for two numbers of rows; None if the model takes no second one."""
    first, second = trial.outputs(name)[0], trial.another().get(name)
    if not isinstance(second, np.ndarray) or second.ndim != first.ndim:
        return None
    return [
        axis
        for axis, sizes in enumerate(zip(first.shape, second.shape, strict=True))
        if sizes == (trial.rows, trial.rows + 1)
    ]


def _named_axis(trial: Trial, name: str, ndim: int) -> int:
    """Return the only axis that has the name of the inputs' batch dimension; 0 if there is none."""
    on = dict(trial.binding.batch_axes)
    inputs = ((tensor.shape or (None,), on.get(tensor.name, 0)) for tensor in trial.model.inputs)
    names = {shape[axis] for shape, axis in inputs if axis < len(shape)}
    shape = next(tensor.shape for tensor in trial.model.outputs if tensor.name == name) or ()
    found = [axis for axis, size in enumerate(shape) if isinstance(size, str) and size in names]
    return found[0] if len(found) == 1 and len(shape) == ndim else 0


def _check(trial: Trial, name: str, axis: int) -> None:
    """Raise `ShapeMismatch` if the requested axis of an output does not hold the rows."""
    arrays, rows = trial.outputs(name), trial.rows
    first = arrays[0]
    if not isinstance(first, np.ndarray):
        if axis:
            raise no_axis(name, axis, (None,), trial.model.path)
        return
    if axis >= first.ndim:
        raise no_axis(name, axis, first.shape, trial.model.path)
    follow = None if trial.binding.fixed_batch is not None else _following(trial, name)
    fits = axis in follow if follow is not None else all(array.shape[axis] == rows for array in arrays)
    if not fits:
        others = range(first.ndim) if follow is None else follow
        raise _no_rows(trial, name, axis, [other for other in others if first.shape[other] == rows])


def _no_rows(trial: Trial, name: str, axis: int, others: Sequence[int]) -> ShapeMismatch:
    """Return the error for an axis that does not hold the rows; `others` may."""
    shapes = dict.fromkeys(str(list(array.shape)) for array in trial.outputs(name))
    found = f"shape {' and '.join(shapes)}"
    second = None if trial.binding.fixed_batch is not None else trial.another().get(name)
    if isinstance(second, np.ndarray):
        found += f", and {list(second.shape)} for {trial.rows + 1} rows"
    hint = "select other outputs with --fetch"
    if others and others[0] == 0:
        hint = f"remove {axis_line(name, axis)}: the rows are on the first axis"
    elif others:
        hint = axis_line(name, others[0]) + (" if its rows are on that axis" if len(others) > 1 else "")
    return ShapeMismatch(
        f"axis {axis} of output {name!r} does not hold the rows",
        where=trial.model.path,
        expected=f"size {trial.rows} on axis {axis} for {trial.rows} rows",
        found=found,
        hint=hint,
    )
