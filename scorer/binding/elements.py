"""Fit the steps of --fetch to the first batches: where in a row an element is, and how many classes there are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.binding.features import steps as steps_
from scorer.display.words import did_you_mean, plural, quoted_list
from scorer.errors import OptionsError, ShapeMismatch
from scorer.options.grammar import parse_element

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.binding.outputs import FetchRequest
    from scorer.errors import ScorerError
    from scorer.model.spec import ModelSpec

    Batch = tuple[Mapping[str, np.ndarray], Any]
    """The feeds of one batch, and one output."""

_MATRIX = 2
_NAMING = ("topk(", "label(")
"""How the steps start that give class names."""


def fitted(request: FetchRequest, batches: Sequence[Batch], model: ModelSpec) -> tuple[FetchRequest, Sequence[Batch]]:
    """Apply the steps to the batches; return the request with each element as its place in a row.

    A map's element keeps its label. Without a requested column, elements become a part of the column's name.
    """
    done: list[str] = []
    names: list[str] = []
    for step in request.steps:
        place = parse_element(step)
        if place is not None:
            known = _known_classes(request, batches, model)
            place, name = _located(request, place, known, batches)
            step = steps_.element_text(place)  # noqa: PLW2901 - the same step, fitted
            names.append(name)
        elif step.startswith(_NAMING):
            step = _fitted_classes(request, step, batches)  # noqa: PLW2901 - the same step, fitted
        batches = [(feeds, steps_.apply([step], values, feeds)) for feeds, values in batches]
        done.append(step)
    column = request.column or ("_".join([request.tensor, *names]) if names else "")
    return replace(request, steps=tuple(done), column=column), batches


def width_of(values: Any) -> int | None:  # noqa: ANN401 - an array or maps
    """Return how many classes a row has scores for; None if it has no scores for classes."""
    if isinstance(values, list):
        return len(values[0]) if values and isinstance(values[0], dict) else None
    return values.shape[1] if isinstance(values, np.ndarray) and values.ndim == _MATRIX else None


def _known_classes(request: FetchRequest, batches: Sequence[Batch], model: ModelSpec) -> tuple[str, ...]:
    """Return the class labels of the values: of maps their keys, of a matrix the names if there are as many."""
    first = batches[0][1]
    if isinstance(first, list):
        return model.zipmaps.get(request.tensor) or tuple(str(key) for key in (first[0] if first else {}))
    names = request.labels or model.class_labels
    return names if names and width_of(first) == len(names) else ()


def _located(
    request: FetchRequest, place: str | tuple[int, ...], known: Sequence[str], batches: Sequence[Batch]
) -> tuple[str | tuple[int, ...], str]:
    """Return an element's place, counted from 0, or its label in a map; and its name as a part of a column's name."""
    first = batches[0][1]
    where = f"--fetch {request.tensor}{steps_.element_text(place)}"
    maps = isinstance(first, list)
    shown = list(request.labels) if request.labels and len(request.labels) == len(known) else list(known)
    if isinstance(place, str):
        if place not in shown and place not in known:
            raise _unknown_class(request, where, place, shown, first)
        at = shown.index(place) if place in shown else list(known).index(place)
        return (known[at] if maps else (at,)), shown[at]
    shape = _row_shape(request, where, batches)
    places = tuple(number + size if number < 0 else number for number, size in zip(place, shape, strict=False))
    if len(place) > len(shape) or any(not 0 <= at < size for at, size in zip(places, shape, strict=False)):
        raise ShapeMismatch(
            f"output {request.tensor!r} has no element {steps_.element_text(place)}",
            where=where,
            expected=_range_words(shape),
            found=steps_.element_text(place),
            hint="elements count from 0, and from the end as -1, -2, ...",
        )
    if maps:
        return known[places[0]], shown[places[0]]
    return places, shown[places[0]] if known else "_".join(map(str, places))


def _row_shape(request: FetchRequest, where: str, batches: Sequence[Batch]) -> tuple[int, ...]:
    """Return the shape of one row of the values; raise if it changes, or if they are classes of topk."""
    first = batches[0][1]
    if isinstance(first, list):
        return (len(first[0]) if first else 0,)
    shapes: set[tuple[int, ...]] = {values.shape[1:] for _, values in batches if isinstance(values, np.ndarray)}
    if len(shapes) > 1:
        raise ShapeMismatch(
            f"output {request.tensor!r} changes its shape from row to row, so its elements have no places",
            where=where,
            expected="the same shape for every row",
            found=" and ".join(sorted(str(list(shape)) for shape in shapes)),
            hint="pool it first, as in |mean_pool(MASK) or |cls",
        )
    if any(step.startswith("topk(") for step in request.steps):
        raise OptionsError(
            "topk must be the last step",
            where=where,
            expected="an element of the scores",
            found="an element of the best classes",
            hint="fetch the best class with |topk(1)",
        )
    return shapes.pop()


def _range_words(shape: Sequence[int]) -> str:
    if not shape:
        return "no element: there is one value in a row"
    if shape == (1,):
        return "[0]: there is one value in a row"
    if len(shape) == 1:
        return f"an element from 0 to {shape[0] - 1}: there are {plural(shape[0], 'value')} in a row"
    return f"at most {len(shape)} numbers: a row has the shape {list(shape)}"


def _unknown_class(request: FetchRequest, where: str, name: str, known: Sequence[str], first: Any) -> OptionsError:  # noqa: ANN401 - an array or maps
    width = width_of(first)
    values = f"a row of shape {list(first.shape[1:])}" if width is None else plural(width, "value") + " in a row"
    if known:
        return OptionsError(
            f"output {request.tensor!r} has no class {name!r}",
            where=where,
            expected=f"one of {quoted_list(known)}",
            found=repr(name),
            hint=did_you_mean(name, known),
        )
    count = f"{plural(len(request.labels), 'name')} and {values}" if request.labels else f"no names for {values}"
    return OptionsError(
        f"the classes of output {request.tensor!r} have no names",
        where=where,
        expected="class names",
        found=count,
        hint=f"name the classes with --labels '{request.tensor}=a,b,c', or give the element's number: "
        f"--fetch '{request.tensor}[0]'",
    )


def _fitted_classes(request: FetchRequest, step: str, batches: Sequence[Batch]) -> str:
    """Return topk or label for as many classes as there are; raise if the names or k do not fit."""
    width = width_of(batches[0][1])
    most = steps_.classes_of(step)
    if width is None or not isinstance(batches[0][1], np.ndarray):
        return step
    if most > width:
        raise ShapeMismatch(
            f"topk({most}) requests more classes than output {request.tensor!r} has",
            where=f"--fetch {request.tensor}|topk({most})",
            expected=f"at most {width}",
            found=f"topk({most})",
            hint=f"--fetch '{request.tensor}|topk({width})'",
        )
    named = len(steps_.labels_of(step))
    if request.labels and steps_.labels_of(step) == request.labels and named != width:
        raise wrong_count(request.tensor, named, width)
    return steps_.without_labels(step) if most and named not in {0, width} else step


def wrong_count(tensor: str, names: int, values: int) -> OptionsError:
    """Return the error for --labels with another number of names than an output has values."""
    return OptionsError(
        f"--labels has {plural(names, 'name')} for the {plural(values, 'value')} of output {tensor!r}",
        where="--labels",
        expected=plural(values, "name"),
        found=plural(names, "name"),
        hint="give one name for each class, in the model's order",
    )


def unused_labels(requests: Sequence[FetchRequest], outputs: Sequence[Any]) -> list[ScorerError]:
    """Return a problem for class names that fit no output they are given for; `outputs` are those of one batch."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[FetchRequest, Any]]] = {}
    for one, values in zip(requests, outputs, strict=True):
        if one.labels:
            groups.setdefault((one.tensor if one.named else "", one.labels), []).append((one, values))
    problems: list[ScorerError] = []
    for (_, names), users in groups.items():
        if any(width_of(values) == len(names) or _uses_labels(one) for one, values in users):
            continue
        widths = {one.tensor: width for one, values in users if (width := width_of(values)) is not None}
        if len(widths) == 1:
            problems.append(wrong_count(next(iter(widths)), len(names), *widths.values()))
            continue
        problems.append(
            OptionsError(
                f"--labels has {plural(len(names), 'name')}, and no output has as many values in a row",
                where="--labels",
                expected=f"an output [N, {len(names)}]",
                found="; ".join(f"{one.tensor!r} has {_shape_words(values)}" for one, values in users),
                hint="give one name for each class, in the model's order",
            )
        )
    return problems


def _uses_labels(request: FetchRequest) -> bool:
    return any(steps_.labels_of(step) == request.labels for step in request.steps if step.startswith(_NAMING))


def _shape_words(values: Any) -> str:  # noqa: ANN401 - an array or maps
    width = width_of(values)
    return f"shape {list(np.shape(values))}" if width is None else plural(width, "value")
