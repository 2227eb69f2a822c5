"""The rows of the benchmark suite: each is measured in a process of its own, against its peers in the same run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import goals_of

ROWS = {
    "limits": "limits:measure",
    "E1": "embed:measure_minilm",
    "E2": "embed:measure_base",
    "T1": "embed:measure_tokenizing",
    "P1": "wikitext:measure",
    "P2": "dump:measure",
    "D1": "vectors:measure",
    "S1": "exact_search:measure",
    "S2": "approximate_search:measure",
    "J1": "joint_step:measure",
    "J2": "waiting:measure",
    "G1": "generate:measure",
    "I1": "reindex:measure",
    "O1": "overhead:measure",
    "M1": "memory:measure",
    "growth": "growth:measure",
}
"""Where each row is measured: a module of `benchmarks.rows` and its function."""
PEERS = (
    "torch",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "wikiextractor",
    "wikitextparser",
    "pyarrow",
    "kfp",
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a row is measured with."""

    work: Path
    """Folder for models, corpora and vectors, which stay for the next run."""
    small: bool = False
    """Tiny sizes and made inputs, to see that a row works; its figures mean nothing."""
    repeats: int = 5


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a row found."""

    figures: dict[str, float]
    """By the names that `benchmarks.goals` has, and more."""
    table: list[str] = dataclasses.field(default_factory=list)
    """Markdown with the times of each way."""


def positive(text: str) -> int:
    """A number of repeats from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def measure(row: str, bench: Bench) -> Measured:
    """Measure a row in this process."""
    module, function = ROWS[row].split(":")
    found: Measured = getattr(importlib.import_module(f"benchmarks.rows.{module}"), function)(bench)
    return found


def measure_apart(row: str, bench: Bench) -> dict[str, Any]:
    """Measure a row in a process of its own, which shows its table.

    Returns:
        `figures`, `table` and `seconds`; `error` where it failed.
    """
    result = bench.work / "rows" / f"{row}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.rows", row, "--work", str(bench.work), "--json", str(result)]
    command += ["--repeats", str(bench.repeats), *(["--small"] if bench.small else [])]
    started_at = time.monotonic()
    with stopped_at_exit(command) as process:
        code = process.wait()
    found: dict[str, Any] = {"figures": {}, "table": [], "error": f"ended with {code}"}
    if code == 0:
        found = json.loads(result.read_text(encoding="utf-8"))
    return {**found, "seconds": round(time.monotonic() - started_at, 1)}


@contextlib.contextmanager
def stopped_at_exit(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive this block; Ctrl-C reaches it as one SIGTERM from here, and not a second time."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def row_environment(bench: Bench) -> dict[str, str]:
    """What a row's process runs with: a store of its own, no tracking, no hub."""
    return {
        "RALM_HOME": str((bench.work / "home").absolute()),
        "RALM_TRACKING": "off",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true"),
    }


def peer_versions() -> dict[str, str]:
    """Versions of what is compared with, where it is installed."""
    found = {}
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def check_goals(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A line of the table for each goal of the rows that ran."""
    lines = []
    for row, found in rows.items():
        for goal in goals_of(row):
            value = found["figures"].get(goal.figure)
            state = "not measured" if value is None else "met" if goal.is_met(value) else "missed"
            lines.append({"row": row, "text": goal.text, "goal": goal.wanted, "value": value, "state": state})
    return lines


def goal_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The goals as Markdown."""
    head = ["| row | what | goal (stretch) | figure | |", "|---|---|---|---|---|"]
    cells = [
        [
            line["row"],
            line["text"],
            line["goal"],
            "-" if line["value"] is None else f"{line['value']:.4g}",
            line["state"],
        ]
        for line in lines
    ]
    return head + [f"| {' | '.join(row)} |" for row in cells]
