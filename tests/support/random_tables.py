"""Random Parquet files: columns of every type, hostile names, row groups, codecs, encodings, Hive folders.

Every function takes a `random.Random`, so that a seed repeats its result. Imports nothing of scorer.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import random

HOSTILE_NAMES = [
    "", " ", "a b", " lead", "trail ", "a,b", "a=b", "a|b", "|", "=", ",", "'", "''", "it's", '"', 'say "x"', "a..b",
    "f0..f9", "x*", "*", "[a]", "?", "a.b", "a/b", "..", "é", "日本", "🙂", "e\u0301", "a\nb", "a\tb", "all", "none",
    "null", "in", "_error", "_stage", "list", "element", "key", "(", "f(x)", "<", "#", "%s", "{0}", "$A", "\\", "A",
    "__index_level_0__", "x" * 300,
]  # fmt: skip
NAMES = ["a", "b", "c", "d", "id", "x1", "x2", "x10", "name", "day", "flag", "city", "weight", "note", "Kind", "zz"]
TEXTS = ["", "a", "b", "ab", "b'", "ä", "日本", "None", "nan", "null", " ", "x" * 40, "a,b", "1", "-1", "\n", "🙂"]
FLOATS = [0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1.1754944e-38, 1e-45, 3.4028235e38, -3.4028235e38]
FLOATS += [1.7976931348623157e308, 65504.0, 65520.0, 1e-8, 16777217.0, 0.1, 1 / 3, 2.0**53, 2.0**63, 1e300, 0.5, -2.5]
CODECS = ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]
INTS = {f"{sign}int{bits}": (bits, sign) for sign in ("", "u") for bits in (8, 16, 32, 64)}
NUMBERS = [*INTS, "float16", "float32", "float64", "bool"]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def integer(draw: random.Random, bits: int, sign: str, *, mild: bool):
    """Return an integer of this width: a small one, or one near a limit."""
    low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if mild or draw.random() < 0.5:
        return draw.randint(max(low, -9), 9)
    near = draw.choice([low, high, 0, 2**24, 2**53, 2**31, 2**11, 256])
    return min(high, max(low, near + draw.randint(-2, 2)))


def real(draw: random.Random, kind: str, *, mild: bool):
    """Return a float: a small one, or one of those that break things."""
    if mild or draw.random() < 0.4:
        return draw.choice([draw.randint(-9, 9) / draw.choice([1, 2, 3, 8]), draw.uniform(-3, 3)])
    value = draw.choice([draw.choice(FLOATS), draw.gauss(0, 10 ** draw.randint(-6, 6))])
    with np.errstate(over="ignore"):
        return float(np.float64(value).astype(kind))


def number(draw: random.Random, kind: str, *, mild: bool):
    """Return a value of a number type."""
    if kind == "bool":
        return draw.random() < 0.5
    return integer(draw, *INTS[kind], mild=mild) if kind in INTS else real(draw, kind, mild=mild)


def moment(draw: random.Random, unit: str):
    """Return a count of units since 1970 that Python's datetime can hold."""
    per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    return draw.choice([0, 1, -1, 1_700_000_000 * per, draw.randint(-(2**31), 2**32) * per + draw.randrange(per)])


def decimal(draw: random.Random, digits: int, scale: int):
    """Return a decimal number with at most so many digits."""
    most = 10**digits - 1
    whole = draw.choice([0, 1, -1, most, -most, draw.randint(-most, most)])
    return Decimal(f"{whole}e-{scale}")  # exact, whatever the context of decimal is


def text(draw: random.Random):
    """Return a text, mostly short."""
    return draw.choice([draw.choice(TEXTS), f"w{draw.randrange(30)}"])


def nested(draw: random.Random, inner, most: int = 3):
    """Return a list of up to `most` values or nulls."""
    return [None if draw.random() < 0.1 else inner() for _ in range(draw.randint(0, most))]


def _number_makers():
    kinds = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_()}
    kinds |= {name: pa.type_for_alias(name) for name in INTS}
    return {name: (kind, lambda draw, name=name: number(draw, name, mild=False)) for name, kind in kinds.items()}


MAKERS = {
    **_number_makers(),
    "string": (pa.string(), text),
    "large_string": (pa.large_string(), text),
    "string_view": (pa.string_view(), text),
    "binary": (pa.binary(), lambda d: d.randbytes(d.choice([0, 1, 5, 30]))),
    "large_binary": (pa.large_binary(), lambda d: d.randbytes(3)),
    "binary_view": (pa.binary_view(), lambda d: d.randbytes(d.choice([1, 20]))),
    "fixed_binary": (pa.binary(5), lambda d: d.randbytes(5)),
    "date": (pa.date32(), lambda d: dt.date(1970, 1, 1) + dt.timedelta(days=d.randint(-30000, 60000))),
    "timestamp_s": (pa.timestamp("s"), lambda d: moment(d, "s")),
    "timestamp_ms": (pa.timestamp("ms"), lambda d: moment(d, "ms")),
    "timestamp_us": (pa.timestamp("us"), lambda d: moment(d, "us")),
    "timestamp_ns": (pa.timestamp("ns"), lambda d: moment(d, "ns")),
    "timestamp_utc": (pa.timestamp("us", "UTC"), lambda d: moment(d, "us")),
    "timestamp_zone": (pa.timestamp("ms", "America/New_York"), lambda d: moment(d, "ms")),
    "time32": (pa.time32("ms"), lambda d: d.randrange(86_400_000)),
    "time64": (pa.time64("ns"), lambda d: d.randrange(86_400) * 10**9),
    "duration": (pa.duration("us"), lambda d: d.randint(-(10**12), 10**12)),
    "decimal32": (pa.decimal32(7, 2), lambda d: decimal(d, 7, 2)),
    "decimal64": (pa.decimal64(15, 3), lambda d: decimal(d, 15, 3)),
    "decimal128": (pa.decimal128(30, 5), lambda d: decimal(d, 30, 5)),
    "decimal256": (pa.decimal256(60, 0), lambda d: decimal(d, 60, 0)),
    "null": (pa.null(), lambda _: None),
    "uuid": (pa.uuid(), lambda d: d.randbytes(16)),
    "tensor": (pa.fixed_shape_tensor(pa.float32(), (2, 2)), lambda d: [real(d, "float32", mild=False) for _ in "1234"]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), text),
    "small_dictionary": (pa.dictionary(pa.int8(), pa.string()), text),
    "ordered_dictionary": (pa.dictionary(pa.int16(), pa.string(), ordered=True), text),
    "bytes_dictionary": (pa.dictionary(pa.int32(), pa.binary()), lambda d: d.randbytes(1)),
    "list": (pa.list_(pa.int64()), lambda d: nested(d, lambda: d.randint(-5, 5))),
    "large_list": (pa.large_list(pa.float32()), lambda d: nested(d, lambda: real(d, "float32", mild=False))),
    "list_of_text": (pa.list_(pa.string()), lambda d: nested(d, lambda: text(d))),
    "list_of_lists": (pa.list_(pa.list_(pa.int8())), lambda d: nested(d, lambda: nested(d, lambda: d.randint(0, 3)))),
    "fixed_list": (pa.list_(pa.int16(), 3), lambda d: [d.randint(-5, 5) for _ in "123"]),
    "struct": (
        pa.struct([("x", pa.int32()), ("y", pa.string()), ("z", pa.list_(pa.float64()))]),
        lambda d: {"x": d.choice([None, 1]), "y": text(d), "z": d.choice([None, [], [math.nan]])},
    ),
    "list_of_structs": (pa.list_(pa.struct([("x", pa.int8())])), lambda d: nested(d, lambda: {"x": d.randint(0, 3)})),
    "map": (
        pa.map_(pa.string(), pa.int32()),
        lambda d: [(f"k{i}", d.choice([None, i])) for i in range(d.randint(0, 2))],
    ),
}  # fmt: skip


def array(kind: pa.DataType, values: list) -> pa.Array:
    """Return the values as an array of this type, extension types included."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def column(draw: random.Random, kind: str, rows: int, *, mild: bool = False, nulls: float | None = None) -> pa.Array:
    """Return a column: values in any order or in runs, from a small or a large pool, with nulls anywhere."""
    arrow, make = MAKERS[kind]
    if mild and kind in NUMBERS:
        make = lambda d: number(d, kind, mild=True)  # noqa: E731 - replaces one maker
    if mild and kind.startswith("decimal"):
        make = lambda d: Decimal(f"{d.randint(-900, 900)}e-2")  # noqa: E731 - replaces one maker
    pool = [make(draw) for _ in range(min(rows, draw.choice([1, 3, 20, 100])))]
    values = [draw.choice(pool) for _ in range(rows)]
    if draw.random() < 0.15 and pool:
        values = [pool[i * len(pool) // rows] for i in range(rows)]
    share = draw.choice([0, 0, 0, 0.1, 0.6, 1]) if nulls is None else nulls
    if share:
        values = [None if draw.random() < share else value for value in values]
    return array(arrow, values)


@dataclass
class File:
    """One Parquet file: its path inside the input, its row groups, and how it is written."""

    path: str
    groups: list[pa.Table]
    options: dict = field(default_factory=dict)

    @property
    def table(self) -> pa.Table:
        """All rows."""
        return pa.concat_tables(self.groups)


def write_options(draw: random.Random, schema: pa.Schema) -> dict:
    """Return options of pyarrow's writer."""
    plain = [f.name for f in schema if not pa.types.is_nested(f.type) and "." not in f.name and f.name]
    options = {
        "compression": draw.choice([*CODECS, "snappy"]),
        "data_page_version": draw.choice(["1.0", "2.0"]),
        "use_dictionary": draw.choice([True, True, False]),
        "write_page_checksum": draw.random() < 0.4,
        "write_statistics": draw.choice([True, True, False, [n for n in plain if draw.random() < 0.5]]),
        "write_page_index": draw.random() < 0.2,
        "store_schema": draw.random() < 0.85,
        "version": draw.choice(["1.0", "2.4", "2.6", "2.6", "2.6"]),
    }
    if any(f.type == pa.timestamp("ns") for f in schema):
        options["version"] = "2.6"  # older ones refuse nanoseconds
    if draw.random() < 0.3:
        nested = any(pa.types.is_nested(f.type) for f in schema)  # pyarrow cannot read its lists in pages of 1 byte
        options["data_page_size"] = draw.choice([200 if nested else 1, 200, 500])
        options["write_batch_size"] = draw.choice([1, 7, 100])
    if draw.random() < 0.2:
        options["dictionary_pagesize_limit"] = draw.choice([1, 40])
    if len(set(schema.names)) == len(schema.names) and draw.random() < 0.3:
        options |= {"use_dictionary": False, "column_encoding": _encodings(draw, schema, plain)}
    return options


def _encodings(draw: random.Random, schema: pa.Schema, names: list[str]) -> dict[str, str]:
    """Return an encoding for some columns, one that fits the type."""
    found = {}
    for name in names:
        kind, fits = schema.field(name).type, ["PLAIN"]
        if pa.types.is_boolean(kind):
            fits += ["RLE"]
        if pa.types.is_integer(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            fits += ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"]
        if pa.types.is_floating(kind):
            fits += ["BYTE_STREAM_SPLIT"] * 2
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            fits += ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]
        if pa.types.is_fixed_size_binary(kind):
            fits += ["DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"]
        found[name] = draw.choice(fits)
    return found


def cut(draw: random.Random, rows: int, most: int) -> list[int]:
    """Return up to `most` sizes that add up to `rows`; some may be 0."""
    inner = sorted(draw.randint(0, rows) for _ in range(draw.randrange(most)))
    return [b - a for a, b in zip([0, *inner], [*inner, rows], strict=True)]


def hive_folders(draw: random.Random, count: int) -> list[str]:
    """Return one key=value folder for each file, the same key in all, or '' for each."""
    way = draw.choice(["", "", "", "", "", "int", "text", "two", "plain"])
    values = ["x", "a b", "ä", "it's", "p/q", "1", "07", "z=1", "50%", "__HIVE_DEFAULT_PARTITION__"]
    folders = []
    for i in range(count):
        safe = values[(draw.randrange(9) + i) % 10]
        text_value = safe if safe.startswith("__") else quote(safe, safe=draw.choice(["", " "]))
        folders.append({
            "": "", "plain": f"sub{i % 2}", "int": f"part={draw.randint(-2, 12)}", "text": f"part={text_value}",
            "two": f"part={i % 2}/other key={text_value}",
        }[way])  # fmt: skip
    return folders


def random_files(draw: random.Random, table: pa.Table) -> list[File]:
    """Return the table cut into files and row groups; their natural order is the order of the rows."""
    sizes = cut(draw, len(table), draw.choice([1, 1, 2, 4]))
    folders = hive_folders(draw, len(sizes))
    names = [f"f{n}.parquet" for n in sorted(draw.sample(range(20), len(sizes)))]
    paths = sorted((Path(folder, name).as_posix() for folder, name in zip(folders, names, strict=True)), key=natural)
    options, files, start = write_options(draw, table.schema), [], 0
    for path, size in zip(paths, sizes, strict=True):
        groups = []
        for rows in cut(draw, size, draw.choice([1, 2, 5])):
            groups.append(table.slice(start, rows))
            start += rows
        if len(sizes) > 1 and draw.random() < 0.2:
            options = write_options(draw, table.schema) | {n: options[n] for n in ("store_schema", "version")}
        files.append(File(path, groups, options))
    return files


TEXT_LAYOUTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


def vary_layouts(draw: random.Random, files: list[File]) -> None:
    """Store the texts of some columns in another layout in each file."""
    schema = files[0].groups[0].schema
    for at, field_ in enumerate(schema):
        if field_.type != pa.string() or draw.random() < 0.5:
            continue
        for file in files:
            fits = TEXT_LAYOUTS[:-1] if "column_encoding" in file.options else TEXT_LAYOUTS  # pyarrow decodes no others
            kind = draw.choice(fits)
            for i, group in enumerate(file.groups):
                column_ = group.column(at)
                column_ = column_.dictionary_encode() if pa.types.is_dictionary(kind) else column_.cast(kind)
                file.groups[i] = group.set_column(at, field_.with_type(kind), column_)


def natural(path: str):
    """Return a key that sorts paths folder by folder, with digits as numbers."""
    parts = [re.split(r"([0-9]+)", part) for part in path.split("/")]
    return [[(1, int(bit), "") if bit.isdecimal() else (0, 0, bit) for bit in bits] for bits in parts], path


def write_files(folder: Path, files: list[File]) -> None:
    """Write the files below the folder."""
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {k: v for k, v in file.options.items() if k != "row_group_size"}
        with pq.ParquetWriter(path, file.groups[0].schema, **options) as writer:
            for group in file.groups:
                writer.write_table(group, row_group_size=max(len(group), 1))
