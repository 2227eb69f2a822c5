"""The script of `make test-faults` with two kills, so that it does not rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_two_kills(tmp_path: Path) -> None:
    words = ["--kills", "2", "--only-kills", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "faults" / "reindex_faults.py"), *words],
        env={name: text for name, text in os.environ.items() if not name.startswith(("RALM_", "MLFLOW_"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills: champion always answered, final state equal in 2 of 2" in done.stdout
    assert " in register: " in done.stdout
    assert " in index: " in done.stdout


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_checks_find_what_is_wrong(tmp_path: Path) -> None:
    """A home that was tampered with is not taken for a sound one."""
    program = """
import shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.faults.home_state import look
from tests.faults.reindex_bench import Bench, prepare
from tests.faults.reindex_faults import Round, look_at_disturbed
bench = Bench(Path(sys.argv[2]))
prepare(bench)

def problems() -> str:
    done = Round("")
    state = look_at_disturbed(bench, done)
    return " ".join([*done.problems, *state.unfinished])

assert problems() == "", problems()
place = Path(look(bench.home).places[0])
file = next(path for path in place.rglob("*") if path.suffix in (".parquet", ".npy", ".safetensors"))
content = file.read_bytes()
file.chmod(0o644)
file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
assert f"{place}: {file.relative_to(place)} has other bytes" in problems(), problems()
file.write_bytes(content)
assert problems() == "", problems()
(bench.home / "store" / ".work" / "x").mkdir()
assert problems() == "store/.work/x", problems()
bench.restore()
place = look(bench.home).places[0]
shutil.rmtree(place)
assert f"{place}: no such artifact" in problems(), problems()
print("found")
"""
    (tmp_path / "bench").mkdir()
    words = [str(ROOT), str(tmp_path / "bench")]
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("RALM_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["found"]), done.stderr
