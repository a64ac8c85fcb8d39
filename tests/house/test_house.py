"""The rules of CONTRIBUTING.md: sizes, packages, state, layers, public names, flags and errors."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pickle
import re
import subprocess
import sys
import tomllib

import click
import pytest
from click.testing import CliRunner
from support.runs import ROOT

import scorer
from scorer import errors
from scorer.cli.main import main
from scorer.options import fields, keywords

MODULES = sorted((ROOT / "scorer").rglob("*.py"))
PACKAGES = sorted(path.parent for path in (ROOT / "scorer").rglob("__init__.py"))[1:]


def functions():
    """Yield (place, lines without the docstring) of every function."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                first = node.body[0]
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                    lines -= first.end_lineno - first.lineno + 1
                yield f"{path.name}:{node.name}", lines


def test_no_file_is_over_500_lines():
    assert {path.name: n for path in MODULES if (n := len(path.read_text().splitlines())) > 500} == {}


def test_no_package_has_over_12_modules_and_there_are_at_most_16():
    assert {p.name: n for p in PACKAGES if (n := len([*p.glob("*.py")]) - 1) > 12} == {}
    assert len([package for package in PACKAGES if package.parent.name == "scorer"]) <= 16


def drawn(package):
    """Return the modules that the package's docstring lists, each with its line."""
    return dict(re.findall(r"(?m)^    (\w+(?:\.py|/)) {2,}(\S.*)$", ast.get_docstring(face(package), clean=False)))


def face(package):
    return ast.parse((package / "__init__.py").read_text())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_lists_its_modules(package):
    there = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert set(drawn(package)) == there


CHANGES = {"append", "add", "update", "setdefault", "pop", "popitem", "clear", "discard", "extend", "remove", "insert"}


def state(path):
    """Yield the globals of a module that change: caches, locks, instances of its classes, modified containers."""
    tree = ast.parse(path.read_text())
    classes = {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    frozen = {
        name for name, text in classes.items() if "frozen=True" in text.split("class ")[0] or "(NamedTuple)" in text
    }
    values = {ast.unparse(one): n.value for n in tree.body if isinstance(n, ast.Assign) for one in n.targets}
    values |= {ast.unparse(n.target): n.value for n in tree.body if isinstance(n, ast.AnnAssign)}
    for node in tree.body:
        if any("cache" in ast.unparse(one).split("(")[0] for one in getattr(node, "decorator_list", [])):
            yield node.name
    for name, value in values.items():
        made = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
        if made.startswith(("threading.", "weakref.")) or made in {*classes} - frozen:
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        if isinstance(node, ast.Attribute) and node.attr in CHANGES and ast.unparse(node.value) in values:
            yield ast.unparse(node.value)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Subscript | ast.Attribute) and ast.unparse(target.value) in values:
                yield ast.unparse(target.value)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_names_its_state(package):
    said = re.findall(r"(?m)^State: (.*)\.$", ast.get_docstring(face(package)))
    found = {f"{path.stem}.{name}" for path in package.glob("*.py") for name in state(path)}
    assert {name for line in said for name in line.split(", ")} == found


def test_single_files_have_no_state():
    assert {path.name: names for path in (ROOT / "scorer").glob("*.py") if (names := [*state(path)])} == {}


@pytest.mark.parametrize(
    "module",
    ["plan", "plan.frozen", "plan.prepared", "options.fields", "options.request", "output.place", "report.state"],
)
def test_modules_that_only_read_files_import_no_runtime(module):
    heavy = "{'onnxruntime', 'onnx', 'pandas', 'distributed'}"
    code = f"import sys, scorer.{module}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_no_function_is_over_60_lines_and_nine_in_ten_are_under_30():
    lines = dict(functions())
    assert {place: n for place, n in lines.items() if n > 60} == {}
    assert sum(n < 30 for n in lines.values()) >= 0.9 * len(lines)


def layers():
    """The layers of the first contract in pyproject.toml, top first."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    return contract["layers"]


def test_every_module_has_its_place_in_the_layers():
    placed = {name.strip() for layer in layers() for name in layer.split("|")}
    assert placed == {
        path.stem for path in (ROOT / "scorer").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def fenced(first):
    """The lines of the block in CONTRIBUTING.md that begins with this line, without it."""
    (block,) = [text for text in re.findall(r"(?ms)^```\n(.*?)^```$", CONTRIBUTING) if text.split()[0] == first]
    return [line for line in block.splitlines() if line.strip() != first]


def test_the_contributing_page_lists_the_packages_and_single_files():
    listed = [line.split()[0] for line in fenced("scorer/")]
    packages = {f"{path.parent.name}/" for path in (ROOT / "scorer").glob("*/__init__.py")}
    assert sorted(listed) == sorted(packages | {path.name for path in (ROOT / "scorer").glob("*.py")})


def test_the_contributing_page_draws_the_layers():
    drawn_layers = [re.findall(r"\w+", line.split("only ")[0]) for line in fenced("__main__")]
    assert [["__main__"], *drawn_layers] == [re.findall(r"\w+", layer) for layer in layers()]


def test_the_contributing_page_names_only_files_and_tests_that_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", CONTRIBUTING):
        assert "://" in target or (ROOT / target).exists(), target
    defined = [
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    ]
    for name, cut in re.findall(r"`(test_\w+)(…?)`", CONTRIBUTING):
        assert any(one.startswith(name) if cut else one == name for one in defined), name


def test_public_names_exist_are_sorted_and_are_not_module_names():
    assert scorer.__all__ == sorted(scorer.__all__)
    assert len(scorer.__all__) <= 20
    modules = {path.stem for path in MODULES}
    for name in scorer.__all__:
        assert getattr(scorer, name) is not None
        assert name not in modules
    assert scorer.__version__


def test_unknown_public_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        scorer.nonsense  # noqa: B018 - the access is the test


def test_public_verbs_have_an_example_and_no_hidden_keywords():
    for name in ("prepare", "execute", "run", "score", "inspect_model", "release", "status", "verify"):
        assert ">>>" in getattr(scorer, name).__doc__


def test_flags_are_the_fields_and_the_keywords_of_run():
    flags = {parameter.name for parameter in main.commands["run"].params}
    extra = {"input", "config", "model", "as_json", "quiet", "verbose", "debug"}
    assert flags - extra == set(fields.FIELDS)
    assert {p.name for p in main.commands["plan"].params} - {"input", "config", "model", "as_json", "debug"} == set(
        fields.FIELDS
    )
    assert set(keywords.RequestArguments.__annotations__) == set(fields.FIELDS) - {"output"}


def test_help_groups_the_flags_by_topic():
    text = CliRunner().invoke(main, ["run", "--help"]).output
    sections = re.split(r"\n\n(?=\S.*:\n  -)", text)[1:]
    assert [one.splitlines()[0] for one in sections] == [
        "Options:",
        *(f"{one.__doc__.rstrip('.')}:" for one in fields.GROUPS.values()),
    ]
    for kind, section in zip(fields.GROUPS.values(), sections[1:], strict=True):
        shown = {flag.replace("-", "_") for flag in re.findall(r"(?m)^  (?:-[a-z], )?--([a-z-]+)", section)}
        assert shown == {field.name for field in dataclasses.fields(kind)}


def test_every_command_has_help_with_an_example():
    for name, command in main.commands.items():
        text = CliRunner().invoke(main, [name, "--help"]).output
        assert f"scorer {name}" in text.split("Example")[1], name
        assert all(p.help for p in command.params if isinstance(p, click.Option)), name


def every_error(kind=errors.ScorerError):
    for child in kind.__subclasses__():
        yield child
        yield from every_error(child)


def test_every_error_survives_pickle_and_has_its_own_code():
    kinds = [kind for kind in every_error() if kind is not errors.PreflightError]
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("what", "where", "expected", "found", "hint")))
        assert type(error) is kind
        assert error.to_dict()["hint"] == "hint"
    several = errors.PreflightError([errors.InputNotFound("a"), errors.OptionsError("b")])
    back = pickle.loads(pickle.dumps(several))
    assert [str(problem) for problem in back.problems] == ["a", "b"]
    assert back.exit_code == 3


def test_the_error_tree_in_the_docstring_is_the_tree():
    drawn = set(re.findall(r"\b([A-Z]\w+)\b", errors.__doc__.split("\n", 1)[1]))
    assert {kind.__name__ for kind in every_error()} <= drawn | {"ScorerError"}


def test_the_errors_docstring_has_each_error_with_its_exit_code_below_its_parent():
    rows = re.findall(r"(?m)^( {4,10})([A-Z]\w+) +(\d+)?  ", errors.__doc__)
    parents = {4: None}
    for spaces, name, code in rows:
        kind = getattr(errors, name)
        parents[len(spaces)] = kind
        assert kind.__base__ is parents.get(len(spaces) - 2, kind.__base__), name
        assert code == (str(kind.exit_code) if kind not in {errors.ScorerError, errors.PreflightError} else ""), name
    assert {name for _, name, _ in rows} == {kind.__name__ for kind in every_error()} | {"ScorerError"}


def test_values_are_frozen_and_keyword_only():
    for name in ("Counts", "Forecast", "ModelSpec", "Plan", "Receipt", "Report", "TensorSpec"):
        kind = getattr(scorer, name)
        assert kind.__dataclass_params__.frozen, name
        with pytest.raises(TypeError):
            kind(1)


def test_options_are_frozen():
    for kind in fields.GROUPS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(), dataclasses.fields(kind)[0].name, 1)


def test_every_public_docstring_example_runs(monkeypatch):
    import doctest

    monkeypatch.chdir(ROOT)
    assert doctest.testmod(errors).failed == 0
    for module, name in (
        ("api.pipeline", "prepare"),
        ("model.protobuf", "inspect_model"),
        ("api.frames", "score"),
        ("api.frames", "release"),
        ("api.verification", "verify"),
        ("report.state", "status"),
    ):
        home = importlib.import_module(f"scorer.{module}")
        for test in doctest.DocTestFinder().find(getattr(home, name), name, globs=vars(home)):
            assert doctest.DocTestRunner().run(test).failed == 0
