"""Each import contract of pyproject.toml breaks when its rule is broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib

import pytest
from support.runs import ROOT

PLANTED = {
    "imports point down only": ("plan/parts.py", "from scorer.preflight import cutting"),
    "no circles inside a package": ("storage/footers.py", "from scorer.storage import copying"),
    "only cluster knows Dask": ("host/process.py", "import dask"),
    "only model, and the loop that bench measures against, know ONNX and its runtime": (
        "scoring/part.py",
        "import onnxruntime",
    ),
    "only tables knows the libraries of tables": ("dataset/listing.py", "import deltalake"),
    "only the command line knows click": ("report/live.py", "import click"),
    "what begins with an underscore stays in its package": ("api/frames.py", "from scorer.storage import _thrift"),
    "the plan is data, whatever it imports": ("plan/frozen.py", "from scorer.model import session"),
}


def broken(folder):
    """Names of the contracts that lint-imports reports as broken."""
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )
    print(done.stdout[done.stdout.find("Contracts\n") :])
    lines = done.stdout.splitlines()
    assert any(line.startswith("Contracts: ") for line in lines), done.stdout + done.stderr
    return {line.removesuffix(" BROKEN") for line in lines if line.endswith(" BROKEN")}


@pytest.fixture
def copy(tmp_path):
    """A copy of the package with its contracts."""
    shutil.copytree(ROOT / "scorer", tmp_path / "scorer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_no_contract_is_broken_in_the_package(copy):
    assert broken(copy) == set()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_import_breaks_its_contract(copy, name):
    where, line = PLANTED[name]
    path = copy / "scorer" / where
    text = path.read_text("utf-8")
    first = "from __future__ import annotations\n"
    assert first in text
    path.write_text(text.replace(first, f"{first}\n{line}\n"), "utf-8")
    assert name in broken(copy)


def test_every_contract_has_a_planted_import():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    assert [contract["name"] for contract in contracts] == [*PLANTED]
