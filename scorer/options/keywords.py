"""The keyword arguments of a request, with the types that Python code may pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path


class RequestArguments(TypedDict, total=False):
    """The keyword arguments of `prepare` and `run`: one for each flag; a test compares them."""

    feed: Sequence[str] | Mapping[str, str | Sequence[str]] | str
    by_position: bool
    fetch: Sequence[str] | str
    labels: Sequence[str] | Mapping[str, str | Sequence[str]] | str | Path
    batch_axis: Sequence[str] | Mapping[str, int] | str
    keep: Sequence[str] | str
    where: Sequence[str] | str
    join: Sequence[str] | Mapping[str, str] | str
    base: str | Path | None
    input_version: int | str | datetime | None
    input_snapshot: int | str | None
    input_format: str
    limit: int | None
    row_id: bool
    transform: Callable[..., Any] | str | None
    prefix: str
    batch_rows: int | None
    part_bytes: int | str | None
    on_null: Sequence[str] | str
    on_lossy: str
    max_bad_rows: int | str
    max_nan_rows: int | str | None
    gate: Sequence[str] | str
    gate_warn: Sequence[str] | str
    batch_timeout: float | None
    work_dir: str | Path | None
    device: str
    trees: str
    pack: bool
    ort_library: str | Path | None
    threads: int | None
    workers: int | None
    ahead: int | None
    cluster: str | None
    cluster_option: Mapping[str, Any] | Sequence[str] | str
    cluster_name: str | None
    scheduler: str | None
    scheduler_file: str | Path | None
    adapt: str | None
    queue: str | None
    walltime: str | None
    memory: int | str | None
    interface: str | None
    job_extra: Sequence[str] | str
    forward_env: Sequence[str] | str
    tls: bool | None
    dashboard: bool
    store_option: Mapping[str, Any] | Sequence[str] | str
    format: str
    mode: str | None
    partition_by: Sequence[str] | str
    compression: str
    row_group_rows: int | None
    file_rows: int | None
    file_bytes: int | str | None
    strict: bool
    tune: bool
    overwrite: bool
    new_only: bool
    on_changed: str
    on_gone: str
    since: int | str | datetime | None
    sole_writer: bool
    success_file: bool
