from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ralm.corpus.parallel import map_ordered
from ralm.errors import DataError

SCRIPT = """
import math
from ralm.corpus.parallel import map_ordered
print("begun", flush=True)
print(sum(map_ordered(math.isqrt, [4] * 50, 2)), __file__ == sys.argv[0] if (sys := __import__("sys")) else None)
"""


def test_a_script_without_a_guard_does_not_call_itself(tmp_path: Path) -> None:
    """Worker processes run the main file unless they are kept from it; the second call would wait for the first."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["begun", "100", "True"]


def test_results_come_in_order_from_other_processes() -> None:
    assert list(map_ordered(abs, range(-30, 0), 2)) == list(range(30, 0, -1))


def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(DataError, match="a worker process died"):
        list(map_ordered(os._exit, [3] * 9, 2))
