"""Real services for tests, each a context manager: a Slurm, an MPI job, a Grid Engine, hosts with cables.

They run as root, need no systemd, choose free ports and their own folders, and end with the process that started
them.  `.ci/services` installs what they need.
"""

from __future__ import annotations
