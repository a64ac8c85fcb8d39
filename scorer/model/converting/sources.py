"""Source: what the model to convert is, found by its bytes and its folder; nothing is loaded or unpickled."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from scorer.display.words import quoted_list
from scorer.errors import ModelError, ModelLoadError, ModelNotFound
from scorer.locations import is_url
from scorer.model.locating import hugging_face, mlflow
from scorer.model.locating.folders import Folder
from scorer.model.locating.located import locate
from scorer.storage.formats import how_to_convert, recognise

PICKLES = {"pickle", "joblib"}
_KINDS = {"lightgbm", "xgboost", "catboost", "skops", "onnx"} | PICKLES
_FLAVOURS = {"onnx": "data", "lightgbm": "data", "xgboost": "data", "catboost": "data", "sklearn": "pickled_model"}
"""The flavours of MLflow that can be converted, in the order of preference, and the key of the model's file."""
_EXPECTED = "a model of LightGBM, XGBoost, CatBoost or scikit-learn, or a folder of MLflow or Hugging Face"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The model to convert."""

    path: str
    """As the user wrote it."""
    file: str
    """The file that the library reads: the same, or one inside the folder."""
    kind: str
    words: str
    """What it is, in words."""
    columns: tuple[str, ...] = ()
    """The names of the columns in the signature of an MLflow folder."""
    folder: str = ""
    """The Hugging Face folder that the file is in."""


def find(path: str) -> Source:
    """Return what the model at `path` is, or raise the reason why it cannot be converted."""
    if is_url(path):
        raise ModelError(
            "the model is not on this machine", where=path, expected="a file or a folder", found="a URL",
            hint="download it, and pass its path",
        )  # fmt: skip
    if not os.path.exists(path):
        raise ModelNotFound(
            "the model does not exist", where=path, expected=_EXPECTED, found="nothing",
            hint="check the path; relative paths start at the current folder",
        )  # fmt: skip
    if os.path.isdir(path):
        return _in_folder(path)
    return _of_file(path, path)


def _of_file(file: str, path: str) -> Source:
    """Return what a file is; `path` is what the user named."""
    if not os.access(file, os.R_OK):
        raise ModelNotFound(
            "the model cannot be read", where=file, expected="a file that this user may read", found="no permission",
            hint="ask its owner for permission to read it",
        )  # fmt: skip
    found = recognise(file)
    kind = "" if found is None else found.kind
    if found is not None and kind in _KINDS:
        return Source(path=path, file=file, kind=kind, words=found.name)
    if found is None and file.endswith(".onnx"):
        return Source(path=path, file=file, kind="onnx", words="an ONNX model")
    raise ModelLoadError(
        "the model cannot be converted",
        where=file,
        expected=_EXPECTED,
        found="other bytes" if found is None else found.name,
        hint="export or copy it again" if found is None else how_to_convert(file, found),
    )


def _in_folder(path: str) -> Source:
    """Return the model in a folder."""
    folder = Folder(path)
    described = mlflow.described(folder)
    if described is not None:
        return _of_mlflow(folder, described)
    if folder.has(hugging_face.FILE):
        located = locate(path)
        words = "a Hugging Face folder with an ONNX model"
        return Source(path=path, file=located.path, kind="onnx", words=words, folder=path)
    found = recognise(path)
    raise ModelLoadError(
        "the folder has no model that can be converted",
        where=path,
        expected="a file MLmodel, as MLflow writes it, or config.json, as Hugging Face has it",
        found=folder.contents(),
        hint="pass the model's file" if found is None else how_to_convert(path, found),
    )


def _of_mlflow(folder: Folder, described: mlflow.Described) -> Source:
    """Return the model in a folder of MLflow, by its file MLmodel."""
    flavours = described.flavours
    flavour = next((name for name in _FLAVOURS if name in flavours), None)
    named = None if flavour is None else flavours[flavour].get(_FLAVOURS[flavour])
    if flavour is None or not isinstance(named, str):
        raise ModelLoadError(
            "the MLflow model has no flavour that can be converted", where=folder.at(mlflow.FILE),
            expected=f"one of {quoted_list(_FLAVOURS)}", found=quoted_list(flavours),
            hint="export it to ONNX, and pass the file",
        )  # fmt: skip
    inner = folder.at(named)
    inner = os.path.join(inner, "model.onnx") if os.path.isdir(inner) else inner
    if not os.path.isfile(inner):
        raise mlflow.incomplete(folder, named)
    source = _of_file(inner, folder.location)
    words = f"an MLflow folder with {source.words}"
    return replace(source, words=words, columns=described.columns)
