"""The tracking stores of MLflow: what a server, a database or a folder of files says about a model.

A server is asked over HTTP, by MLflow's REST API. The others are read as MLflow writes them.
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from scorer.display.words import cut, without_secrets
from scorer.errors import ModelNotFound
from scorer.host.credentials import tracking_headers
from scorer.locations import join

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S = 20
_API = "api/2.0/mlflow"


class Missing(Exception):
    """The store has no such model, alias, version or run; the argument is what it says."""


class Store(Protocol):
    """What every kind of store tells. Raises `Missing`."""

    def alias(self, name: str, alias: str) -> str:
        """Return the version that an alias of a registered model names."""

    def stages(self, name: str) -> dict[str, str]:
        """Return the last version of a registered model in each stage."""

    def version(self, name: str, version: str) -> str:
        """Return the URI of the folder of a version."""

    def logged(self, model: str) -> str:
        """Return the URI of the folder of a logged model."""

    def of_run(self, run: str, path: str) -> list[str]:
        """Return the URIs where a run's artifact, or its logged model of this name, may be."""


class Server:
    """A tracking server."""

    def __init__(self, root: str) -> None:
        self._root = root

    def alias(self, name: str, alias: str) -> str:
        """Return the version that an alias of a registered model names."""
        found = self._ask("registered-models/alias", {"name": name, "alias": alias})
        return self._text(found, "model_version", "version")

    def stages(self, name: str) -> dict[str, str]:
        """Return the last version of a registered model in each stage."""
        found = self._ask("registered-models/get", {"name": name}).get("registered_model", {})
        return {str(one["current_stage"]): str(one["version"]) for one in found.get("latest_versions", ())}

    def version(self, name: str, version: str) -> str:
        """Return the URI of the folder of a version."""
        found = self._ask("model-versions/get-download-uri", {"name": name, "version": version})
        return self._text(found, "artifact_uri")

    def logged(self, model: str) -> str:
        """Return the URI of the folder of a logged model."""
        return self._text(self._ask(f"logged-models/{model}", {}), "model", "info", "artifact_uri")

    def of_run(self, run: str, path: str) -> list[str]:
        """Return the URIs where a run's artifact, or its logged model of this name, may be."""
        info = self._ask("runs/get", {"run_id": run})
        own = join(self._text(info, "run", "info", "artifact_uri"), path)
        try:
            found = self._ask(
                "logged-models/search", None,
                {
                    "experiment_ids": [self._text(info, "run", "info", "experiment_id")],
                    "filter": f"source_run_id = '{run}'",
                },
            )  # fmt: skip
        except Missing:  # a server of MLflow 2 has none
            return [own]
        models = [one["info"] for one in found.get("models", ()) if one["info"].get("name") == path]
        return [*(str(one["artifact_uri"]) for one in models), own]

    def _ask(self, what: str, query: Mapping[str, str] | None, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the server's answer; raise `Missing` for what it does not have."""
        url = f"{self._root}/{_API}/{what}" + (f"?{urlencode(query)}" if query else "")
        body = None if data is None else json.dumps(data).encode()
        request = Request(url, body, {"Content-Type": "application/json", **tracking_headers(self._root)})  # noqa: S310 - http, as checked
        try:
            with urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http, as checked
                found = json.loads(answer.read())
        except HTTPError as error:
            words = _message(error)
            if error.code in {400, 404}:
                raise Missing(words) from error
            self._refuse(f"{error.code}: {words}", error)
        except (URLError, OSError, ValueError) as error:
            self._refuse(str(getattr(error, "reason", error)), error)
        return found if isinstance(found, dict) else {}

    def _text(self, found: Any, *keys: str) -> str:  # noqa: ANN401 - JSON
        """Return a text in an answer."""
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, str) or not found:
            self._refuse(f"an answer without {'.'.join(keys)}", None)
        return found

    def _refuse(self, words: str, error: Exception | None) -> NoReturn:
        raise ModelNotFound(
            "the tracking server does not say where the model is", where=without_secrets(self._root),
            expected="a tracking server of MLflow that answers", found=cut(words),
            hint="check MLFLOW_TRACKING_URI, the network, and MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD",
        ) from error  # fmt: skip


def _message(error: HTTPError) -> str:
    """Return what a server says of an error."""
    text = error.read(10_000).decode("utf-8", "replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return error.reason


class Files:
    """A folder of tracking files, such as mlruns."""

    def __init__(self, root: str) -> None:
        self._root = root

    def alias(self, name: str, alias: str) -> str:
        """Return the version that an alias of a registered model names."""
        place = os.path.join(self._root, "models", name, "aliases", os.path.basename(alias))
        try:
            with open(place, encoding="utf-8") as file:
                return file.read().strip()
        except OSError as error:
            raise Missing(f"no file {place}") from error

    def stages(self, name: str) -> dict[str, str]:
        """Return the last version of a registered model in each stage."""
        found: dict[str, str] = {}
        for place in glob(f"{escape(os.path.join(self._root, 'models', name))}/version-*/meta.yaml"):
            about = self._read(place)
            stage, version = str(about.get("current_stage")), str(about.get("version"))
            found[stage] = max(found.get(stage, version), version, key=int)
        return found

    def version(self, name: str, version: str) -> str:
        """Return the URI of the folder of a version."""
        about = self._read(os.path.join(self._root, "models", name, f"version-{version}", "meta.yaml"))
        return str(about.get("storage_location") or about.get("source"))

    def logged(self, model: str) -> str:
        """Return the URI of the folder of a logged model."""
        return str(self._one(f"*/models/{model}")["artifact_location"])

    def of_run(self, run: str, path: str) -> list[str]:
        """Return the URIs where a run's artifact, or its logged model of this name, may be."""
        own = join(str(self._one(f"*/{run}")["artifact_uri"]), path)
        models = map(self._read, glob(f"{escape(self._root)}/*/models/m-*/meta.yaml"))
        named = [one for one in models if (one.get("source_run_id"), one.get("name")) == (run, path)]
        return [*(str(one["artifact_location"]) for one in named), own]

    def _one(self, pattern: str) -> dict[str, Any]:
        found = glob(f"{escape(self._root)}/{pattern}/meta.yaml")
        if not found:
            raise Missing(f"no file {self._root}/{pattern}/meta.yaml")
        return self._read(found[0])

    def _read(self, place: str) -> dict[str, Any]:
        """Return the contents of a file that describes something."""
        import yaml  # noqa: PLC0415 - Dask needs it, and only these files do here

        try:
            with open(place, encoding="utf-8") as file:
                found = yaml.safe_load(file)
        except FileNotFoundError as error:
            raise Missing(f"no file {place}") from error
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise Missing(f"a file that cannot be read: {place}: {cut(str(error))}") from error
        if not isinstance(found, dict):
            raise Missing(f"a file that describes nothing: {place}")
        return found


class Database:
    """A database of SQLite, such as mlflow.db. It is opened for reading only."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)

    def alias(self, name: str, alias: str) -> str:
        """Return the version that an alias of a registered model names."""
        return str(self._one("registered_model_aliases", name=name, alias=alias)["version"])

    def stages(self, name: str) -> dict[str, str]:
        """Return the last version of a registered model in each stage."""
        found = sorted(self._rows("model_versions", name=name), key=lambda row: int(row["version"]))
        return {str(row["current_stage"]): str(row["version"]) for row in found}

    def version(self, name: str, version: str) -> str:
        """Return the URI of the folder of a version."""
        row = self._one("model_versions", name=name, version=int(version))
        return str(row.get("storage_location") or row["source"])

    def logged(self, model: str) -> str:
        """Return the URI of the folder of a logged model."""
        return str(self._one("logged_models", model_id=model)["artifact_location"])

    def of_run(self, run: str, path: str) -> list[str]:
        """Return the URIs where a run's artifact, or its logged model of this name, may be."""
        own = join(str(self._one("runs", run_uuid=run)["artifact_uri"]), path)
        try:
            models = self._rows("logged_models", source_run_id=run, name=path)
        except Missing:  # a database of MLflow 2 has none
            models = []
        return [*(str(row["artifact_location"]) for row in models), own]

    def _one(self, table: str, **values: str | int) -> dict[str, Any]:
        found = self._rows(table, **values)
        if not found:
            raise Missing(f"no row in {table} of {self._path} with {values}")
        return found[0]

    def _rows(self, table: str, **values: str | int) -> list[dict[str, Any]]:
        """Return the rows with these values; the names of the table and its columns are ours."""
        import sqlite3  # noqa: PLC0415 - only for these stores

        where = " and ".join(f"{name} = ?" for name in values)
        try:
            with closing(sqlite3.connect(f"{Path(self._path).as_uri()}?mode=ro", uri=True)) as connection:
                connection.row_factory = sqlite3.Row
                rows = connection.execute(f"select * from {table} where {where}", tuple(values.values()))  # noqa: S608 - no names of others
                return [dict(row) for row in rows]
        except sqlite3.Error as error:
            raise Missing(f"a database that cannot be read: {self._path}: {cut(str(error))}") from error
