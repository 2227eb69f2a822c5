"""The quickstart as subprocesses and as containers: the same artifacts, the same metrics; prints what each took.

Both fetch everything themselves, into a RALM_HOME of their own. Not a test of pytest: it takes minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ralm.retriever.vectors import read_vectors
from tests.containers.test_runner import digests

ROOT = Path(__file__).resolve().parents[2]


def run(runner: str, home: Path) -> tuple[dict[str, Any], float]:
    """The summary of one run, and its seconds."""
    environment = {**os.environ, "RALM_HOME": str(home), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "pipelines.cli", "quickstart", "--runner", runner, "--json"]
    started_at = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{runner}: {done.stderr[-4000:]}")
    return json.loads(done.stdout), time.monotonic() - started_at


def least_cosine(homes: list[Path]) -> float:
    """Between the vectors of equal passages in the two first embeddings artifacts."""
    found = []
    for home in homes:
        place = min((home / "store" / "embeddings").iterdir(), key=lambda path: path.stat().st_mtime)
        parts = [read_vectors(str(path)) for path in sorted(place.glob("*.parquet"))]
        ids = np.concatenate([ids for ids, _ in parts])
        rows = np.concatenate([vectors for _, vectors in parts]).astype(np.float64)
        found.append(rows[np.argsort(ids)])
    norms = [np.linalg.norm(rows, axis=1) for rows in found]
    return float(((found[0] * found[1]).sum(axis=1) / (norms[0] * norms[1])).min())


def main() -> int:
    """Run both and compare."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        homes = [Path(folder) / name for name in ("subprocess", "container")]
        results = [run(home.name, home) for home in homes]
        problems = []
        for (result, seconds), home in zip(results, homes, strict=True):
            print(f"{home.name:12} {seconds:6.0f} s  {json.dumps(result['after'])}")
        for kind in ("passages", "embeddings", "index", "model"):
            is_equal = digests(homes[0] / "store", kind) == digests(homes[1] / "store", kind)
            print(f"{kind:12} {'the same bytes' if is_equal else 'other bytes'}")
            if not is_equal and kind == "passages":
                problems.append(kind)
        cosine = least_cosine(homes)
        print(f"least cosine of two encodings: {cosine:.7f}")
        if cosine < 0.99999:
            problems.append("embeddings")
        for moment in ("before", "after"):
            if results[0][0][moment] != results[1][0][moment]:
                problems.append(f"metrics {moment} training")
        print(f"DIFFERENT: {', '.join(problems)}" if problems else "the same passages, encodings and metrics")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
