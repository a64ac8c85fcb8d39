"""The class names of --labels: how they are written, and which outputs they name."""

from __future__ import annotations

import json

import pytest
from support.small_specs import model, tensor

from scorer.binding.labels import requested_labels
from scorer.options.request import build

MODEL = model(outputs=[tensor("label", "int64", ("N",)), tensor("p", shape=("N", 3))])
NAMES = ("cat", "dog", "a, b")


def texts(labels):
    return build({"input": "i", "model": "m", "labels": labels}).binding.labels


def of(labels, spec=MODEL):
    found, problems = requested_labels(texts(labels), spec)
    assert not problems, problems
    return found.common or dict(found.own)


def refused(labels, spec=MODEL):
    _, (problem,) = requested_labels(texts(labels), spec)
    return str(problem)


@pytest.mark.parametrize("labels", ["cat,dog,'a, b'", " cat , dog, 'a, b'", ["cat", "dog", "a, b"]])
def test_names_are_a_text_or_a_list(labels):
    assert of(labels) == NAMES


def test_a_list_holds_each_name_as_it_is():
    odd = ["a=1", "it's", "x*", " b"]
    assert of([*odd[:3], "b"]) == ("a=1", "it's", "x*", "b")


@pytest.mark.parametrize("labels", ["p=cat,dog,'a, b'", {"p": list(NAMES)}, {"p": "cat,dog,'a, b'"}])
def test_names_are_given_to_one_output(labels):
    assert of(labels) == {"p": NAMES}


@pytest.mark.parametrize("content", ["cat\ndog\na, b", "cat\r\ndog \r\na, b\r\n\n", "\ufeffcat\ndog\na, b\n"])
def test_a_file_has_a_name_in_each_line(tmp_path, content):
    file = tmp_path / "names.txt"
    file.write_bytes(content.encode())
    assert of(str(file)) == of(file) == NAMES
    assert of(f"p={file}") == of({"p": str(file)}) == {"p": NAMES}


def test_a_json_file_has_a_list(tmp_path):
    file = tmp_path / "names.json"
    file.write_text(json.dumps(NAMES))
    assert of(file) == NAMES
    file.write_text('{"0": "cat"}')
    assert "JSON that is not a list of texts" in refused(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "found:    none"),
        (b"cat\n\ndog\n", "name 2 of 3 is ''"),
        (b"cat\ncat\n", "twice: 'cat'"),
        (b"cat\nd\0g\n", r"name 2 of 2 is 'd\x00g'"),
        (b"PAR1\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_without_usable_names_is_refused(tmp_path, content, says):
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    assert says in refused(file)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("cat,cat", "twice: 'cat'"),
        ("cat,,dog", "leave no name empty"),
        ("cat,dog,", "leave no name empty"),
        ("gone.txt", "the file of class names does not exist"),
        ("q=cat,dog", "--labels names an output that the model does not have: 'q'"),
        ("q=gone.txt", "--labels names an output that the model does not have: 'q'"),
        (("a,b", "c,d"), "two --labels name the classes of the model"),
        (("p=a,b", "p=c,d"), "two --labels name the classes of 'p'"),
    ],
)
def test_names_that_cannot_be_used_are_refused(labels, says):
    assert says in refused(labels)


def test_a_model_keeps_its_own_names_unless_they_are_numbers():
    named = model(outputs=MODEL.outputs, labels=["cat", "dog", "eel"])
    assert of("cat,dog,eel", named) == ("cat", "dog", "eel")
    assert "the model names its classes differently" in refused("cat,dog,owl", named)
    assert of("cat,dog,owl", model(outputs=MODEL.outputs, labels=["0", "1", "2"])) == ("cat", "dog", "owl")
