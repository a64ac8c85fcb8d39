"""The allowed values of options, and how they are parsed: one rule for each kind of value.

A field of the options names its rule: `option(..., rule=COUNT)`.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scorer.options import cluster_options, store_options
from scorer.options.grammar import FeedText, parse_join, quoted, split_names
from scorer.options.models import parse_models

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUES = ("slurm", "pbs", "sge", "lsf", "htcondor", "oar")
"""Job queues that can start workers."""
CLUSTERS = ("embedded", "processes", "synchronous", *QUEUES)
"""The kinds of clusters that have a name; every other is given by its class."""
FORMATS = ("parquet", "delta", "iceberg")
COMPRESSIONS = ("source", "none", "snappy", "zstd", "lz4", "gzip", "brotli")
MIN_PART_BYTES = 4096
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_WALLTIME = re.compile(r"^(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)$")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{tail}": (1024 if "i" in tail else 1000) ** power
    for power, prefix in enumerate("kmgt", 1)
    for tail in ("", "b", "i", "ib")
}


def parse_size(text: str | int) -> int:
    """Return the bytes of a size such as 64MiB, 8MB or 4096."""
    match = _SIZE.match(str(text))
    if match is None:
        raise ValueError(text)
    return _int64(int(float(match[1]) * _UNITS[match[2].lower()]))


def parse_walltime(text: str) -> int:
    """Return the seconds of [DAYS-]HOURS:MINUTES:SECONDS."""
    match = _WALLTIME.match(text)
    if match is None:
        raise ValueError(text)
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_span(text: str) -> tuple[int, int]:
    """Return (minimum, maximum) of MIN:MAX."""
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high) > 0):
        raise ValueError(text)
    return int(low), _int64(int(high))


def parse_budget(text: str) -> tuple[float, bool]:
    """Return (amount, whether it is a share) of N or P%."""
    share = text.endswith("%")
    amount = float(text[:-1]) / 100 if share else int(text)
    if not amount >= 0 or (share and amount > 1):
        raise ValueError(text)
    return amount, share


def within_budget(budget: str, count: int, total: int) -> bool:
    """Return whether `count` of `total` rows are within N or P%; exactly, so that 57% of 100 rows are 57."""
    from fractions import Fraction  # noqa: PLC0415 - start-up

    amount, share = parse_budget(budget)
    return count * 100 <= Fraction(str(float(budget[:-1]))) * total if share else count <= amount


def _texts(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, (str, Path)):
        value = [value]
    texts = tuple(str(v) if isinstance(v, Path) else v for v in value)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(value)
    return texts


def _gates(value: Any, *, warn: bool = False) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    """Return the texts of gates; raise `OptionsError` if one cannot be parsed."""
    texts = _texts(value)
    if texts:
        from scorer.options import gates  # noqa: PLC0415 - only for runs with gates

        for text in texts:
            gates.parse(text, warn=warn)
    return texts


def _feeds(value: Any) -> tuple[FeedText, ...]:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, dict):
        return tuple(
            FeedText.parse(f"{k}={v}") if isinstance(v, str) else FeedText.of(k, _texts(v)) for k, v in value.items()
        )
    return tuple(_feed(one) for one in ([value] if isinstance(value, str) else value))


def _feed(value: Any) -> FeedText:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, str | FeedText):
        return FeedText.parse(value) if isinstance(value, str) else value
    tensor, columns = value if isinstance(value, list | tuple) else ("", value)
    if not isinstance(tensor, str) or not tensor:
        raise TypeError(value)
    return FeedText.of(tensor, _texts(columns))


def _labels(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    """Return the texts of --labels. A list of several names, or a table of lists, holds each name as it is."""
    if isinstance(value, dict):
        return tuple(f"{k}={v if isinstance(v, str | Path) else _names(_texts(v))}" for k, v in value.items())
    texts = _texts(value)
    names = isinstance(value, list) and len(texts) > 1 and not all("=" in text for text in texts)
    return (_names(texts),) if names else texts


def _axes(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    """Return the texts of --batch-axis; a table holds the axis of each tensor as a number."""
    if not isinstance(value, dict):
        return _texts(value)
    if any(type(axis) is not int for axis in value.values()):
        raise TypeError(value)
    return tuple(f"{name}={axis}" for name, axis in value.items())


def _joins(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    """Return the texts of --join; a table holds by name where a table is and its keys."""
    texts = tuple(f"{name}={text}" for name, text in value.items()) if isinstance(value, dict) else _texts(value)
    if not all(parse_join(text) for text in texts):
        raise ValueError(value)
    return texts


def _names(names: tuple[str, ...]) -> str:
    """Return names as one text that `split_names` reads."""
    plain = len(names) > 1
    each = (quoted(name) if plain and "=" not in name else "'" + name.replace("'", "''") + "'" for name in names)
    return ",".join(each)


def _paths(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, dict | set | frozenset) or hasattr(type(value), "columns"):
        raise TypeError(value)  # a frame iterates over its column names; a set has no order
    paths = _texts(value)
    return tuple(_text(path) for path in paths)


def _int64(number: int) -> int:
    """Return the number; raise ValueError if it is too large for Arrow and numpy."""
    if number >= 2**63:
        raise ValueError(number)
    return number


def _keep(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    texts = _texts(value)
    names = [split_names(text) for text in texts] if isinstance(value, (str, tuple)) else [list(texts)]
    if not names or not all(names):
        raise ValueError(value)
    return tuple(name for group in names for name in group or ())


def is_class(cluster: str | None) -> bool:
    """Return whether a value of --cluster names a class, as MODULE:CLASS."""
    return ":" in (cluster or "")


def _cluster(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    text = _text(value)
    if text not in CLUSTERS and not _CLASS.fullmatch(text):
        raise ValueError(value)
    return text


def _text(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise TypeError(value)
    return str(value)


def _function(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    """Return the name of a function as module:function; TypeError for one that another process cannot import."""
    if not callable(value):
        return _text(value)
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    found = sys.modules.get(module) if isinstance(module, str) and module != "__main__" else None
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not value:
        raise TypeError(value)
    return f"{module}:{name}"


def _count(value: Any) -> int:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
        raise ValueError(value)
    return _int64(int(value))


def _size(value: Any) -> int:  # noqa: ANN401 - TOML and Python values
    size = parse_size(value)
    if size < MIN_PART_BYTES:
        raise ValueError(value)
    return size


def _seconds(value: Any) -> float:  # noqa: ANN401 - TOML and Python values
    if isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(value)
    return float(value)


def _switch(value: Any) -> bool:  # noqa: ANN401 - TOML and Python values
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


def _since(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    """Return a version, a time, or an id or a name of a snapshot, as text; the table says which of them it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(_int64(value))
    return value.isoformat() if isinstance(value, date) else _text(value)


def _version(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    """Return the number of a version, or a time, as text."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(_int64(value))
    text = value.isoformat() if isinstance(value, date) else _text(value)
    if not text.isdecimal():
        datetime.fromisoformat(text)
    return text if not text.isdecimal() else str(_int64(int(text)))


def _snapshot(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _mode(value: Any) -> str:  # noqa: ANN401 - TOML and Python values
    text = _text(value).strip()
    word, _, condition = text.partition(" ")
    if (word in {"append", "overwrite"} and condition) or (word == "replace" and not condition.strip()):
        raise ValueError(value)
    return ("append", "overwrite", "replace")[("append", "overwrite", "replace").index(word)] + text[len(word) :]


class Rule(NamedTuple):
    """What a value may be, in words, and the function that parses it or raises ValueError or TypeError."""

    expected: str
    read: Callable[[Any], Any]
    choices: tuple[str, ...] = ()
    meant: tuple[tuple[str, str], ...] = ()
    """Other words, and what the hint of the error says for each."""
    types: str = ""
    """Of a path: the Python types that it may have, in words."""


def one_of(*choices: str, **meant: str) -> Rule:
    """Return the rule for a value that is one of a few words; `meant` has hints for other words."""

    def pick(value: str) -> str:
        return choices[choices.index(value)]

    return Rule(f"one of {', '.join(choices)}", pick, choices, tuple(meant.items()))


def optional(rule: Rule) -> Rule:
    """Return the same rule, but with None allowed."""
    return rule._replace(read=lambda value: None if value is None else rule.read(value))


def _limit(value: Any) -> int:  # noqa: ANN401 - TOML and Python values
    return 0 if value in (0, "0") and value is not False else _count(value)


PATH = Rule("a path", _text, types="a path: a str or a pathlib.Path")
MODELS = Rule(
    "a path, or NAME=PATH for each of several models", parse_models,
    types="a path: a str or a pathlib.Path, or a dict of several by name",
)  # fmt: skip
PATHS = Rule("paths", _paths, types="a path or a list of paths: str or pathlib.Path")
COUNT = Rule("a whole number, 1 or more", _count)
LIMIT = Rule("a whole number, 0 or more", _limit)
TEXT = Rule("non-empty text", _text)
FUNCTION = Rule("non-empty text", _function, types="a function of a module, or its name as package.module:function")
PLACE = TEXT._replace(types=PATH.types)
ANY_TEXT = Rule("text", lambda value: "" if value == "" else _text(value))
SWITCH = Rule("true or false", _switch)
TEXTS = Rule("text, or a list of texts", _texts)
GATES = Rule("a condition on the scores, or a list of them", _gates)
GATES_WARN = GATES._replace(read=lambda value: _gates(value, warn=True))
CLUSTER = Rule(
    f"one of {', '.join(CLUSTERS)}, or a class as MODULE:CLASS",
    _cluster,
    CLUSTERS,
    (("threads", "embedded: threads of this process"),),
)
CLUSTER_OPTIONS = Rule("NAME=VALUE, a list of them, or a table", cluster_options.parse)
STORE_OPTIONS = Rule("KEY=VALUE, a list of them, or a table", store_options.parse)
VARIABLES = Rule("names of environment variables", store_options.parse_variables)
BUDGET = Rule("a number of rows, or a share from 0% to 100%", _budget)
SECONDS = Rule("a number of seconds above 0", _seconds)
VERSION = Rule("the number of a version, or a time such as 2026-11-30T18:00:00Z", _version)
SINCE = Rule("a version, a time, a snapshot, a branch or a tag", _since)
SNAPSHOT = Rule("the id of a snapshot, or the name of a branch or tag", _snapshot)
MODE = Rule("append, overwrite, or replace with a condition, such as \"replace day = '2026-01-31'\"", _mode)
PART_SIZE = Rule(f"a size of at least {MIN_PART_BYTES} bytes, such as 64MiB", _size)
MEMORY_SIZE = Rule(f"a size of at least {MIN_PART_BYTES} bytes, such as 16GiB", _size)
FEEDS = Rule("TENSOR=COLUMNS, a list of them, or a table", _feeds)
LABELS = Rule("names, a file, or a table of them by tensor", _labels)
AXES = Rule("TENSOR=AXIS, a list of them, or a table of whole numbers by tensor", _axes)
JOINS = Rule("NAME=TABLE on COLUMN, ..., a list of them, or a table of them by name", _joins)
NAMES = Rule("column names", lambda value: _keep(value) if value else ())
KEEP = Rule("all, none, or column names", _keep)
SPAN = Rule("MIN:MAX, such as 0:20", _span)
WALLTIME = Rule("[DAYS-]HOURS:MINUTES:SECONDS, such as 01:30:00", _walltime)
