"""Files in the current folder do not replace modules, in any process that scorer starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.runs import BACKENDS, MODELS, read

_MARK = "open({mark!r}, 'a').write(__file__ + '\\n'); raise ImportError('the wrong module')\n"
_START = "from scorer.__main__ import main\nif __name__ == '__main__':\n    main()\n"
_TRANSFORM = "def one_more(frame):\n    return frame + 1\n"


@pytest.fixture
def folder(tmp_path):
    """Return a folder with files that are named like modules; importing one of them leaves a mark."""
    place = tmp_path / "here"
    place.mkdir()
    for name in ("types", "pandas", "signal", "pickle", "distributed", "json"):
        (place / f"{name}.py").write_text(_MARK.format(mark=str(tmp_path / "mark")))
    (place / "own.py").write_text(_TRANSFORM)
    start = tmp_path / "bin" / "scorer"  # as an installed command: its own folder is on the path, the current one not
    start.parent.mkdir()
    start.write_text(_START)
    return place


def run_in(folder, *command):
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip


def job(source, folder, *flags):
    return ("run", source, "--model", MODELS / "dense28.onnx", "--output", folder.parent / "out", "--quiet", *flags)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow
def test_a_file_named_like_a_module_in_the_current_folder_is_not_imported(backend, fewer28, folder):
    done = run_in(folder, folder.parent / "bin" / "scorer", *job(fewer28, folder, "--cluster", backend))
    assert done.returncode == 0, done.stderr
    assert not (folder.parent / "mark").exists()


@pytest.mark.slow
def test_python_dash_m_does_not_import_from_the_current_folder_once_scorer_has_started(fewer28, folder):
    for name in ("types", "signal"):  # Python itself imports these before scorer
        (folder / f"{name}.py").unlink()
    done = run_in(folder, "-m", "scorer", *job(fewer28, folder, "--cluster", "processes"))
    assert done.returncode == 0, done.stderr
    assert not (folder.parent / "mark").exists()


@pytest.mark.slow
def test_a_transform_is_found_in_the_current_folder_and_the_other_files_there_are_not(fewer28, folder):
    flags = ("--transform", "own:one_more", "--workers", "1", "--keep", "none", "--feed", "input=f0..f27")
    done = run_in(folder, folder.parent / "bin" / "scorer", *job(fewer28, folder, *flags))
    assert done.returncode == 0, done.stderr
    assert read(folder.parent / "out").num_rows
    assert not (folder.parent / "mark").exists()


def test_an_isolated_process_imports_nothing_from_the_current_folder(folder):
    script = folder.parent / "bin" / "call.py"
    script.write_text("from scorer.host.isolation import call\nprint(call('os:getcwd'))\n")
    done = run_in(folder, script)
    assert (done.stdout.strip(), done.stderr) == (str(folder), "")
    assert not (folder.parent / "mark").exists()


@pytest.mark.slow
def test_the_environment_is_as_before_after_a_run_on_processes(fewer28, folder):
    script = folder.parent / "bin" / "program.py"
    script.write_text(
        "import os, scorer\n"
        "if __name__ == '__main__':\n"
        "    before = dict(os.environ)\n"
        f"    scorer.run({str(fewer28)!r}, {str(MODELS / 'dense28.onnx')!r}, {str(folder.parent / 'out')!r},\n"
        "               cluster='processes', workers=1)\n"
        "    assert os.environ == before, set(os.environ.items()) ^ set(before.items())\n"
    )
    done = run_in(folder, script)
    assert done.returncode == 0, done.stderr
    assert not (folder.parent / "mark").exists()
