"""What a command imports, and that it leaves everything as it found it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LOOK = """
import json, sys
from scorer.startup import quickly
{before}
with quickly():
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
    """A scipy that can be imported, by name."""
    for name in ("__init__", "fftpack", "sparse"):
        file = tmp_path / "scipy" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("MARK = 'loaded'\nclass spmatrix: pass\nclass sparray: pass\n")
    return tmp_path


@pytest.mark.parametrize("before", ["", "import scipy"], ids=["not loaded", "loaded by somebody before"])
def test_scipy_is_left_alone_and_there_again_afterwards(scipy_there, before):
    code = f"import sys; sys.path.insert(0, {str(scipy_there)!r})\n{LOOK.format(before=before)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["during"] is bool(before)
    assert seen["after"] == "loaded"
    assert seen["sum"] == 45
    assert seen["copies"] == "dask.utils"
    assert seen["said"] < 200


def test_a_failed_import_leaves_nothing_behind():
    code = (
        "import sys\nfrom scorer.startup import quickly\n"
        "try:\n with quickly():\n  import there_is_no_such_module\nexcept ImportError:\n pass\n"
        "import dask.utils, gc\n"
        "print(None in sys.modules.values(), dask.utils._derived_from.__module__, gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "dask.utils", "True"]
