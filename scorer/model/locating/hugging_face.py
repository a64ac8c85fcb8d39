"""Folders of Hugging Face: what they say about their model, as the texts of --feed and --fetch, and its classes.

tokenizer.json, sentence_bert_config.json, tokenizer_config.json     the tokens of a text
modules.json, 1_Pooling/config.json                                  one vector for each text
preprocessor_config.json                                             the size and the values of a picture
config.json                                                          the classes

What scorer cannot do in the same way is left out, with a note.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.options.grammar import call_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.model.locating.folders import Folder
    from scorer.model.spec import TensorSpec

FILE = "config.json"
ONNX_FILES = ("model.onnx", "onnx/model.onnx")
_IDS, _MASK = "input_ids", "attention_mask"
_LONGEST = 100_000  # tokenizers without a limit say 1e30
_OFFSET = ("roberta", "camembert", "mpnet")
"""Models whose first positions are not used: their number of positions is larger than that of their tokens."""
_POOLS = {"cls": "cls", "mean": f"mean_pool({_MASK})"}
_POOLING_KEYS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_PICTURE = 4  # axes


@dataclass(frozen=True, slots=True)
class Described:
    """What a folder says about its model."""

    feeds: tuple[str, ...] = ()
    fetches: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class NotAlike(Exception):
    """Something that scorer does not do in the same way, in words."""


def describe(folder: Folder, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Described:
    """Return what the folder says about a model with these tensors."""
    config = folder.config(FILE)
    feeds: list[str] = []
    fetches: tuple[str, ...] = ()
    notes: list[str] = []
    try:
        feeds = _feeds(folder, config, inputs)
    except NotAlike as reason:
        notes.append(str(reason))
    try:
        fetches = _fetches(folder, config, outputs)
    except NotAlike as reason:
        notes.append(str(reason))
    return Described(tuple(feeds), fetches, classes(config), tuple(notes))


def classes(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes; () if they are only numbered."""
    found = config.get("id2label")
    if not isinstance(found, dict) or not all(str(at) in found for at in range(len(found))):
        return ()
    names = tuple(str(found[str(at)]) for at in range(len(found)))
    named = len({*names}) == len(names) > 1 and all(name.strip() and name.isprintable() for name in names)
    return names if named and not all(name.startswith("LABEL_") for name in names) else ()


def _feeds(folder: Folder, config: dict[str, Any], inputs: Sequence[TensorSpec]) -> list[str]:
    """Return the feed of the tokens, or that of the pictures."""
    names = [tensor.name for tensor in inputs]
    if _IDS in names:
        tokenizer = folder.at("tokenizer.json")
        if not folder.has("tokenizer.json"):
            raise NotAlike(f"the model's folder has no tokenizer.json, so texts cannot feed {_IDS!r}")
        length = _length(folder, config)
        return [f"{_IDS}={call_text('text', [tokenizer], {'max_length': length} if length else {})}"]
    pictures = [tensor.name for tensor in inputs if len(tensor.shape or ()) == _PICTURE]
    given = folder.config("preprocessor_config.json")
    if not given or len(inputs) != 1 or not pictures:
        return []
    return [f"{pictures[0]}={call_text('image', [], _picture(given))}"]


def _length(folder: Folder, config: dict[str, Any]) -> int:
    """Return the longest text in tokens, 0 if nothing says it."""
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and any(one in str(config.get("model_type")) for one in _OFFSET):
        positions -= int(config.get("pad_token_id") or 1) + 1
    found = (
        folder.config("sentence_bert_config.json").get("max_seq_length"),
        folder.config("tokenizer_config.json").get("model_max_length"),
        positions,
    )
    return next((int(one) for one in found if isinstance(one, int | float) and 0 < one < _LONGEST), 0)


def _fetches(folder: Folder, config: dict[str, Any], outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the outputs to write, with their steps; () for all of them as they are."""
    shapes = {tensor.name: tensor.shape for tensor in outputs}
    if "sentence_embedding" in shapes:
        return ("sentence_embedding=embedding",)
    if "logits" in shapes:
        return _of_logits(config, shapes["logits"])
    hidden = next((name for name in ("last_hidden_state", "token_embeddings") if name in shapes), "")
    modules = [one for one in folder.config("modules.json").values() if isinstance(one, dict)]
    kinds = [str(one.get("type", "")).rpartition(".")[2] for one in modules]
    pooled = next((one for one in modules if str(one.get("type")).endswith("Pooling")), {})
    path = str(pooled.get("path") or "1_Pooling")
    pooling = folder.config(f"{path}/config.json")
    if not hidden or not (pooled or pooling):
        return ()
    others = [kind for kind in kinds if kind not in {"Transformer", "Pooling", "Normalize"}]
    modes = [name for name in pooling if name.startswith("pooling_mode_") and pooling[name] is True]
    mode = str(pooling.get("pooling_mode") or "") or (_POOLING_KEYS.get(modes[0], modes[0]) if len(modes) == 1 else "")
    if others or mode not in _POOLS:
        found = ", ".join(others or modes or [mode or "no mode"])
        raise NotAlike(f"the model's folder pools tokens in a way that scorer does not know ({found}); choose --fetch")
    return (f"{hidden}|{_POOLS[mode]}{'|normalize' if 'Normalize' in kinds else ''}=embedding",)


def _of_logits(config: dict[str, Any], shape: tuple[int | str | None, ...] | None) -> tuple[str, ...]:
    """Return the outputs of a classifier or a regressor of whole rows; () for one of their tokens."""
    if shape is not None and len(shape) != 2:  # noqa: PLR2004 - [N, classes]
        return ()
    problem = config.get("problem_type")
    if problem == "regression" or len(config.get("id2label") or {}) == 1:
        return ("logits=prediction",)
    if problem == "multi_label_classification":
        return ("logits|sigmoid=probabilities",)
    return ("logits|softmax=probabilities", *(("logits|label=label",) if classes(config) else ()))


def _picture(given: dict[str, Any]) -> dict[str, object]:
    """Return the settings of image(...) for what preprocessor_config.json says."""
    settings: dict[str, object] = {}
    if given.get("do_resize", True):
        size, crop = _sides(given.get("size")), _sides(given.get("crop_size")) if given.get("do_center_crop") else None
        settings |= _sized(size, crop)
        settings["filter"] = _FILTERS.get(given.get("resample", 2), "")
        if not settings["filter"]:
            raise NotAlike(f"the model's folder resamples pictures by another filter: {given.get('resample')}")
    scale = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
    if not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        settings["scale"] = f"{scale:.9g}"
    if given.get("do_normalize", False):
        settings |= {name: _numbers(given.get(f"image_{name}")) for name in ("mean", "std")}
    if given.get("do_pad"):
        raise NotAlike("the model's folder pads pictures, which scorer does in another way; choose --feed")
    return settings


def _sides(size: object) -> tuple[str, int, int]:
    """Return how a size is meant, with its height and width."""
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return "both", int(size["height"]), int(size["width"])
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return "shorter", int(size["shortest_edge"]), int(size["shortest_edge"])
    if isinstance(size, int):
        return "shorter", size, size
    raise NotAlike(f"the model's folder gives the size of pictures in a way that scorer does not know: {size}")


def _sized(size: tuple[str, int, int], crop: tuple[str, int, int] | None) -> dict[str, object]:
    """Return the size and how pictures get it."""
    text = f"{(crop or size)[1]}x{(crop or size)[2]}"
    if size[0] == "both" and (crop is None or crop[1:] == size[1:]):
        return {"size": text, "resize": "stretch"}
    if size[0] == "shorter" and crop is not None and max(crop[1:]) == size[1] == min(crop[1:]):
        return {"size": text, "resize": "crop"}
    raise NotAlike(
        f"the model's folder scales the shorter side of pictures to {size[1]} and takes {text} of them, "
        "which scorer does in another way; choose --feed"
    )


def _numbers(values: object) -> str:
    """Return the means or deviations of the channels."""
    if not isinstance(values, list) or not all(isinstance(one, int | float) for one in values):
        raise NotAlike(f"the model's folder normalises pictures by {values}")
    return " ".join(f"{float(one):.9g}" for one in values)
