"""Which credentials this process has for object stores. They come from its environment and are never passed on.

obstore reads most of them itself. What it does not read, profiles of AWS and logins of Azure, comes through the
packages of these clouds. A metadata service is asked only on a machine of that cloud, and only if nothing else is set.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from scorer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client needs besides the options: a provider, or settings; nothing if it reads the environment itself."""

    config: dict[str, Any] = field(default_factory=dict)
    provider: Any = None
    """A function that returns credentials, of obstore's kind."""


EXPIRED = re.compile("ExpiredToken|TokenRefreshRequired|RequestExpired|token.{0,20}expired", re.IGNORECASE)
"""What a store says of credentials that were valid before."""
_AWS = (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_WEB_IDENTITY_TOKEN_FILE",),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",), ("AWS_CONTAINER_CREDENTIALS_FULL_URI",))  # fmt: skip
_GOOGLE = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
           "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN")  # fmt: skip
_AZURE = ("ACCOUNT_KEY", "ACCESS_KEY", "SAS_TOKEN", "SAS_KEY", "CLIENT_SECRET", "FEDERATED_TOKEN_FILE", "TOKEN",
          "USE_AZURE_CLI", "USE_EMULATOR")  # fmt: skip
_AZURE_PREFIXES = ("AZURE_STORAGE_", "AZURE_")


def of(kind: str, where: str, options: Mapping[str, str]) -> Credentials:
    """Return the credentials of this process for a kind of store; raise InputError if there are none."""
    if kind in {"http", "https"} or is_true(options.get("skip_signature", "")):
        return Credentials()
    return {"s3": _aws, "gs": _google, "az": _azure}[kind](where, options)


def tracking_headers(location: str) -> dict[str, str]:
    """Return the headers that log in to the tracking server of MLflow, for a URL on that server; {} for others."""
    servers = (os.environ.get(name, "") for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"))
    own = {urlsplit(server)[:2] for server in servers if server.startswith(("http://", "https://"))}
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if urlsplit(location)[:2] not in own or not (user or token):
        return {}
    if not user:
        return {"Authorization": f"Bearer {token}"}
    pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def source(kind: str, options: Mapping[str, str]) -> str:
    """Return in words where this process has its credentials for a kind of store from; never what they are."""
    profile = options.get("profile") if kind == "s3" else None
    if profile:
        return f"the profile {profile!r}"
    found = _variable(kind)
    if found or kind != "s3":
        return found or "the environment"
    named = os.environ.get("AWS_PROFILE")
    return f"the profile {named!r}" if named else "~/.aws" if _has_aws_files() else "this machine"


def _variable(kind: str) -> str:
    """Return the name of the variable that credentials come from; '' if none is set."""
    names = {
        "s3": [names[0] for names in _AWS if all(map(_set, names))],
        "gs": [name for name in _GOOGLE if _set(name)],
        "az": [f"{prefix}{name}" for name in _AZURE for prefix in _AZURE_PREFIXES if _set(f"{prefix}{name}")],
    }
    return next(iter(names.get(kind, [])), "")


def _aws(where: str, options: Mapping[str, str]) -> Credentials:
    profile = options.get("profile")
    unsigned = is_true(os.environ.get("AWS_SKIP_SIGNATURE", ""))
    if not profile and (unsigned or any(all(map(_set, names)) for names in _AWS)):
        return Credentials()
    named = profile or os.environ.get("AWS_PROFILE", "")
    if named or _has_aws_files():
        return _boto3(where, profile, named)
    if is_true(os.environ.get("AWS_EC2_METADATA_DISABLED", "")) or not _on("amazon", "ec2"):
        raise _none(
            where,
            "AWS_ACCESS_KEY_ID, a profile, a web identity or an instance's role",
            "set them where scorer and its workers run, or pass --store-option skip_signature=true for a public bucket",
        )
    return Credentials()


def _boto3(where: str, profile: str | None, named: str) -> Credentials:
    """Return the credentials of a profile; boto3 knows all their forms."""
    if find_spec("boto3") is None:
        given = f"the profile {named!r}" if named else "a profile in ~/.aws"
        raise InputError(
            "a profile of AWS needs another package",
            where=where,
            expected="boto3, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            found=f"{given}, and boto3 is not installed",
            hint="pip install 'dask-scorer[aws]'",
        )
    import boto3  # noqa: PLC0415 - an extra
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - an extra
    from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 - an extra

    try:
        provider = Boto3CredentialProvider(boto3.Session(profile_name=profile))
        provider()
    except (BotoCoreError, ValueError, AssertionError) as error:
        found = "none" if isinstance(error, ValueError | AssertionError) else " ".join(str(error).split())
        raise InputError(
            "no credentials were found",
            where=where,
            expected=f"credentials in the profile {named!r}" if named else "credentials in ~/.aws",
            found=found,
            hint="choose another profile with AWS_PROFILE, or log in again: aws sso login",
        ) from error
    return Credentials(provider=provider)


def _google(where: str, options: Mapping[str, str]) -> Credentials:  # noqa: ARG001 - as the others
    login = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    if any(map(_set, _GOOGLE)) or login.is_file() or is_true(os.environ.get("GOOGLE_SKIP_SIGNATURE", "")):
        return Credentials()
    if not _on("google"):
        raise _none(
            where,
            "GOOGLE_APPLICATION_CREDENTIALS, a login or an instance's service account",
            "run `gcloud auth application-default login`, or pass --store-option skip_signature=true for a public one",
        )
    return Credentials()


def _azure(where: str, options: Mapping[str, str]) -> Credentials:  # noqa: ARG001 - as the others
    unsigned = is_true(os.environ.get("AZURE_SKIP_SIGNATURE", ""))
    if unsigned or _variable("az"):
        return Credentials()
    if find_spec("azure") is not None and find_spec("azure.identity") is not None:
        from obstore.auth.azure import AzureCredentialProvider  # noqa: PLC0415 - an extra

        return Credentials(provider=AzureCredentialProvider())
    managed = _set("IDENTITY_ENDPOINT") or _set("MSI_ENDPOINT") or _on("7783-7084-3265-9085-8269-3286-77")
    login = Path(os.environ.get("AZURE_CONFIG_DIR") or Path.home() / ".azure").is_dir()
    if login and not managed:
        raise InputError(
            "a login of Azure needs another package",
            where=where,
            expected="azure-identity, or AZURE_STORAGE_ACCOUNT_KEY",
            found="a login in ~/.azure, and azure-identity is not installed",
            hint="pip install azure-identity",
        )
    if not managed:
        raise _none(
            where,
            "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, a service principal or a managed identity",
            "set them where scorer and its workers run, or pass --store-option skip_signature=true for a public one",
        )
    return Credentials()


def _none(where: str, expected: str, hint: str) -> InputError:
    return InputError("no credentials were found", where=where, expected=expected, found="none", hint=hint)


def _has_aws_files() -> bool:
    """Return whether there are profiles of AWS."""
    places = (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))
    return any(Path(os.environ.get(name) or Path.home() / ".aws" / file).is_file() for name, file in places)


_DMI = Path("/sys/class/dmi/id")
"""Where Linux shows who made the machine."""


def _on(*names: str) -> bool:
    """Return whether this machine is one of a cloud, by what its firmware says; the network is not asked."""
    for file in ("sys_vendor", "product_name", "bios_vendor", "chassis_asset_tag"):
        try:
            text = (_DMI / file).read_text("ascii", "replace").strip().lower()
        except OSError:
            continue
        if text.startswith(names):
            return True
    return False


def _set(name: str) -> bool:
    return bool(os.environ.get(name))


def is_true(text: str) -> bool:
    """Return whether a variable or an option is switched on."""
    return text.lower() in {"1", "true", "yes"}
