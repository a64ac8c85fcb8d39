"""Interrupts that come while workers start: the children never hear them, and none is lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from support.pseudo_terminal import PseudoTerminal
from support.runs import MODELS

from scorer.host import signals

ASLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def heard(child):
    """Whether an interrupt ends it."""
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGINT)
    try:
        return child.wait(1) != 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        child.kill()
        child.communicate()


def asleep():
    """A process that would end by an interrupt."""
    return subprocess.Popen(ASLEEP, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture
def usual():
    """The handler of a process that nobody has changed: libraries that other tests import do, and a
    shell that runs it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual")
def test_children_started_meanwhile_are_deaf_and_others_are_not():
    started = []
    with signals.ignored_by_children():
        starter = threading.Thread(target=lambda: started.append(asleep()))
        starter.start()
        starter.join()
        started.append(asleep())
    assert [heard(one) for one in started] == [False, False]
    assert heard(asleep())


def interrupted(ready):
    """An interrupt while something starts."""
    with signals.ignored_by_children():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        ready.append("nothing was cut short")


@pytest.mark.usefixtures("usual")
@pytest.mark.parametrize("early", [True, False], ids=["a thread was there before", "no other thread"])
def test_an_interrupt_meanwhile_is_raised_at_the_end(early):
    end, ready = threading.Event(), []
    bystander = threading.Thread(target=end.wait)
    if early:
        bystander.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(ready)
    finally:
        end.set()
    assert ready
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def workers_of(process):
    """Worker processes of a command."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            found += [one] if any("spawn_main" in word for word in one.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return found


def test_ctrl_c_while_worker_processes_start_is_not_lost(fewer28, tmp_path):
    out = tmp_path / "out"
    seen = PseudoTerminal("run", fewer28, "--model", MODELS / "dense28.onnx", "--output", out, "--cluster", "processes")
    ends = time.monotonic() + 30
    while not workers_of(seen.process):
        assert time.monotonic() < ends
        time.sleep(0.01)
    began = workers_of(seen.process)
    seen.type("\x03")
    assert seen.end() == 130
    assert "Traceback" not in seen.output
    assert not out.exists()
    assert not psutil.wait_procs(began, 10)[1]


@pytest.mark.skipif(importlib.util.find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed")
def test_asking_a_queue_leaves_interrupts_as_they_are():
    code = (
        "import signal, sys\nfrom scorer.cli.main import main\n"
        "main(['cluster-script', '--cluster', 'slurm', '--memory', '1GiB'], standalone_mode=False)\n"
        "print('dask_jobqueue' in sys.modules, signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - whoever runs the tests may ignore it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=hears)
    assert done.stdout.split()[-2:] == ["True", "True"]
