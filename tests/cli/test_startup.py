"""Which modules a command imports, and that faster imports leave no trace."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from support.runs import MODELS, command, write

SCRIPT = """
import json, sys
from scorer.cli.startup import fast_imports
{before}
with fast_imports():
    import dask.array, dask.dataframe
    during = sys.modules.get("scipy") is not None
import dask.utils, pandas as pd
import scipy.fftpack
frame = dask.dataframe.from_pandas(pd.DataFrame({{"x": range(10)}}), npartitions=2)
print(json.dumps({{
    "during": during, "after": scipy.fftpack.MARK, "copies": dask.utils._derived_from.__module__,
    "sum": int(frame.x.sum().compute(scheduler="sync")), "said": len(dask.array.sin.__doc__ or ""),
}}))
"""


@pytest.fixture
def scipy_there(tmp_path):
    """Return a folder with an importable stand-in for scipy."""
    for name in ("__init__", "fftpack", "sparse"):
        file = tmp_path / "scipy" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("MARK = 'loaded'\nclass spmatrix: pass\nclass sparray: pass\n")
    return tmp_path


@pytest.mark.parametrize("before", ["", "import scipy"], ids=["not loaded", "loaded before"])
def test_scipy_is_hidden_only_during_the_imports(scipy_there, before):
    code = f"import sys; sys.path.insert(0, {str(scipy_there)!r})\n{SCRIPT.format(before=before)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["during"] is bool(before)
    assert seen["after"] == "loaded"
    assert seen["sum"] == 45
    assert seen["copies"] == "dask.utils"
    assert seen["said"] < 200


def test_a_failed_import_leaves_nothing_behind():
    code = (
        "import sys\nfrom scorer.cli.startup import fast_imports\n"
        "try:\n with fast_imports():\n  import there_is_no_such_module\nexcept ImportError:\n pass\n"
        "import dask.utils, gc\n"
        "print(None in sys.modules.values(), dask.utils._derived_from.__module__, gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "dask.utils", "True"]


def test_arrow_works_and_its_docstring_parser_is_importable_afterwards():
    code = (
        "from scorer.cli.startup import fast_imports\n"
        "with fast_imports():\n import pyarrow.compute as pc\n"
        "from pyarrow.vendored import docscrape\n"
        "found = docscrape.NumpyDocString('A thing.\\n\\nParameters\\n----------\\nx : int\\n    A number.\\n')\n"
        "print(pc.sum([1, 2], min_count=1), pc.sum.__name__, found['Parameters'][0].name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "sum", "x"]


def test_a_large_frame_avoids_mapping_memory_for_calls():
    """Nested calls, as many as imports make, cause hardly any page faults."""
    code = (
        "import resource\nfrom scorer.cli.startup import with_large_frame\n"
        "def deep(n):\n if n: deep(n - 1)\n for _ in range(200): (lambda a, b, c: a)(1, 2, 3)\n"
        "def command():\n"
        " deep(400)\n before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n deep(400)\n"
        " return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(command(), with_large_frame(command)())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    without, within = map(int, done.stdout.split())
    assert within < 50 < without


def test_import_and_help_load_no_heavy_package():
    heavy = ("pandas", "dask", "pyarrow", "onnxruntime", "distributed", "numpy", "onnx")
    code = (
        "import sys, scorer\nfrom click.testing import CliRunner\nfrom scorer.cli.main import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(main, ['run', '--help']).exit_code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_run_of_parquet_files_loads_no_library_of_tables(tmp_path):
    write(tmp_path / "in.parquet", {"c0": np.ones(10, np.float32), "c1": np.ones(10, np.float32)})
    options = f"output={str(tmp_path / 'out')!r}, cluster='synchronous'"
    code = (
        f"import sys, scorer\nscorer.run({str(tmp_path / 'in.parquet')!r}, {str(MODELS / 'lying.onnx')!r}, {options})\n"
        "print([name for name in ('deltalake', 'pyiceberg', 'obstore') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_quiet_run_prints_nothing_on_stderr(tmp_path):
    write(tmp_path / "in.parquet", {"c0": np.ones(10, np.float32), "c1": np.ones(10, np.float32)})
    done = command("run", tmp_path / "in.parquet", "--model", MODELS / "lying.onnx", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
