"""Faster imports for the command line, where imports are most of a short run.

Optional packages and docstring processing that only an interactive session needs are skipped.
"""

from __future__ import annotations

import gc
import sys
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_OPTIONAL = ("jinja2", "scipy", "scipy.fftpack", "scipy.sparse")
"""Packages that Dask imports if they are installed, and does not need. They are hidden from it."""
_DOCSCRAPE = "pyarrow.vendored.docscrape"
"""The parser with which Arrow writes the docstrings of 286 functions at import."""
_STACK_WORDS = 1 << 16  # words of 8 bytes


def with_large_frame(command: Callable[[], Any]) -> Callable[[], Any]:
    """Return the command, called from a frame with a large stack, so that all frames below it share one block.

    Python maps memory for frames in blocks of 16 KiB. It unmaps a block when the call that needed it returns, so
    each call at the edge of a block costs 10 µs. Nested imports made about three thousand such calls.
    """

    def with_stack() -> Any:  # noqa: ANN401 - any command's
        return command()

    with_stack.__code__ = with_stack.__code__.replace(co_stacksize=_STACK_WORDS)
    return with_stack


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import faster inside this context: no garbage collection, scipy or docstring parsing; YAML's C loader."""
    gc.disable()
    absent = [name for name in (*_OPTIONAL, _DOCSCRAPE) if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None blocks the import
    if _DOCSCRAPE in absent:
        sys.modules[_DOCSCRAPE] = _EmptyDocscrape(_DOCSCRAPE)
    try:
        with ExitStack() as stack:
            yaml = import_module("yaml")
            stack.enter_context(_replaced(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
            stack.enter_context(_replaced(import_module("dask.utils"), "_derived_from", _keep_docstring))
            yield
    finally:
        for name in absent:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


class _EmptyDocscrape(ModuleType):
    """A stand-in for Arrow's docstring parser that parses nothing."""

    @staticmethod
    def NumpyDocString(_: str) -> dict[str, tuple[()]]:  # noqa: N802 - the name in docscrape
        """Return a docstring without parameters."""
        return {"Parameters": ()}


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a module inside this context, if the module has it."""
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _keep_docstring(original: Any, method: Any, **_: Any) -> str | None:  # noqa: ANN401 - any class's any method
    """Return the method's own docstring instead of an edited copy of the original's."""
    getattr(original, method.__name__)  # Dask relies on the AttributeError if it is missing
    return method.__doc__  # type: ignore[no-any-return]
