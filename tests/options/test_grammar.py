"""Names, ranges and quotes are written as they are parsed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scorer.binding import request
from scorer.options import grammar
from scorer.options.grammar import split_names


@pytest.mark.parametrize(
    ("columns", "tokens"),
    [
        ([f"f{i}" for i in range(28)], ["f0..f27"]),
        (["id", "f1", "f2", "f3", "age"], ["id", "f1..f3", "age"]),
        (["f1", "f2"], ["f1", "f2"]),
        (["x08", "x09", "x10"], ["x08..x10"]),
        (["x8", "x9", "x10", "x12"], ["x8..x10", "x12"]),
        (["f3", "f2", "f1"], ["f3", "f2", "f1"]),
        (["a,1", "a,2", "a,3"], ["'a,1'", "'a,2'", "'a,3'"]),
        (["a1", "a2", "a3", "a1..a3"], ["a1", "a2", "a3", "'a1..a3'"]),
        ([], []),
    ],
)
def test_numbered_columns_are_written_as_ranges(columns, tokens):
    assert grammar.ranged(columns) == tokens


@given(st.lists(st.from_regex(r"\A[ab]?0{0,2}[0-9]{1,2}\Z"), unique=True, max_size=12))
def test_a_written_range_is_parsed_as_the_same_columns(columns):
    tokens = split_names(",".join(grammar.ranged(columns))) or []
    assert request.expand(tokens, sorted(columns)) == (columns, [])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("y[1]=p", ("y", ["[1]"], "p")),
        ("y['late']=p", ("y", ["['late']"], "p")),
        ('y["late"]', ("y", ['["late"]'], "")),
        ("y[late]", ("y", ["[late]"], "")),
        ("y|softmax['a=b|c]']=p", ("y", ["softmax", "['a=b|c]']"], "p")),
        ("y[-1]|sigmoid", ("y", ["[-1]", "sigmoid"], "")),
        (" y [1, 2] | round(2) = p", ("y", ["[1, 2]", "round(2)"], "p")),
        ("y=p[1]", ("y", [], "p[1]")),
        ("z[0]", ("z[0]", [], "")),
        ("z[0][1]=q", ("z[0]", ["[1]"], "q")),
        ("a=b[1]=c", ("a=b", ["[1]"], "c")),
        ("y|label(a, b)=c", ("y", ["label(a, b)"], "c")),
        ("y[", ("y", [], None)),
        ("y[]", ("y", [], None)),
        ("y[1]p", ("y", ["[1]"], None)),
        ("y|softmax=", ("y", ["softmax"], None)),
        ("x[1]", (None, [], "")),
    ],
)
def test_an_output_is_followed_by_elements_and_steps_and_its_column(text, parsed):
    assert grammar.split_fetch(text, ["y", "z[0]", "a=b"]) == parsed


@pytest.mark.parametrize(
    ("step", "element"),
    [
        ("[1]", (1,)), ("[ -1 ]", (-1,)), ("[1, 2]", (1, 2)), ("['1']", "1"), ('["it\'s"]', "it's"),
        ("['it''s']", "it's"), ("[late]", "late"), ("softmax", None), ("label(a, [b])", None),
    ],
)  # fmt: skip
def test_an_element_is_places_or_a_class(step, element):
    assert grammar.parse_element(step) == element


@given(st.text(min_size=1).filter(str.isprintable))
def test_any_class_can_be_quoted(name):
    step = "['" + name.replace("'", "''") + "']"
    assert grammar.split_fetch(f"y|softmax{step}=p", ["y"]) == ("y", ["softmax", step], "p")
    assert grammar.parse_element(step) == name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("geo.lat, geo.'x.y',a", ["geo.lat", "geo.'x.y'", "a"]),
        ("'my, geo'.lat,'a.b'", ["'my, geo'.lat", "a.b"]),
        ("geo.'it''s'", ["geo.'it''s'"]),
        ("geo.'x,'y", None),
        ("geo.'x", None),
    ],
)
def test_the_path_of_a_field_keeps_its_quotes(text, names):
    assert split_names(text) == names
    for name in names or ():
        assert split_names(grammar.quoted(name)) == [name]


@given(st.lists(st.text(max_size=5)))
@example(["", "'", "a, b", ""])
def test_any_name_is_parsed_as_it_was_quoted_even_one_without_a_letter(names):
    assert split_names(",".join(map(grammar.quoted, names))) == names
