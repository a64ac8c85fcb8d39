"""How the libraries of tables reach object stores: with the options and credentials that scorer's own client has.

They have clients of their own. Each gets all it needs, so that none asks a metadata service for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from scorer.host import credentials
from scorer.host.credentials import is_true
from scorer.locations import cloud, is_url
from scorer.storage import stores

if TYPE_CHECKING:
    from collections.abc import Mapping


_NAMES = {
    "s3": {
        "region": "AWS_REGION", "skip_signature": "AWS_SKIP_SIGNATURE", "request_payer": "AWS_REQUEST_PAYER",
        "virtual_hosted_style_request": "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY", "token": "AWS_SESSION_TOKEN",
    },
    "gs": {"skip_signature": "GOOGLE_SKIP_SIGNATURE", "token": "GOOGLE_BEARER_TOKEN"},
    "az": {
        "skip_signature": "AZURE_SKIP_SIGNATURE", "account_name": "AZURE_STORAGE_ACCOUNT_NAME",
        "token": "AZURE_STORAGE_TOKEN",
    },
}  # fmt: skip
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}


def for_delta(location: str) -> dict[str, str]:
    """Return the storage options with which deltalake reaches a location; none for a local one.

    Raises InputError without credentials.
    """
    if not is_url(location):
        return {}
    stores.refuse_secrets(location)
    kind, chosen = cloud(location), stores.options_of(location)
    names = _NAMES.get(kind, {})
    found = {names[key]: value for key, value in chosen.items() if key in names}
    if endpoint := stores.endpoint(location):
        found[_ENDPOINTS[kind]] = endpoint
    if is_true(chosen.get("allow_http", "")) or any(is_true(os.environ.get(name, "")) for name in _HTTP):
        found["allow_http"] = "true"
    own = credentials.of(kind, location, chosen)
    given: Mapping[str, Any] = own.config if own.provider is None else own.provider()
    found |= {names[key]: str(value) for key, value in given.items() if key in names and value}
    if kind == "s3":
        found["AWS_EC2_METADATA_DISABLED"] = "true" if own.provider or _has_keys(found) else "false"
        found.setdefault("AWS_REGION", stores.region_of(location, own))
    return found


_HTTP = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")


def _has_keys(found: Mapping[str, str]) -> bool:
    return "AWS_SKIP_SIGNATURE" in found or any(os.environ.get(n) for n in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"))
