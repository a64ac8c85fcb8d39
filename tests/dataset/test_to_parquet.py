"""Inputs of other formats: each is refused with what it is, and with one line that converts it."""

from __future__ import annotations

import gzip
import json
import pickle
import sqlite3
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv, feather, ipc, orc
from support.runs import write

from scorer.dataset.summary import summarise
from scorer.errors import InputNotFound, UnreadableFile

TABLE = pa.table({"id": [1, 2, 3], "name": ["a", "b,c", "d"]})
ROWS = TABLE.to_pylist()


def refused(*inputs):
    """Return the error for inputs of another format."""
    with pytest.raises((UnreadableFile, InputNotFound)) as caught:
        summarise([str(path) for path in inputs])
    return caught.value


def typed(hint):
    """Run the command in a hint, with the Python of the tests."""
    command = hint[hint.index("python -c") :].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, capture_output=True, text=True)


def write_csv(path):
    csv.write_csv(TABLE, path)


def write_zipped_csv(path):
    csv.write_csv(TABLE, path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_zipped_json(path):
    path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))


def write_semicolons(path):
    path.write_text("id;name\n1;a\n2;b,c\n3;d\n")


def write_tabs(path):
    path.write_text("id\tname\n1\ta\n2\tb,c\n3\td\n")


def write_json(path):
    path.write_text(json.dumps(ROWS))


def write_json_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_arrow(path):
    feather.write_feather(TABLE, path)


def write_stream(path):
    with ipc.new_stream(str(path), TABLE.schema) as file:
        file.write_table(TABLE)


def write_orc(path):
    orc.write_table(TABLE, path)


def write_pickle(path):
    path.write_bytes(pickle.dumps(TABLE.to_pandas()))


def write_database(path):
    with sqlite3.connect(path) as database:
        database.execute("create table 'my rows' (id int, name text)")
        database.executemany("insert into 'my rows' values (?, ?)", [tuple(row.values()) for row in ROWS])
    database.close()


@pytest.mark.parametrize(
    ("make", "name", "found"),
    [
        (write_csv, "in.csv", "a CSV file"),
        (write_csv, "it's $HOME.csv", "a CSV file"),
        (write_semicolons, "in.csv", "a CSV file with ';'"),
        (write_tabs, "in.txt", "a file of values that tabs separate"),
        (write_zipped_csv, "in.csv.gz", "a CSV file, compressed with gzip"),
        (write_zipped_csv, "in.parquet", "a CSV file, compressed with gzip"),
        (write_json, "in.json", "a JSON file"),
        (write_zipped_json, "in.parquet", "a JSON file, compressed with gzip"),
        (write_json_lines, "in.jsonl", "a file of JSON lines"),
        (write_arrow, "in.feather", "an Arrow IPC (Feather) file"),
        (write_stream, "in.arrows", "a stream of Arrow IPC"),
        (write_orc, "in.orc", "an ORC file"),
        (write_database, "in.db", "an SQLite database"),
        (write_pickle, "in.pkl", "a pickle of pandas.DataFrame"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("in.") else "",
)
def test_the_command_in_the_hint_converts_the_file_to_the_same_rows(tmp_path, make, name, found):
    make(tmp_path / name)
    error = refused(tmp_path / name)
    assert (error.what, error.found) == ("a file is not Parquet", found)
    typed(error.hint)
    assert pq.read_table(tmp_path / f"{name}.parquet").to_pylist() == ROWS


def test_a_folder_of_other_files_has_one_command_for_all_of_them(tmp_path):
    folder = tmp_path / "it's data"
    folder.mkdir()
    for i in range(5):
        write_csv(folder / f"{i}.csv")
    error = refused(folder)
    assert error.found == f"none; 5 other files, such as {folder}/0.csv, a CSV file"
    typed(error.hint)
    assert summarise([str(folder)]).rows == 5 * TABLE.num_rows


def test_a_pattern_that_matches_other_files_says_what_they_are(tmp_path):
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name)
    error = refused(tmp_path / "*.csv")
    assert error.found == f"none; 2 other files, such as {tmp_path}/a.csv, a CSV file"
    typed(error.hint)
    assert summarise([str(tmp_path)]).rows == 2 * TABLE.num_rows


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.jpg", b"\xff\xd8\xff\xe0"), ("a.png", b"\x89PNG\r\n\x1a\n"), ("a.gif", b"GIF89a"),
        ("a.webp", b"RIFF\x08\0\0\0WEBP"), ("a.tiff", b"II*\0"), ("a.tif", b"MM\0*"),
    ],
)  # fmt: skip
def test_a_folder_of_pictures_has_the_command_that_writes_their_paths(tmp_path, name, head):
    folder = tmp_path / "it's photos"
    (folder / "more").mkdir(parents=True)
    for path in (folder / name, folder / "more" / name):
        path.write_bytes(head)
    (folder / "notes.txt").write_text("no picture")
    error = refused(folder)
    assert error.found == f"none; 3 other files, such as {folder}/{name}, a picture"
    typed(error.hint)
    paths = pq.read_table(tmp_path / "it's photos.parquet")["picture"].to_pylist()
    assert paths == [f"it's photos/{name}", f"it's photos/more/{name}"]


def test_files_of_another_format_among_good_ones_are_named_one_by_one(tmp_path):
    write(tmp_path / "a.parquet", {"id": [1]})
    for name in ("b.parquet", "c.parquet"):
        write_csv(tmp_path / name)
    error = refused(tmp_path)
    assert error.what == "a file is not Parquet (and 1 more file)"
    typed(error.hint)
    assert pq.read_table(tmp_path / "c.parquet.parquet").to_pylist() == ROWS


@pytest.mark.parametrize(
    ("content", "found", "hint"),
    [
        (b"Obj\x01", "an Avro file", "with fastavro installed: python -c "),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook", "with xlrd installed: python -c "),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "with tables installed: python -c "),
        (b"CBM1", "a CatBoost model", "pass Parquet files as INPUT, and the ONNX model as --model"),
        (b"<html>", "an HTML page", "download it again: this is the page of a web site, not the file"),
    ],
)
def test_a_format_that_needs_a_package_names_it(tmp_path, content, found, hint):
    (tmp_path / "in.parquet").write_bytes(content)
    error = refused(tmp_path / "in.parquet")
    assert error.found == found
    assert error.hint.startswith(hint)
    assert "{" not in error.hint


def test_a_workbook_and_an_array_are_recognised(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.xlsx", "w") as book:
        book.writestr("xl/workbook.xml", "<workbook/>")
    error = refused(tmp_path / "in.xlsx")
    assert error.found == "an Excel workbook"
    assert error.hint.startswith("with openpyxl installed: python -c 'import pandas; pandas.read_excel(")
    np.save(tmp_path / "in.npy", np.eye(2))
    error = refused(tmp_path / "in.npy")
    typed(error.hint)
    assert pd.read_parquet(tmp_path / "in.npy.parquet").to_numpy().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_cut_parquet_file_is_damaged_and_not_of_another_format(tmp_path, kept):
    write(tmp_path / "in.parquet", {"id": list(range(1000))})
    whole = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "in.parquet").write_bytes(whole[: int(len(whole) * kept)])
    assert refused(tmp_path / "in.parquet").what == "a file cannot be read as Parquet"
