"""What an input file of another format is, and one line that converts it to Parquet."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import closing, suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from scorer.errors import UnreadableFile
from scorer.locations import is_url
from scorer.storage.formats import recognise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.errors import ScorerError
    from scorer.storage.formats import Format


class _Line(NamedTuple):
    """A conversion in Python."""

    imports: str
    expression: str
    """It reads {f} and writes {out}."""
    needs: str = ""
    """Packages beside those that scorer depends on."""


_WRITE = "parquet.write_table({table}, {{out}})"
_LINES = {
    "arrow": _Line("from pyarrow import feather, parquet", _WRITE.format(table="feather.read_table({f})")),
    "arrow-stream": _Line(
        "from pyarrow import ipc, parquet", _WRITE.format(table='ipc.open_stream(open({f}, "rb")).read_all()')
    ),
    "feather": _Line("from pyarrow import feather, parquet", _WRITE.format(table="feather.read_table({f})")),
    "csv": _Line("from pyarrow import csv, parquet", _WRITE.format(table="csv.read_csv({f}{more})")),
    "json-lines": _Line("from pyarrow import json, parquet", _WRITE.format(table="json.read_json({f})")),
    "json": _Line("import pandas", "pandas.read_json({f}).to_parquet({out}, index=False)"),
    "orc": _Line("from pyarrow import orc, parquet", _WRITE.format(table="orc.read_table({f})")),
    "avro": _Line(
        "import fastavro, pandas",
        'pandas.DataFrame.from_records(fastavro.reader(open({f}, "rb"))).to_parquet({out}, index=False)',
        needs="fastavro",
    ),
    "xlsx": _Line("import pandas", "pandas.read_excel({f}).to_parquet({out}, index=False)", needs="openpyxl"),
    "xls": _Line("import pandas", "pandas.read_excel({f}).to_parquet({out}, index=False)", needs="xlrd"),
    "npy": _Line("import numpy, pandas", "pandas.DataFrame(numpy.load({f})).rename(columns=str).to_parquet({out})"),
    "sqlite": _Line(
        "import pandas, sqlite3",
        'pandas.read_sql("select * from {more}", sqlite3.connect({f})).to_parquet({out}, index=False)',
    ),
    "pickle": _Line("import pandas", "pandas.read_pickle({f}).to_parquet({out})"),
    "hdf5": _Line("import pandas", "pandas.read_hdf({f}).to_parquet({out})", needs="tables"),
}
_HINTS = {
    "lfs": "run `git lfs pull`: the file is a Git LFS pointer",
    "html": "download it again: this is the page of a web site, not the file",
    "zip": "unpack it and pass the Parquet files",
}
_EXTENSIONS = {"gzip": ".gz", "bz2": ".bz2", "zstd": ".zst", "lz4": ".lz4"}
"""The name that pyarrow expects of a compressed file."""


_NAMED = 3  # more files become a pattern


def named(problems: Sequence[ScorerError]) -> ScorerError:
    """Return the first problem; if its file is of another format, say which, and what converts all such files."""
    first = problems[0]
    found = recognise(first.where) if isinstance(first, UnreadableFile) else None
    if found is None or found.kind == "parquet":
        return first
    return UnreadableFile(
        "a file is not Parquet",
        where=first.where,
        expected="a complete Parquet file",
        found=found.name,
        hint=_hint(found, [problem.where for problem in problems]),
    )


def described(paths: Sequence[str]) -> tuple[str, str]:
    """Return what the first recognised file is, with its path, and what converts it; ('', '') if there is none."""
    for path in paths[:20]:
        found = recognise(path)
        known = found is not None and found.kind in {*_LINES, "picture"}
        if found is not None and known and not os.path.basename(path).startswith((".", "_")):
            extension = os.path.splitext(path)[1]
            alike = [path, *(other for other in paths if other != path and other.endswith(extension))]
            return f"{path}, {found.name}", _hint(found, alike)
    return "", ""


def _hint(found: Format, paths: Sequence[str]) -> str:
    """Return a hint: the line that converts the first of these files, or all of them."""
    download = ""
    if is_url(paths[0]) and found.kind in _LINES:
        download, paths = "download it first, and upload the Parquet file: ", [os.path.basename(paths[0])]
    path = paths[0]
    if found.kind == "picture":
        return _pictures_hint(path)
    if found.kind not in _LINES:
        model = "pass Parquet files as INPUT, and the ONNX model as --model"
        return _HINTS.get(found.kind, model)
    line = _LINES[found.kind]
    imports, expression = line.imports, line.expression
    if found.kind == "csv" and found.detail != ",":
        expression = expression.replace("{more}", f", parse_options=csv.ParseOptions(delimiter={_text(found.detail)})")
    elif found.kind == "sqlite":
        expression = expression.replace("{more}", _first_table(path))
    expression = expression.replace("{more}", "")
    if found.compression and not path.endswith(_EXTENSIONS.get(found.compression, "\0")):
        imports, expression = _decompressed(imports, expression, found.compression)
    needs = f"with {line.needs} installed: " if line.needs else ""
    needs += "if you trust the file, because loading it runs its code: " if found.kind == "pickle" else ""
    return f"{download}{needs}{_command(imports, expression, paths)}"


def _pictures_hint(path: str) -> str:
    """Return a hint: the line that writes the paths of a folder's pictures into a Parquet file beside the folder."""
    if is_url(path):
        return "write a Parquet file with a column of the pictures' paths, and feed it with COLUMN|image()"
    folder, pattern = _text(os.path.dirname(os.path.abspath(path))), _text(f"*{os.path.splitext(path)[1]}")
    code = (
        f"import pathlib, pandas; d = pathlib.Path({folder}); "
        f"p = sorted(str(f.relative_to(d.parent)) for f in d.rglob({pattern})); "
        'pandas.DataFrame({"picture": p}).to_parquet(f"{d}.parquet")'
    )
    return f"write their paths into a Parquet file, and feed picture|image() from it: python -c {shlex.quote(code)}"


def _decompressed(imports: str, expression: str, compression: str) -> tuple[str, str]:
    """Return the line for a compressed file whose name does not say so."""
    if "pandas" in imports:
        return imports, expression.replace("{f})", f'{{f}}, compression="{compression}")')
    source = f'pyarrow.input_stream({{f}}, compression="{compression}")'
    return f"import pyarrow; {imports}", expression.replace("{f}", source, 1)


def _command(imports: str, expression: str, paths: Sequence[str]) -> str:
    """Return the command: for one file with its name in the code, for several with their names after it."""
    path = paths[0]
    if len(paths) == 1:
        code = f"{imports}; {expression}".replace("{f}", _text(path)).replace("{out}", _text(path + ".parquet"))
        return f"python -c {shlex.quote(code)}"
    loop = expression.replace("{f}", "f").replace("{out}", 'f + ".parquet"')
    code = f"import sys; {imports}; [{loop} for f in sys.argv[1:]]"
    names = " ".join(shlex.quote(one) for one in paths)
    if len(paths) > _NAMED:
        names = f"{shlex.quote(os.path.dirname(path))}/*{shlex.quote(os.path.splitext(path)[1])}"
    return f"python -c {shlex.quote(code)} {names}"


def _first_table(path: str) -> str:
    """Return the name of a database's first table, quoted for SQL; TABLE if it cannot be read."""
    import sqlite3  # noqa: PLC0415 - only for a database

    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)) as found,
    ):
        row = found.execute("select name from sqlite_master where type = 'table' order by rowid").fetchone()
        if row is not None:
            return str(row[0]) if str(row[0]).isidentifier() else '\\"' + str(row[0]).replace('"', '""') + '\\"'
    return "TABLE"


def _text(text: str) -> str:
    """Return a Python literal in double quotes, because a shell reads the code in single quotes."""
    return json.dumps(text, ensure_ascii=False)
