"""What to type to convert a model of another format to ONNX, by what the file is."""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorer.storage.formats import Format

_BOOSTER_TO_ONNX = (
    "import onnxmltools; from onnxmltools.convert.common.data_types import FloatTensorType; "
    'onnxmltools.utils.save_model(onnxmltools.{convert}(b, initial_types=[("x", FloatTensorType([None, '
    "b.{features}()]))]{more}), {out})"
)
_LIGHTGBM = (
    _BOOSTER_TO_ONNX.replace("{convert}", "convert_lightgbm")
    .replace("{features}", "num_feature")
    .replace("{more}", ", zipmap=False")
)
_XGBOOST = "b.feature_names = None; " + (
    _BOOSTER_TO_ONNX.replace("{convert}", "convert_xgboost").replace("{features}", "num_features").replace("{more}", "")
)
_XGBOOST_FILE = "import xgboost; b = xgboost.Booster(model_file={path}); " + _XGBOOST
_SKLEARN = (
    "import joblib, numpy, skl2onnx; m = joblib.load({path}); "
    'o = skl2onnx.to_onnx(m, numpy.zeros((1, m.n_features_in_), "float32")); '
    'open({out}, "wb").write(o.SerializeToString())'
)
_CATBOOST = 'import catboost; m = catboost.CatBoost(); m.load_model({path}); m.save_model({out}, format="onnx")'
_KERAS = 'import keras; keras.saving.load_model({path}).export({out}, format="onnx")'
_EXPORT = (
    'torch.onnx.export(m.eval(), (torch.zeros(1, 10),), {out}, input_names=["x"], dynamic_axes={{"x": {{0: "N"}}}}'
)
_TORCHSCRIPT = "import torch; m = torch.jit.load({path}); " + _EXPORT + ", dynamo=False)"
_TORCH = "m = torch.load({path}, weights_only=False); " + _EXPORT + ")"
_AGAIN = "export the model again from the program that trained it: "

_COMMANDS: dict[str, tuple[str, str]] = {
    "lightgbm": ("lightgbm and onnxmltools", "import lightgbm; b = lightgbm.Booster(model_file={path}); " + _LIGHTGBM),
    "xgboost": ("xgboost and onnxmltools", _XGBOOST_FILE),
    "xgboost-binary": ("xgboost<3.1 and onnxmltools", _XGBOOST_FILE),
    "catboost": ("catboost", _CATBOOST),
    "keras": ("keras, tensorflow and tf2onnx", _KERAS),
    "hdf5": ("keras, tensorflow and tf2onnx", _KERAS),
    "torchscript": ("torch", _TORCHSCRIPT),
}
"""The packages that a conversion needs, and its Python; the paths are filled in."""
_PICKLED: dict[str, tuple[str, str]] = {
    "sklearn": ("skl2onnx", _SKLEARN),
    "lightgbm": (
        "joblib and onnxmltools",
        'import joblib; m = joblib.load({path}); b = getattr(m, "booster_", m); ' + _LIGHTGBM,
    ),
    "xgboost": (
        "joblib and onnxmltools",
        'import joblib; m = joblib.load({path}); b = m.get_booster() if hasattr(m, "get_booster") else m; ' + _XGBOOST,
    ),
    "catboost": ("catboost", 'import joblib; joblib.load({path}).save_model({out}, format="onnx")'),
}
"""The same for the object in a pickle, by the package of its class."""
_WORDS: dict[str, str] = {
    "pytorch": "in Python, where the model's class can be imported, with its number of features instead of 10: "
    "import torch; {torch}; if the file holds only weights, create the model as m and call "
    "m.load_state_dict(torch.load({path})) instead",
    "pmml": _AGAIN + "skl2onnx converts scikit-learn models, onnxmltools those of XGBoost, LightGBM and Spark",
    "pickle": _AGAIN + "skl2onnx converts scikit-learn models, onnxmltools those of XGBoost and LightGBM",
    "safetensors": _AGAIN + "the file has weights, but not the model that uses them",
    "ort": "pass the .onnx file that it was created from",
    "lfs": "run `git lfs pull`: the file is a Git LFS pointer",
    "html": "download it again: this is the page of a web site, not the file",
    "zip": "unpack it and pass the .onnx file",
}
_TF2ONNX = {"saved-model": "--saved-model", "tflite": "--tflite"}
_DATA = {
    "parquet", "csv", "json", "json-lines", "arrow", "arrow-stream", "feather", "orc", "avro", "sqlite", "xls", "xlsx",
    "npy",
}  # fmt: skip


def how_to_convert(path: str, found: Format) -> str:
    """Return a hint: what converts a file of this format to ONNX, or what to pass instead."""
    kind = "pickle" if found.kind == "joblib" else found.kind
    out = _beside(path)
    if kind in _DATA:
        return "pass the ONNX model as --model, and the data as INPUT"
    if kind in _TF2ONNX:
        folder = os.path.dirname(path) if os.path.basename(path) == "saved_model.pb" else path
        out = _beside(folder)
        return (
            f"with tf2onnx installed: python -m tf2onnx.convert {_TF2ONNX[kind]} {shlex.quote(folder)} "
            f"--output {shlex.quote(out)}"
        )
    package = found.detail.partition(".")[0] if kind == "pickle" else ""
    if kind in _COMMANDS:
        needs, code = _COMMANDS[kind]
    elif package in _PICKLED:
        needs, code = _PICKLED[package]
    else:
        kind = "pytorch" if package == "torch" else kind
        text = _WORDS.get(kind, "export or copy it again")
        return text.replace("{torch}", _filled(_TORCH, path, out)).replace("{path}", _text(path))
    trusted = "if you trust the file, because loading it runs its code, and " if kind == "pickle" else ""
    number = ", with the model's number of features instead of 10" if kind == "torchscript" else ""
    return f"{trusted}with {needs} installed{number}: python -c {shlex.quote(_filled(code, path, out))}"


def _beside(path: str) -> str:
    """Return the path of the converted model, beside the original; no file has this name yet, as far as possible."""
    stem = os.path.splitext(path.rstrip("/"))[0]
    return f"{stem}.converted.onnx" if os.path.exists(f"{stem}.onnx") else f"{stem}.onnx"


def _filled(code: str, path: str, out: str) -> str:
    return code.format(path=_text(path), out=_text(out))


def _text(path: str) -> str:
    """Return a Python literal in double quotes, because a shell reads the code in single quotes."""
    return json.dumps(path, ensure_ascii=False)
