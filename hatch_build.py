"""Compiles the kernel for tree ensembles while a wheel is built, if there is a C compiler."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TreesHook(BuildHookInterface):
    """Adds the compiled library to the wheel, which then belongs to one platform and to every Python."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; without a compiler the wheel has no library, and ONNX Runtime scores tree ensembles."""
        path = Path(self.root, "scorer", "model", "_compile.py")
        spec = importlib.util.spec_from_file_location("scorer_compile", path)
        if spec is None or spec.loader is None:
            return
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        problem = module.compile_if_possible()
        if problem:
            self.app.display_warning(f"tree ensembles will be scored by ONNX Runtime, which is slower: {problem}")
            return
        if version != "editable":
            build_data["artifacts"].append("scorer/model/_trees.so")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
