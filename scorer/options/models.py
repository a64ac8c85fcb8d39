"""The models of a request: --model, and the model that another option is for.

--model m.onnx                          the only model
--model champion=a.onnx                 one of several, with a name; its columns begin with champion_
--feed champion:X=a,b                   columns for the tensor X of that model; without a name, of all models
--on-null champion:nan                  a value for all tensors of that model
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scorer.display.words import quoted_list
from scorer.errors import OptionsError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_TAKEN = "letters, digits and _, beginning with a letter"


class ModelPath(NamedTuple):
    """Where a model is, and its name, which only one of several needs."""

    name: str
    path: str

    def __str__(self) -> str:
        """Return the text of a --model."""
        return f"{self.name}={self.path}" if self.name else self.path

    @classmethod
    def parse(cls, text: str, folder: str = "") -> ModelPath:
        """Return what a --model says: a name stands before the first '=' unless the text is that of a file.

        Relative paths start at `folder`, by default the current one.
        """
        name, equals, path = text.partition("=")
        if not equals or set(name) & set("/\\:") or os.path.exists(os.path.join(folder, text)):
            return cls("", text)
        return cls(name.strip(), path.strip())


def parse_models(value: Any) -> tuple[ModelPath, ...]:  # noqa: ANN401 - TOML and Python values
    """Return the models of a path, a list of paths or a table of them by name; raise if a name is missing or wrong."""
    values = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, dict):
        given = [ModelPath(name, _path(path)) for name, path in value.items()]
    else:
        given = [one if isinstance(one, ModelPath) else _parsed(one) for one in values]
    if not given:
        raise ValueError(value)
    if nameless := [text for text in values if _is_nameless(text)]:
        raise _wrong("a model has a file and no name", "--model NAME=FILE", quoted_list(nameless), _line(given))
    odd = [one.name for one in given if (one.name or isinstance(value, dict)) and not _NAME.fullmatch(one.name)]
    if odd:
        raise _wrong("the name of a model cannot be used", _TAKEN, quoted_list(odd), _line(given))
    if len(given) > 1 and not all(one.name for one in given):
        raise _wrong("several models need a name each", "--model NAME=FILE for each", _texts(given), _line(given))
    twice = [name for name, times in Counter(one.name for one in given).items() if times > 1]
    if twice:
        raise _wrong("two models have one name", "a name for each model", quoted_list(twice), _line(given))
    if not all(one.path for one in given):
        raise _wrong("a model has a name and no file", "--model NAME=FILE", _texts(given), _line(given))
    return tuple(given)


def _parsed(value: object) -> ModelPath:
    return ModelPath("", str(value)) if isinstance(value, Path) else ModelPath.parse(_path(value))


def _is_nameless(value: object) -> bool:
    """Return whether a text is '=FILE', and not that of a file."""
    return isinstance(value, str) and value.lstrip().startswith("=") and not os.path.exists(value)


def _path(value: object) -> str:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise TypeError(value)
    return str(value)


def _texts(given: Sequence[ModelPath]) -> str:
    return " ".join(f"--model {shlex.quote(str(one))}" for one in given)


def _line(given: Sequence[ModelPath]) -> str:
    """Return the same flags with a good name for each model: the given one, or one made of the file's."""
    names: list[str] = []
    for one in given:
        stem = os.path.basename(one.path).partition(".")[0]
        name = re.sub(r"\W+", "_", one.name or stem, flags=re.ASCII).strip("_") or "model"
        name = name if _NAME.fullmatch(name) else f"m_{name}"
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return _texts([ModelPath(name, one.path or "FILE") for name, one in zip(names, given, strict=True)])


def _wrong(what: str, expected: str, found: str, hint: str) -> OptionsError:
    return OptionsError(what, where="--model", expected=expected, found=found, hint=hint)


def split_model(text: str, names: Sequence[str]) -> tuple[str, str]:
    """Return the model that a text begins with and names by NAME:, '' if none, and the rest of the text."""
    name, colon, rest = text.partition(":")
    return (name.strip(), rest.strip()) if colon and name.strip() in names else ("", text)
