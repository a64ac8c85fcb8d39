"""Names and paths in job scripts, quoted, so that neither a shell nor a queue reads them as its own syntax."""

from __future__ import annotations

import copy
import os
import re
import shlex
from typing import Any

from scorer.errors import OptionsError

_PLAIN = re.compile(r"[\w./+=@~-]+")
"""Paths that every queue reads as they are in the directives of a script, such as `#SBATCH -o PATH`."""
_NO_LOGS = dict.fromkeys(("slurm", "pbs", "sge", "lsf"), "-o /dev/null -e /dev/null")
"""The directive that turns off a queue's own logs, if it writes them."""


def is_plain(path: str) -> bool:
    """Return whether a path needs no quotes, neither in a shell nor in the directives of a queue."""
    return _PLAIN.fullmatch(path) is not None


def quote(system: str, text: str) -> str:
    """Return the text quoted for the shell line of a job script."""
    return escape_macros(system, shlex.quote(text))


def log_settings(system: str, logs: str) -> tuple[str | None, list[str], list[str]]:
    """Return the log folder for the queue's directives, more directives, and the first lines of the script.

    Each queue quotes paths in directives in its own way, or not at all. If the path is not plain, the script's shell
    redirects the output instead.
    """
    if is_plain(logs):
        return logs, [], []
    redirect = f'exec > "$(mktemp {shlex.quote(logs)}/job-XXXXXXXX)" 2>&1'
    directives = [_NO_LOGS[system]] if system in _NO_LOGS else []
    return None, directives, [escape_macros(system, redirect)]


def refuse_control_characters(place: str, text: str) -> None:
    """Raise `OptionsError` if the text has a line break or another character that would end a line of the script."""
    if not text.isprintable():
        raise OptionsError(
            "a job script cannot contain this name",
            where=place,
            expected="a name without line breaks and other control characters",
            found=repr(text),
            hint=f"choose another name for {place}",
        )


def quoting(kind: type, system: str) -> type:
    """Return dask-jobqueue's cluster class, whose jobs also quote addresses, interfaces and key files."""

    def start_job(self: Any, scheduler: Any = None, name: Any = None, interface: Any = None, **settings: Any) -> None:  # noqa: ANN401 - dask-jobqueue is untyped
        interface = interface and quote(system, interface)
        job_kind.__init__(self, quote(system, scheduler), name=name, interface=interface, **settings)

    def write_keys(self: Any, security: Any) -> Any:  # noqa: ANN401 - as above
        """Write the keys for the workers to files; return the security with their quoted paths.

        dask-jobqueue's own method expands variables in the folder's path.
        """
        if security is None:
            return None
        written = copy.copy(security)
        for key, text in security.get_tls_config_for_role("worker").items():
            if text is not None and "\n" in text:
                path = os.path.join(self.shared_temp_directory, f"worker-{key}.pem")
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(text)
                setattr(written, "tls_ca_file" if key == "ca_file" else f"tls_worker_{key}", quote(system, path))
        return written

    job_kind: Any = kind.job_cls  # type: ignore[attr-defined]
    job = type(job_kind.__name__, (job_kind,), {"__init__": start_job})
    return type(kind.__name__, (kind,), {"job_cls": job, "_get_worker_security": write_keys})


def escape_macros(system: str, line: str) -> str:
    """Return a shell line as a submit file needs it: HTCondor would expand $(...) itself."""
    return line.replace("$", "$(DOLLAR)") if system == "htcondor" else line
