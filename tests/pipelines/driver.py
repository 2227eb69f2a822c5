"""One process for many `ralm` commands: what the tasks of their pipelines import is imported once, not for each run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import contextlib, io, json, sys
from pipelines.cli import main
answers = sys.stdout
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    log: str

    @property
    def result(self) -> dict[str, Any]:
        """What it printed with `--json`."""
        assert self.code == 0, self.log[-4000:]
        return dict(json.loads(self.out))

    @property
    def error(self) -> str:
        """Its last line on stderr."""
        return self.log.splitlines()[-1]

    @property
    def tasks(self) -> list[str]:
        """The tasks that were started."""
        lines = (line.split(" task ")[1] for line in self.log.splitlines() if " I task " in line)
        return [line.removesuffix(": started") for line in lines if line.endswith(": started")]


class Driver:
    """The process, for one RALM_HOME; use it with `with`."""

    def __init__(self, home: Path, **environment: str) -> None:
        # MLflow leaves the address of the last store it was told of in the environment.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        settings = {"RALM_HOME": str(home), "RALM_TRACKING": "on", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.home = home
        self._environment = {**inherited, **settings, **environment}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *details: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, *words: str) -> Done:
        """Run a command to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))
