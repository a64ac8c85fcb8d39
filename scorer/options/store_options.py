"""Options of object stores, `KEY=VALUE` for all or `URL:KEY=VALUE` for one bucket. None of them is a secret.

They travel to workers and stand in shell histories and job files, so a credential in their place is refused, and its
value is never repeated. The texts of this module are the only form in which options are passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.display.words import did_you_mean, without_secrets
from scorer.errors import OptionsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    StoreOption = Mapping[str, Any] | Sequence[str] | str
    """How options are given in Python."""

SWITCHES = ("request_payer", "skip_signature", "allow_http", "virtual_hosted_style_request")
"""Options that are true or false."""
KEYS = ("endpoint", "region", "profile", "account_name", "project", *SWITCHES)
"""All options; `scorer.storage.stores` knows which store takes which."""
VARIABLES = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "web_identity_token": "AWS_WEB_IDENTITY_TOKEN_FILE",
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "sas_token": "AZURE_STORAGE_SAS_TOKEN",
    "sas_key": "AZURE_STORAGE_SAS_TOKEN",
    "client_secret": "AZURE_STORAGE_CLIENT_SECRET",
    "service_account_key": "GOOGLE_SERVICE_ACCOUNT_KEY",
    "service_account": "GOOGLE_SERVICE_ACCOUNT",
    "application_credentials": "GOOGLE_APPLICATION_CREDENTIALS",
}
"""Credentials, by the names that users try, and the environment variable that holds each."""
_SECRET = re.compile(
    r"secret|token|password|passwd|credential|access_?key|account_?key|_key$|^key$|^sas", re.IGNORECASE
)
_BUCKET = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*/?")


def parse(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    """Return the texts of options: from such texts, or from a table of values, or of a table for each bucket."""
    return tuple(dict.fromkeys(f"{prefix}{key}={text}" for prefix, key, text in map(_checked, _triples(value))))


def hint_for(url: str) -> str:
    """Return where the credentials for a URL belong."""
    kind = url.partition(":")[0].lower()
    if kind.startswith("http"):
        return "use the URL of its store, such as s3://BUCKET/KEY, with credentials in the environment"
    variables = {"a": "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN", "g": "GOOGLE_APPLICATION_CREDENTIALS"}
    named = variables.get(kind[:1], "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return f"set {named} where scorer and its workers run"


def parse_variables(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - TOML and Python values
    """Return names of environment variables, from texts with commas between them; refuse those that hold secrets."""
    texts = [value] if isinstance(value, str) else [*value]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(value)
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(name)
        if names_a_secret(name):
            raise OptionsError(
                "a secret does not belong in a job script",
                where="--forward-env",
                expected="variables that hold no secret, such as AWS_PROFILE",
                found=name,
                hint=f"set {name} where the jobs run, or let the queue pass it on",
            )
    return tuple(dict.fromkeys(names))


def names_a_secret(name: str) -> bool:
    """Return whether a value of this name is a secret, and not the path of a file that holds one."""
    return bool(_SECRET.search(name)) and not name.upper().endswith(("_FILE", "_PATH", "_APPLICATION_CREDENTIALS"))


def _triples(value: Any) -> Iterator[tuple[str, str, Any]]:  # noqa: ANN401 - TOML and Python values
    """Yield (bucket, key, value); the bucket is '' for options of all stores."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            if isinstance(one, Mapping):
                yield from ((str(name), str(key), more) for key, more in one.items())
            else:
                yield _named(str(name), one)
        return
    for text in [value] if isinstance(value, str) else value:
        if not isinstance(text, str):
            raise _refused("an option of a store is not text", "", "KEY=VALUE", _kind(text), "write KEY=VALUE")
        name, equals, one = text.partition("=")
        if not equals:
            raise _refused("an option of a store has no value", "", "KEY=VALUE", "text without '='", "write KEY=VALUE")
        yield _named(name, one)


def _named(name: str, value: Any) -> tuple[str, str, Any]:  # noqa: ANN401 - as above
    """Return bucket, key and value of an option that is named KEY or URL:KEY."""
    bucket, _, key = name.rpartition(":")
    return bucket, key, value


def _checked(option: tuple[str, str, Any]) -> tuple[str, str, str]:
    """Return an option with the prefix of its name, and its value as text; refuse secrets and unknown names."""
    bucket, key, value = option
    key = key.strip().replace("-", "_").lower().removeprefix("aws_")
    if bucket and not _BUCKET.fullmatch(bucket):
        raise _refused(
            "an option of a store names no bucket", without_secrets(f"{bucket}:{key}"),
            "URL:KEY=VALUE, with the URL of a bucket", without_secrets(bucket),
            "give only the scheme and the bucket, as in s3://lake:region=eu-west-1",
        )  # fmt: skip
    if key not in KEYS:
        raise _unknown(key if re.fullmatch("[a-z0-9_]{1,40}", key) else "")
    text = str(value).lower() if isinstance(value, bool) else value if isinstance(value, str | Path | int) else None
    if text is None or not str(text).strip() or not str(text).isprintable():
        raise _refused(
            f"the value of the store option {key!r} is not valid", key, "text", _kind(value), f"write {key}=VALUE"
        )
    text = str(text).strip()
    if key in SWITCHES and text.lower() not in {"true", "false"}:
        raise _refused(
            f"the value of the store option {key!r} is not valid", key, "true or false", repr(text), f"write {key}=true"
        )
    if without_secrets(text) != text:
        raise _secret(key, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    prefix = f"{bucket.rstrip('/') if not bucket.endswith('://') else bucket}:" if bucket else ""
    return prefix, key, text.lower() if key in SWITCHES else text


def _unknown(key: str) -> OptionsError:
    if key in VARIABLES or _SECRET.search(key):
        return _secret(key, VARIABLES.get(key, "its variable of the environment"))
    found = repr(key) if key else "another name"  # it may be a secret in the wrong place
    what = f"there is no store option {key!r}" if key else "there is no such store option"
    return _refused(what, key, f"one of {', '.join(KEYS)}", found, did_you_mean(key, KEYS))


def _secret(key: str, variable: str) -> OptionsError:
    return _refused(
        "a secret does not belong in an option",
        key,
        f"one of {', '.join(KEYS)}",
        "a credential, which would be in job files and on every worker",
        f"set {variable} where scorer and its workers run",
    )


def _refused(what: str, key: str, expected: str, found: str, hint: str) -> OptionsError:
    where = f"--store-option {key}".rstrip()
    return OptionsError(what, where=where, expected=expected, found=found, hint=hint)


def _kind(value: Any) -> str:  # noqa: ANN401 - whatever was given
    return "nothing" if value is None or value == "" else f"a value of type {type(value).__name__}"
