"""What a store refuses, as errors that say what is wrong: bucket, right, key, token, region or server.

`read_problem` and `write_problem` ask a store for its rights before a row is scored. A question costs one to three
requests and changes nothing: the write is one that must fail, because it replaces an object that does not exist. It is
made by every process with its own credentials.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.errors import InputError, PlanError, ScorerError
from scorer.host import credentials
from scorer.locations import cloud, is_url, join, split
from scorer.storage import stores
from scorer.storage.files import AtOnce, FileId

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist|container does not exist")
_WRONG_KEY = re.compile(
    "InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|InvalidClientTokenId|AuthenticationFailed|InvalidSecurity"
)
_SKEWED = re.compile("RequestTimeTooSkewed")
_ELSEWHERE = re.compile("PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|without LOCATION")
_SILENT = re.compile("error sending request|timed out|connection|dns error|HTTP error", re.IGNORECASE)
_NOTHING = FileId("", 0, "00000000000000000000000000000000")
"""An object that does not exist: no contents have this ETag."""
_GLOB = re.compile(r"[*?\[]")


@contextmanager
def explaining(kind: type[ScorerError], doing: str = "read or write", right: str = "list and get") -> Iterator[None]:
    """Convert what a store answered, if it is an error, to an error of this kind; local errors stay as they are."""
    try:
        yield
    except OSError as error:
        location = error.filename
        if not isinstance(location, str) or not is_url(location):
            raise
        raise explained(error, location, doing, right, kind) from error


def reason(problem: ScorerError) -> tuple[str, ...]:
    """Return what makes a problem another one than before: a bucket or a right; keys and servers fail for all alike."""
    of_a_place = problem.what.startswith(("no right", "there is no such bucket", "the bucket is in"))
    return (problem.what, problem.found, problem.where if of_a_place else "")


def explained(
    error: OSError, where: str, doing: str, right: str = "list and get", kind: type[ScorerError] = InputError
) -> ScorerError:
    """Return a store's refusal as an error that says what is wrong: bucket, right, key, token, region or server."""
    said = error.strerror or str(error)
    root = split(where)[0]
    code = said.partition(":")[0] if re.match(r"\d{3} ", said) else said
    for pattern, explain in _EXPLANATIONS:
        if pattern.search(said):
            what, expected, found, hint = explain(root, code)
            return kind(what, where=where, expected=expected, found=found, hint=hint)
    if isinstance(error, PermissionError):
        return _no_right(where, doing, right, code, kind)
    return kind(
        f"the store does not let scorer {doing}",
        where=where,
        expected=f"an answer to a {right} request",
        found=said,
        hint="repeat the command; if it fails again, ask who runs the store",
    )


def _no_right(where: str, doing: str, right: str, code: str, kind: type[ScorerError]) -> ScorerError:
    anonymous = stores.options_of(where).get("skip_signature") == "true" or _unsigned()
    code = "403" if len(code) > _CODE_LETTERS else code
    if anonymous:
        return kind(
            f"no right to {doing} without credentials",
            where=where,
            expected=f"a bucket that everybody may {right}",
            found=f"{code}, and skip_signature is set",
            hint="leave out skip_signature, and set credentials where scorer and its workers run",
        )
    return kind(
        f"no right to {doing}",
        where=where,
        expected=f"permission to {right}",
        found=f"{code} for the identity of {_source(where)}",
        hint="ask the owner of the bucket for this permission, or set other credentials",
    )


_CODE_LETTERS = 60  # longer ones are sentences of the client


def _no_bucket(root: str, code: str) -> tuple[str, str, str, str]:
    region = _region(root)
    at = stores.endpoint(root) or (f"in {region}" if region and cloud(root) == "s3" else "")
    found = f"{code} {f'at {at}' if '://' in at else at}".strip()
    return (
        "there is no such bucket",
        "a bucket that can be listed",
        found,
        "check the name, or name the server: --store-option endpoint=URL",
    )


def _expired(root: str, code: str) -> tuple[str, str, str, str]:
    return (
        "the credentials have expired",
        "a token that is still valid",
        f"{code} for the token of {_source(root)}",
        "get a new token where scorer and its workers run, and repeat the command",
    )


def _wrong_key(root: str, code: str) -> tuple[str, str, str, str]:
    return (
        "the store does not accept the credentials",
        "a key that the store knows, with its secret",
        f"{code} for the key of {_source(root)}",
        "check both where scorer and its workers run, and the endpoint they belong to",
    )


def _skewed(root: str, code: str) -> tuple[str, str, str, str]:  # noqa: ARG001 - as the others
    return (
        "this machine's clock differs too much from the store's",
        "a difference of at most 15 minutes",
        code,
        "set the clock, for example with NTP",
    )


def _elsewhere(root: str, code: str) -> tuple[str, str, str, str]:
    region = _region(root) or "the default region"
    return (
        "the bucket is in another region",
        "the region of the bucket",
        f"{code if len(code) <= _CODE_LETTERS else 'a redirection'} in {region}",
        f"--store-option {root}:region=REGION, with the region of the bucket",
    )


def _silent(root: str, code: str) -> tuple[str, str, str, str]:
    endpoint = stores.endpoint(root)
    return (
        "the store does not answer",
        f"a server at {endpoint}" if endpoint else "a connection to the store",
        code.partition(" - ")[2] or code,
        "check the network, the proxy and the endpoint",
    )


_EXPLANATIONS = (
    (_NO_BUCKET, _no_bucket),
    (credentials.EXPIRED, _expired),
    (_WRONG_KEY, _wrong_key),
    (_SKEWED, _skewed),
    (_ELSEWHERE, _elsewhere),
    (_SILENT, _silent),
)


def _source(location: str) -> str:
    """Return in words where the credentials for a location come from."""
    return credentials.source(cloud(location), stores.options_of(location))


def _region(root: str) -> str:
    """Return the region that is set; '' if none is."""
    return stores.options_of(root).get("region") or os.environ.get("AWS_REGION", "")


def _unsigned() -> bool:
    return credentials.is_true(os.environ.get("AWS_SKIP_SIGNATURE", ""))


def asks(location: str) -> bool:
    """Return whether a location is on a store whose rights can be asked for."""
    return cloud(location) in {"s3", "gs", "az"}


def read_problem(location: str, noun: str = "input") -> ScorerError | None:
    """Return what keeps this process from listing and reading a location; None if nothing does, or nothing is there."""
    with _asking(location, f"read the {noun}", InputError) as question:
        root, key = split(location)
        parts = key.split("/")
        at = next((i for i, part in enumerate(parts) if _GLOB.search(part)), None)
        store = stores.of(root, hasty=True)
        with AtOnce(root) as ask:
            listed = ask(lambda: next(store.objects(join(root, *parts[:at]) if parts[:at] else root), None))
            if at is None and key:
                question.right = "get"
                with suppress(FileNotFoundError, PermissionError):  # a folder; without the right to list, it is 403
                    store.read_range(FileId(location, 1, ""), 0, 1)
                    return None
            question.right = "list"
            first = listed()
        if first is not None and first.size:
            question.right = "get"
            store.read_range(first, 0, 1)
    return question.problem


def write_problem(folder: str) -> ScorerError | None:
    """Return what keeps this process from writing below a location; None if nothing does."""
    with _asking(folder, "write the output", PlanError) as question:
        store, probe = stores.of(folder, hasty=True), join(folder, "rights")
        with AtOnce(folder) as ask:
            written = ask(lambda: store.put_over(probe, b"", _NOTHING))
            question.right = "list"
            next(store.objects(folder), None)
            question.right = "put"
            if written() is not None:  # this server ignores conditions
                store.remove([probe])
    return question.problem


@dataclass(slots=True)
class _Question:
    """The right that is being asked for, and what a store refused."""

    right: str = ""
    problem: ScorerError | None = None


@contextmanager
def _asking(where: str, doing: str, kind: type[ScorerError]) -> Iterator[_Question]:
    question = _Question()
    try:
        yield question
    except ScorerError as error:  # no credentials, no package, or a wrong option
        question.problem = error
    except OSError as error:
        question.problem = explained(error, where, doing, question.right, kind)
