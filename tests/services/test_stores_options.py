"""What a store refuses is reported before a row is scored; no secret leaves a process."""

from __future__ import annotations

import json
import pickle

import dask.dataframe as dd
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster
from pyarrow.fs import FileSelector
from support.runs import FLIGHTS, cli, command

import scorer
from scorer.cluster import waves
from scorer.errors import OptionsError, PreflightError
from scorer.output.place import Place
from scorer.scoring.job import Spec
from scorer.storage import objects, refusals, stores
from services.stores import KEY, SECRET

pytestmark = pytest.mark.service
MODEL = str(FLIGHTS / "late.onnx")


@pytest.fixture(name="lake")
def lake_(s3):
    """A bucket with one input folder."""
    bucket = s3.bucket()
    stores.of(bucket).put(f"{bucket}/in/flights.parquet", (FLIGHTS / "flights.parquet").read_bytes())
    return bucket


@pytest.fixture(name="become")
def become_(s3, monkeypatch):
    """A function that gives this process, and those it starts, the credentials of another user."""

    def become(user="tests", **variables):
        for name, value in (s3.environment if user == "tests" else s3.user(user)).items():
            monkeypatch.setenv(name, value)
        for name, value in variables.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        stores._stores.clear()

    return become


def refused(*words):
    """Return what `scorer plan` finds wrong, and its exit code."""
    code, out, _ = cli("plan", *words, "--model", MODEL, "--json")
    return [(one["what"], one["expected"], one["where"]) for one in json.loads(out)["error"]["problems"]], code


NO_READ, NO_WRITE = "no right to read the input", "no right to write the output"


@pytest.mark.parametrize(
    ("user", "problems"),
    [
        ("writer", [(NO_READ, "permission to list"), (NO_WRITE, "permission to list")]),
        ("lister", [(NO_READ, "permission to get"), (NO_WRITE, "permission to put")]),
        ("stranger", [(NO_READ, "permission to list"), (NO_WRITE, "permission to list")]),
    ],
)
def test_each_right_that_is_missing_is_named_before_a_row_is_scored(lake, become, user, problems):
    become(user)
    found, code = refused(f"{lake}/in", "--output", f"{lake}/out")
    places = {NO_READ: f"{lake}/in", NO_WRITE: f"{lake}/out.scorer"}
    assert found == [(what, expected, places[what]) for what, expected in problems]
    assert code == 3
    become()
    assert [one.path for one in stores.of(lake).objects(lake)] == [f"{lake}/in/flights.parquet"]


def test_a_reader_cannot_be_the_one_who_writes(lake, become):
    become("reader")
    found, code = refused(FLIGHTS / "flights.parquet", "--output", f"{lake}/out")
    assert (found, code) == ([(NO_WRITE, "permission to put", f"{lake}/out.scorer")], 3)


def test_a_right_to_get_is_enough_for_one_file(lake, become):
    become("writer")
    assert refusals.read_problem(f"{lake}/in/flights.parquet") is None


def test_a_pattern_needs_the_right_to_list_the_folder_above(lake, become):
    become("reader")
    assert refusals.read_problem(f"{lake}/in/*.parquet") is None
    become("writer")
    assert refusals.read_problem(f"{lake}/in/*.parquet").expected == "permission to list"


def test_bucket_key_and_server_are_told_apart(lake, become):
    become()
    places = (f"{lake}x/in", f"{lake}y/out.scorer")
    gone = [("there is no such bucket", "a bucket that can be listed", place) for place in places]
    assert refused(f"{lake}x/in", "--output", f"{lake}y/out") == (gone, 3)
    for variables, what in (
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "the store does not accept the credentials"),
        ({"AWS_ACCESS_KEY_ID": "another"}, "the store does not accept the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "the store does not answer"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, "no credentials were found"),
    ):
        become(**variables)
        found, code = refused(f"{lake}/in", "--output", f"{lake}/out")
        assert ([one for one, *_ in found], code) == ([what], 3)
        become()


def test_a_public_bucket_needs_the_option_and_no_credentials(s3, become):
    become()
    bucket = s3.bucket("public")
    stores.of(bucket).put(f"{bucket}/in/flights.parquet", (FLIGHTS / "flights.parquet").read_bytes())
    become(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_EC2_METADATA_DISABLED="true")
    assert refusals.read_problem(f"{bucket}/in").what == "no credentials were found"
    stores.configure(("skip_signature=true",))
    assert refusals.read_problem(f"{bucket}/in") is None
    assert refusals.write_problem(f"{bucket}/out.scorer").what == "no right to write the output without credentials"


class Watched:
    """Everything that a run sends, shows and writes, as one text of bytes."""

    def __init__(self):
        self.sent = []

    def __call__(self, event):
        self.sent.append(pickle.dumps(event))


def graph_of(monkeypatch):
    """Collect the graph of every wave, with what Dask sends of it."""
    sent = []
    collection = waves.collection

    def collected(*arguments, **options):
        made = collection(*arguments, **options)
        sent.append(pickle.dumps(dict(made.optimize().__dask_graph__())))
        return made

    monkeypatch.setattr(waves, "collection", collected)
    return sent


@pytest.mark.parametrize("where", ["a disk", "a store"])
def test_no_secret_is_in_the_graph_the_plan_the_events_the_report_or_a_message(
    lake, become, s3, tmp_path, monkeypatch, where
):
    become()
    top = f"{lake}/results" if where == "a store" else str(tmp_path)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = (f"endpoint={s3.endpoint}", "region=us-east-1")
    graphs, events = graph_of(monkeypatch), Watched()
    plan = scorer.prepare(f"{lake}/in", MODEL, f"{top}/out", store_option=options, cluster="synchronous")
    report = scorer.execute(plan, observers=[events])
    spec = Spec.of(plan.frozen, Place.of(plan.output, None).staging(plan.frozen.plan_hash))
    assert spec.store_options == options
    code, out, err = cli(
        "run", f"{lake}/in", "--model", MODEL, "--output", f"{top}/again", "--verbose",
        *(word for one in options for word in ("--store-option", one)),
    )  # fmt: skip
    assert code == 0
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    found = s3.files().get_file_info(FileSelector(lake.removeprefix("s3://"), recursive=True))
    stored = [one.path for one in found if one.is_file and "/results/" in one.path]
    written += [s3.files().open_input_stream(path).read() for path in stored]
    proof = {"events.jsonl", "ledger.parquet", "manifest.json", "plan.json", "report.html", "report.json"}
    assert proof.intersection(path.rpartition("/")[2] for path in stored) == (proof if where == "a store" else set())
    shown = [
        out,
        err,
        str(plan),
        repr(plan),
        plan._repr_html_(),
        json.dumps(plan.to_dict()),
        json.dumps(report.to_dict()),
    ]
    parts = [pickle.dumps(part) for part in plan.frozen.parts()]
    verdict, status = scorer.verify(f"{top}/out", store_option=options), scorer.status(f"{top}/out")
    shown += [json.dumps(verdict.to_dict()), json.dumps(status.to_dict())]
    assert verdict.whole
    everything = [*graphs, *events.sent, *written, *parts, *map(pickle.dumps, (spec, plan))]
    everything += [text.encode() for text in shown]
    assert len(graphs) > 0
    assert any(s3.endpoint.encode() in one for one in everything)
    for secret in (KEY, SECRET):
        assert not any(secret.encode() in one for one in everything), secret


def test_score_verify_and_status_take_options_as_a_run_does(lake, become, s3, monkeypatch):
    become()
    options = {"endpoint": s3.endpoint}
    stores.of(lake).put(f"{lake}/late.onnx", (FLIGHTS / "late.onnx").read_bytes())
    scorer.run(f"{lake}/in", MODEL, f"{lake}/out", limit=1000, cluster="synchronous")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # where nobody answers
    monkeypatch.setattr(stores, "_HASTY", stores._HASTY | {"max_retries": 0})
    monkeypatch.setattr(objects, "_PATIENCE_S", 0.1)
    flights = pq.read_table(FLIGHTS / "flights.parquet").slice(0, 100).to_pandas()
    for call in (
        lambda **more: scorer.verify(f"{lake}/out", **more).whole,
        lambda **more: scorer.status(f"{lake}/out", **more).state == "done",
        lambda **more: len(scorer.score(flights, f"{lake}/late.onnx", **more)) == 100,
        lambda **more: len(scorer.score(dd.from_pandas(flights, 2), f"{lake}/late.onnx", **more).compute()) == 100,
    ):
        stores.configure(())
        stores._stores.clear()
        scorer.release()
        with pytest.raises(scorer.ScorerError, match=r"does not answer|cannot be read|cannot be downloaded"):
            call()
        assert call(store_option=options)
    for value, text in (({"secret_access_key": "x"}, "a secret does not belong"), (5, "the value of 'store_option'")):
        with pytest.raises(OptionsError, match=text):
            scorer.verify(f"{lake}/out", store_option=value)
    stores.configure(())
    for verb in ("verify", "status"):
        assert cli(verb, f"{lake}/out", "--store-option", f"endpoint={s3.endpoint}")[0] == 0
        stores.configure(())


def test_an_option_reaches_worker_processes(lake, become, s3, tmp_path):
    become()
    run = ("run", f"{lake}/in", "--model", MODEL, "--cluster", "processes", "--workers", "2", "--threads", "1")
    words = (*run, "--output", tmp_path / "out", "--store-option", f"endpoint={s3.endpoint}")
    done = command(*words, extra={"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    assert done.returncode == 0, done.stderr


def test_workers_without_rights_are_named_before_a_row_is_scored(lake, become, tmp_path):
    become("stranger")  # the workers start with these credentials
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**settings) as workers, Client(workers) as client:
        become()
        with pytest.raises(PreflightError) as refused:
            scorer.run(f"{lake}/in", MODEL, tmp_path / "out", client=client)
    (problem,) = refused.value.problems
    assert problem.what == "no right to read the input on workers"
    assert problem.where.startswith("2 workers: ")
    assert problem.found == "403 AccessDenied for the identity of AWS_ACCESS_KEY_ID"
    assert refused.value.exit_code == 4
    assert not (tmp_path / "out").exists()
