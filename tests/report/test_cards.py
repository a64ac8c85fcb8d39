"""Cards in a notebook: the facts of the terminal, readable in any theme, with all values escaped."""

from __future__ import annotations

import html
import json
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from support.runs import FLIGHTS, MODELS, write

import scorer
from scorer.api import inspection
from scorer.api.verification import check as verify
from scorer.cli.text import inspection_text, plan_text, report_text
from scorer.output.place import Place

LATE, SUM = FLIGHTS / "late.onnx", MODELS / "sum3.onnx"
SOME = np.arange(30, dtype=np.float32)
EVIL = "<script>alert(1)</script>"
GROUNDS = ((255, 255, 255), (17, 17, 17))
"""Backgrounds of a light and of a dark front end."""
LEAST_CONTRAST = 3.0
"""Required for marks that are not text (WCAG 2.2, 1.4.11)."""


class Markup(HTMLParser):
    """The elements, attributes and text of some HTML."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.attributes, self.words = [], set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.names.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def card(value):
    found = Markup(value._repr_html_())
    assert found.open == []
    return found


def facts(text):
    """Words of a terminal's text, without its layout."""
    return set(text.split())


def flights(folder, **asked):
    return scorer.prepare(FLIGHTS / "flights.parquet", LATE, folder / "out", tune=False, limit=2000, **asked)


@pytest.fixture
def evil(tmp_path):
    """A plan with markup in all names."""
    columns = {"a": SOME, "b": SOME, "c": SOME, EVIL: SOME}
    source = write(tmp_path / "<b>in" / "a.parquet", columns)
    return scorer.prepare(source, SUM, tmp_path / "<i>out", feed="x=a,b,c", where="a >= 3")


def test_a_card_shows_what_the_terminal_shows(tmp_path):
    plan = flights(tmp_path, keep="carrier")
    assert facts(plan_text(plan)) <= facts(card(plan).text)
    report = scorer.execute(plan)
    assert facts(report_text(report)) <= facts(card(report).text)
    model = scorer.inspect_model(LATE)
    told = inspection_text(inspection.inspect(model, ())).partition("rows ")[0]
    assert facts(told) <= facts(card(model).text)
    assert card(verify(Place.of(str(tmp_path / "out"), None))).text.endswith("rescored")
    again = scorer.run(FLIGHTS / "flights.parquet", LATE, tmp_path / "out", tune=False, limit=2000, keep="carrier")
    assert "nothing was done" in card(again).text


def test_every_problem_is_in_the_card(tmp_path):
    plan = flights(tmp_path, keep="nonsense", where="nothing > 3")
    found = card(plan)
    assert len(plan.problems) == 2
    for problem in plan.problems:
        for text in (problem.what, problem.where, problem.expected, problem.found, problem.hint):
            assert " ".join(text.split()) in found.text
    assert "cannot be run" in found.text
    assert "None" not in found.text


def test_an_empty_input_has_a_card(tmp_path):
    source = write(tmp_path / "a.parquet", dict.fromkeys("abc", SOME[:0]))
    plan = scorer.prepare(source, SUM, tmp_path / "out", feed="x=a,b,c")
    assert "0 rows in 1 file" in card(plan).text
    assert "0 rows in = 0 scored" in card(scorer.execute(plan)).text


def test_the_report_links_its_page_relative_to_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = scorer.execute(flights(tmp_path / "näch <b>"))
    (link,) = (value for name, value in card(report).attributes if name == "href")
    assert not link.startswith("/")
    assert os.path.samefile(unquote(link), os.path.join(report.proof, "report.html"))
    assert (
        json.loads((tmp_path / "näch <b>" / "out.scorer" / "report.json").read_text("utf-8"))["proof"] == report.proof
    )
    (tmp_path / unquote(link)).unlink()
    assert "href" not in dict(card(report).attributes)


def test_markup_in_names_is_escaped(evil):
    report = scorer.execute(evil)
    for value in (evil, report):
        assert not {"script", "i", "b"} & card(value).names
        assert html.escape("<i>out") in value._repr_html_()
    assert html.escape(EVIL) in evil._repr_html_()
    wrong = scorer.prepare(evil.options.input, evil.options.model, "out\x1b[31m", keep=EVIL)
    assert "script" not in card(wrong).names
    assert html.escape(EVIL) in wrong._repr_html_()
    assert "\x1b" not in wrong._repr_html_()


def luminance(colour):
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_cards_use_the_theme_s_colours_and_do_not_change_the_theme(tmp_path):
    bad, good = flights(tmp_path, keep="nonsense"), flights(tmp_path)
    shown = "".join(value._repr_html_() for value in (bad, good, scorer.execute(good), scorer.inspect_model(LATE)))
    found = Markup(shown)
    assert found.names <= {"div", "table", "thead", "tbody", "tr", "th", "td", "span", "b", "a"}
    assert {name for name, _ in found.attributes} <= {"style", "scope", "href", "target"}
    styles = ";".join(value for name, value in found.attributes if name == "style")
    told = re.findall(r"(?<![-\w])(color|background)\s*:\s*([^;]+)", styles)
    assert set(told) == {("color", "inherit"), ("background", "none")}
    for digits in set(re.findall(r"#(\w{6})", (scorer.display.html._TEMPLATES / "cell.html").read_text("utf-8"))):
        colour = luminance(bytes.fromhex(digits))
        for ground in map(luminance, GROUNDS):
            light, dark = max(colour, ground), min(colour, ground)
            assert (light + 0.05) / (dark + 0.05) >= LEAST_CONTRAST, digits
