"""Located: the ONNX file that a model's name stands for, and what its folder says about it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scorer.display.words import quoted_list
from scorer.errors import ModelError, ModelLoadError, ModelNotFound, ScorerError
from scorer.locations import is_tracked, is_url
from scorer.model.locating import hugging_face, mlflow
from scorer.model.locating.folders import Folder
from scorer.options.grammar import quoted
from scorer.storage import stores
from scorer.storage.formats import Format, how_to_convert, recognise

if TYPE_CHECKING:
    from scorer.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a model is."""

    path: str
    """The ONNX file: a path or a URL."""
    name: str = ""
    """The name in a tracking store, with the version; '' for other models."""
    folder: Folder | None = None
    """A folder of Hugging Face, which describes the model."""
    columns: tuple[str, ...] = ()
    """The columns in the signature of an MLflow folder."""

    def completed(self, spec: ModelSpec) -> ModelSpec:
        """Return what the file says, with what the folder says."""
        spec = replace(spec, name=self.name)
        if self.columns and len(spec.inputs) == 1:
            if spec.feature_names and spec.feature_names != self.columns:
                raise ModelError(
                    "the signature lists other columns than the model, or in another order", where=spec.path,
                    expected=quoted_list(spec.feature_names), found=quoted_list(self.columns),
                    hint=f"pass the file, to take its own columns: --model {spec.path}",
                )  # fmt: skip
            return replace(spec, feature_names=self.columns)
        if self.folder is None:
            return spec
        found = hugging_face.describe(self.folder, spec.inputs, spec.outputs)
        return replace(
            spec, feeds=found.feeds, fetches=found.fetches, notes=found.notes,
            labels=(",".join(map(quoted, found.classes)),) if found.classes and not spec.class_labels else (),
        )  # fmt: skip


def locate(model: str) -> Located:
    """Return where the model of this name is: in a tracking store, in a folder, or a file."""
    if not is_tracked(model):
        return _at(model) or Located(path=model)
    from scorer.model.locating import tracking  # noqa: PLC0415 - only for tracking stores

    tracked = tracking.resolve(model)
    for place in tracked.places:
        found = _at(f"{place}/" if is_url(place) else place)
        if found is not None:
            return replace(found, name=tracked.name)
        if Folder(os.path.dirname(place)).has(os.path.basename(place)):
            return Located(path=place, name=tracked.name)
    raise ModelNotFound(
        "the tracking store has no ONNX model there", where=model,
        expected="a model that MLflow logged, a folder of Hugging Face, or an ONNX file",
        found=f"none of them at {' or '.join(tracked.places)}", hint="check the path in the run",
    )  # fmt: skip


def _at(place: str) -> Located | None:
    """Return the model in a folder; None if this is no folder with a model."""
    if _is_file(place):
        return None
    folder = Folder(place)
    described = mlflow.described(folder)
    if described is not None:
        return _of_mlflow(folder, described)
    if folder.has(hugging_face.FILE):
        return _of_hugging_face(folder)
    return None


def _is_file(place: str) -> bool:
    """Return whether this is certainly no folder; a URL that ends with a slash is one."""
    if not is_url(place):
        return not os.path.isdir(place)
    if place.endswith("/"):
        return False
    try:
        stores.identity(place, hasty=True)
    except FileNotFoundError:
        return False
    except (OSError, ScorerError):  # what fetches it reports the error
        return True
    return True


def _of_mlflow(folder: Folder, described: mlflow.Described) -> Located:
    if not described.onnx:
        raise ModelLoadError(
            "the model is not ONNX", where=folder.location, expected="a folder of MLflow with the flavour onnx",
            found=f"an MLflow folder with the flavours {quoted_list(described.flavours)}",
            hint=_conversion(folder.location),
        )  # fmt: skip
    inside = described.onnx
    if not folder.has(inside) and folder.has(f"{inside}/model.onnx"):
        inside = f"{inside}/model.onnx"
    if not folder.has(inside):
        raise mlflow.incomplete(folder, inside)
    return Located(path=folder.at(inside), columns=described.columns)


def _conversion(location: str) -> str:
    """Return the command that converts the model in a folder."""
    found = None if is_url(location) else recognise(location)
    if found is None:
        return f"download it to a folder, then: {how_to_convert('FOLDER', Format('mlflow'))}"
    return how_to_convert(location, found)


def _of_hugging_face(folder: Folder) -> Located:
    names = [name for name in hugging_face.ONNX_FILES if folder.has(name)] or folder.models()
    if len(names) == 1 or (names and names[0] in hugging_face.ONNX_FILES):
        return Located(path=folder.at(names[0]), folder=folder)
    raise ModelLoadError(
        "the folder has several ONNX models" if names else "the folder has no ONNX model", where=folder.location,
        expected=" or ".join(hugging_face.ONNX_FILES), found=quoted_list(names) if names else folder.contents(),
        hint=f"pass one of them: --model {folder.at(names[0])}" if names
        else f"optimum-cli export onnx --model {folder.location} {folder.location.rstrip('/')}-onnx",
    )  # fmt: skip
