"""What a store refuses, in words: from the answers of a server that says what the real ones say."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scorer.errors import InputError, PlanError
from scorer.host import credentials
from scorer.locations import cloud
from scorer.storage import refusals, stores

KEY, SECRET = "AKIAEXAMPLE", "wJalrXUtnFEMI/K7MDENG"


@contextmanager
def answering(status, code="", headers=()):
    """Serve one answer to every request; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"<Error><Code>{code}</Code><Message>words</Message><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_PUT = do_HEAD = do_GET  # noqa: N815 - the names that the server calls

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(name="keys")
def keys_(monkeypatch, tmp_path):
    """A process with a key, and without any other identity."""
    pytest.importorskip("obstore")
    for name in ("AWS_PROFILE", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_CONFIG_FILE")
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    yield monkeypatch
    stores.configure(())


def asked(address, *options):
    stores.configure((f"endpoint={address}", *options))
    return refusals.read_problem("s3://lake/orders"), refusals.write_problem("s3://lake/scores.scorer")


@pytest.mark.parametrize(
    ("status", "code", "what", "found"),
    [
        (404, "NoSuchBucket", "there is no such bucket", "404 NoSuchBucket at http"),
        (400, "ExpiredToken", "the credentials have expired", "400 ExpiredToken for the token of AWS_ACCESS_KEY_ID"),
        (
            403,
            "InvalidAccessKeyId",
            "the store does not accept the credentials",
            "403 InvalidAccessKeyId for the key of",
        ),
        (403, "SignatureDoesNotMatch", "the store does not accept the credentials", "403 SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed", "this machine's clock differs too much from the store's", "403 RequestTimeToo"),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region", "400 AuthorizationHeader"),
        (301, "PermanentRedirect", "the bucket is in another region", "in eu-west-1"),
        (403, "AccessDenied", "no right to read the input", "403 AccessDenied for the identity of AWS_ACCESS_KEY_ID"),
        (401, "Unauthorized", "no right to read the input", "401 Unauthorized for the identity"),
        (400, "Strange", "the store does not let scorer read the input", "400 Strange: words"),
    ],
)
def test_each_refusal_has_a_text_of_its_own(keys, status, code, what, found):
    with answering(status, code) as address:
        read, write = asked(address)
    assert read.what == what
    assert read.found.startswith(found) or found in read.found
    assert isinstance(read, InputError)
    assert isinstance(write, PlanError)
    assert (read.exit_code, write.exit_code) == (3, 3)
    assert all(secret not in f"{read} {write}" for secret in (KEY, SECRET))


@pytest.mark.slow
def test_a_server_that_is_not_there_does_not_answer(keys):
    with answering(200) as address:
        pass
    read, write = asked(address)
    assert (read.what, write.what) == ("the store does not answer",) * 2
    assert read.expected == f"a server at {address}"


def test_without_signing_the_bucket_must_be_public(keys):
    with answering(403, "AccessDenied") as address:
        read, _ = asked(address, "skip_signature=true")
    assert read.what == "no right to read the input without credentials"
    assert read.found == "403 AccessDenied, and skip_signature is set"


def test_without_credentials_no_server_is_asked(keys):
    keys.delenv("AWS_ACCESS_KEY_ID")
    read, write = asked("http://127.0.0.1:1")
    assert (read.what, write.what) == ("no credentials were found",) * 2
    assert refusals.reason(read) == refusals.reason(write)


def test_off_a_cloud_the_metadata_service_is_not_asked(keys, tmp_path):
    keys.delenv("AWS_ACCESS_KEY_ID")
    keys.delenv("AWS_EC2_METADATA_DISABLED")
    keys.setattr(credentials, "_DMI", tmp_path)
    (tmp_path / "sys_vendor").write_text("Another Maker\n")
    for url in ("s3://lake", "gs://lake", "abfss://lake@account.dfs.core.windows.net"):
        with pytest.raises(InputError, match="no credentials were found"):
            credentials.of(cloud(url), url, {})
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert credentials.of("s3", "s3://lake", {}) == credentials.Credentials()


def test_a_profile_needs_boto3_and_another_identity_never_takes_its_place(keys):
    keys.delenv("AWS_ACCESS_KEY_ID")
    keys.setenv("AWS_PROFILE", "work")
    keys.setattr(credentials, "find_spec", lambda _: None)
    with pytest.raises(InputError) as refused:
        credentials.of("s3", "s3://lake", {})
    assert refused.value.found == "the profile 'work', and boto3 is not installed"
    assert refused.value.hint == "pip install 'dask-scorer[aws]'"


def test_a_login_of_azure_needs_azure_identity(keys, tmp_path):
    keys.setattr(credentials, "find_spec", lambda _: None)
    (tmp_path / ".azure").mkdir()
    with pytest.raises(InputError, match="pip install azure-identity"):
        credentials.of("az", "az://lake", {})


def test_keys_of_a_profile_are_used_and_its_region(keys, tmp_path):
    pytest.importorskip("boto3")
    keys.delenv("AWS_ACCESS_KEY_ID")
    keys.delenv("AWS_REGION")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(f"[work]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n")
    (tmp_path / ".aws" / "config").write_text("[profile work]\nregion=eu-north-1\n")
    for options in ({"profile": "work"}, {}):
        provider = credentials.of("s3", "s3://lake", options).provider
        assert (provider()["access_key_id"], provider.config) == (KEY, {"region": "eu-north-1"})
        keys.setenv("AWS_PROFILE", "work")
    keys.setenv("AWS_PROFILE", "gone")
    with pytest.raises(InputError, match="no credentials were found"):
        credentials.of("s3", "s3://lake", {})


@pytest.mark.slow
def test_the_bucket_is_asked_for_its_region_if_none_is_set(keys):
    for status in (200, 301, 403):
        with answering(status, headers=[("x-amz-bucket-region", "eu-south-1")]) as address:
            keys.setattr(stores, "_AMAZON", address)
            assert stores._region_of("lake") == "eu-south-1"
    assert stores._region_of("lake") == "us-east-1"
