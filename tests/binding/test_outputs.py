"""Which output tensor becomes which columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from support.small_specs import floats, model, tensor

from scorer.binding.elements import fitted
from scorer.binding.outputs import FetchRequest, Kept, fetch_of, output_schema, requested_fetches
from scorer.errors import BindingError, OptionsError, ShapeMismatch, UnsupportedTensor
from scorer.options.fields import BindingOptions

OUTPUTS = model(outputs=[tensor("mean"), tensor("logits"), tensor("a=b")])


@pytest.mark.parametrize(
    ("fetch", "wanted"),
    [
        ((), (FetchRequest("mean"), FetchRequest("logits"), FetchRequest("a=b"))),
        (("logits",), (FetchRequest("logits"),)),
        (("logits=score", "mean"), (FetchRequest("logits", column="score"), FetchRequest("mean"))),
        (("a=b",), (FetchRequest("a=b"),)),
        (("a=b=c",), (FetchRequest("a=b", column="c"),)),
        (("logits|softmax=p",), (FetchRequest("logits", ("softmax",), "p"),)),
        (("a=b|sigmoid|round(2)=p", "a=b"), (FetchRequest("a=b", ("sigmoid", "round(2)"), "p"), FetchRequest("a=b"))),
        (("logits|argmax",), (FetchRequest("logits", ("argmax",)),)),
    ],
)
def test_outputs_are_fetched_under_the_requested_names(fetch, wanted):
    assert requested_fetches(BindingOptions(fetch=fetch), OUTPUTS) == (wanted, [])


def test_an_unknown_output_gets_a_suggestion():
    _, (problem,) = requested_fetches(BindingOptions(fetch=("logit=y",)), OUTPUTS)
    assert isinstance(problem, OptionsError)
    assert "'logits'" in problem.hint


def of(values, spec=None, column="", prefix="", rows=2):
    return fetch_of(FetchRequest("y", column=column), values, rows, spec or model(), prefix)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_one_value_in_a_row_is_one_column(shape):
    got = of(np.zeros(shape, np.float32))
    assert (got.kind, got.columns, got.type) == ("flat", ("y",), "float")


@pytest.mark.parametrize(
    ("labels", "width", "columns"),
    [
        ((), 3, ("y_0", "y_1", "y_2")),
        (("no", "yes"), 2, ("y_no", "y_yes")),
        (("no", "yes"), 3, ("y_0", "y_1", "y_2")),
        ((), 16, tuple(f"y_{i}" for i in range(16))),
    ],
)
def test_a_few_values_are_columns_named_by_class_labels(labels, width, columns):
    got = of(np.zeros((2, width), np.float64), model(labels=labels))
    assert (got.kind, got.columns, got.type, got.width) == ("flat", columns, "double", width)


@pytest.mark.parametrize("shape", [(2, 17), (2, 2, 2), (2, 1, 3)])
def test_more_values_are_one_list_column(shape):
    got = of(np.zeros(shape, np.float32))
    assert (got.kind, got.columns, got.width) == ("list", ("y",), int(np.prod(shape[1:])))


@pytest.mark.parametrize("labels", [("a", "b"), ()])
def test_maps_are_a_column_per_class(labels):
    got = of([{"a": 0.5, "b": 0.5}] * 2, model(zipmaps={"y": labels}))
    assert (got.kind, got.columns, got.labels) == ("zipmap", ("y_a", "y_b"), ("a", "b"))


def test_a_new_name_and_a_prefix_go_before_the_labels():
    assert of(np.zeros((2, 2), np.int8), column="p", prefix="s_").columns == ("s_p_0", "s_p_1")
    assert of([{1: 0.5}] * 2, column="p", prefix="s_").columns == ("s_p_1",)


@pytest.mark.parametrize("values", [np.float32(1), np.zeros(1), np.zeros((1, 2)), np.zeros(3)])
def test_an_output_without_a_row_per_row_is_refused(values):
    with pytest.raises(ShapeMismatch, match="one row per input row"):
        of(np.asarray(values))


@pytest.mark.parametrize("values", [[], [1, 2], [{"a": 1.0}], [np.zeros(2)] * 2])
def test_a_sequence_that_is_not_a_map_per_row_is_refused(values):
    with pytest.raises(UnsupportedTensor, match="one map per row"):
        of(values)


def test_an_output_type_without_a_column_is_refused():
    with pytest.raises(UnsupportedTensor, match="cannot be written as a column"):
        of(np.zeros(2, np.complex64))


def with_fetch(*names, kept=(), row_id=False):
    fetch = of(np.zeros(2, np.float32))
    from dataclasses import replace

    return Kept(kept, row_id), [replace(fetch, columns=(n,)) for n in names]


def test_the_output_schema_keeps_nullability_and_metadata():
    field = pa.field("a", pa.int8(), nullable=False, metadata={"unit": "m"})
    got, problems = output_schema(*with_fetch("y", kept=("a",), row_id=True), pa.schema([field], {"k": "v"}), "")
    assert problems == []
    assert got.names == ["a", "y", "_file", "_row"]
    assert got.field("a").equals(field, check_metadata=True)
    assert got.metadata == {b"k": b"v"}


@pytest.mark.parametrize(
    ("columns", "clash", "cure"),
    [
        (with_fetch("a", kept=("a",)), "'a'", "--prefix"), (with_fetch("y", "y"), "'y'", "--fetch TENSOR=NAME"),
        (with_fetch("_row", row_id=True), "'_row'", "--prefix"),
        (with_fetch("y", kept=("_file",), row_id=True), "'_file'", "--keep"),
    ],
)  # fmt: skip
def test_a_clash_of_names_is_an_error_with_a_remedy(columns, clash, cure):
    _, (problem,) = output_schema(*columns, floats("a", "_file"), "in.parquet")
    assert isinstance(problem, BindingError)
    assert clash in problem.what
    assert cure in problem.hint


def test_an_element_of_a_text_of_any_length_is_refused_unless_pooled_first():
    batches = [({}, np.zeros((2, tokens, 5), np.float32)) for tokens in (3, 7)]
    with pytest.raises(ShapeMismatch, match="changes its shape from row to row"):
        fitted(FetchRequest("h", ("[0]",)), batches, model())
    request, done = fitted(FetchRequest("h", ("cls", "[-1]")), batches, model())
    assert (request.steps, request.column) == (("cls", "[4]"), "h_4")
    assert [values.shape for _, values in done] == [(2,), (2,)]
