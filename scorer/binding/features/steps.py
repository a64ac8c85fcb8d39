"""The steps of --fetch, applied to an output tensor before it becomes columns: softmax, pooling, top classes.

A NaN score has no best class: argmax returns a masked array, label and topk return None.
An element, such as [1] or ['late'], is a step too: it selects a part of each row, or a value of each row's map.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from scorer.display.words import did_you_mean
from scorer.errors import OptionsError, ShapeMismatch
from scorer.options.grammar import parse_call, parse_element

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from scorer.options.grammar import Call

    Feeds = Mapping[str, np.ndarray]


_MATRIX, _SEQUENCE = 2, 3  # axes of [N, values] and [N, tokens, values]
_MOST_DIGITS = 400  # more than any double has
OVER_VALUES = ("softmax", "argmax", "label", "topk", "normalize")
"""Steps that combine all values of the last axis."""
_KEEP_MASK = ("label", "cls", "round")
"""Steps that keep the mask of argmax; all others compute with NaN instead."""


def apply(steps: Sequence[str], values: np.ndarray, feeds: Feeds) -> np.ndarray:
    """Return the tensor after all steps, in order."""
    for step in steps:
        place = parse_element(step)
        if place is not None:
            values = element(values, place)
            continue
        call = _parse_known(step)
        what, hint = f"step {step} does not fit the tensor", "see `scorer inspect MODEL` for its shape"
        expected = _STEPS[call.name][0]
        if not isinstance(values, np.ndarray) or values.dtype.kind in "OUST":
            found = "text" if isinstance(values, np.ndarray) else "a sequence of maps"
            raise ShapeMismatch(what, where="--fetch", expected=expected, found=found, hint=hint)
        if is_masked(values) and call.name not in _KEEP_MASK:
            values = values.astype(np.float64).filled(np.nan)  # type: ignore[attr-defined]  # of masked arrays
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # NaN scores are counted later, so they need no warning
                values = _STEPS[call.name][1](values, call, feeds)
        except (IndexError, ValueError, TypeError) as error:
            found = f"{values.dtype} {list(values.shape)}: {error}"
            raise ShapeMismatch(what, where="--fetch", expected=expected, found=found, hint=hint) from error
    return values


def element(values: Any, place: str | tuple[int, ...]) -> np.ndarray:  # noqa: ANN401 - an array or maps
    """Return one element of each row, as an array that does not keep the others in memory."""
    if isinstance(values, list) and isinstance(place, str):
        return np.array([map_value(row, place) for row in values], np.float32)
    try:
        return values[(slice(None), *place)].copy()  # type: ignore[no-any-return]
    except (IndexError, TypeError) as error:
        found = str(list(values.shape)) if isinstance(values, np.ndarray) else "a sequence of maps"
        raise ShapeMismatch(
            f"an output has no element {element_text(place)}",
            where="--fetch",
            expected="the same shape for every row",
            found=found,
            hint="the model returns another shape for some rows; fetch another tensor with --fetch",
        ) from error


def element_text(place: str | tuple[int, ...]) -> str:
    """Return an element as --fetch takes it."""
    return f"[{_quoted(place) if isinstance(place, str) else ', '.join(map(str, place))}]"


def map_value(row: dict[Any, float], label: str) -> float:
    """Return a map's value by its label; the map's keys may be whole numbers."""
    return row[label] if label in row else row[int(label)]


def classes_of(step: str) -> int:
    """Return the k of topk(k); 0 for other steps."""
    call = parse_call(step)
    return int(call.args[0]) if call is not None and call.name == "topk" else 0


def labels_of(step: str) -> tuple[str, ...]:
    """Return the class names that label or topk gives."""
    call = parse_call(step)
    return () if call is None else call.args[call.name == "topk" :]


def without_labels(step: str) -> str:
    """Return topk(k) without the class names."""
    return f"topk({classes_of(step)})"


def parse_step(step: str, labels: Sequence[str], inputs: Sequence[str]) -> str:
    """Check a step and return it with the class labels filled in.

    Raises `OptionsError` if the step is unknown or its arguments are wrong.
    """
    place = parse_element(step)
    if place is not None:
        return element_text(place)
    call = _parse_known(step)
    where, example = f"--fetch ...|{step}", _EXAMPLES.get(call.name, call.name)
    count = {"topk": 1, "round": 1, "mean_pool": 1}.get(call.name, 0)
    if call.named or (len(call.args) != count and not (call.name == "label" and call.args)):
        raise OptionsError(
            f"step {call.name} takes {count or 'no'} argument{'' if count == 1 else 's'}",
            where=where,
            expected=example,
            found=step,
            hint=f"|{example}",
        )
    if call.name in {"topk", "round"} and not (
        call.args[0].isdecimal() and (call.name == "round" or int(call.args[0]))
    ):
        raise OptionsError(
            f"step {call.name} takes a whole number", where=where, expected=example, found=step, hint=f"|{example}"
        )
    if call.name == "mean_pool" and call.args[0] not in inputs:
        raise OptionsError(
            f"mean_pool names an input that the model does not have: {call.args[0]!r}",
            where=where,
            expected="an input that is 1 for tokens and 0 for padding",
            found=repr(call.args[0]),
            hint=did_you_mean(call.args[0], inputs),
        )
    if call.name == "label" and not (call.args or labels):
        raise OptionsError(
            "the model does not name its classes",
            where=where,
            expected="class labels",
            found="none",
            hint="--labels cat,dog, in the model's order; or |argmax",
        )
    if call.name == "label" and not call.args:
        return f"label({', '.join(map(_quoted, labels))})"
    return f"topk({', '.join([call.args[0], *map(_quoted, labels)])})" if call.name == "topk" else step


def _quoted(label: str) -> str:
    return "'" + label.replace("'", "''") + "'"


@lru_cache(maxsize=64)
def _parse_known(step: str) -> Call:
    call = parse_call(step)
    if call is None or call.name not in _STEPS:
        name = step if call is None else call.name
        raise OptionsError(
            f"unknown step {name!r}",
            where=f"--fetch ...|{step}",
            expected="a step",
            found=repr(step),
            hint=did_you_mean(name, list(_STEPS)),
        )
    return call


def _softmax(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step has the same arguments
    values = _wide_floats(_with_value_axis(values))
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _sigmoid(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step has the same arguments
    values = _wide_floats(values)
    small = np.exp(-np.abs(values))  # the exponent is never positive, so exp cannot overflow
    return np.asarray(np.where(values >= 0, 1 / (1 + small), small / (1 + small)))


def _argmax(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step has the same arguments
    return _best_classes(_with_value_axis(values))


def _label(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step has the same arguments
    labels = np.array(call.args, dtype=object)
    numbers = values.astype(np.int64) if values.dtype.kind in "iub" else _best_classes(_with_value_axis(values))
    if values.dtype.kind not in "iub" and values.shape[-1] != len(labels):
        raise ValueError(f"{len(labels)} labels for {values.shape[-1]} values")
    unlabelled = numbers[(numbers < 0) | (numbers >= len(labels))]
    if unlabelled.size:
        raise ValueError(f"{len(labels)} labels for class number {unlabelled[0]}")
    found = labels[np.asarray(numbers)]
    if is_masked(numbers):
        found[np.ma.getmaskarray(numbers)] = None
    return np.asarray(found)


def _topk(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step has the same arguments
    """Return class and score of the k best classes, best first, as objects [N, k, 2].

    Equal scores keep their order. All are None in a row with a NaN score.
    """
    if values.ndim != _MATRIX:
        raise ValueError(f"{values.ndim} axes")
    width = values.shape[1]
    if values.dtype.kind in "iub":  # the smallest integer has no negative
        order = width - 1 - np.argsort(values[:, ::-1], axis=1, kind="stable")[:, ::-1]
    else:
        order = np.argsort(-_wide_floats(values), axis=1, kind="stable")
    worst = np.take_along_axis(_wide_floats(values), order[:, -1:], axis=1)[:, 0]  # NaN is sorted last
    order = order[:, : int(call.args[0])]
    labels = call.args[1:] if len(call.args) - 1 == width else range(width)
    best = np.empty((*order.shape, 2), dtype=object)
    best[..., 0] = np.array(labels, dtype=object)[order]
    best[..., 1] = np.take_along_axis(_wide_floats(values), order, axis=1)
    best[np.isnan(worst)] = None
    return best


def _mean_pool(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:
    """Return the mean over tokens that are not padding.

    The sum is taken token by token, so that padding does not change a single bit of it.
    """
    mask = feeds[call.args[0]] != 0
    if values.ndim != _SEQUENCE or mask.shape != values.shape[:2]:
        raise ValueError(f"mask {list(mask.shape)}")
    values = _wide_floats(values)
    total = np.zeros((values.shape[0], values.shape[2]), values.dtype)
    for at in range(values.shape[1]):
        total += np.where(mask[:, at, None], values[:, at], 0)
    return np.asarray(total / np.maximum(mask.sum(axis=1), 1)[:, None].astype(values.dtype))


def _cls(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step has the same arguments
    if values.ndim != _SEQUENCE:
        raise ValueError(f"{values.ndim} axes")
    return values[:, 0]


def _normalize(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step has the same arguments
    """Scale each row to length 1.

    Rows are first scaled by a power of two, so that no square overflows. This does not round.
    """
    values = _wide_floats(_with_value_axis(values))
    _, power = np.frexp(np.abs(values).max(axis=-1, keepdims=True))
    values = np.ldexp(values, -power)
    length = np.sqrt(np.square(values).sum(axis=-1, keepdims=True))
    return np.asarray(values / np.where(length == 0, 1, length))


def _round(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step has the same arguments
    if values.dtype.kind in "iub":
        return values
    exact = values.astype(np.float64)
    rounded = np.round(exact, min(int(call.args[0]), _MOST_DIGITS))
    return np.where(np.isfinite(rounded), rounded, exact).astype(_wide_floats(values).dtype)


def _best_classes(values: np.ndarray) -> np.ndarray:
    """Return the place of the largest value on the last axis; masked if one of the values is NaN."""
    numbers = np.asarray(values.argmax(axis=-1))
    if values.dtype.kind in "iub":
        return numbers
    nan = np.isnan(np.take_along_axis(values, numbers[..., None], axis=-1)[..., 0])  # argmax finds the first NaN
    return np.ma.MaskedArray(np.where(nan, 0, numbers), mask=nan) if nan.any() else numbers


def is_masked(values: np.ndarray) -> bool:
    """Return whether the array is a masked one. The first test avoids the import of `numpy.ma`."""
    return type(values) is not np.ndarray and isinstance(values, np.ma.MaskedArray)


def _wide_floats(values: np.ndarray) -> np.ndarray:
    """Cast integers to float64 and small floats to float32, so that sums and exponentials neither wrap nor overflow."""
    if values.dtype.kind in "iub":
        return values.astype(np.float64)
    return values.astype(np.float32) if values.dtype.itemsize < np.dtype(np.float32).itemsize else values


def _with_value_axis(values: np.ndarray) -> np.ndarray:
    """Return the values; ValueError if they have no axis besides that of the rows."""
    if values.ndim < _MATRIX:
        raise ValueError("one value in a row")
    return values


_STEPS: dict[str, tuple[str, Callable[[np.ndarray, Call, Feeds], np.ndarray]]] = {
    "softmax": ("numbers, [N, ..., k]", _softmax),
    "sigmoid": ("numbers", _sigmoid),
    "argmax": ("numbers, [N, ..., k]", _argmax),
    "label": ("class numbers [N], or scores [N, k] with as many labels", _label),
    "topk": ("numbers, [N, k]", _topk),
    "mean_pool": ("numbers [N, tokens, k] and a mask [N, tokens]", _mean_pool),
    "cls": ("[N, tokens, k]", _cls),
    "normalize": ("floats, [N, ..., k]", _normalize),
    "round": ("numbers", _round),
}
_EXAMPLES = {
    "topk": "topk(3)",
    "round": "round(2)",
    "mean_pool": "mean_pool(attention_mask)",
    "label": "label(cat, dog)",
}
