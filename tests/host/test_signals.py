"""Interrupts while workers start: the new processes ignore them, and none is lost."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest
from support.pseudo_terminal import PseudoTerminal
from support.runs import MODELS

from scorer.host import signals

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def ends_on_interrupt(child):
    """Return whether an interrupt ends the process."""
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGINT)
    try:
        return child.wait(1) != 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        child.kill()
        child.communicate()


def sleeper():
    """Start a process that an interrupt would end."""
    return subprocess.Popen(SLEEPER, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture
def default_handler():
    """Python's default SIGINT handler, which libraries of other tests or a background shell may have replaced."""
    replaced = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, replaced)


@pytest.mark.slow
@pytest.mark.usefixtures("default_handler")
def test_processes_started_inside_ignore_interrupts_and_others_do_not():
    started = []
    with signals.ignored_by_children():
        starter = threading.Thread(target=lambda: started.append(sleeper()))
        starter.start()
        starter.join()
        started.append(sleeper())
    assert [ends_on_interrupt(one) for one in started] == [False, False]
    assert ends_on_interrupt(sleeper())


def interrupt_inside(finished):
    """Interrupt this process inside the block."""
    with signals.ignored_by_children():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        finished.append("the block ran to its end")


@pytest.mark.usefixtures("default_handler")
@pytest.mark.parametrize("early", [True, False], ids=["an older thread", "no other thread"])
def test_an_interrupt_inside_is_raised_after_the_block(early):
    end, finished = threading.Event(), []
    other = threading.Thread(target=end.wait)
    if early:
        other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt_inside(finished)
    finally:
        end.set()
    assert finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def workers_of(process):
    """Return the worker processes of a command."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [one] if any("spawn_main" in word for word in one.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
def test_ctrl_c_while_worker_processes_start_is_not_lost(fewer28, tmp_path):
    out = tmp_path / "out"
    seen = PseudoTerminal("run", fewer28, "--model", MODELS / "dense28.onnx", "--output", out, "--cluster", "processes")
    ends = time.monotonic() + 30
    while not workers_of(seen.process):
        assert time.monotonic() < ends
        time.sleep(0.01)
    workers = workers_of(seen.process)
    seen.type("\x03")
    assert seen.end() == 130
    assert "Traceback" not in seen.output
    assert not out.exists()
    assert not psutil.wait_procs(workers, 10)[1]


@pytest.mark.skipif(importlib.util.find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed")
def test_importing_dask_jobqueue_does_not_change_the_interrupt_handler():
    code = (
        "import signal, sys\nfrom scorer.cli.main import main\n"
        "main(['cluster-script', '--cluster', 'slurm', '--memory', '1GiB'], standalone_mode=False)\n"
        "print('dask_jobqueue' in sys.modules, signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    reset = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - the shell of the tests may ignore SIGINT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=reset)
    assert done.stdout.split()[-2:] == ["True", "True"]


def test_ctrl_c_stays_ignored_where_a_script_runs_the_command_in_the_background(floats28, tmp_path):
    job = [sys.executable, "-m", "scorer", "run", floats28, "--model", MODELS / "dense28.onnx", "--output", "out"]
    line = f"{shlex.join(map(str, [*job, '--batch-rows', '8', '--quiet']))} & echo $!; wait $!"
    script = subprocess.Popen(["bash", "-c", line], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    command = psutil.Process(int(script.stdout.readline()))
    while script.poll() is None:
        with suppress(psutil.NoSuchProcess):
            if command.name() != "bash":  # until then it is a copy of the shell, which may not ignore the signal yet
                for one in (command, *command.children()):
                    one.send_signal(signal.SIGINT)
        time.sleep(0.02)
    script.communicate()
    assert script.returncode == 0
    assert (tmp_path / "out").is_dir()
