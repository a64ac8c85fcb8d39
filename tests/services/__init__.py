"""Real services for tests, each a context manager: Slurm, MPI, Grid Engine, several hosts on a network, object stores.

They run as root, need no systemd, choose free ports and their own folders, and stop with the process that started
them. `.ci/services` installs what they need.
"""

from __future__ import annotations
