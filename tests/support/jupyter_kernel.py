"""A real kernel of Jupyter, and what it shows."""

from __future__ import annotations

import time
from contextlib import contextmanager
from queue import Empty

from jupyter_client.manager import KernelManager

DRAWN = ("display_data", "update_display_data")
FOLDERS = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")


def at_home(folder, patch):
    """Whatever Jupyter keeps goes nowhere near the user's."""
    for name in FOLDERS:
        (folder / name.lower()).mkdir()
        patch.setenv(name, str(folder / name.lower()))


class Shown:
    """What one cell has shown so far."""

    def __init__(self):
        self.messages, self.times = [], []

    def add(self, message):
        self.messages.append(message)
        self.times.append(time.monotonic())

    def of(self, *kinds):
        return [message["content"] for message in self.messages if message["msg_type"] in kinds]

    @property
    def drawn(self):
        """Each state of the displays, as text."""
        return [content["data"]["text/plain"] for content in self.of(*DRAWN)]

    @property
    def printed(self):
        return "".join(content["text"] for content in self.of("stream"))

    @property
    def error(self):
        """The last one: its name, and the lines that stand below the cell."""
        return [(content["ename"], content["traceback"]) for content in self.of("error")][-1]


class Kernel:
    """Executes cells; interrupts them as the front end's button does."""

    def __init__(self, manager, client):
        self.manager, self.client = manager, client

    def send(self, code, subshell=None):
        """Execute a cell and do not wait; gives what names it."""
        if subshell is None:
            return self.client.execute(code)
        content = {"code": code, "silent": False, "allow_stdin": False, "stop_on_error": False}
        message = self.client.session.msg("execute_request", content)
        message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def follow(self, sent, until=None, within_s=60.0):
        """What a cell shows, until it has ended or `until` says so of what is there."""
        shown, end = Shown(), time.monotonic() + within_s
        while time.monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=0.5)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != sent:
                continue
            shown.add(message)
            state = message["content"].get("execution_state") if message["msg_type"] == "status" else None
            if state == "idle" or (until is not None and until(shown)):
                return shown
        raise AssertionError(f"not within {within_s:.0f} s: {shown.drawn[-1:]} {shown.printed}")

    def do(self, code):
        """Execute a cell that ends without an error; gives what it shows."""
        shown = self.follow(self.send(code))
        assert not shown.of("error"), "\n".join(shown.error[1])
        return shown

    def interrupt(self):
        self.manager.interrupt_kernel()

    def subshell(self):
        """A second thread that takes requests: front ends send their widgets' messages there."""
        request = self.client.session.msg("create_subshell_request", {})
        self.client.control_channel.send(request)
        return self.client.get_control_msg(timeout=30)["content"]["subshell_id"]


@contextmanager
def kernel(folder):
    """A kernel that works in `folder`, and is gone afterwards."""
    manager = KernelManager()
    with (folder / "kernel.txt").open("w") as said:
        manager.start_kernel(cwd=str(folder), stdout=said, stderr=said)
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            yield Kernel(manager, client)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()
