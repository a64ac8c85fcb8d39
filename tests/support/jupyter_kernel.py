"""A real Jupyter kernel, and the output of its cells."""

from __future__ import annotations

import time
from contextlib import contextmanager
from queue import Empty

from jupyter_client.manager import KernelManager

DRAWN = ("display_data", "update_display_data")
FOLDERS = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")


def at_home(folder, patch):
    """Point Jupyter's folders into this one, away from the user's."""
    for name in FOLDERS:
        (folder / name.lower()).mkdir()
        patch.setenv(name, str(folder / name.lower()))


class Shown:
    """The output of one cell so far."""

    def __init__(self):
        self.messages, self.times = [], []

    def add(self, message):
        self.messages.append(message)
        self.times.append(time.monotonic())

    def of(self, *kinds):
        return [message["content"] for message in self.messages if message["msg_type"] in kinds]

    @property
    def drawn(self):
        """Every version of the displays, as text."""
        return [content["data"]["text/plain"] for content in self.of(*DRAWN)]

    @property
    def printed(self):
        return "".join(content["text"] for content in self.of("stream"))

    @property
    def error(self):
        """The last error: its name, and the lines shown below the cell."""
        return [(content["ename"], content["traceback"]) for content in self.of("error")][-1]


class Kernel:
    """Executes cells, and interrupts them as the front end's button does."""

    def __init__(self, manager, client):
        self.manager, self.client = manager, client

    def send(self, code, subshell=None):
        """Start a cell without waiting for it; return the id of the request."""
        if subshell is None:
            return self.client.execute(code)
        content = {"code": code, "silent": False, "allow_stdin": False, "stop_on_error": False}
        message = self.client.session.msg("execute_request", content)
        message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def follow(self, sent, until=None, within_s=60.0):
        """Return the output of a cell when it has finished, or as soon as `until(output)` is true."""
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
        """Execute a cell that must not fail; return its output."""
        shown = self.follow(self.send(code))
        assert not shown.of("error"), "\n".join(shown.error[1])
        return shown

    def interrupt(self):
        self.manager.interrupt_kernel()

    def subshell(self):
        """Start a subshell, a second thread for requests, as front ends do for widgets; return its id."""
        request = self.client.session.msg("create_subshell_request", {})
        self.client.control_channel.send(request)
        return self.client.get_control_msg(timeout=30)["content"]["subshell_id"]


@contextmanager
def kernel(folder):
    """A kernel whose current folder is `folder`; it is shut down at the end."""
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
