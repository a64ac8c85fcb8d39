"""Draw whole jobs: a table for a model, the flags, and other spellings of the same request."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from support.plain_scoring import Job, key_types
from support.random_models import Input, Model, random_model
from support.random_tables import (
    HOSTILE_NAMES,
    MAKERS,
    NAMES,
    NUMBERS,
    array,
    column,
    number,
    random_files,
    vary_layouts,
)

if TYPE_CHECKING:
    from pathlib import Path

STEPS = ["softmax", "sigmoid", "argmax", "topk(1)", "topk(2)", "topk(99)", "normalize", "round(2)", "round(0)"]
ROWS = [0, 1, 2, 3, 5, 9, 17, 30, 40, 60, 60, 150, 400]


def random_job(seed: str) -> Job:
    """Return the job of this seed."""
    draw = random.Random(seed)
    model = random_model(draw)
    rows = draw.choice(ROWS)
    columns, feeds, way = fed_columns(draw, model, rows)
    taken = [*columns]
    for _ in range(draw.randint(0, max(0, 12 - len(columns)))):
        name = _name(draw, taken)
        taken.append(name)
        columns[name] = column(draw, draw.choice([*MAKERS]), rows)
    order = draw.sample([*columns], len(columns)) if way != "glob" else [*columns]
    names = [*order]
    if draw.random() < 0.01:  # two columns of one name
        fed = {name for some in feeds.values() for name in some}
        others = [i for i, name in enumerate(names) if name not in fed]
        names = [draw.choice(names) if i in others[:1] else name for i, name in enumerate(names)]
    table = pa.table([columns[name] for name in order], names=names)
    if draw.random() < 0.2:
        table = table.replace_schema_metadata({"made by": "nobody", "ä": "ö"})
    files = random_files(draw, table)
    if draw.random() < 0.2:
        vary_layouts(draw, files)
    job = Job(files=files, model=model, feeds=feeds, spelling={"feed": way})
    _flags(draw, job, table)
    return job


def _name(draw: random.Random, taken: list[str]) -> str:
    pool = HOSTILE_NAMES if draw.random() < 0.25 else NAMES
    free = [name for name in pool if name not in taken and name.lower() not in {"f", "g", "h"}]
    return draw.choice(free or [f"more {len(taken)}"])


def fed_columns(draw: random.Random, model: Model, rows: int):
    """Return (columns, feeds, how the feeds are spelled)."""
    columns: dict[str, pa.Array] = {}
    feeds: dict[str, list[str]] = {}
    lists = {t.name: bool(t.shape) and draw.random() < (0.7 if len(t.shape) > 1 else 0.25) for t in model.inputs}
    way = draw.choice(["list", "list", "text", "range", "glob", "auto"])
    by_tensor = all(t.width == 1 or lists[t.name] for t in model.inputs)
    if way == "auto" and (any(lists.values()) if model.features else not by_tensor):
        way = "list"
    if way in {"glob", "range"} and (model.features or len(model.inputs) > 1):
        way = "text"
    for tensor in model.inputs:
        wild, nulls = draw.random() < 0.2, draw.choice([0, 0, 0, 0.15, 0.15, 1 if draw.random() < 0.2 else 0])
        names = []
        for i in range(1 if lists[tensor.name] else tensor.width):
            if way == "auto":
                name = model.features[i] if model.features and not lists[tensor.name] else tensor.name
            elif way in {"glob", "range"}:
                name = f"{way[0]}{i + 8}"
            else:
                name = model.features[i] if model.features and i < len(model.features) else _name(draw, [*columns])
            make = list_column if lists[tensor.name] else fed_column
            columns[name] = make(draw, model, tensor, rows, wild=wild, nulls=nulls)
            names.append(name)
        feeds[tensor.name] = names
    return columns, feeds, way


def _source(draw: random.Random, tensor: Input) -> str:
    """Return a kind of column that can fill the tensor; rarely one that cannot."""
    if draw.random() < 0.001:
        return draw.choice(["binary", "date", "time64", "struct", "null"])
    if tensor.type == "string":
        return draw.choice(["string", "string", "large_string", "string_view", "dictionary", "small_dictionary"])
    if tensor.type == "bool":
        return "bool"
    return tensor.type if draw.random() < 0.6 else draw.choice([*NUMBERS, "decimal32", "decimal128"])


def fed_column(draw: random.Random, model: Model, tensor: Input, rows: int, *, wild: bool, nulls: float) -> pa.Array:
    """Return a column for a tensor."""
    if model.indices:
        pool = [*range(-10, 10)] + ([10, -11, 2**40] if wild else [])
        values = [None if draw.random() < nulls else draw.choice(pool) for _ in range(rows)]
        return pa.array(values, pa.int64())
    return column(draw, _source(draw, tensor), rows, mild=not wild, nulls=nulls)


def list_column(draw: random.Random, model: Model, tensor: Input, rows: int, *, wild: bool, nulls: float) -> pa.Array:
    """Return a list column for a tensor: flat or nested, of fixed or free length, with wrong lengths if wild."""
    kind = "int64" if model.indices else _source(draw, tensor)
    value = MAKERS[kind][0]
    shape = tensor.shape if draw.random() < 0.6 else (tensor.width,)
    layout = draw.choice(["list", "large", "fixed", "fixed"])
    for size in reversed(shape):
        value = pa.large_list(value) if layout == "large" else pa.list_(value, size if layout == "fixed" else -1)

    def one(sizes: tuple[int, ...]):
        if not sizes:
            if draw.random() < nulls / 3:
                return None
            if model.indices:
                return draw.randint(-10, 9)
            return number(draw, kind, mild=not wild) if kind in NUMBERS else MAKERS[kind][1](draw)
        size = sizes[0]
        if wild and layout != "fixed" and draw.random() < 0.04:
            size = draw.choice([0, size + 1, size - 1])
        return [one(sizes[1:]) for _ in range(size)]

    values = [None if draw.random() < nulls else one(shape) for _ in range(rows)]
    if pa.types.is_dictionary(MAKERS[kind][0]) or "view" in kind:
        value = _plain_text(value)
    return array(value, values)


def _plain_text(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_text(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain_text(kind.value_type))
    return pa.list_(_plain_text(kind.value_type)) if pa.types.is_list(kind) else pa.string()


def _flags(draw: random.Random, job: Job, table: pa.Table) -> None:
    """Draw the flags of a job."""
    names = table.column_names
    keep = draw.choice(["all", "all", "some", "some", "none"])
    if keep != "all":
        job.keep = [n for n in names if draw.random() < 0.5] if keep == "some" else []
        job.keep = job.keep or ["none"] * ("none" in names)  # that column cannot be left out by --keep none
    job.spelling["keep"] = draw.choice(["list", "text"])
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
        found = condition(draw, job, table)
        job.where += [found] if found else []
    if draw.random() < 0.15:
        job.limit = draw.choice([0, 1, len(table), draw.randint(0, len(table) + 3)])
    if draw.random() < 0.4:
        job.fetches = _fetches(draw, job.model)
    job.prefix = draw.choice(["", "", "", "", "p ", "score_"])
    job.row_id = draw.random() < 0.15
    if draw.random() < 0.25:
        policies = ["error", "nan", "0", "7", "-1.5", "1e3"]
        some = [t for t in job.model.inputs if draw.random() < 0.7]
        job.on_null = {
            t.name: draw.choice(policies if "float" in t.type else ["error", "0", "0", "7", "7", "-1"]) for t in some
        }
        job.on_null |= {t.name: draw.choice(["", "none", "nan"]) for t in some if t.type == "string"}
        job.on_null |= {t.name: draw.choice(["error", "1"]) for t in some if t.type == "bool"}
    job.on_lossy = draw.choice(["error", "error", "warn"])
    job.max_bad_rows = draw.choice(["100%"] * 20 + ["0", "1", "5", "50%"])
    job.max_nan_rows = draw.choice([None] * 30 + ["0", "50%"])
    job.batch_rows = draw.choice([None, None, 1, 2, 3, 7, 64, 1000])
    job.more = _more(draw)
    flat = all("/" not in file.path for file in job.files)
    job.spelling["input"] = draw.choice(["folder", "folder", "files", "glob"]) if flat else "folder"
    if draw.random() < 0.01:  # a name that does not exist
        draw.choice([job.keep or [], *job.feeds.values()]).append("nowhere")
        job.spelling["feed"] = "list"


def _fetches(draw: random.Random, model: Model) -> list[tuple[str, str, str]]:
    found = []
    for output in draw.choices(model.outputs, k=draw.randint(1, 3)):
        steps = [*STEPS, "label"] if model.labels else STEPS
        step = draw.choice(steps) if output in model.scores and draw.random() < 0.6 else ""
        one = (output, step, draw.choice(["", "", "y new", "ä", "a.b"]))
        found += [one] if one not in found else []
    return found


def _more(draw: random.Random) -> dict:
    """Return options that change neither the rows nor their order."""
    more = {
        "part_bytes": draw.choice([None, 4096, 4096, 10_000, "1MiB"]),
        "compression": draw.choice([None, None, None, "source", "none", "snappy", "zstd", "lz4", "gzip", "brotli"]),
        "row_group_rows": draw.choice([None, None, None, 1, 5, 100, 10**6]),
        "cluster": draw.choice(["synchronous"] * 5 + ["embedded"]),
    }
    if more["cluster"] == "embedded":
        more["threads"] = draw.choice([1, 2, 3])
    if draw.random() < 1 / 200:
        more |= {"cluster": "processes", "workers": 2, "threads": 1}
    return {name: value for name, value in more.items() if value is not None}


def condition(draw: random.Random, job: Job, table: pa.Table) -> tuple | None:
    """Return (column, op, literal, spelled literal) for one of the columns or keys; None for one without a name."""
    keys = key_types([file.path for file in job.files])
    name = draw.choice([*table.column_names, *keys])
    if not name or (table.column_names.count(name) != 1 and name not in keys):
        return None
    if draw.random() < 0.15:
        return name, draw.choice(["null", "not null"]), None, ""
    if name in keys:
        pool = [3, 1] if keys[name] is int else ["x", "1", "z=1"]
        kind = pa.int64() if keys[name] is int else pa.string()
    else:
        kind = table.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        pool = sorted({value for value in table[name].to_pylist() if value is not None}) if comparable(kind) else []
    spelled = [one for one in (literal(draw, value, kind) for value in pool) if one is not None]
    if not spelled:
        return name, "not null", None, ""
    op = draw.choice(["==", "==", "!=", "<", "<=", ">", ">=", "in", "not in"])
    if "in" in op:
        some = [draw.choice(spelled) for _ in range(draw.randint(1, 3))]
        return name, op, [value for value, _ in some], "(" + ", ".join(said for _, said in some) + ")"
    return name, op, *draw.choice(spelled)


def comparable(kind: pa.DataType) -> bool:
    """Return whether --where compares values of this type."""
    numbers = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    moments = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    return numbers or texts or moments or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)


def literal(draw: random.Random, value, kind: pa.DataType) -> tuple | None:
    """Return (a value like those of the column, the literal that means it)."""
    if isinstance(value, bool):
        return value, str(value).lower()
    if isinstance(value, str):
        return value, "'" + value.replace("'", "''") + "'"
    if isinstance(value, Decimal):
        return value, draw.choice(["{}", "'{}'"]).format(format(value, "f"))
    if isinstance(value, dt.date):  # a datetime is one, and pandas's Timestamp too
        return value, f"'{value.isoformat()}'"
    if isinstance(value, int):
        low, high = np.iinfo(str(kind)).min, np.iinfo(str(kind)).max
        value = min(high, max(low, value + draw.choice([0, 0, -1, 1])))
        return value, str(value)
    if not np.isfinite(value):
        return None
    return float(value), repr(float(value))


def quoted(name: str) -> str:
    """Return a name as --feed, --keep and --where read any name but the empty one."""
    return "'" + name.replace("'", "''") + "'"


def arguments(job: Job, folder: Path) -> dict:
    """Return the keyword arguments of `scorer.run` for a job whose files and model are in the folder."""
    found = {"input": _input(job, folder), "model": str(folder / "model.onnx"), "output": str(folder / "out")}
    found |= {"limit": job.limit, "row_id": job.row_id, "prefix": job.prefix, "on_lossy": job.on_lossy}
    found |= {"max_bad_rows": job.max_bad_rows, "max_nan_rows": job.max_nan_rows, "batch_rows": job.batch_rows}
    found |= {"tune": False, **job.more}
    if job.keep is not None:
        found["keep"] = job.keep or "none"
        if job.keep == ["all"]:  # a word that means something else
            found["keep"] = "[a]ll"
        elif job.spelling["keep"] == "text" and job.keep and "" not in job.keep:
            found["keep"] = ",".join(map(quoted, job.keep))
    if job.where:
        found["where"] = [f"{quoted(name)} {_is(op)} {said}" for name, op, _, said in job.where]
    if job.on_null:
        found["on_null"] = [f"{name}={policy}" for name, policy in job.on_null.items()]
    if job.fetches:
        found["fetch"] = [f"{o}{'|' * bool(s)}{s}{'=' * bool(n)}{n}" for o, s, n in job.fetches]
    if job.spelling["feed"] != "auto":
        found["feed"] = {tensor: _feed(job, names) for tensor, names in job.feeds.items()}
        if job.spelling["feed"] == "text":
            one = {tensor: (tensor, names) for tensor, names in found["feed"].items()}
            found["feed"] = [one[t] if isinstance(n, list) else f"{t}={n}" for t, n in found["feed"].items()]
    return found


def _is(op: str) -> str:
    return f"is {op}" if "null" in op else op


def _feed(job: Job, names: list[str]) -> str | list[str]:
    way = job.spelling["feed"]
    if way == "range" and len(names) > 1:
        return f"{names[0]}..{names[-1]}"
    if way == "glob":
        return "g*"
    if (way == "text" or len(names) == 1) and "" not in names:
        return ",".join(map(quoted, names))
    return names


def _input(job: Job, folder: Path) -> str | list[str]:
    way, inside = job.spelling["input"], folder / "in"
    if way == "files":
        return [str(inside / file.path) for file in job.files]
    return str(inside / "f*.parquet") if way == "glob" else str(inside)
