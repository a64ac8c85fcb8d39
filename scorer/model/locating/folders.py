"""Folder: a folder with a model and the files that describe it, local or on a store."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from scorer.display.words import cut, quoted_list
from scorer.errors import ModelNotFound
from scorer.locations import is_url, join
from scorer.storage import stores

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder by its location, as the user wrote it. Files are named relative to it, with slashes."""

    location: str

    def at(self, name: str) -> str:
        """Return the location of a file."""
        return join(self.location, name) if is_url(self.location) else os.path.join(self.location, name)

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        if not is_url(self.location):
            return os.path.isfile(self.at(name))
        try:
            stores.identity(self.at(name), hasty=True)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unreadable(name, error) from error
        return True

    def read(self, name: str) -> bytes | None:
        """Return the contents of a file; None if there is none."""
        place = self.at(name)
        try:
            if is_url(place):
                return stores.of(place, hasty=True).read(place)
            with open(place, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(name, error) from error

    def config(self, name: str) -> dict[str, Any]:
        """Return a JSON object; a list as the object of its numbers; {} if there is no such file, or another one."""
        with suppress(ValueError, RecursionError):
            found = json.loads(self.read(name) or b"{}")
            if isinstance(found, dict):
                return found
            if isinstance(found, list):
                return {str(at): one for at, one in enumerate(found)}
        return {}

    def models(self) -> list[str]:
        """Return the names of the ONNX files directly in the folder or in its folder onnx; [] on a store."""
        if is_url(self.location):
            return []
        return sorted(
            f"{inner}{name}"
            for inner in ("", "onnx/")
            if os.path.isdir(self.at(inner))
            for name in os.listdir(self.at(inner))
            if name.endswith(".onnx")
        )

    def contents(self) -> str:
        """Return the names in the folder, in words."""
        if is_url(self.location):
            return "no such file"
        return quoted_list(sorted(os.listdir(self.location)), _SHOWN) or "no files"

    def _unreadable(self, name: str, error: OSError) -> ModelNotFound:
        return ModelNotFound(
            "the folder of the model cannot be read", where=self.at(name), expected="a file that this user may read",
            found=cut(error.strerror or str(error)), hint="check the permissions, the credentials and the network",
        )  # fmt: skip
