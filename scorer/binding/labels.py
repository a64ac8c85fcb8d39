"""The class names that --labels gives: read from a text or a file, and matched to the model's outputs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scorer.display.words import cut, did_you_mean, quoted_list
from scorer.errors import OptionsError, ScorerError
from scorer.model.copies import readable
from scorer.options.grammar import labels_file, split_known, split_names
from scorer.storage.stores import may_be_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.model.spec import ModelSpec

_EXPECTED = "a,b,c, or a file with a name in each line or a JSON list of names"


@dataclass(frozen=True, slots=True)
class Labels:
    """The class names of --labels."""

    common: tuple[str, ...] = ()
    """Those of every output with as many values in a row."""
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Those that are given for one output, by its name."""

    def of(self, tensor: str) -> tuple[tuple[str, ...], bool]:
        """Return the names for one output, () if none are given, and whether they are given for this one."""
        return self.own.get(tensor, self.common), tensor in self.own


def requested_labels(texts: Sequence[str], model: ModelSpec) -> tuple[Labels, list[ScorerError]]:
    """Return the class names of --labels [TENSOR=]NAMES, and the problems."""
    outputs = [tensor.name for tensor in model.outputs]
    found: dict[str, tuple[str, ...]] = {}
    problems: list[ScorerError] = []
    for text in texts:
        tensor, names = _split_tensor(text, outputs)
        try:
            if tensor in found:
                raise _twice(text, tensor, outputs)
            found[tensor] = _checked(_names_of(names, outputs), f"--labels {text}")
            _check_model(tensor, found[tensor], model)
        except ScorerError as error:
            problems.append(error)
    common = found.pop("", ())
    return Labels(common, found), problems


def unused_texts(labels: Labels, tensors: Sequence[str]) -> list[ScorerError]:
    """Return a problem for names of an output that is not fetched, or for names that are left for no output."""
    other = next((tensor for tensor in labels.own if tensor not in tensors), None)
    if other is None and not (labels.common and set(tensors) <= set(labels.own)):
        return []
    what = f"output {other!r}, which is not fetched" if other is not None else "no other output"
    return [
        OptionsError(
            f"--labels {quoted_list(labels.own[other] if other is not None else labels.common)} is for {what}",
            where="--labels",
            expected="class names of an output that is fetched",
            found=f"the outputs {quoted_list(dict.fromkeys(tensors))}",
            hint="leave it out" if other is None else f"leave it out, or add --fetch '{other}'",
        )
    ]


def _split_tensor(text: str, outputs: Sequence[str]) -> tuple[str, str]:
    """Return the output before the '=', '' if there is none, and the names or the file after it."""
    file = labels_file(text, is_file=may_be_file)
    if file is not None and not file[0]:
        return "", text
    tensor, names = split_known(text, outputs)
    return ("", text) if tensor is None or not names else (tensor, names)


def _names_of(text: str, outputs: Sequence[str]) -> list[str]:
    """Return the names in a text or in the file that it names."""
    where = f"--labels {text}"
    file = labels_file(text, is_file=may_be_file)
    if file is not None and not file[0]:
        return _names_in(file[1])
    quoted = text.lstrip().startswith("'")
    tensor, equals, _ = text.split(",", maxsplit=1)[0].partition("=")
    if equals and not quoted:
        raise _unknown_output(text, tensor, outputs)
    if quoted or "," in text:
        names = split_names(text)
        if names is None or not text.strip() or text.rstrip().endswith(","):
            raise OptionsError(
                "the class names cannot be understood",
                where=where,
                expected=_EXPECTED,
                found=repr(text),
                hint="close every quote, and leave no name empty: --labels \"cat,dog,'a, b'\"",
            )
        return names
    raise OptionsError(
        "the file of class names does not exist",
        where=where,
        expected=_EXPECTED,
        found="no such file, and no comma between names",
        hint="check the path; relative paths start at the current folder, in a job file at its own",
    )


def _names_in(path: str) -> list[str]:
    """Return the names in a file: a JSON list, or one in each line."""
    try:
        with open(readable(path), encoding="utf-8-sig") as file:
            text = file.read()
        if text.lstrip().startswith(("[", "{")) and path.lower().endswith(".json"):
            names = json.loads(text)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("JSON that is not a list of texts")  # noqa: TRY301 - mapped below
            return [name.strip() for name in names]
    except (OSError, ValueError, RecursionError) as error:
        raise OptionsError(
            "the file of class names cannot be read",
            where=path,
            expected="a name in each line in UTF-8, or a JSON list of names in NAME.json",
            found=cut(str(error)),
            hint="write one class name in each line, in the model's order",
        ) from error
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def _checked(names: list[str], where: str) -> tuple[str, ...]:
    """Return the names; raise if one is empty or twice there, or could not be part of a column's name."""
    wrong = next((at for at, name in enumerate(names, 1) if not name or not name.isprintable()), None)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if names and wrong is None and not twice:
        return tuple(names)
    found = "none"
    if wrong is not None:
        found = f"name {wrong} of {len(names)} is {names[wrong - 1]!r}"
    elif twice:
        found = f"twice: {quoted_list(twice)}"
    raise OptionsError(
        "the class names cannot be used",
        where=where,
        expected="one printable name for each class, each a different one",
        found=found,
        hint="write a name for every class; they become column names and values",
    )


def _check_model(tensor: str, names: tuple[str, ...], model: ModelSpec) -> None:
    """Raise if the model names the same classes differently; numbers are no names."""
    own = model.zipmaps.get(tensor) or model.class_labels
    if len(own) == len(names) and own != names and not all(name.removeprefix("-").isdecimal() for name in own):
        raise OptionsError(
            "the model names its classes differently",
            where=f"--labels {tensor}".rstrip(),
            expected=quoted_list(own),
            found=quoted_list(names),
            hint="leave --labels out: the model's own names are used",
        )


def _twice(text: str, tensor: str, outputs: Sequence[str]) -> OptionsError:
    each = " ".join(f"--labels '{name}=...'" for name in outputs[:2])
    return OptionsError(
        f"two --labels name the classes of {repr(tensor) if tensor else 'the model'}",
        where=f"--labels {text}",
        expected="one for each output",
        found="two",
        hint=f"leave one out, or name the outputs: {each}",
    )


def _unknown_output(text: str, tensor: str, outputs: Sequence[str]) -> OptionsError:
    return OptionsError(
        f"--labels names an output that the model does not have: {tensor!r}",
        where=f"--labels {text}",
        expected=f"one of {quoted_list(outputs)}, an existing file, or class names with each = in quotes",
        found=repr(tensor),
        hint=did_you_mean(tensor, outputs),
    )
