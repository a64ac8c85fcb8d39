"""Compile trees.c into the library that `_kernel` loads; run when scorer is built or installed, never by a run.

    python -m scorer.model._compile

Imports nothing outside the standard library, because the build has no other packages.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("trees.c")
LIBRARY = Path(__file__).with_name("_trees.so")
FLAGS = ("-O3", "-ffp-contract=off", "-fPIC", "-std=gnu11", "-Wall", "-Wextra")
_TYPES = {"f32": ("-DREAL=float", "-DREAL_IS_FLOAT"), "f64": ("-DREAL=double",)}
_X86 = {"base": "-march=x86-64", "avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}


def compilers() -> list[list[str]]:
    """Return the commands of the C compilers on this machine, the one in $CC first; `ziglang` is a package with one."""
    own = shlex.split(os.environ.get("CC", ""))
    found = [own] if own else []
    found += [[name] for name in ("cc", "gcc", "clang") if shutil.which(name)]
    try:
        import ziglang  # type: ignore[import-not-found] # noqa: F401, PLC0415 - an optional package
    except ImportError:
        return found
    return [*found, [sys.executable, "-m", "ziglang", "cc"]]


def levels() -> dict[str, str]:
    """Return the instruction sets to compile for, each with its flag."""
    return _X86 if platform.machine().lower() in {"x86_64", "amd64"} else {"base": ""}


def compile_library(command: list[str], target: Path = LIBRARY, source: Path = SOURCE, *more: str) -> None:
    """Compile the library with one compiler; raise `OSError` or `CalledProcessError` if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        objects, running = [], []
        for kind, defines in _TYPES.items():
            for level, march in levels().items():
                objects.append(str(Path(folder, f"{kind}_{level}.o")))
                suffix = f"-DSUFFIX={kind}_{level}"
                flags = [*FLAGS, *more, *filter(None, [march]), *defines, suffix]
                line = [*command, *flags, "-c", str(source), "-o", objects[-1]]
                running.append((line, subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)))  # noqa: S603
        failed = [(line, process.communicate()[0], process.returncode) for line, process in running]
        for line, output, code in failed:
            if code:
                raise subprocess.CalledProcessError(code, line, output)
        built = Path(folder, target.name)
        line = [*command, "-shared", *more, "-o", str(built), *objects, "-lm"]
        subprocess.run(line, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S603
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copyfile(built, fresh)
        fresh.replace(target)  # a process that has the old one open keeps it


def compile_if_possible() -> str:
    """Compile with the first compiler that works; return why there is no library, or ''."""
    LIBRARY.unlink(missing_ok=True)
    problem = "no C compiler was found (CC, cc, gcc, clang or the package ziglang)"
    for command in compilers():
        try:
            compile_library(command)
        except subprocess.CalledProcessError as error:
            text = (error.output or b"").decode("utf-8", "replace").strip().splitlines()
            problem = f"{' '.join(command)} failed: {text[0] if text else f'exit code {error.returncode}'}"
        except OSError as error:
            problem = f"{' '.join(command)} failed: {error}"
        else:
            return ""
    return problem


if __name__ == "__main__":
    sys.exit(compile_if_possible() or None)
