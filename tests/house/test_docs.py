"""The pages in docs/: every command runs or is parsed, links and anchors exist, and reference tables are complete."""

from __future__ import annotations

import dataclasses
import re

import pytest
from support import pages
from support.runs import ROOT

from scorer import errors, events
from scorer.cli.main import main
from scorer.options import fields
from scorer.options.request import build

PARSED = [(page, block) for page in pages.PAGES for block in pages.blocks(page) if block.kind == "sh parsed"]
MARKDOWN = [*pages.PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("examples/*/README.md"))]
OUTSIDE = {"--check", "--update-golden", "--no-deps", "--help", "--version"}
OWN = {"input", "as_json", "debug", "quiet", "verbose", "config", "model"}


def name_of(page):
    return str(page.relative_to(ROOT)) if hasattr(page, "relative_to") else None


@pytest.fixture
def shell(tmp_path):
    """A copy of the repository in which a page's commands run."""
    (tmp_path / "tmp").mkdir()
    folder = pages.copy_of_repository(tmp_path / "scorer")
    return pages.Shell(folder, pages.environment(tmp_path / "tmp"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", pages.DOCS, ids=name_of)
def test_every_command_of_a_page_runs_and_prints_what_the_page_shows(page, shell):
    assert pages.run_blocks(pages.blocks(page), shell, page.name) == []


@pytest.mark.parametrize("page", pages.PAGES, ids=name_of)
def test_a_test_knows_what_to_do_with_every_block(page):
    assert {block.kind for block in pages.blocks(page)} <= pages.KINDS
    for block in pages.blocks(page):
        if block.kind.startswith("python"):
            compile(block.text, block.file or "block", "exec")
        if block.kind == "toml":
            assert block.file
        if block.kind == "text":
            assert "$ " not in block.text


@pytest.mark.parametrize("page", pages.DOCS, ids=name_of)
def test_a_page_begins_with_its_task_and_a_command(page):
    text = page.read_text("utf-8")
    assert text.startswith("# ")
    if page.stem != "figures":
        assert "```" in "\n".join(text.splitlines()[:16])


@pytest.mark.parametrize(("page", "block"), PARSED, ids=lambda value: getattr(value, "stem", None))
def test_a_command_that_cannot_run_here_has_only_flags_and_values_that_scorer_accepts(page, block, monkeypatch):
    monkeypatch.chdir(ROOT / "examples" / "flights")
    for words in pages.scorer_calls(block):
        command = main.commands[words[0]]
        context = command.make_context(words[0], list(words[1:]))
        given = {name: value for name, value in context.params.items() if value not in (None, ())}
        if words[0] in {"run", "plan", "bench"}:
            known = {name: value for name, value in given.items() if name in fields.KEYS}
            build({"input": "x", "model": "m.onnx"} | known)
    for script in re.findall(r"(?:sbatch|bash) (\S+\.sh)", block.text):
        assert [*ROOT.glob(f"examples/*/{script.rpartition('/')[2]}")]


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_links_and_their_anchors_exist(page):
    assert pages.broken_links(page) == []


def test_the_readme_links_to_every_page():
    assert {f"docs/{page.name}" for page in pages.DOCS} <= {
        link.partition("#")[0] for link in pages.links(pages.README)
    }


@pytest.mark.parametrize("page", [page for page in MARKDOWN if page.name != "CHANGELOG.md"], ids=name_of)
def test_a_page_names_only_flags_that_exist(page):
    known = {o for command in main.commands.values() for p in command.params for o in (*p.opts, *p.secondary_opts)}
    text = page.read_text("utf-8")
    for block in re.findall(r"`([^`\n]*scorer [^`\n]*|--[^`\n]*)`|^ *\$? ?(scorer .*)$", text, re.MULTILINE):
        for flag in re.findall(r"(?<![\w=-])--[a-z][a-z-]+", "".join(block)):
            assert flag in known | OUTSIDE, flag


def test_every_flag_of_a_request_is_described_with_its_help(request):
    page = ROOT / "docs" / "flags.md"
    wanted = pages.with_flag_tables(page.read_text("utf-8"))
    if request.config.getoption("--update-golden"):
        page.write_text(wanted, "utf-8")
    assert page.read_text("utf-8") == wanted, "pytest -n0 tests/house/test_docs.py -k flag_of_a_request --update-golden"


def test_every_other_flag_is_described_with_its_command():
    rows = pages.table(ROOT / "docs" / "flags.md", "## Flags of the commands")
    described = {(flag, command) for flags, commands, *_ in rows for command in re.findall(r"[a-z]+[a-z-]*", commands)
                 for flag in re.findall(r"`(--[a-z-]+)", flags)}  # fmt: skip
    there = {
        (parameter.opts[-1], name)
        for name, command in main.commands.items()
        for parameter in command.params
        if parameter.opts[0].startswith("-") and parameter.name not in fields.FIELDS
    }
    assert described == there


def test_every_command_is_described():
    described = {
        re.match(r"`scorer ([a-z-]+)", row[0])[1] for row in pages.table(ROOT / "docs/flags.md", "## The commands")
    }
    assert described == set(main.commands)


def every_error(kind=errors.ScorerError):
    yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)


def test_every_error_is_described_with_its_code_and_exit_code():
    rows = pages.table(ROOT / "docs" / "errors.md", "## All errors")
    described = {(name.strip("`"), code.strip("`"), exit_code) for name, code, exit_code, *_ in rows}
    there = {
        (kind.__name__, kind.code, "3" if kind is errors.PreflightError else str(kind.exit_code))
        for kind in every_error()
    }
    assert described == there


def test_every_exit_code_is_described():
    rows = pages.table(ROOT / "docs" / "errors.md", "## Exit codes")
    described = {int(code) for row in rows for code in row[0].split(", ")}
    assert described == {0, 143} | {kind.exit_code for kind in every_error() if isinstance(kind.exit_code, int)}


def test_every_event_and_each_of_its_fields_is_described():
    rows = {row[0].strip("`"): row[-1] for row in pages.table(ROOT / "docs" / "events.md", "## Events")}
    kinds = {kind.__name__: kind for kind in events.Event.__args__}
    assert set(rows) == set(kinds)
    receipt = events.Receipt(
        proof=events.Proof(part=0, plan="", model="", counts=events.Counts(), digests={}), name="", size=0
    )
    for name, kind in kinds.items():
        names = [field.name for field in dataclasses.fields(kind)]
        if kind is events.PartFinished:
            names = [*events.to_dict(kind(receipt=receipt))][1:]
        assert [field for field in names if f"`{field}`" not in rows[name]] == [], name


def test_every_metric_is_described():
    prometheus_client = pytest.importorskip("prometheus_client")
    from scorer.scoring import metrics

    metrics.driver()
    metrics.worker()
    there = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in prometheus_client.REGISTRY.collect()
        if metric.name.startswith("scorer_")
    }
    rows = pages.table(ROOT / "docs" / "events.md", "## Metrics")
    assert {name for row in rows for name in re.findall(r"`(scorer_\w+)`", row[0])} == there


def test_one_page_has_the_command_that_executes_the_notebooks():
    blocks = [block for page in pages.PAGES for block in pages.blocks(page) if "jupyter execute" in block.text]
    assert [(block.kind, block.text.count("jupyter execute notebooks/*.ipynb")) for block in blocks] == [
        ("sh setup", 1)
    ]
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"](../notebooks/{path.name})" in text
