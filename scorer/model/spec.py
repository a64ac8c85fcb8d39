"""A model as data: its tensors, labels and operators (ModelSpec), and all that is needed to load it (SessionSpec)."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from scorer.display import html
from scorer.display.blocks import Facts, Table
from scorer.display.words import cut, name_list, plural, size

if TYPE_CHECKING:
    from collections.abc import Sequence

CONVERSION = "scorer_conversion"
"""The key of the metadata in which `scorer convert` says what it compared, as JSON."""
OPTIMISATION = "scorer_optimisation"
"""The key of the metadata in which `scorer optimise` says what it did and compared, as JSON."""
_RECORDS = (CONVERSION, OPTIMISATION)
_LARGE_BYTES = 64_000_000  # smaller models load so fast that packing takes longer
_METADATA_LETTERS = 60  # shown of one metadata entry
_SIZE_LETTERS = 40  # shown of the name of a dimension, which may be a long formula


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor as the model declares it; declared output shapes may be wrong."""

    name: str
    type: str
    """float32, int64, string, …; 'sequence' or 'map' if it is not a tensor."""
    shape: tuple[int | str | None, ...] | None
    """None if the rank is unknown; a name or None for a free dimension."""

    def __str__(self) -> str:
        """Return the type and shape, for example: float32 [N, 28]."""
        if self.shape is None:
            return self.type
        return f"{self.type} [{', '.join('?' if d is None else cut(str(d), _SIZE_LETTERS) for d in self.shape)}]"

    @property
    def words(self) -> tuple[str, str, str]:
        """Name, type and shape as text."""
        return self.name, self.type, str(self).removeprefix(self.type).strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model's inputs, outputs and other properties."""

    path: str
    digest: str
    """sha256 over the file and its external data."""
    bytes: int
    files: tuple[str, ...]
    """External data files, relative to the model."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    feature_names: tuple[str, ...]
    class_labels: tuple[str, ...]
    zipmaps: dict[str, tuple[str, ...]]
    """Class labels by ZipMap output, whose value is a list of maps."""
    operators: dict[str, int]
    opsets: dict[str, int]
    metadata: dict[str, str]
    producer: str
    coupled: tuple[str, ...]
    """Operators that make a row's score depend on its batch, with the reason."""
    unused: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Numbers of the columns that the model's trees never look at, by input; inputs without any are left out."""
    name: str = ""
    """The name in a tracking store of MLflow, with the version, such as models:/churn/3; '' for other models."""
    feeds: tuple[str, ...] = ()
    """What the model's folder says of its inputs, as --feed takes it."""
    fetches: tuple[str, ...] = ()
    """What it says of the outputs, as --fetch takes it."""
    labels: tuple[str, ...] = ()
    """What it says of the classes, as --labels takes it."""
    notes: tuple[str, ...] = ()
    """What it says, and scorer cannot do in the same way."""

    @property
    def identity(self) -> dict[str, str]:
        """Where the model is, its digest, and its name if a tracking store has one."""
        return {"path": self.path, "digest": self.digest} | ({"name": self.name} if self.name else {})

    @property
    def words(self) -> str:
        """The model's name, if a tracking store has one, and where it is."""
        return f"{self.name} ({self.path})" if self.name else self.path

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of a run that the model's folder stands for."""
        return flags_of(feed=self.feeds, fetch=self.fetches, labels=self.labels)

    def can_be_packed(self, spec: SessionSpec) -> bool:
        """Return whether the processes of a host that load `spec` gain from packed weights. Trees have no weights."""
        trees = any(name.startswith("TreeEnsemble") for name in self.operators)
        return spec.device == "cpu" and not spec.library and not trees and self.bytes >= _LARGE_BYTES

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data."""
        return asdict(self)

    def blocks(self) -> list[Facts | Table]:
        """Return the spec as blocks for text and HTML."""
        facts = [
            ("model", f"{self.path} ({size(self.bytes)})"),
            ("name", self.name),
            ("digest", self.digest[:16]),
            ("features", name_list(self.feature_names)),
            ("classes", name_list(self.class_labels)),
            ("converted", conversion_words(self.metadata.get(CONVERSION, ""))),
            ("optimised", optimisation_words(self.metadata.get(OPTIMISATION, ""))),
            ("metadata", "; ".join(f"{k} = {_short(v)}" for k, v in self.metadata.items() if k not in _RECORDS)),
            ("producer", self.producer),
            ("opsets", ", ".join(f"{name} {version}" for name, version in self.opsets.items())),
            ("operators", ", ".join(f"{name} {times}" for name, times in self.operators.items())),
            ("caution", "; ".join(self.coupled)),
            ("from folder", shlex.join(self.flags)),
            *(("note", note) for note in self.notes),
        ]
        classes = ("name", "", "")
        return [
            Facts([(name, text) for name, text in facts if text]),
            Table(("input", "type", "shape"), classes, [tensor.words for tensor in self.inputs]),
            Table(("output", "type", "shape"), classes, [tensor.words for tensor in self.outputs]),
        ]

    def _repr_html_(self) -> str:
        return html.card("Model", self.blocks())


def flags_of(**options: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of repeatable options as words of a command."""
    return tuple(word for name, texts in options.items() for text in texts for word in (f"--{name}", text))


def conversion_words(text: str) -> str:
    """Return what `scorer convert` compared, in words; '' for a model that it did not write."""
    try:
        record = json.loads(text)
        if record["rows"] == 0:
            return f"from {record['model']}, which has this ONNX model; no scores were compared"
        from_, by, data = (str(record[key]) for key in ("model", "library", "data"))
        rows, edge = (int(record[key]) for key in ("rows", "threshold_rows"))
        largest, allowed = (float(record[key]) for key in ("largest_difference", "tolerance"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    on = f" and {edge:,} on thresholds of the trees" if edge else ""
    return (
        f"from {from_}; {plural(rows, 'row')} of {data}{on} were also scored by {by}: "
        f"largest difference {largest:.2g}, allowed {allowed:g}"
    )


def optimisation_words(text: str) -> str:
    """Return what `scorer optimise` did and compared, in words; '' for a model that it did not write."""
    try:
        record = json.loads(text)
        recipe, source, data, rows = record["recipe"], record["model"], record["data"], int(record["rows"])
        changes = "; ".join(f"{name}: {words}" for name, words in record["scores"].items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
    return f"{recipe}, from {str(source)[:16]}; {plural(rows, 'row')} of {data} were scored by both: {changes}"


def _short(text: str) -> str:
    """Return the text on one line, shortened."""
    text = " ".join(text.split())
    return text if len(text) <= _METADATA_LETTERS else text[:_METADATA_LETTERS] + "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """All that a worker needs to load the model; plain data."""

    path: str
    digest: str
    files: tuple[str, ...]
    device: str
    """Name of the chosen device, never 'auto'."""
    gpu: int = 0
    """Number of the GPU that this process uses; not part of a plan."""
    intra_op: int = 1
    library: str = ""
    """Library of custom operators: a path, or 'onnxruntime_extensions' for that package."""

    trees: bool = True
    """Whether tree ensembles may run on the compiled kernel; the scores are the same, so it is not part of a plan."""
    pack: bool = False
    """Whether to map weights that are packed once for each host; the same scores again, and no part of a plan."""

    @property
    def key(self) -> SessionKey:
        """Key of the session: specs with equal keys share one loaded model, with packed weights or without."""
        return self.digest, self.device, self.gpu, self.intra_op, self.library, self.trees


SessionKey = tuple[str, str, int, int, str, bool]
