"""A run on Dask's dashboard and in Prometheus metrics, and the pages that are served only with --dashboard."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from support.access import listening
from support.runs import MODELS, cli, command, report_of, write

import scorer
from scorer import events
from scorer.cluster import dashboard
from scorer.options.fields import ClusterOptions

SUM, DENSE, GATHER = MODELS / "sum3.onnx", MODELS / "dense28.onnx", MODELS / "gather.onnx"
FEED = {"feed": "x=a,b,c", "keep": "id", "part_bytes": 4096, "batch_rows": 64}
LOOPBACK = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
PAGES = ("status", "info/main/workers.html", "json/counts.json", "statics/css/base.css", "proxy/1/127.0.0.1/status")
CLUSTERS = ({}, {"cluster": "processes", "workers": 2})


@pytest.fixture
def source(tmp_path):
    """2,000 rows in ten row groups."""
    rng = np.random.default_rng(5)
    columns = {"id": np.arange(2000)} | {name: rng.standard_normal(2000).astype(np.float32) for name in "abc"}
    return write(tmp_path / "in.parquet", columns, row_group_size=200)


def answer(url):
    """Return the text behind a URL, or the HTTP status of the error."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code


def statuses(ports, page):
    """Return what these ports answer to a request for this page: HTTP errors, texts, and 'closed'."""
    found = set()
    for host, port in ports:
        try:
            found.add(answer(f"http://{host}:{port}/{page}"))
        except (OSError, http.client.HTTPException):  # Dask's own protocol
            found.add("closed")
    return frozenset(found)


def metrics(url):
    """Return scorer's metrics at a URL, without zeros and creation times."""
    rows = [line.rsplit(" ", 1) for line in answer(url).splitlines() if line.startswith("scorer_")]
    return {name: float(value) for name, value in rows if float(value) and "_created" not in name}


def during(source, output, look, **options):
    """Run, and call `look` with the PlanReady event at the start and after each part; return report and results."""
    ready, seen = [], []

    def watch(event):
        if isinstance(event, events.PlanReady):
            ready.append(event)
        if isinstance(event, events.PlanReady | events.PartFinished):
            seen.append(look(ready[0]))

    report = scorer.run(source, SUM, output, observers=[watch], **FEED, **options)
    return report, seen


@pytest.mark.parametrize("cluster", CLUSTERS, ids=["embedded", "processes"])
def test_neither_pages_nor_metrics_are_served_without_the_flag(source, tmp_path, cluster):
    before = listening(os.getpid())

    def look(ready):
        return ready.dashboard, ready.metrics, statuses(listening(os.getpid()) - before, "health")

    _, seen = during(source, tmp_path / "out", look, **cluster)
    assert set(seen) == {("", "", frozenset({"closed"} if cluster else ()))}


@pytest.mark.slow
def test_workers_serve_no_page_even_with_the_flag(source, tmp_path):
    def look(_):
        workers = [child.pid for child in psutil.Process().children(recursive=True)]
        return [statuses(listening(*workers), page) for page in PAGES]

    _, seen = during(source, tmp_path / "out", look, cluster="processes", workers=1, dashboard=True)
    assert seen[-1] == [{404, "closed"}] * len(PAGES)


@pytest.mark.parametrize(
    "cluster", [CLUSTERS[0], pytest.param(CLUSTERS[1], marks=pytest.mark.slow)], ids=["embedded", "processes"]
)
def test_the_dashboard_is_served_and_its_link_reported_once(source, tmp_path, cluster):
    def look(ready):
        return answer(ready.dashboard), answer(ready.dashboard.replace("status", "individual-task-stream"))

    report, seen = during(source, tmp_path / "out", look, dashboard=True, **cluster)
    assert all("Dask Diagnostic UI" in page and "bokeh" in stream for page, stream in seen)
    logged = [json.loads(line) for line in (tmp_path / "out.scorer" / "events.jsonl").read_text().splitlines()]
    notices = [line["text"] for line in logged if line["event"] == "Notice" and "dashboard" in line["text"]]
    (link,) = [line["dashboard"] for line in logged if line["event"] == "PlanReady"]
    assert [text.split(" (")[0] for text in notices] == [f"Dask's dashboard: {link}"]
    port = link.split(":")[2].split("/")[0]
    assert f"ssh -L {port}:127.0.0.1:{port} " in notices[0]
    assert report.counts.rows == 2000


@pytest.mark.slow
def test_status_shows_the_dashboards_url_and_everything_listens_on_loopback(floats28, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-m", "scorer", "run", str(floats28), "--model", str(DENSE), "--output", str(tmp_path / "out"),
         "--batch-rows", "4", "--part-bytes", "96KiB", "--cluster", "processes", "--dashboard"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        status, until = {}, time.monotonic() + 60
        while time.monotonic() < until and "dashboard" not in status:
            time.sleep(0.2)
            code, text, _ = cli("status", tmp_path / "out", "--json")
            status = json.loads(text) if code == 0 else {}
        assert "Dask Diagnostic UI" in answer(status["dashboard"])
        assert status["dashboard"] in cli("status", tmp_path / "out")[1]
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        sockets = [s for process in family for s in process.net_connections("inet") if s.status == psutil.CONN_LISTEN]
        assert {s.laddr.ip for s in sockets} == {"127.0.0.1"}
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def test_a_dashboard_without_its_package_is_refused(source, tmp_path):
    (tmp_path / "without" / "bokeh").mkdir(parents=True)
    (tmp_path / "without" / "sitecustomize.py").write_text(
        "import importlib.util as util\nfound = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'bokeh' else found(name, *more)\n"
    )
    paths = os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")])
    flags = ("run", source, "--model", SUM, "--output", tmp_path / "out", "--feed", "x=a,b,c", "--dashboard")
    done = subprocess.run(
        [sys.executable, "-m", "scorer", *map(str, flags)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "pip install 'dask-scorer[dashboard]'" in done.stderr
    assert not (tmp_path / "out.scorer").exists()


def test_a_dashboard_without_a_scheduler_is_refused(source, tmp_path):
    code, _, text = cli("plan", source, "--model", SUM, "--dashboard", "--cluster", "synchronous")
    assert code == 2
    assert "leave --dashboard out" in text


def test_a_job_file_may_request_the_dashboard(source, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(f'input = "{source}"\nmodel = "{SUM}"\ncluster = "synchronous"\ndashboard = true\n')
    code, _, text = cli("plan", "--config", job)
    assert code == 2
    assert "--dashboard" in text


def test_a_running_scheduler_needs_no_package_here():
    assert dashboard.problem(ClusterOptions(dashboard=True, scheduler="tcp://head:8786")) is None


def test_links_follow_dasks_own_setting():
    import dask

    with dask.config.set({"distributed.dashboard.link": "/hub/user/me/proxy/{port}/status"}):
        link = dashboard.link_to(8787)
    assert link == "/hub/user/me/proxy/8787/status"
    assert dashboard.link_text(link) == f"Dask's dashboard: {link}"


def test_a_users_own_routes_stay():
    import dask

    with dask.config.set({"distributed.worker.http.routes": ["mine.own", "distributed.http.statics"]}):
        assert dashboard.routes(pages=False)["distributed.worker.http.routes"] == ["mine.own"]


def test_metrics_are_served_with_the_dashboard(source, tmp_path):
    _, seen = during(source, tmp_path / "out", lambda ready: metrics(ready.metrics), dashboard=True)
    assert seen[-1]["scorer_planned_rows"] == 2000


@pytest.mark.slow
def test_metrics_of_driver_and_workers_are_the_reports_counts(tmp_path):
    idx = np.arange(4000) % 10
    idx[::100] = 99
    source = write(tmp_path / "in.parquet", {"id": np.arange(4000), "idx": idx}, row_group_size=200)
    with LocalCluster(n_workers=2, threads_per_worker=1, **LOOPBACK) as cluster, Client(cluster) as client:
        at = f"http://127.0.0.1:{cluster.scheduler.http_server.port}/metrics"
        before = metrics(at)
        report = scorer.run(
            source, GATHER, tmp_path / "out", feed="idx=idx", where="id < 3900", max_bad_rows="1%", part_bytes=4096,
            tune=False, client=client,
        )  # fmt: skip
        driver = {name: value - before.get(name, 0.0) for name, value in metrics(at).items()}
        ports = client.run(lambda dask_worker: dask_worker.http_server.port)
        workers = [metrics(f"http://127.0.0.1:{port}/metrics") for port in ports.values()]
    names = {name for worker in workers for name in worker}
    summed = {name: sum(worker.get(name, 0.0) for worker in workers) for name in names}
    assert all(name.startswith("scorer_worker_") for name in summed)
    stages = report_of(tmp_path / "out")["stages"]
    for seen, prefix in ((driver, "scorer"), (summed, "scorer_worker")):
        for outcome in ("scored", "quarantined", "filtered"):
            assert seen[f'{prefix}_rows_total{{outcome="{outcome}"}}'] == getattr(report.counts, outcome) > 0
        assert seen[f'{prefix}_parts_total{{outcome="committed"}}'] == report.parts
        assert seen[f"{prefix}_calls_total"] == report.calls
        assert seen[f"{prefix}_read_bytes_total"] == report.input_bytes
        assert seen[f"{prefix}_written_bytes_total"] == report.output_bytes
        for stage, seconds in stages.items():
            assert seen[f'{prefix}_stage_seconds_total{{stage="{stage}"}}'] == pytest.approx(seconds, abs=0.01)


@pytest.mark.slow
def test_parts_that_fail_are_counted_on_both_sides(source, tmp_path):
    with LocalCluster(n_workers=1, threads_per_worker=1, **LOOPBACK) as cluster, Client(cluster) as client:
        at = f"http://127.0.0.1:{cluster.scheduler.http_server.port}/metrics"
        before = metrics(at)
        touched = []

        def damage(event):
            if isinstance(event, events.PlanReady):
                source.write_bytes(source.read_bytes()[:-100])
                touched.append(event)

        with pytest.raises(scorer.ScorerError):
            scorer.run(source, SUM, tmp_path / "out", client=client, observers=[damage], **FEED)
        (port,) = client.run(lambda dask_worker: dask_worker.http_server.port).values()
        worker, driver = metrics(f"http://127.0.0.1:{port}/metrics"), metrics(at)
        logged = [event for _, event in client.get_events("scorer")]
    failed = 'scorer_parts_total{outcome="failed"}'
    assert touched
    assert driver[failed] - before.get(failed, 0.0) == worker['scorer_worker_parts_total{outcome="failed"}'] > 0
    assert {event["event"] for event in logged} == {"PlanReady", "PartFailed", "ScoringEnded"}
    assert logged[-1]["failed"] == driver[failed] - before.get(failed, 0.0)


def test_metrics_are_not_imported_without_prometheus_client(source, tmp_path):
    flags = [str(source), str(SUM), str(tmp_path / "out")]
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import scorer\n"
        "del sys.modules['prometheus_client']\n"
        "class Absent:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name.partition('.')[0] == 'prometheus_client': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "ready = []\n"
        "watch = lambda event: ready.append(event) if isinstance(event, scorer.events.PlanReady) else None\n"
        f"scorer.run(*{flags!r}, feed='x=a,b,c', observers=[watch])\n"
        "print([name for name in sys.modules if 'prometheus_client' in name or name == 'scorer.scoring.metrics'])\n"
        "print(repr(ready[0].metrics))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "''"]


@pytest.mark.slow
def test_a_run_succeeds_when_other_metrics_have_scorers_names(source, tmp_path):
    code = (
        "import prometheus_client, scorer\n"
        "prometheus_client.Counter('scorer_rows', 'of a game')\n"
        "prometheus_client.Gauge('scorer_worker_parts', 'of a mill')\n"
        f"report = scorer.run({str(source)!r}, {str(SUM)!r}, {str(tmp_path / 'out')!r}, feed='x=a,b,c')\n"
        "print(report.counts.scored)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2000\n", "")


@pytest.mark.slow
def test_the_run_is_a_span_with_its_name_and_logs_a_few_events(source, tmp_path):
    with LocalCluster(n_workers=1, threads_per_worker=1, **LOOPBACK) as cluster, Client(cluster) as client:
        report = scorer.run(source, SUM, tmp_path / "out", client=client, **FEED)
        name = f"out-{report.plan[:8]}"
        (span,) = [s for s in cluster.scheduler.extensions["spans"].spans.values() if s.name == ("scorer", name)]
        expected, stages, ended, until = report.stages.to_dict(), {}, 0, time.monotonic() + 20
        while time.monotonic() < until and (stages != pytest.approx(expected, abs=0.001) or ended != report.parts):
            time.sleep(0.1)  # metrics arrive with the worker's heartbeats, perhaps over several
            ended = sum(group.states["forgotten"] + group.states["memory"] for group in span.groups)
            found = {name: seconds for (*_, name, _), seconds in span.cumulative_worker_metrics.items()}
            stages = {name: found.get(name) for name in expected}
        logged = [event for _, event in client.get_events("scorer")]
    assert [event["event"] for event in logged] == ["PlanReady", "ScoringEnded"]
    assert {event["run"] for event in logged} == {name}
    assert (logged[-1]["done"], logged[-1]["rows_done"]) == (10, 2000)
    assert set(expected) == set(events.Stages.__slots__)
    assert (stages, ended) == (pytest.approx(expected, abs=0.001), report.parts)


@pytest.mark.slow
def test_a_given_cluster_reports_its_own_dashboard(source, tmp_path):
    seen = []
    with LocalCluster(n_workers=1, threads_per_worker=1, **LOOPBACK) as cluster, Client(cluster) as client:
        scorer.run(source, SUM, tmp_path / "out", client=client, dashboard=True, observers=[seen.append], **FEED)
        link = client.dashboard_link
    assert [event.dashboard for event in seen if isinstance(event, events.PlanReady)] == [link]


@pytest.mark.slow
def test_a_run_without_the_dashboard_does_not_load_bokeh(source, tmp_path):
    code = (
        "import sys, scorer\n"
        f"scorer.run({str(source)!r}, {str(SUM)!r}, {str(tmp_path / 'out')!r}, feed='x=a,b,c')\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'bokeh'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_help_shows_the_ssh_tunnel():
    text = " ".join(command("run", "--help").stdout.split())
    assert "ssh -L PORT:127.0.0.1:PORT HOST" in text
