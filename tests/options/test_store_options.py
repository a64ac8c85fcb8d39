"""Options of object stores: what may be given, how it is carried, and that credentials are refused unseen."""

from __future__ import annotations

import pytest

from scorer.cli.flags import options_of
from scorer.errors import InputError, PreflightError
from scorer.options import store_options
from scorer.options.fields import StoreOptions
from scorer.options.request import as_flags, build
from scorer.storage import stores

SECRET = "wJalrXUtnFEMI/K7MDENG"


def built(value, **more):
    return build({"input": "in.parquet", "model": "m.onnx", "store_option": value, **more})


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("region=eu-west-1", ("region=eu-west-1",)),
        (["region=a", "s3://lake:endpoint=https://h:9000/x"], ("region=a", "s3://lake:endpoint=https://h:9000/x")),
        ({"skip_signature": True, "region": "a"}, ("skip_signature=true", "region=a")),
        ({"s3://lake/": {"region": "a", "allow-http": False}}, ("s3://lake:region=a", "s3://lake:allow_http=false")),
        ("gs://:project=p", ("gs://:project=p",)),
        ((), ()),
    ],
)
def test_options_are_carried_as_texts_that_give_the_same_options_again(value, texts):
    options = built(value)
    assert options.stores.store_option == texts
    flags = [text for flag, text in as_flags(options.non_defaults()) if flag == "--store-option"]
    assert built(flags).stores == options.stores == StoreOptions(store_option=texts)


def test_a_job_file_has_a_table_for_all_stores_and_one_for_each_bucket(tmp_path):
    (tmp_path / "job.toml").write_text(
        'input = ["a"]\nmodel = "m"\n[store_option]\nregion = "a"\n[store_option."s3://lake"]\nregion = "b"\n'
    )
    assert options_of(str(tmp_path / "job.toml"), {}).stores.store_option == ("region=a", "s3://lake:region=b")


@pytest.mark.parametrize(
    "value",
    [
        f"secret_access_key={SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"s3://lake:session_token={SECRET}",
        f"sas_token=?sv=1&sig={SECRET}",
        f"password={SECRET}",
        SECRET,
        f"{SECRET}==",
        f"endpoint=https://user:{SECRET}@host",
        f"s3://user:{SECRET}@lake:region=a",
        {"secret_access_key": SECRET},
        {"secret_access_key": SECRET.encode()},
        {"s3://lake": {"account_key": SECRET}},
        [3, f"secret_access_key={SECRET}"],
    ],
)
def test_a_credential_is_refused_and_not_repeated(value):
    with pytest.raises(PreflightError) as refused:
        built(value)
    assert refused.value.exit_code == 2
    assert SECRET not in str(refused.value)
    assert SECRET not in repr(refused.value.to_dict())


@pytest.mark.parametrize("name", ["input", "model", "output", "work_dir", "scheduler_file", "ort_library", "feed"])
@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@lake/a",
        f"https://host/m.onnx?X-Amz-Date=1&X-Amz-Signature={SECRET}",
        f"https://account.blob.core.windows.net/c/m.onnx?sv=2024&sig={SECRET}",
        f"https://{SECRET.replace('/', '')}@host/m.onnx",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(name, url):
    given = {"input": "in.parquet", "model": "m.onnx"} | {name: f"x=vocab('{url}')" if name == "feed" else url}
    with pytest.raises(PreflightError) as refused:
        build(given)
    assert SECRET.replace("/", "") not in str(refused.value).replace("/", "")
    assert "Hint: " in str(refused.value)


@pytest.mark.parametrize(
    "url", ["abfss://c@account.dfs.core.windows.net/a", "s3://lake/part-?.parquet", "s3://a/b@c:d/e"]
)
def test_a_url_without_a_secret_is_not_refused(url):
    assert build({"input": url, "model": "m.onnx"}).input == (url,)


def test_names_of_secrets_are_refused_in_job_scripts():
    queue = {"cluster": "slurm", "memory": "1GiB"}
    options = built((), forward_env="AWS_PROFILE, AWS_REGION", **queue)
    assert options.cluster.forward_env == (
        "AWS_PROFILE",
        "AWS_REGION",
    )
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_SAS_TOKEN", "a-b", ""):
        with pytest.raises(PreflightError):
            built((), forward_env=name, **queue)


def test_every_option_is_taken_by_a_store_and_named_in_the_help():
    taken = {"allow_http"}.union(*stores._KEYS.values())
    assert taken == set(store_options.KEYS)
    help_ = StoreOptions.__dataclass_fields__["store_option"].metadata["help"]
    assert all(key in help_ for key in store_options.KEYS)


@pytest.fixture(name="configured")
def configured_():
    yield stores.configure
    stores.configure(())


def test_the_option_of_a_bucket_comes_before_that_of_its_kind_and_of_all(configured):
    configured(("s3://lake:region=c", "region=a", "s3://:region=b", "project=p", "skip_signature=true"))
    assert stores.options_of("s3://lake/x") == {"region": "c", "skip_signature": "true"}
    assert stores.options_of("s3a://other/x") == {"region": "b", "skip_signature": "true"}
    assert stores.options_of("gs://lake/x") == {"project": "p", "skip_signature": "true"}


def test_an_endpoint_without_encryption_must_be_allowed(configured, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    configured(("endpoint=http://127.0.0.1:1", "skip_signature=true"))
    with pytest.raises(InputError, match="would not be encrypted"):
        stores.of("s3://lake")
    configured(("endpoint=http://127.0.0.1:1", "skip_signature=true", "allow_http=true"))
    assert stores.of("s3://lake")
