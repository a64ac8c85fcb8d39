"""What each option's value may be, and how it is read from a flag, a TOML value or Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CLUSTERS = ("embedded", "processes", "synchronous")
COMPRESSIONS = ("source", "none", "snappy", "zstd", "lz4", "gzip", "brotli")
MIN_PART_BYTES = 4096
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{tail}": (1024 if "i" in tail else 1000) ** power
    for power, prefix in enumerate("kmgt", 1)
    for tail in ("", "b", "i", "ib")
}

FeedText = str | tuple[str, tuple[str, ...]]
"""`TENSOR=COLUMNS` as typed, or the tensor with a list of exact column tokens."""


def parse_size(text: str | int) -> int:
    """Bytes from 64MiB, 8MB or a number."""
    match = _SIZE.match(str(text))
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_budget(text: str) -> tuple[float, bool]:
    """(amount, is a share) from N or P%."""
    share = text.endswith("%")
    amount = float(text[:-1]) / 100 if share else int(text)
    if amount < 0 or (share and amount > 1):
        raise ValueError(text)
    return amount, share


def within(budget: str, count: int, total: int) -> bool:
    """Whether `count` of `total` rows stay inside N or P%."""
    amount, share = parse_budget(budget)
    return count <= (amount * total if share else amount)


def _texts(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, (str, Path)):
        value = [value]
    texts = tuple(str(v) if isinstance(v, Path) else v for v in value)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(value)
    return texts


def _feeds(value: Any) -> tuple[FeedText, ...]:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, dict):
        return tuple((k, _texts(v)) if not isinstance(v, str) else f"{k}={v}" for k, v in value.items())
    if isinstance(value, str):
        return (value,)
    feeds = tuple(v if isinstance(v, str) else (v[0], _texts(v[1])) for v in value)
    if not all(isinstance(f, str) or isinstance(f[0], str) for f in feeds):
        raise TypeError(value)
    return feeds


def _keep(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, str):
        return (value,) if value in {"all", "none"} else tuple(_split(value))
    return tuple(token for text in _texts(value) for token in _split(text))


def _split(text: str) -> list[str]:
    """Comma-separated names; quotes keep a comma inside a name."""
    return [m[1] or m[2] for m in re.finditer(r"\s*'([^']*)'\s*(?:,|$)|\s*([^,']+?)\s*(?:,|$)", text)]


def _text(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    if not isinstance(value, (str, Path)) or not str(value):
        raise TypeError(value)
    return str(value)


def _count(value: Any) -> int:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
        raise ValueError(value)
    return int(value)


def _size(value: Any) -> int:  # noqa: ANN401 - TOML and Python values
    size = parse_size(value)
    if size < MIN_PART_BYTES:
        raise ValueError(value)
    return size


def _flag(value: Any) -> bool:  # noqa: ANN401 - TOML and Python values
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _budget(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    parse_budget(str(value))
    return str(value)


def _one_of(choices: tuple[str, ...]) -> tuple[str, Any]:
    def pick(value: str) -> str:
        return choices[choices.index(value)]

    return f"one of {', '.join(choices)}", pick


def _or_none(rule: tuple[str, Any]) -> tuple[str, Any]:
    return rule[0], lambda value: None if value is None else rule[1](value)


_COUNT = ("a whole number from 1", _count)
_LIMIT = ("a whole number from 0", lambda value: 0 if value == 0 and value is not False else _count(value))
_TEXT = ("text", _text)
_BOOL = ("true or false", _flag)
_TEXTS = ("text, or a list of texts", _texts)
_BUDGET = ("a number of rows or a share such as 1%", _budget)
EXPECTED: dict[str, tuple[str, Any]] = {
    "input": ("paths", _texts),
    "model": ("a path", _text),
    "where": _TEXTS,
    "limit": _or_none(_LIMIT),
    "part_bytes": _or_none((f"a size from {MIN_PART_BYTES} bytes, such as 64MiB", _size)),
    "feed": ("TENSOR=COLUMNS, a list of them, or a table", _feeds),
    "fetch": _TEXTS,
    "keep": ("all, none, or column names", _keep),
    "row_id": _BOOL,
    "prefix": ("text", lambda value: "" if value == "" else _text(value)),
    "on_null": _TEXTS,
    "on_lossy": _one_of(("error", "warn")),
    "batch_rows": _or_none(_COUNT),
    "max_bad_rows": _BUDGET,
    "max_nan_rows": _or_none(_BUDGET),
    "strict": _BOOL,
    "tune": _BOOL,
    "device": _TEXT,
    "output": _or_none(_TEXT),
    "overwrite": _BOOL,
    "compression": _one_of(COMPRESSIONS),
    "work_dir": _or_none(_TEXT),
    "cluster": _one_of(CLUSTERS),
    "scheduler": _or_none(_TEXT),
    "workers": _or_none(_COUNT),
    "threads": _or_none(_COUNT),
}
