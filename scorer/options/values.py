"""What each option's value may be, and how it is read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from scorer.options.grammar import FeedText, split_names

QUEUES = ("slurm", "pbs", "sge", "lsf", "htcondor", "oar")
"""Job queues that a cluster can be asked of."""
CLUSTERS = ("embedded", "processes", "synchronous", *QUEUES)
COMPRESSIONS = ("source", "none", "snappy", "zstd", "lz4", "gzip", "brotli")
MIN_PART_BYTES = 4096
_WALLTIME = re.compile(r"^(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)$")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{tail}": (1024 if "i" in tail else 1000) ** power
    for power, prefix in enumerate("kmgt", 1)
    for tail in ("", "b", "i", "ib")
}


def parse_size(text: str | int) -> int:
    """Bytes from 64MiB, 8MB or a number."""
    match = _SIZE.match(str(text))
    if match is None:
        raise ValueError(text)
    return _below_limit(int(float(match[1]) * _UNITS[match[2].lower()]))


def parse_walltime(text: str) -> int:
    """Seconds of [DAYS-]HOURS:MINUTES:SECONDS."""
    match = _WALLTIME.match(text)
    if match is None:
        raise ValueError(text)
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_span(text: str) -> tuple[int, int]:
    """(least, most) of MIN:MAX."""
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal() and int(least) <= int(most) > 0):
        raise ValueError(text)
    return int(least), _below_limit(int(most))


def parse_budget(text: str) -> tuple[float, bool]:
    """(amount, is a share) from N or P%."""
    share = text.endswith("%")
    amount = float(text[:-1]) / 100 if share else int(text)
    if not amount >= 0 or (share and amount > 1):
        raise ValueError(text)
    return amount, share


def within_budget(budget: str, count: int, total: int) -> bool:
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
    feeds: list[FeedText] = []
    for one in value:
        if isinstance(one, str):
            feeds.append(one)
            continue
        tensor, columns = one if isinstance(one, (list, tuple)) else ("", one)
        if not isinstance(tensor, str) or not tensor:
            raise TypeError(value)
        feeds.append((tensor, _texts(columns)))
    return tuple(feeds)


def _paths(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    paths = _texts(value)
    return tuple(_text(path) for path in paths)


def _below_limit(number: int) -> int:
    """What Arrow and numpy can count."""
    if number >= 2**63:
        raise ValueError(number)
    return number


def _keep(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    texts = _texts(value)
    names = [split_names(text) for text in texts] if isinstance(value, (str, tuple)) else [list(texts)]
    if not names or not all(names):
        raise ValueError(value)
    return tuple(name for some in names for name in some or ())


def _text(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise TypeError(value)
    return str(value)


def _count(value: Any) -> int:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
        raise ValueError(value)
    return _below_limit(int(value))


def _size(value: Any) -> int:  # noqa: ANN401 - TOML and Python values
    size = parse_size(value)
    if size < MIN_PART_BYTES:
        raise ValueError(value)
    return size


def _seconds(value: Any) -> float:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(value)
    return float(value)


def _flag(value: Any) -> bool:  # noqa: ANN401 - TOML and Python values
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _walltime(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    if not parse_walltime(_text(value)):
        raise ValueError(value)
    return str(value)


def _span(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    parse_span(_text(value))
    return str(value)


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
_TEXT = ("text that is not empty", _text)
_BOOL = ("true or false", _flag)
_TEXTS = ("text, or a list of texts", _texts)
_BUDGET = ("a number of rows, or a share from 0% to 100%", _budget)
EXPECTED: dict[str, tuple[str, Any]] = {
    "input": ("paths", _paths),
    "model": ("a path", _text),
    "where": _TEXTS,
    "limit": _or_none(_LIMIT),
    "part_bytes": _or_none((f"a size from {MIN_PART_BYTES} bytes, such as 64MiB", _size)),
    "feed": ("TENSOR=COLUMNS, a list of them, or a table", _feeds),
    "fetch": _TEXTS,
    "transform": _or_none(_TEXT),
    "keep": ("all, none, or column names", _keep),
    "row_id": _BOOL,
    "prefix": ("text", lambda value: "" if value == "" else _text(value)),
    "on_null": _TEXTS,
    "on_lossy": _one_of(("error", "warn")),
    "batch_rows": _or_none(_COUNT),
    "max_bad_rows": _BUDGET,
    "max_nan_rows": _or_none(_BUDGET),
    "batch_timeout": _or_none(("seconds above 0", _seconds)),
    "strict": _BOOL,
    "tune": _BOOL,
    "device": _TEXT,
    "ort_library": _or_none(_TEXT),
    "output": _or_none(_TEXT),
    "overwrite": _BOOL,
    "compression": _one_of(COMPRESSIONS),
    "row_group_rows": _or_none(_COUNT),
    "work_dir": _or_none(_TEXT),
    "cluster": _or_none(_one_of(CLUSTERS)),
    "scheduler": _or_none(_TEXT),
    "scheduler_file": _or_none(_TEXT),
    "workers": _or_none(_COUNT),
    "threads": _or_none(_COUNT),
    "adapt": _or_none(("MIN:MAX, such as 0:20", _span)),
    "queue": _or_none(_TEXT),
    "walltime": _or_none(("[DAYS-]HOURS:MINUTES:SECONDS, such as 01:30:00", _walltime)),
    "memory": _or_none((f"a size from {MIN_PART_BYTES} bytes, such as 16GiB", _size)),
    "interface": _or_none(_TEXT),
    "job_extra": _TEXTS,
    "tls": _or_none(_BOOL),
    "dashboard": _BOOL,
}
