"""Imports of a command: without what only somebody at a prompt would miss. They are most of a short run."""

from __future__ import annotations

import gc
import sys
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_PASSED_OVER = ("jinja2", "scipy", "scipy.fftpack", "scipy.sparse")
"""What Dask looks for and does without: here it is not there, even where it is installed."""
_DESCRIBED = "pyarrow.vendored.docscrape"
"""What Arrow takes descriptions apart with, to write those of 286 functions."""
_ROOM = 1 << 16  # words of 8 bytes


def with_large_frame(command: Callable[[], Any]) -> Callable[[], Any]:
    """The command, called from a frame that asks for much room, so that all frames below it lie in one piece.

    Python maps memory for frames 16 KiB at a time, and unmaps it when the call that needed it returns: at the edge
    of a piece every call costs 10 µs, and imports, one inside the other, used to make three thousand there.
    """

    def roomy() -> Any:  # noqa: ANN401 - any command's
        return command()

    roomy.__code__ = roomy.__code__.replace(co_stacksize=_ROOM)
    return roomy


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import without looking for garbage, without scipy, without descriptions, with the fast reader of YAML."""
    gc.disable()
    absent = [name for name in (*_PASSED_OVER, _DESCRIBED) if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: it cannot be imported
    if _DESCRIBED in absent:
        sys.modules[_DESCRIBED] = _Undescribed(_DESCRIBED)
    try:
        with ExitStack() as stack:
            yaml = import_module("yaml")
            stack.enter_context(_instead(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
            stack.enter_context(_instead(import_module("dask.utils"), "_derived_from", _as_it_is))
            yield
    finally:
        for name in absent:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


class _Undescribed(ModuleType):
    """Takes nothing apart."""

    @staticmethod
    def NumpyDocString(_: str) -> dict[str, tuple[()]]:  # noqa: N802 - the other's name
        """No parameters."""
        return {"Parameters": ()}


@contextmanager
def _instead(module: ModuleType, name: str, other: object) -> Iterator[None]:
    """The other thing under a module's name, if the module has it."""
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, before)


def _as_it_is(original: Any, method: Any, **_: Any) -> str | None:  # noqa: ANN401 - any class's any method
    """Instead of the docstring of the original's method, changed in many places, the method's own."""
    getattr(original, method.__name__)  # whether the original has it must be found out all the same
    return method.__doc__  # type: ignore[no-any-return]
