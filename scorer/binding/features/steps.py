"""What is done to an output tensor before it becomes columns: softmax, pooling, top classes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from scorer.display.words import did_you_mean
from scorer.errors import OptionsError, ShapeMismatch
from scorer.options.grammar import parse_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scorer.options.grammar import Call

    Feeds = Mapping[str, np.ndarray]


_MATRIX, _SEQUENCE = 2, 3  # axes of [N, values] and [N, tokens, values]
_DIGITS = 400  # more than any double has
OVER_VALUES = ("softmax", "argmax", "label", "topk", "normalize")
"""Steps that look at all values of the last axis together."""


def apply(steps: Sequence[str], values: np.ndarray, feeds: Feeds) -> np.ndarray:
    """The tensor after all steps, in order."""
    for step in steps:
        call = _parsed(step)
        what, hint = f"step {step} does not fit the tensor", "see `scorer inspect MODEL` for its shape"
        if not isinstance(values, np.ndarray) or values.dtype.kind in "OUST":
            found = "text" if isinstance(values, np.ndarray) else "a sequence of maps"
            raise ShapeMismatch(what, "--fetch", _STEPS[call.name][0], found, hint)
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # NaN scores are counted
                values = _STEPS[call.name][1](values, call, feeds)
        except (IndexError, ValueError, TypeError) as error:
            found = f"{values.dtype} {list(values.shape)}"
            raise ShapeMismatch(what, "--fetch", _STEPS[call.name][0], f"{found}: {error}", hint) from error
    return values


def parse_step(step: str, labels: Sequence[str], inputs: Sequence[str]) -> str:
    """The step with the model's labels in it; refused when it is unknown or wrongly told."""
    call = _parsed(step)
    where = f"--fetch ...|{step}"
    wants = {"topk": 1, "round": 1, "mean_pool": 1}.get(call.name, 0)
    if call.named or (len(call.args) != wants and not (call.name == "label" and call.args)):
        what, hint = (
            f"step {call.name} wants {wants or 'no'} argument{'' if wants == 1 else 's'}",
            f"|{_EXAMPLES.get(call.name, call.name)}",
        )
        raise OptionsError(what, where, _EXAMPLES.get(call.name, call.name), step, hint)
    if call.name in {"topk", "round"} and not (
        call.args[0].isdecimal() and (call.name == "round" or int(call.args[0]))
    ):
        raise OptionsError(
            f"step {call.name} wants a number", where, _EXAMPLES[call.name], step, f"|{_EXAMPLES[call.name]}"
        )
    if call.name == "mean_pool" and call.args[0] not in inputs:
        what = f"mean_pool names an input that the model does not have: {call.args[0]!r}"
        raise OptionsError(
            what,
            where,
            "an input that is 1 for tokens and 0 for padding",
            repr(call.args[0]),
            did_you_mean(call.args[0], inputs),
        )
    if call.name == "label" and not (call.args or labels):
        what, hint = "the model does not name its classes", "|label(cat, dog), in the model's order; or |argmax"
        raise OptionsError(what, where, "class labels", "none", hint)
    if call.name == "label" and not call.args:
        return f"label({', '.join(map(_quoted, labels))})"
    return f"topk({', '.join([call.args[0], *map(_quoted, labels)])})" if call.name == "topk" else step


def _quoted(label: str) -> str:
    return "'" + label.replace("'", "''") + "'"


@lru_cache(maxsize=64)
def _parsed(step: str) -> Call:
    call = parse_call(step)
    if call is None or call.name not in _STEPS:
        name = step if call is None else call.name
        what = f"there is no step {name!r}"
        raise OptionsError(what, f"--fetch ...|{step}", "a step", repr(step), did_you_mean(name, list(_STEPS)))
    return call


def _softmax(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step is called alike
    values = _floats(_rows(values))
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _sigmoid(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step is called alike
    values = _floats(values)
    small = np.exp(-np.abs(values))  # of a power that cannot overflow
    return np.asarray(np.where(values >= 0, 1 / (1 + small), small / (1 + small)))


def _argmax(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step is called alike
    return np.asarray(_rows(values).argmax(axis=-1))


def _label(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step is called alike
    labels = np.array(call.args, dtype=object)
    found = values.astype(np.int64) if values.dtype.kind in "iub" else _rows(values).argmax(axis=-1)
    if values.dtype.kind not in "iub" and values.shape[-1] != len(labels):
        raise ValueError(f"{len(labels)} labels for {values.shape[-1]} values")
    strange = found[(found < 0) | (found >= len(labels))]
    if strange.size:
        raise ValueError(f"{len(labels)} labels for class number {strange[0]}")
    return np.asarray(labels[found])


def _topk(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step is called alike
    """Class and score of the best, the next best and so on: [N, k, 2] as objects; of equals, the first comes first."""
    if values.ndim != _MATRIX:
        raise ValueError(f"{values.ndim} axes")
    width = values.shape[1]
    if values.dtype.kind in "iub":  # the least number has no negative
        order = width - 1 - np.argsort(values[:, ::-1], axis=1, kind="stable")[:, ::-1]
    else:
        order = np.argsort(-_floats(values), axis=1, kind="stable")
    order = order[:, : int(call.args[0])]
    labels = call.args[1:] if len(call.args) - 1 == width else range(width)
    best = np.empty((*order.shape, 2), dtype=object)
    best[..., 0] = np.array([str(label) for label in labels], dtype=object)[order]
    best[..., 1] = np.take_along_axis(_floats(values), order, axis=1)
    return best


def _mean_pool(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:
    """The mean over tokens that are no padding; summed token by token, so padding changes not one bit."""
    mask = feeds[call.args[0]] != 0
    if values.ndim != _SEQUENCE or mask.shape != values.shape[:2]:
        raise ValueError(f"mask {list(mask.shape)}")
    values = _floats(values)
    total = np.zeros((values.shape[0], values.shape[2]), values.dtype)
    for at in range(values.shape[1]):
        total += np.where(mask[:, at, None], values[:, at], 0)
    return np.asarray(total / np.maximum(mask.sum(axis=1), 1)[:, None].astype(values.dtype))


def _cls(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step is called alike
    if values.ndim != _SEQUENCE:
        raise ValueError(f"{values.ndim} axes")
    return values[:, 0]


def _normalize(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step is called alike
    """Rows of length 1; scaled by a power of two first, which rounds nothing, so that no square overflows."""
    values = _floats(_rows(values))
    _, power = np.frexp(np.abs(values).max(axis=-1, keepdims=True))
    values = np.ldexp(values, -power)
    length = np.sqrt(np.square(values).sum(axis=-1, keepdims=True))
    return np.asarray(values / np.where(length == 0, 1, length))


def _round(values: np.ndarray, call: Call, feeds: Feeds) -> np.ndarray:  # noqa: ARG001 - every step is called alike
    if values.dtype.kind in "iub":
        return values
    exact = values.astype(np.float64)
    rounded = np.round(exact, min(int(call.args[0]), _DIGITS))
    return np.where(np.isfinite(rounded), rounded, exact).astype(_floats(values).dtype)


def _floats(values: np.ndarray) -> np.ndarray:
    """Whole numbers and small floats in a type in which sums and powers neither wrap nor overflow."""
    if values.dtype.kind in "iub":
        return values.astype(np.float64)
    return values.astype(np.float32) if values.dtype.itemsize < np.dtype(np.float32).itemsize else values


def _rows(values: np.ndarray) -> np.ndarray:
    """Values of which each row has some: the last axis must not be that of the rows."""
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
