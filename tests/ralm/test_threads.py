"""How threads wait is settled before torch is loaded, in whatever way the code is entered."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK = "; import os, sys; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
ENTRIES = ("ralm.retriever.embed", "components.embed.stage", "pipelines.cli", "benchmarks.rows.embed")


def told(source: str, **environment: str) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("entry", ENTRIES)
def test_it_is_there_when_torch_comes(entry: str) -> None:
    watch = (
        "import importlib.abc, sys, os\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name in ('torch', 'faiss'): print(name, os.environ.get('GOMP_SPINCOUNT'))\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    lines = told(f"{watch}import {entry}").splitlines()
    assert {line.split()[1] for line in lines} <= {"1000"}
    assert lines or entry == "pipelines.cli"


def test_a_choice_of_the_user_stays() -> None:
    assert told("import ralm" + ASK).split() == ["False", "1000"]
    assert told("import ralm" + ASK, GOMP_SPINCOUNT="7").split() == ["False", "7"]
    assert told("import ralm" + ASK, OMP_WAIT_POLICY="ACTIVE").split() == ["False", "None"]
