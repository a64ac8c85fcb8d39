"""Made-up values for the inputs of any model."""

from __future__ import annotations

import numpy as np

_TYPES = {"double": "float64", "float": "float32", "string": "str"}


def feeds_of(session, rows, size, seed):
    """Return values for every input of a session, with `size` for what is free besides the rows."""
    rng, feeds = np.random.default_rng(seed), {}
    for tensor in session.get_inputs():
        shape = [d if isinstance(d, int) else (size if i else rows) for i, d in enumerate(tensor.shape)]
        kind = tensor.type[len("tensor(") : -1]
        values = rng.standard_normal(shape) if "float" in kind or kind == "double" else rng.integers(0, 2, shape)
        values = np.asarray(values).astype(_TYPES.get(kind, kind))
        feeds[tensor.name] = values.astype(object) if kind == "string" else values
    return feeds
