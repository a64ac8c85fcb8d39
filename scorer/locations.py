"""Locations as text: local paths, and URLs of object stores. Nothing here opens a file or asks a store."""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import quote

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SAME = {"s3a": "s3", "gcs": "gs", "azure": "az"}
"""Schemes with another name for the same store."""


def scheme(location: str) -> str:
    """Return the scheme of a URL, such as s3; '' for a local path."""
    found = _URL.match(location)
    return found[1].lower() if found else ""


def is_url(location: str) -> bool:
    """Return whether this is a URL, and not a local path."""
    return bool(scheme(location))


def is_tracked(model: str) -> bool:
    """Return whether this names a model of an MLflow tracking store, and not a place: models:/... or runs:/..."""
    return model.startswith(("models:/", "runs:/")) and not is_url(model)


def normal(location: str) -> str:
    """Return a URL with the usual name of its scheme, and without a slash at the end or two in a row."""
    root, key = split(location)
    return f"{root}/{key}" if key else root


def split(location: str) -> tuple[str, str]:
    """Return the root of a URL, such as s3://bucket, and the key below it, without slashes around it."""
    found = _URL.match(location)
    if found is None:
        msg = f"{location!r} is not a URL"
        raise ValueError(msg)
    kind = found[1].lower()
    place, _, key = location[found.end() :].partition("/")
    if kind in {"abfs", "abfss"}:  # container@account names the account too
        kind = "abfss" if "@" in place else "az"
    return f"{_SAME.get(kind, kind)}://{place}", "/".join(part for part in key.split("/") if part)


def join(location: str, *names: str) -> str:
    """Return the location of something below another location."""
    return "/".join([location.rstrip("/"), *(name.strip("/") for name in names)])


def beside(location: str, name: str) -> str:
    """Return the URL of a file whose name is relative to the folder of another; on the web with %20 and the like."""
    root, key = split(location)
    path = posixpath.normpath(posixpath.join("/", posixpath.dirname(key), quote(name) if _is_web(root) else name))
    return f"{root}{path}"


def absolute(location: str) -> str:
    """Return a URL in its normal form, or the absolute path of a local file, whose ~ is the home folder."""
    return normal(location) if is_url(location) else os.path.abspath(os.path.expanduser(location))


def _is_web(location: str) -> bool:
    return scheme(location) in {"http", "https"}


def is_below(location: str, other: str) -> bool:
    """Return whether a URL is the other one, or lies below it."""
    return normal(location) == normal(other) or normal(location).startswith(normal(other) + "/")


def cloud(location: str) -> str:
    """Return which cloud's options and credentials a URL takes: s3, gs or az; otherwise its scheme."""
    usual = scheme(normal(location)) if is_url(location) else ""
    return "az" if usual == "abfss" else usual


def natural(path: str) -> list[list[tuple[int, int, str]]]:
    """Return a sort key that compares digits as numbers, folder by folder; the path itself breaks ties."""
    parts = [
        [(1, int(bit), "") if bit.isdecimal() else (0, 0, bit) for bit in re.split(r"([0-9]+)", part)]
        for part in path.split("/")
    ]
    return [*parts, [(0, 0, path)]]
