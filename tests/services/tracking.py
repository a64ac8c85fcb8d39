"""MLflow's tracking server on this machine, with a login, and programs that use MLflow's own client.

MLflow is in an environment of its own, which .ci/services creates.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from services.processes import Missing, free_ports, kill, output_of, start_program, wait_until

HOME = Path(sys.prefix) / "mlflow" / "bin"
USER, PASSWORD = "admin", "a-password-of-tests"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
_PUBLISH = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow, numpy, onnx, pandas
from mlflow.models import infer_signature
uri, name, model, columns, folder = sys.argv[1:]
mlflow.set_tracking_uri(uri)
mlflow.set_registry_uri(uri)
rows = pandas.DataFrame(numpy.zeros((2, len(columns)), numpy.float32), columns=list(columns))
with mlflow.start_run() as run:
    mlflow.onnx.log_model(onnx.load(model), name="model", signature=infer_signature(rows), registered_model_name=name)
    if folder:
        mlflow.log_artifacts(folder, "folder")
client = mlflow.MlflowClient()
version = max(int(one.version) for one in client.search_model_versions(f"name='{name}'"))
client.set_registered_model_alias(name, "champion", version)
print(json.dumps([version, run.info.run_id]))
"""


def publish(uri, name, model, columns, folder="", *, here=None):
    """Log and register a model with MLflow's client; its newest version is the champion. Return version and run.

    `here` is the client's current folder, in which a database has its artifacts.
    """
    if not (HOME / "python").exists():
        raise Missing("not installed: mlflow; .ci/services installs it")
    login = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    with tempfile.TemporaryDirectory() as empty:
        words = output_of(
            [HOME / "python", "-c", _PUBLISH, uri, name, model, columns, folder], timeout=180, cwd=here or empty,
            env=os.environ | _QUIET | login,
        )  # fmt: skip
    return json.loads(words.splitlines()[-1])


@contextmanager
def server():
    """Start a tracking server with a login that passes artifacts on; yield its address and its process."""
    if not (HOME / "mlflow").exists():
        raise Missing("not installed: mlflow; .ci/services installs it")
    with tempfile.TemporaryDirectory(prefix="mlflow-") as folder:
        (port,), log = free_ports(1), Path(folder, "log")
        command = [
            HOME / "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", port,
            "--workers", 1, "--backend-store-uri", f"sqlite:///{folder}/store.db",
            "--artifacts-destination", f"{folder}/artifacts",
        ]  # fmt: skip
        config = Path(folder, "auth.ini")
        config.write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
            f"admin_username = {USER}\nadmin_password = {PASSWORD}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        env = os.environ | _QUIET | {
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "tests", "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "PATH": f"{HOME}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        process = start_program(command, log, env=env, cwd=folder)
        url = f"http://127.0.0.1:{port}"

        def ready():
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-4000:])
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                    return answer.status == 200
            except OSError:
                return False

        try:
            wait_until(ready, 120, lambda: f"the server answers\n{log.read_text()[-4000:]}")
            yield url, process
        finally:
            kill(process)
