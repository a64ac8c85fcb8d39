"""Source: what the model to convert is, found by its bytes and its folder; nothing is loaded or unpickled."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from scorer.display.words import cut, quoted_list
from scorer.errors import ModelError, ModelLoadError, ModelNotFound
from scorer.locations import is_url
from scorer.storage.formats import how_to_convert, recognise

PICKLES = {"pickle", "joblib"}
_KINDS = {"lightgbm", "xgboost", "catboost", "skops", "onnx"} | PICKLES
_FLAVOURS = {"onnx": "data", "lightgbm": "data", "xgboost": "data", "catboost": "data", "sklearn": "pickled_model"}
"""The flavours of MLflow that can be converted, in the order of preference, and the key of the model's file."""
_EXPECTED = "a model of LightGBM, XGBoost, CatBoost or scikit-learn, or a folder of MLflow or Hugging Face"
_ONNX_FILES = ("model.onnx", "onnx/model.onnx")


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
    if os.path.isfile(os.path.join(path, "MLmodel")):
        return _of_mlflow(path)
    if os.path.isfile(os.path.join(path, "config.json")):
        file = next((one for name in _ONNX_FILES if os.path.isfile(one := os.path.join(path, name))), None)
        if file is not None:
            words = "a Hugging Face folder with an ONNX model"
            return Source(path=path, file=file, kind="onnx", words=words, folder=path)
        raise ModelError(
            "the folder has no ONNX model", where=path, expected=" or ".join(_ONNX_FILES),
            found=quoted_list(sorted(os.listdir(path))),
            hint=f"optimum-cli export onnx --model {path} {path.rstrip('/')}-onnx",
        )  # fmt: skip
    found = recognise(path)
    raise ModelLoadError(
        "the folder has no model that can be converted",
        where=path,
        expected="a file MLmodel, as MLflow writes it, or config.json, as Hugging Face has it",
        found=quoted_list(sorted(os.listdir(path))) or "no files",
        hint="pass the model's file" if found is None else how_to_convert(path, found),
    )


def _of_mlflow(path: str) -> Source:
    """Return the model in a folder of MLflow, by its file MLmodel."""
    import yaml  # noqa: PLC0415 - Dask needs it, and only these folders do here

    place = os.path.join(path, "MLmodel")
    try:
        with open(place, encoding="utf-8") as file:
            described = yaml.safe_load(file)
        flavours = described["flavors"]
        flavour = next((name for name in _FLAVOURS if name in flavours), None)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ModelLoadError(
            "the file MLmodel cannot be read", where=place, expected="YAML with the key flavors", found=cut(str(error)),
            hint="log or download the model again",
        ) from error  # fmt: skip
    named = None if flavour is None else flavours[flavour].get(_FLAVOURS[flavour])
    if flavour is None or not isinstance(named, str):
        raise ModelLoadError(
            "the MLflow model has no flavour that can be converted", where=place,
            expected=f"one of {quoted_list(_FLAVOURS)}", found=quoted_list(flavours),
            hint="export it to ONNX, and pass the file",
        )  # fmt: skip
    inner = os.path.join(path, named)
    inner = os.path.join(inner, "model.onnx") if os.path.isdir(inner) else inner
    if not os.path.isfile(inner):
        raise ModelNotFound(
            "the MLflow folder is incomplete", where=path, expected=named, found="no such file",
            hint="download or copy the whole folder",
        )  # fmt: skip
    source = _of_file(inner, path)
    words = f"an MLflow folder with {source.words}"
    return replace(source, words=words, columns=_signature(described))


def _signature(described: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the columns that the signature lists, in its order; () if it has none."""
    with suppress(KeyError, TypeError, ValueError):
        listed = json.loads(described["signature"]["inputs"])
        names = [one["name"] for one in listed if one.get("type") != "tensor"]
        if names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()
