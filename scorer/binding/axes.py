"""The axis of each tensor that holds the rows, where it is not the first one, as in [steps, batch, classes].

All other code has the rows on the first axis: tensors are turned just before and after a call of the model.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import OptionsError, ScorerError, ShapeMismatch
from scorer.options.grammar import split_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.model.spec import ModelSpec, TensorSpec

    Shape = Sequence[int | str | None]
    Axes = Mapping[str, int]
    """The axis of the rows, by tensor."""


BATCH_NAME = re.compile(r"(n|batch([_ ]?size)?|batch[_ ]?dim|unk__batch)$", re.IGNORECASE)
"""Names that exporters give to the batch dimension."""
_STATE_NAME = re.compile(r"past|state|hidden|cache|mem|(^|_)(h|c|hx|cx)(_|\d|$)", re.IGNORECASE)
"""Names that exporters give to the state of a recurrent model."""
_CUBE = 3  # axes of [layers, batch, values]


def requested_axes(texts: Sequence[str], model: ModelSpec) -> tuple[dict[str, int], list[ScorerError]]:
    """Return the axes that --batch-axis TENSOR=AXIS names, and the problems."""
    tensors = {tensor.name: tensor for tensor in (*model.outputs, *model.inputs)}
    found: dict[str, int] = {}
    problems: list[ScorerError] = []
    for text in texts:
        try:
            name, axis = _parse(text, tensors)
            if found.setdefault(name, axis) != axis:
                raise _wrong(text, f"two axes for {name!r}", "one axis", f"{found[name]} and {axis}", "leave one out")
        except ScorerError as error:
            problems.append(error)
    return found, problems


def _parse(text: str, tensors: Mapping[str, TensorSpec]) -> tuple[str, int]:
    """Return the tensor and the axis of one --batch-axis; raise `OptionsError` if the tensor has no such axis."""
    names = list(tensors)
    name, number = split_known(text, names)
    if name is None:
        what = "it names a tensor that the model does not have"
        hint = did_you_mean(text.partition("=")[0], names)
        raise _wrong(text, what, f"TENSOR=AXIS with one of {quoted_list(names)}", repr(text), hint)
    if not re.fullmatch(r"[0-9]{1,3}", number):
        hint = f"axes count from 0: {axis_line(name, 1)}"
        raise _wrong(text, f"no axis of {name!r}", "a whole number, 0 or more", repr(number), hint)
    return name, int(number)


def _wrong(text: str, what: str, expected: str, found: str, hint: str) -> OptionsError:
    return OptionsError(
        f"--batch-axis cannot be used: {what}",
        where=f"--batch-axis {text}", expected=expected, found=found, hint=hint,
    )  # fmt: skip


def input_axes(requested: Axes, model: ModelSpec) -> dict[str, int]:
    """Return the requested axes, and those of inputs that have the batch on another axis than the first.

    They are certain if the batch dimension has the usual name, or if it is the only free one of a recurrent state, as
    in [2, ?, 128], and like the batch dimension of another input.
    """
    names = (size for tensor in model.inputs for size in tensor.shape or () if isinstance(size, str))
    batch = next(filter(BATCH_NAME.match, names), None)
    shapes = {tensor.name: tensor.shape for tensor in model.inputs if tensor.shape}
    named = {name: shape.index(batch) for name, shape in shapes.items() if batch and shape.count(batch) == 1}
    return {name: axis for name, axis in (_axes_of_states(model) | named).items() if axis} | dict(requested)


def _axes_of_states(model: ModelSpec) -> dict[str, int]:
    """Return the axis of the only free dimension of each state, if it is the batch of another input, too."""
    batches = {tensor.shape[0] for tensor in model.inputs if tensor.shape and not isinstance(tensor.shape[0], int)}
    found = {}
    for tensor in model.inputs:
        shape = tensor.shape or ()
        free = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        alike = len(free) == 1 and shape[free[0]] in batches
        if len(shape) >= _CUBE and alike and any(is_next_state(tensor, output) for output in model.outputs):
            found[tensor.name] = free[0]
    return found


def is_next_state(tensor: TensorSpec, output: TensorSpec) -> bool:
    """Return whether an output is the next value of an input, by the names that exporters give them."""
    if tensor.type != output.type or not _STATE_NAME.search(tensor.name):
        return False
    plain, other = (
        re.sub(r"(past|present|new|next|prev|out|in|n|_|\.|\d+$)", "", text.lower())
        for text in (tensor.name, output.name)
    )
    return plain == other and tensor.name != output.name


def with_rows_first(model: ModelSpec, axes: Axes) -> tuple[ModelSpec, list[ScorerError]]:
    """Return the model with the rows on the first axis of each input, and a problem for each axis that it lacks."""
    problems: list[ScorerError] = []
    inputs = []
    for tensor in model.inputs:
        axis, shape = axes.get(tensor.name, 0), tensor.shape
        if shape is not None and axis and axis < len(shape):
            turned = replace(tensor, shape=(shape[axis], *shape[:axis], *shape[axis + 1 :]))
            inputs.append(turned)
            continue
        inputs.append(tensor)
        if shape is not None and axis:
            problems.append(no_axis(tensor.name, axis, shape, model.path))
    return replace(model, inputs=tuple(inputs)), problems


def no_axis(name: str, axis: int, shape: Shape, where: str) -> ShapeMismatch:
    """Return the error for an axis that a tensor of this shape does not have."""
    expected = f"an axis from 0 to {len(shape) - 1}" if len(shape) > 1 else "axis 0" if len(shape) else "no axis"
    return ShapeMismatch(
        f"tensor {name!r} has no axis {axis}",
        where=where,
        expected=expected,
        found=f"--batch-axis '{name}={axis}' for the shape [{', '.join('?' if d is None else str(d) for d in shape)}]",
        hint="axes count from 0: the first is 0, the second is 1",
    )


def other_axes(shape: Shape, rows: int) -> list[int]:
    """Return the axes after the first that are as long as the batch."""
    return [axis for axis, size in enumerate(shape) if axis and size == rows]


def doubt_advice(model: ModelSpec, axes: Axes) -> str:
    """Return how to name another axis of an input, if its first one may not be the batch; '' if no input has one."""
    for tensor in model.inputs:
        first, *others = tensor.shape or (1,)
        free = [axis for axis, size in enumerate(others, 1) if not isinstance(size, int)]
        unnamed = not isinstance(first, int) and not BATCH_NAME.match(first or "")
        if tensor.name not in axes and unnamed and free:
            return f"; if the rows of {tensor.name!r} are on another axis, add {axis_line(tensor.name, free[0])}"
    return ""


def axis_line(name: str, axis: int) -> str:
    """Return a --batch-axis that can be pasted into a shell."""
    return "--batch-axis '" + f"{name}={axis}".replace("'", "'\"'\"'") + "'"


def axis_advice(name: str, shape: Shape, rows: int) -> str:
    """Return how to name the axis of an output's rows, as the first part of a hint; '' if no other axis fits."""
    fits = other_axes(shape, rows)
    return f"{axis_line(name, fits[0])} if its rows are on that axis; otherwise " if fits else ""


def to_model(feeds: Mapping[str, np.ndarray], axes: Axes) -> dict[str, np.ndarray]:
    """Return the feeds as the model takes them."""
    return {
        name: np.ascontiguousarray(np.moveaxis(value, 0, axes[name])) if axes.get(name) else value
        for name, value in feeds.items()
    }


def from_model(results: Mapping[str, Any], axes: Axes, where: str) -> dict[str, Any]:
    """Return the model's outputs with the rows on the first axis, without copying them."""
    return {name: _turned(name, value, axes.get(name, 0), where) for name, value in results.items()}


def _turned(name: str, value: Any, axis: int, where: str) -> Any:  # noqa: ANN401 - an array or maps
    if not axis:
        return value
    if not isinstance(value, np.ndarray) or axis >= value.ndim:
        raise no_axis(name, axis, np.shape(value) if isinstance(value, np.ndarray) else (), where)
    return np.moveaxis(value, axis, 0)
