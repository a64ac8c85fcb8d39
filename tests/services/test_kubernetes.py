"""`examples/kubernetes`: its manifests, the call of KubeCluster, and its image's steps and pods, without Kubernetes."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import tempfile
import tomllib
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import yaml
from support.runs import cli, oracle

from scorer.cluster.kinds import classes
from scorer.options import cluster_options
from scorer.options.fields import ClusterOptions
from services.conftest import enter_or_skip
from services.image import Image, build_wheel
from services.processes import free_ports, kill, start_program, wait_until

pytestmark = [pytest.mark.service, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
EXAMPLE, FLIGHTS = ROOT / "examples" / "kubernetes", ROOT / "examples" / "flights"
_CRDS = "operator/deployment/helm/dask-kubernetes-operator/crds"


@contextmanager
def _nothing():
    yield


@pytest.fixture(autouse=True, scope="module")
def _packages():
    with enter_or_skip(_nothing(), "dask_kubernetes", "kubernetes", "yaml", "jsonschema"):
        yield


def documents(name):
    return list(yaml.safe_load_all((EXAMPLE / name).read_text()))


def schema(kind):
    """Return the operator's own schema of a kind, which also refuses names that it does not have."""
    folder = Path(find_spec("dask_kubernetes").origin).parent / _CRDS
    found = yaml.safe_load((folder / f"{kind.lower()}.yaml").read_text())["spec"]["versions"][0]
    return _closed(found["schema"]["openAPIV3Schema"])


def _closed(node):
    if isinstance(node, dict):
        node = {key: _closed(value) for key, value in node.items()}
        if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
    return [*map(_closed, node)] if isinstance(node, list) else node


def check_cluster(document):
    own = {"apiVersion", "kind", "metadata"}  # the schema of a kind leaves these to Kubernetes
    kind = schema(document["kind"])
    kind["properties"] |= {name: {} for name in own}
    jsonschema.validate(document, kind)


def check_model(value, kind, place):
    """Assert that a value has only fields of a type of Kubernetes' client, with values of their types."""
    from kubernetes import client

    if kind.startswith("list["):
        assert isinstance(value, list), place
        for one in value:
            check_model(one, kind[5:-1], place)
    elif hasattr(client, kind):
        model = getattr(client, kind)
        names = {json: name for name, json in model.attribute_map.items()}
        assert set(value) <= set(names), f"{place}: {set(value) - set(names)}"
        for key, one in value.items():
            check_model(one, model.openapi_types[names[key]], f"{place}.{key}")
        model(**{names[key]: one for key, one in value.items()})  # refuses values without what they must have
    elif kind in {"str", "int", "bool"}:
        assert type(value).__name__ == kind, place


def test_the_cluster_fits_the_schema_of_the_operator_and_a_wrong_name_does_not():
    (cluster,) = documents("cluster.yaml")
    check_cluster(cluster)
    cluster["spec"]["worker"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
        check_cluster(cluster)


def test_the_driver_fits_the_models_of_kubernetes_and_its_names_agree():
    account, role, binding, job = documents("driver.yaml")
    for one in (account, role, binding, job):
        check_model(one, f"V1{one['kind']}", one["kind"])
    pod = job["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"] == binding["subjects"][0]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    with pytest.raises(AssertionError, match="restartPolicies"):
        check_model(pod | {"restartPolicies": "Never"}, "V1PodSpec", "pod")
    options = tomllib.loads((EXAMPLE / "job.toml").read_text())["cluster_option"]
    assert {one["metadata"]["namespace"] for one in (account, role, binding, job)} == {options["namespace"]}


def test_the_job_calls_kubecluster_as_its_signature_allows(tmp_path, monkeypatch):
    from dask_kubernetes.operator import KubeCluster

    job = tomllib.loads((EXAMPLE / "job.toml").read_text())
    given = job["cluster_option"]
    inspect.signature(KubeCluster).bind(**given)
    inspect.signature(KubeCluster.scale).bind(None, job["workers"])
    inspect.signature(KubeCluster.adapt).bind(None, minimum=0, maximum=20)
    inspect.signature(KubeCluster.from_name).bind("flights")
    options = ClusterOptions(cluster=job["cluster"], cluster_option=cluster_options.parse(given))
    assert classes.problem(options) is None
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code, *_, errors = cli(
        "doctor", "--cluster", job["cluster"], "--cluster-option", f"custom_cluster_spec={EXAMPLE / 'cluster.yaml'}"
    )
    assert code == 4
    assert "KubeCluster did not start" in errors
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def image():
    """The image of the recipe, every step of which has run."""
    folder = Path(tempfile.mkdtemp(prefix="image-"))
    folder.chmod(0o755)
    try:
        context = folder / "context"
        context.mkdir()
        with enter_or_skip(_nothing(), "hatchling"):
            build_wheel(ROOT, context)
        built = Image(folder / "image")
        built.build(EXAMPLE / "Dockerfile", context)
        yield built
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_every_step_of_the_recipe_runs_and_leaves_only_the_installed_wheel(image):
    assert image.steps == ["FROM", "COPY", "RUN", "RUN", "WORKDIR", "USER", "CMD"]
    assert not (image.srv / "wheel").exists()
    told = subprocess.run(
        image.command("python", "-c", "import os, scorer; print(os.getuid(), scorer.__file__)"), capture_output=True,
        text=True, env=image.environment(), check=True,
    ).stdout.split()  # fmt: skip
    assert told[0] == "1000"
    assert Path(told[1]).is_relative_to(image.venv)


def test_the_pods_of_the_example_score_the_flights_though_a_worker_is_killed(image, tmp_path):
    (cluster,), driver = documents("cluster.yaml"), documents("driver.yaml")[-1]
    data, job = image.srv / "data", image.srv / "job"
    data.mkdir(), job.mkdir()
    os.chown(data, 1000, 1000)
    for name in ("flights.parquet", "late.onnx"):
        shutil.copy(FLIGHTS / name, data)
    (port,), pods = free_ports(1), []
    settings = tomllib.loads((EXAMPLE / "job.toml").read_text())
    own = {"cluster", "cluster_option", "workers"}  # of Kubernetes; the rest is the job
    lines = [f'{name} = "{value}"' for name, value in settings.items() if name not in own and isinstance(value, str)]
    (job / "job.toml").write_text("\n".join([*lines, f'scheduler = "tcp://127.0.0.1:{port}"', 'part_bytes = "20KiB"']))

    loopback = {"8786": str(port), ":8787": "127.0.0.1:0", "0.0.0.0": "127.0.0.1"}

    def start(args, name, **variables):
        given = loopback | {f"$({variable})": value for variable, value in variables.items()}
        words = [given.get(word, word) for word in args]
        pods.append(start_program(image.command(*words), tmp_path / name, env=image.environment(**variables)))
        return pods[-1]

    def said():
        return "\n".join(path.read_text() for path in tmp_path.iterdir())

    spec = cluster["spec"]
    try:
        start(spec["scheduler"]["spec"]["containers"][0]["args"], "scheduler")
        for name in ("one", "two"):
            start(
                spec["worker"]["spec"]["containers"][0]["args"], name, DASK_WORKER_NAME=name,
                DASK_SCHEDULER_ADDRESS=f"tcp://127.0.0.1:{port}",
            )  # fmt: skip
        run = start(driver["spec"]["template"]["spec"]["containers"][0]["args"], "driver")
        wait_until(lambda: [*data.rglob("part-*.parquet")] or run.poll() is not None, 200, said)
        assert run.poll() is None, said()
        kill(pods[1])
        assert run.wait(200) == 0, said()
    finally:
        for pod in pods:
            kill(pod)
    flights, scores = pq.read_table(data / "flights.parquet"), pq.read_table(data / "scores")
    columns = json.loads(onnx.load(data / "late.onnx").metadata_props[0].value)
    values = np.column_stack([flights[name].to_numpy() for name in columns]).astype(np.float32)
    expected = oracle(data / "late.onnx", {"features": values})
    assert np.array_equal(scores["label"].to_numpy(), expected["label"])
    assert cli("verify", data / "scores", "--deep")[0] == 0
