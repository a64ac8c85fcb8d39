"""Code that the scripts of all other tools share: the job, columns to tensors, the session, tensors to columns.

`scorer bench` skips this file, because its name begins with an underscore; the scripts beside it import it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

NOT_HERE = 77
KINDS, FORMS = {"numeric", "nested", "text"}, {"flat", "list"}
TYPES = {"float", "double", "bool", "string"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
TEXT_ROWS = 32
ROWS_WORTH_CUTTING = 100_000


def cannot(why):
    """Print the reason and exit with the code by which `scorer bench` skips a tool."""
    print(why)
    sys.exit(NOT_HERE)


def read_job(*packages):
    """Read the job that the command line names; exit if a package is missing or a column is not supported."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    text = ["tokenizers"] if has_text(job) else []
    for package in (*packages, "onnxruntime", "pyarrow", *text):
        if find_spec(package) is None:
            cannot(f"{package} is not installed")
    for feed in job["feeds"]:
        if feed["kind"] not in KINDS or feed["dtype"] not in np.sctypeDict or len(feed["shape"]) > 1:
            cannot(f"no peer feeds {feed['kind']} columns as {feed['dtype']}{feed['shape']}")
    for fetch in job["fetches"]:
        odd = [step for step in fetch["steps"] if step != "normalize" and not step.startswith("mean_pool(")]
        if fetch["kind"] not in FORMS or fetch["type"] not in TYPES or odd:
            cannot(f"no peer fetches {fetch['kind']} columns of {fetch['type']} {' '.join(odd)}".strip())
    return job


def done(*packages):
    """Print the last line: the versions of the packages."""
    names = (*packages, "onnxruntime", "pyarrow", "numpy")
    print(json.dumps({"versions": {"python": platform.python_version()} | {name: version(name) for name in names}}))


def reachable():
    """Put this folder on PYTHONPATH, so that processes that a tool starts can import this module."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [os.path.dirname(os.path.abspath(__file__)), *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def fed(job):
    """Return the columns that feed the model, each once."""
    return list(dict.fromkeys(name for feed in job["feeds"] for name in feed["columns"]))


def has_text(job):
    """Return whether a text column feeds the model: such rows are slow and differ in length."""
    return any(feed["kind"] == "text" for feed in job["feeds"])


def uncut(job, pieces):
    """Return whether there are fewer row groups than `pieces`, and enough rows to split them."""
    import pyarrow.parquet as pq

    if len(job["input"]) >= pieces:
        return False
    footers = [pq.read_metadata(path) for path in job["input"]]
    worth = has_text(job) or sum(footer.num_rows for footer in footers) > ROWS_WORTH_CUTTING
    return worth and sum(footer.num_row_groups for footer in footers) < pieces


def batch_rows(job):
    """Return the rows of one call: the batch size of the job, or a usual one for texts."""
    return TEXT_ROWS if has_text(job) else job["batch_rows"]


def arrow_types(job):
    """Return the Arrow type of each output column."""
    import pyarrow as pa

    return {
        name: pa.list_(kind, fetch["width"]) if fetch["kind"] == "list" else kind
        for fetch in job["fetches"]
        for kind in [pa.type_for_alias(fetch["type"])]
        for name in fetch["columns"]
    }


def to_numpy(column):
    """Return an Arrow column for numpy: numbers without a copy if in one chunk, lists as a matrix, texts as a list."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        pieces = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        flat = np.concatenate([piece.flatten().to_numpy(zero_copy_only=False) for piece in pieces])
        return flat.reshape(len(column), -1) if len(column) else flat
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.to_pylist()
    if isinstance(column, pa.ChunkedArray):
        return column.to_numpy() if column.num_chunks != 1 else column.chunk(0).to_numpy(zero_copy_only=False)
    return column.to_numpy(zero_copy_only=False)


def to_arrow(values, kind):
    """Return one output column as Arrow."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
    return pa.array(values, kind)


class Model:
    """A session of one thread with its tokenizers; created once in each worker."""

    def __init__(self, job):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers share the cores already
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        self._job, self._rows = job, batch_rows(job)
        self._tensors = list(dict.fromkeys(fetch["tensor"] for fetch in job["fetches"]))
        self._tokenizers = {
            key: _tokenizer(*key[1:]) for feed in job["feeds"] if feed["kind"] == "text" for key in [_key(feed)]
        }

    def __call__(self, columns):
        """Return the output columns by name, from columns of `to_numpy`, in batches of the job's size."""
        rows = len(next(iter(columns.values())))
        starts = range(0, max(rows, 1), self._rows)
        batches = [self._run({n: v[at : at + self._rows] for n, v in columns.items()}) for at in starts]
        if len(batches) == 1:
            return batches[0]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _run(self, columns):
        return self.infer(self._feeds(columns))

    def infer(self, feeds):
        """Return the output columns by name, from the model's input tensors."""
        given = dict(zip(self._tensors, self._session.run(self._tensors, feeds), strict=True))
        found = {}
        for fetch in self._job["fetches"]:
            values = given[fetch["tensor"]]
            for step in fetch["steps"]:
                values = _stepped(values, step, feeds)
            values = values.reshape(len(values), -1)
            if values.dtype.name in {"float16", "bfloat16"}:
                values = values.astype(np.float32)
            if fetch["kind"] == "list":
                found[fetch["columns"][0]] = values
            else:
                found |= {name: np.ascontiguousarray(values[:, i]) for i, name in enumerate(fetch["columns"])}
        return found

    def _feeds(self, columns):
        encoded = {key: tokenizer.encode_batch_fast(_texts(columns[key[0]])) for key, tokenizer in
                   self._tokenizers.items()}  # fmt: skip
        feeds = {}
        for feed in self._job["feeds"]:
            dtype, values = np.dtype(feed["dtype"]), [columns[name] for name in feed["columns"]]
            if feed["kind"] == "text":
                part = {"ids": "ids", "mask": "attention_mask", "types": "type_ids"}[dict(feed["settings"])["give"]]
                array = np.array([getattr(one, part) for one in encoded[_key(feed)]], dtype)
            elif feed["kind"] == "nested" or not feed["shape"]:
                array = np.ascontiguousarray(values[0], dtype)
            else:
                array = np.stack(values, axis=1, dtype=dtype, casting="unsafe")
            feeds[feed["tensor"]] = array
        return feeds


def _key(feed):
    """Return the key of a tokenisation that several tensors share."""
    told = dict(feed["settings"])
    width = feed["shape"][-1] if feed["shape"] else None
    return feed["columns"][0], told["tokenizer"], told["max_length"], width


def _tokenizer(path, max_length, width):
    """Return a tokenizer that truncates at `max_length`, and pads to the longest text or to a fixed width."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    direction = (tokenizer.truncation or {}).get("direction", "right")
    own = {name: (tokenizer.padding or {}).get(name) for name in ("direction", "pad_id", "pad_type_id", "pad_token")}
    tokenizer.enable_truncation(max_length, direction=direction)
    tokenizer.enable_padding(length=width, **{name: value for name, value in own.items() if value is not None})
    return tokenizer


def _texts(values):
    return [value if isinstance(value, str) else "" for value in values]


def _stepped(values, step, feeds):
    if step == "normalize":
        return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
    mask = feeds[step.removeprefix("mean_pool(").removesuffix(")")].astype(values.dtype)
    return np.einsum("ntv,nt->nv", values, mask) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
