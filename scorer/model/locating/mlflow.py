"""Folders of MLflow: the flavours that their file MLmodel lists, and the columns of its signature."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.display.words import cut
from scorer.errors import ModelLoadError, ModelNotFound

if TYPE_CHECKING:
    from scorer.model.locating.folders import Folder

FILE = "MLmodel"


@dataclass(frozen=True, slots=True)
class Described:
    """What the file MLmodel says."""

    flavours: dict[str, dict[str, Any]]
    columns: tuple[str, ...]
    """The names of the columns that the signature lists, in its order; () if it has none."""

    @property
    def onnx(self) -> str:
        """The ONNX file in the folder; '' if the model has no such flavour."""
        found = self.flavours.get("onnx", {}).get("data")
        return found if isinstance(found, str) else ""


def described(folder: Folder) -> Described | None:
    """Return what the file MLmodel of a folder says; None if there is none."""
    text = folder.read(FILE)
    if text is None:
        return None
    import yaml  # noqa: PLC0415 - Dask needs it, and only these folders do here

    try:
        found = yaml.safe_load(text.decode("utf-8"))
        flavours = {str(name): one if isinstance(one, dict) else {} for name, one in found["flavors"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise ModelLoadError(
            "the file MLmodel cannot be read", where=folder.at(FILE), expected="YAML with the key flavors",
            found=cut(str(error)), hint="log or download the model again",
        ) from error  # fmt: skip
    return Described(flavours, _signature(found))


def _signature(found: dict[str, Any]) -> tuple[str, ...]:
    with suppress(KeyError, TypeError, ValueError):
        listed = json.loads(found["signature"]["inputs"])
        names = [one["name"] for one in listed if one.get("type") != "tensor"]
        if names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def incomplete(folder: Folder, name: str) -> ModelNotFound:
    """Return the error for a folder without the file that its MLmodel names."""
    return ModelNotFound(
        "the MLflow folder is incomplete", where=folder.location, expected=name, found="no such file",
        hint="download or copy the whole folder",
    )  # fmt: skip
