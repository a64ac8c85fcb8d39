"""The steps of a Dockerfile, run in a folder of their own without a container engine.

A folder is mounted as /srv for the steps alone, and the environment of Python that they install into is a new one, with
the packages of this process's environment in the place of a registry. So the Dockerfile may use only /srv and Python.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

from services.processes import environment, output_of, require_modules, require_programs

_OURS = ("dask_scorer", "scorer", "__pycache__")
_MOUNT = 'mount --bind "$0" /srv && cd "$1" && shift && exec "$@"'
_MAY_READ = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
"""The interpreter may be in a folder of root's, so the user of an image may read everything, and write only its own."""
_SCRIPT = "#!{python}\nfrom {module} import {name}\n\nif __name__ == '__main__':\n    raise SystemExit({name}())\n"


class Image:
    """A folder in the place of the image's /srv, and its environment of Python."""

    def __init__(self, folder):
        self.folder, self.user, self.where, self.variables, self.steps = Path(folder), None, "/", {}, []
        self._context = None
        self.srv, self.venv = self.folder / "srv", self.folder / "venv"
        self.srv.mkdir(parents=True)
        output_of([sys.executable, "-m", "venv", "--without-pip", self.venv])
        _lend_packages(self.venv)

    def command(self, *command):
        """Return the command line that runs a command in the image."""
        as_user = [] if self.user is None else ["setpriv", "--clear-groups", *self.user, *_MAY_READ]
        mounted = ["unshare", "--mount", "sh", "-c", _MOUNT, self.srv, self.where]
        return [str(word) for word in (*mounted, *as_user, *command)]

    def environment(self, **more):
        """Return the environment of the commands: no registry, and no other environment of Python."""
        inherited = {name: value for name, value in environment().items() if not name.startswith(("PYTHON", "PIP_"))}
        path = f"{self.venv / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        offline = {"PATH": path, "PIP_NO_INDEX": "1", "HOME": "/tmp"}
        return inherited | offline | self.variables | {name: str(value) for name, value in more.items()}

    def build(self, dockerfile, context):
        """Run every step of the Dockerfile; raise an error for a step that is not known here."""
        self._context = Path(context)
        text = Path(dockerfile).read_text().replace("\\\n", " ")
        for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
            step, _, rest = line.partition(" ")
            getattr(self, f"_{step.lower()}")(rest)
            self.steps.append(step)

    def _from(self, rest):
        """The base is this process's Python, in a version that is allowed as the recipe's own is."""
        assert rest.startswith("python:3.")

    def _copy(self, rest):
        *names, target = rest.split()
        place = self.srv / Path(target).relative_to("/srv")
        place.mkdir(parents=True, exist_ok=True)
        found = [path for name in names for path in self._context.glob(name)]
        assert found, f"nothing to copy for {rest}"
        for path in found:
            shutil.copy(path, place)

    def _run(self, rest):
        output_of(self.command("sh", "-c", rest), env=self.environment(), timeout=300)

    def _workdir(self, rest):
        assert (self.srv / Path(rest).relative_to("/srv")).is_dir()
        self.where = rest

    def _env(self, rest):
        self.variables |= dict(word.split("=", 1) for word in shlex.split(rest))

    def _user(self, rest):
        user, group = rest.split(":")
        self.user = ("--reuid", user, "--regid", group)

    def _cmd(self, rest):
        """The command of the image's own, which must succeed."""
        words = [word.strip(' "') for word in rest.strip("[]").split(",")]
        output_of(self.command(*words), env=self.environment())


def _lend_packages(venv):
    """Let a new environment import every package of this one except scorer, and give it the program `dask`."""
    theirs = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    lent = venv / "lent"
    lent.mkdir()
    for place in map(Path, sys.path):
        if place.name == "site-packages" and place.is_relative_to(sys.prefix):
            for path in place.iterdir():
                if not path.name.startswith(_OURS) and path.suffix != ".pth":
                    (lent / path.name).symlink_to(path)
    (theirs / "lent.pth").write_text(f"{lent}\n")
    (program,) = entry_points(group="console_scripts", name="dask")
    script = venv / "bin" / "dask"
    script.write_text(_SCRIPT.format(python=venv / "bin" / "python", module=program.module, name=program.attr))
    script.chmod(0o755)


def build_wheel(source, folder):
    """Build the wheel of the project into the folder, from a copy of its files."""
    require_modules("hatchling")
    require_programs("unshare", "setpriv", "mount")
    copy = Path(folder) / "source"
    names = ("scorer", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")
    copy.mkdir()
    for name in names:
        place = Path(source) / name
        if place.is_dir():
            shutil.copytree(place, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(place, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    output_of([*pip, "-w", folder, copy], timeout=300)
