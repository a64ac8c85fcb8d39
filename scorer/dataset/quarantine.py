"""The columns that quarantine adds to a row."""

from __future__ import annotations

import pyarrow as pa

WHY = pa.schema([("_error", pa.string()), ("_stage", pa.string())])
PLACE = pa.schema([("_file", pa.string()), ("_row", pa.int64())])
ERRORS = pa.schema([*WHY, *PLACE])
"""All columns that quarantine adds to a row."""


def from_quarantine(schema: pa.Schema) -> bool:
    """Return whether the input is a quarantine folder: it has all columns that quarantine adds."""
    return all(
        schema.get_field_index(field.name) >= 0 and schema.field(field.name).type == field.type for field in ERRORS
    )
