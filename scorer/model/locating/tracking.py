"""The folder that an MLflow tracking store has for models:/NAME@ALIAS, models:/NAME/VERSION and runs:/ID/PATH.

MLFLOW_TRACKING_URI names the store; for models:/..., MLFLOW_REGISTRY_URI comes first. Without it, a database mlflow.db
or a folder mlruns in the current folder is the store, as for MLflow itself. The package mlflow is not needed.

A name is resolved once, in the driver. Workers get the location of the file, and its digest.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from scorer.display.words import without_secrets
from scorer.errors import ModelNotFound, OptionsError
from scorer.locations import is_url, join
from scorer.model.locating.tracking_stores import Database, Files, Missing, Server

if TYPE_CHECKING:
    from scorer.model.locating.tracking_stores import Store

_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))")
_LOGGED = re.compile(r"models:/(?P<id>m-[0-9a-f]{32})")
_RUN = re.compile(r"runs:/(?P<run>[0-9A-Za-z_-]+)/(?P<path>.+)")
_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/PATH"
_ARTIFACTS = "api/2.0/mlflow-artifacts/artifacts"
_LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a tracking store has under a name."""

    name: str
    """The name with its version, such as models:/churn/3."""
    places: tuple[str, ...]
    """Where the model is: the first of these locations that is a file, or a folder with a model."""


def resolve(reference: str) -> Tracked:
    """Return the model's name with its version, and where it is."""
    where = _tracking_uri(reference)
    store = _store(where)
    logged, run, model = (pattern.fullmatch(reference) for pattern in (_LOGGED, _RUN, _MODEL))
    try:
        if logged:
            return Tracked(reference, (_location(store.logged(logged["id"]), where, reference),))
        if run:
            uris = store.of_run(run["run"], run["path"].strip("/"))
            return Tracked(reference, tuple(_location(uri, where, reference) for uri in uris))
        if model is None or ".." in model["name"]:
            raise OptionsError(
                "the model's name cannot be understood", where=reference, expected=_FORMS, found=repr(reference),
                hint="such as --model models:/churn@champion",
            )  # fmt: skip
        version = _version(store, model["name"], model["alias"], model["version"])
        uri = store.version(model["name"], version)
    except Missing as missing:
        raise ModelNotFound(
            "the tracking store has no such model", where=reference, expected=f"a model of {without_secrets(where)}",
            found=str(missing), hint="check the name, the alias or the version, and MLFLOW_TRACKING_URI",
        ) from missing  # fmt: skip
    name = f"models:/{model['name']}/{version}"
    if _LOGGED.fullmatch(uri):
        uri = store.logged(uri.removeprefix("models:/"))
    return Tracked(name, (_location(uri, where, reference),))


def _version(store: Store, name: str, alias: str | None, version: str | None) -> str:
    """Return the number of the version."""
    if alias is not None:
        return store.alias(name, alias)
    if version is not None and version.isdecimal():
        return version
    stages = store.stages(name)
    numbers = stages.values() if version == _LATEST else [stages[one] for one in stages if one == version]
    if not numbers:
        raise Missing(f"no version {version!r} of {name!r}, and no stage of this name")
    return max(numbers, key=int)


def _tracking_uri(reference: str) -> str:
    """Return where the tracking store is: a URL or a folder."""
    names = ["MLFLOW_TRACKING_URI"] if reference.startswith("runs:") else ["MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"]
    found = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not found and os.path.isfile("mlflow.db"):
        return "sqlite:///mlflow.db"
    if not found and os.path.isdir("mlruns"):
        return os.path.abspath("mlruns")
    kind = urlsplit(found).scheme
    if found and kind in {"", "file", "http", "https", "sqlite"}:
        return found.rstrip("/")
    database = kind.partition("+")[0] in {"postgresql", "mysql", "mssql"}
    raise ModelNotFound(
        "it is not known where the tracking store of the model is", where=reference,
        expected="a tracking server, a database of SQLite, or a folder of tracking files, in MLFLOW_TRACKING_URI",
        found=without_secrets(found) if found else "MLFLOW_TRACKING_URI is not set, and here is no mlflow.db or mlruns",
        hint=f"mlflow server --backend-store-uri {without_secrets(found)}, and set MLFLOW_TRACKING_URI to its address"
        if database else "export MLFLOW_TRACKING_URI=http://HOST:5000",
    )  # fmt: skip


def _store(uri: str) -> Store:
    """Return the tracking store behind a URI."""
    kind = urlsplit(uri).scheme
    if kind in {"http", "https"}:
        return Server(uri)
    return Database(uri.removeprefix("sqlite:///")) if kind == "sqlite" else Files(_path(uri))


def _path(uri: str) -> str:
    """Return the path of a folder that may be a file URI."""
    return unquote(urlsplit(uri).path) if uri.startswith("file:") else os.path.abspath(os.path.expanduser(uri))


def _location(uri: str, tracking: str, reference: str) -> str:
    """Return the location of artifacts, as scorer reads it: through the server, on a store, or a local path."""
    parts = urlsplit(uri)
    if parts.scheme == "mlflow-artifacts":
        server = urlsplit(tracking)
        root = f"{server.scheme}://{parts.netloc}" if parts.netloc else tracking
        if urlsplit(root).scheme in {"http", "https"}:
            return join(root, _ARTIFACTS, quote(unquote(parts.path)))
    elif parts.scheme in {"", "file"}:
        return _path(uri)
    elif is_url(uri):
        return uri
    raise ModelNotFound(
        "the model is stored where scorer cannot read", where=f"{reference} at {without_secrets(uri)}",
        expected="artifacts behind the tracking server, on an object store, or in a local folder",
        found=f"artifacts of {parts.scheme}:", hint=f"mlflow artifacts download --artifact-uri {reference}, and pass "
        "the folder",
    )  # fmt: skip
