"""Options of a cluster's class: `NAME=VALUE`, where VALUE is JSON or else text. None of them is a secret.

They stand in shell histories, job files and proofs, so a credential in their place is refused, and its value is never
repeated. The texts of this module are the only form in which options are passed on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scorer.display.words import without_secrets
from scorer.errors import OptionsError
from scorer.options.store_options import names_a_secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def parse(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    """Return options as texts, from such texts or from a table."""
    pairs = value.items() if isinstance(value, Mapping) else map(_split, [value] if isinstance(value, str) else value)
    return tuple(f"{name}={json.dumps(one)}" for name, one in dict(map(_checked, pairs)).items())


def values_of(texts: Iterable[str]) -> dict[str, Any]:
    """Return the keyword arguments for the class, from texts that `parse` returned."""
    return dict(map(_split, texts))


def _split(text: Any) -> tuple[str, Any]:  # noqa: ANN401 - TOML and Python values
    """Return the name and the value of NAME=VALUE; raise `TypeError` if it is no text."""
    if not isinstance(text, str):
        raise TypeError
    name, equals, value = text.partition("=")
    if not equals:
        raise _refused("an option of a cluster has no value", "", "NAME=VALUE", "text without '='", "write NAME=VALUE")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _checked(option: tuple[Any, Any]) -> tuple[str, Any]:
    """Return the option; refuse names that are not Python's, values that JSON cannot hold, and secrets."""
    name, value = option
    if not isinstance(name, str) or not name.isidentifier():
        raise _refused(
            "an option of a cluster has no name", "", "the name of an argument of the class", "another text",
            "write NAME=VALUE",
        )  # fmt: skip
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise _refused(
            f"the cluster option {name!r} is no text, number or table", name, "a value that JSON can hold",
            type(value).__name__, "create the cluster in Python, and pass it as client=",
        ) from None  # fmt: skip
    if any(map(_secret, _entries(name, value))):
        raise _refused(
            "a secret does not belong in an option", name, "options that hold no secret",
            "a credential, which would be in job files and proofs",
            "put it where the class reads it: in the environment, or in a file of Dask's configuration",
        )  # fmt: skip
    return name, value


def _entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    """Yield an option and everything inside it, each with its name."""
    yield name, value
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _entries(str(key), one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _entries(name, one)


def _secret(entry: tuple[str, Any]) -> bool:
    name, value = entry
    return isinstance(value, str) and bool(value) and (names_a_secret(name) or without_secrets(value) != value)


def _refused(what: str, name: str, expected: str, found: str, hint: str) -> OptionsError:
    where = f"--cluster-option {name}".rstrip()
    return OptionsError(what, where=where, expected=expected, found=found, hint=hint)
