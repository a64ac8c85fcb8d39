"""A joined table in memory, with its index: read once per process, or once per host if several processes need it.

The driver reads a table before the run, and a run in one process uses that. A worker process maps a file into memory,
which the first one of its host writes, so that all of them share its memory:

    TMP/scorer-UID/joins/ID.arrow    the rows with their codes, sorted; locked by each process that has mapped it
    TMP/scorer-UID/joins/ID.lock     held by the process that writes or removes it

The last process removes the file. What a killed process left is removed when another table is loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scorer.arrow import plain_schema, python_values
from scorer.dataset import ahead, fields, reader
from scorer.dataset.cursors import InputCache
from scorer.dataset.joins import index as index_
from scorer.dataset.reader import Source
from scorer.dataset.summary import summarise
from scorer.dataset.tables import Wanted
from scorer.display.words import cut, plural
from scorer.errors import InputChanged, InputError
from scorer.host.private import private_folder
from scorer.locations import is_url
from scorer.tables.snapshot import At, TableState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scorer.dataset.joins.spec import Join
    from scorer.dataset.summary import Dataset
    from scorer.tables.deleted import Slice


@dataclass(frozen=True, slots=True)
class Lookup:
    """A joined table, loaded."""

    index: index_.Index
    rows: pa.Table
    """The columns that are added; the rows are in the order of the index."""
    handle: int | None = None
    """The mapped file, which this process has locked."""
    path: str = ""

    @property
    def nbytes(self) -> int:
        """The bytes of the rows and their index."""
        index = self.index
        return int(self.rows.nbytes + index.codes.nbytes + index.starts.nbytes + sum(one.nbytes for one in index.keys))

    def close(self) -> None:
        """Unlock the mapped file; the last process removes it."""
        if self.handle is None:
            return
        with _alone(self.path):
            with suppress(OSError):
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(self.path)
            os.close(self.handle)


class _Loaded:
    """The joined tables of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[str, Lookup] = {}
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def table(self, join: Join, *, shared: bool) -> Lookup:
        """Return the table, loaded by the first thread that asks; `shared` if several processes of the host need it."""
        found = self._tables.get(id_of(join))
        if found is not None:
            return found
        with self._lock:
            key = id_of(join)
            if key not in self._tables:
                self._tables[key] = _mapped(join) if shared else _read(join, opened(join))
            return self._tables[key]

    def forget(self, keys: Iterable[str]) -> None:
        """Drop tables; calls in progress keep theirs."""
        with self._lock:
            for key in keys:
                found = self._tables.pop(key, None)
                if found is not None:
                    found.close()


_LOADED = _Loaded()
table = _LOADED.table
forget = _LOADED.forget


def id_of(join: Join) -> str:
    """Return what identifies the loaded rows of a join: the contents of the table, the keys and the columns."""
    parts = asdict(join)
    for name in ("name", "left", "missing"):
        del parts[name]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def add_columns(
    rows: pa.Table, joins: Sequence[Join], *, shared: bool = False
) -> tuple[pa.Table, np.ndarray, dict[int, str]]:
    """Return the rows with the columns of the joined tables, which rows lack a key in a table, and why some are bad."""
    bad: dict[int, str] = {}
    unmatched = np.zeros(rows.num_rows, bool)
    for join in joins:
        found = table(join, shared=shared)
        keys = _keys(rows, join)
        at = found.index.find(keys)
        gone = at < 0
        unmatched |= gone
        if join.fields:
            picked = found.rows.take(pa.array(at, mask=gone) if gone.any() else pa.array(at))
            schema = pa.schema([*rows.schema, *join.added], metadata=rows.schema.metadata)
            rows = pa.Table.from_arrays([*rows.columns, *picked.columns], schema=schema)
        if join.missing == "error":
            lost = np.flatnonzero(gone)
            bad = {
                row: f"{join.name} has no row with {words}"
                for row, words in zip(lost.tolist(), key_words(join.right, keys, lost), strict=True)
            } | bad
    return rows, unmatched, bad


def missing_rows(rows: pa.Table, join: Join) -> int:
    """Return how many rows have a key that the table does not have."""
    return int(np.count_nonzero(table(join, shared=False).index.find(_keys(rows, join)) < 0))


def _keys(rows: pa.Table, join: Join) -> list[pa.Array]:
    own = fields.select(rows, list(dict.fromkeys(join.left)))
    return [index_.as_key(own[name], key.type) for name, key in zip(join.left, join.keys, strict=True)]


def key_words(names: Sequence[str], keys: Sequence[pa.Array], rows: np.ndarray) -> list[str]:
    """Return the keys of some rows in words."""
    values = zip(*(python_values(key.take(pa.array(rows))) for key in keys), strict=True)
    return [cut(", ".join(f"{name} = {value!r}" for name, value in zip(names, row, strict=True))) for row in values]


def opened(join: Join) -> Dataset:
    """Return the summary of a planned table; raise `InputChanged` if it is another one by now."""
    dataset = open_table(join.location, At(
        version=join.version if join.kind == "delta" else None,
        snapshot=join.version if join.kind == "iceberg" else None,
        pinned=bool(join.version),
    ))  # fmt: skip
    if digest_of(dataset) != join.digest:
        raise InputChanged(
            f"the table of --join {join.name} changed after it was planned",
            where=join.location,
            expected="the files that were planned",
            found="other files, or other sizes or times",
            hint="restore them, or start again with --overwrite",
        )
    return dataset


def open_table(location: str, at: At | None = None) -> Dataset:
    """Return the summary of a table: Parquet files, a Delta table or an Iceberg table."""
    return summarise([location], wanted=Wanted(kind="auto", at=at or At()))


def digest_of(dataset: Dataset) -> str:
    """Return what identifies the contents of a table."""
    files: list[Any] = [[file.path, file.id.size, file.id.version, file.row_groups] for file in dataset.files]
    if dataset.table is not None:
        files.append([dataset.table.kind, dataset.table.table_id, dataset.table.version])
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Deleted:
    """The deleted rows of a table's files, in memory; stands in place of the file that a plan has."""

    numbers: list[np.ndarray] = field(default_factory=list)

    def between(self, where: Slice | None, start: int, stop: int) -> np.ndarray:
        """Return the numbers from `start` up to `stop` of the file with this number."""
        found = self.numbers[where[0]] if where else np.empty(0, np.int64)
        low, high = np.searchsorted(found, (start, stop))
        return found[low:high]


def _rows(dataset: Dataset, schema: pa.Schema) -> pa.Table:
    """Return all rows of a table with these columns."""
    deleted = _Deleted([dataset.deleted_rows(file) for file in dataset.files])
    state = None if dataset.table is None else TableState.of(dataset.table, "")
    cache = InputCache(table=state, deleted=deleted)  # type: ignore[arg-type]  # it has the one method that is used
    pieces = []
    for number, file in enumerate(dataset.files):
        source = Source(
            id=file.id, start=0, stop=file.rows, hive=tuple(file.hive.items()),
            deleted=(number, file.deleted) if file.deleted else None,
        )  # fmt: skip
        fetched = ahead.fetch([source], schema, (), cache, lambda: None) if is_url(file.path) else {}
        pieces.append(
            reader.read(source, schema, (), (max(file.rows, 1),), cache, fetched=fetched.get(file.path)).table
        )
    return pa.concat_tables(pieces)


def _read(join: Join, dataset: Dataset) -> Lookup:
    """Return the table, read from its files; rows with a null in a key have no key, and are left out."""
    names = [*dict.fromkeys([*join.right, *(field.name for field in join.fields)])]
    rows = _rows(dataset, pa.schema(fields.schema_of(plain_schema(dataset.columns), names)))
    valid = None
    for name in join.right:
        if rows[name].null_count:
            one = pc.is_valid(rows[name])
            valid = one if valid is None else pc.and_(valid, one)
    rows = rows if valid is None else rows.filter(valid)
    keys = [index_.as_key(rows[name], key.type) for name, key in zip(join.right, join.keys, strict=True)]
    found, order = index_.build(keys)
    doubled = order[index_.duplicates(found)]
    if len(doubled):
        raise InputError(
            f"keys are not unique in the table of --join {join.name}",
            where=join.location,
            expected=f"each {' and '.join(join.right)} once",
            found=f"{plural(len(doubled), 'row')} whose key an earlier row has; the first is "
            f"{key_words(join.right, keys, doubled[[doubled.argmin()]])[0]}",
            hint="write a table with one row for each key, such as pandas' drop_duplicates, or join on more columns",
        )
    return Lookup(found, rows.select([field.name for field in join.fields]).take(pa.array(order)).combine_chunks())


def _mapped(join: Join) -> Lookup:
    """Return the table from a file that is mapped into memory, which the first process of this host writes."""
    folder = Path(private_folder()) / "joins"
    folder.mkdir(exist_ok=True)
    _sweep(folder)
    path = str(folder / f"{id_of(join)}.arrow")
    with _alone(path):
        if not os.path.exists(path):
            found = _read(join, opened(join))
            try:
                _write(found, path)
            except OSError:  # such as a full disk: this process uses its own copy
                return found
            del found
            pa.default_memory_pool().release_unused()
        handle = os.open(path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)
        with pa.memory_map(path) as file:
            rows = pa.ipc.open_file(file).read_all()
    n_keys = rows.num_columns - 1 - len(join.fields)
    codes = rows.column(0).combine_chunks().to_numpy()
    keys = tuple(rows.column(at).combine_chunks() for at in range(1, 1 + n_keys))
    columns = rows.columns[1 + n_keys :]
    own = pa.Table.from_arrays(columns, names=[field.name for field in join.fields])
    return Lookup(index_.Index.of(codes, keys), own, handle, path)


def _write(found: Lookup, path: str) -> None:
    """Write the codes, the keys and the columns of a table, which can be mapped into memory."""
    temporary = f"{path}.part"
    columns = [pa.chunked_array([found.index.codes]), *found.index.keys, *found.rows.columns]
    rows = pa.Table.from_arrays(columns, names=list(map(str, range(len(columns)))))
    try:
        with pa.OSFile(temporary, "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def _alone(path: str, *, wait: bool = True) -> Iterator[None]:
    """Let one process of this host at a time write or remove a file; without `wait`, raise OSError if another does."""
    lock = f"{path}.lock"
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.stat(lock).st_ino == os.fstat(handle).st_ino:  # else its last holder has removed it
                    break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        if not os.path.exists(path):
            os.unlink(lock)
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove the files that no process has locked: those of processes that were killed."""
    for lock in folder.glob("*.lock"):
        path = str(lock).removesuffix(".lock")
        with suppress(OSError), _alone(path, wait=False):
            with suppress(OSError):
                os.unlink(f"{path}.part")
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
