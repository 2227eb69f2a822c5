from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ralm.artifacts.manifest import open_artifact
from ralm.errors import ArtifactError

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import os, signal, sys
import components.embed.stage as stage
from components.embed.config import EmbedConfig
from ralm.artifacts.tables import TableWriter

passages, model, embeddings, kill_at = sys.argv[1:]
write, blocks = TableWriter.write, []

def counted(self, rows):
    blocks.append(rows)
    write(self, rows)
    if len(blocks) == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)

TableWriter.write = counted
stage.embed(passages=passages, model=model, embeddings=embeddings, config=EmbedConfig(block_passages=10))
"""


def run(passages: str, model: str, embeddings: Path, home: Path, kill_at: int) -> int:
    environment = {**os.environ, "RALM_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, passages, model, str(embeddings), str(kill_at)]
    return subprocess.run(command, env=environment, check=False, cwd=home.parent).returncode


@pytest.mark.slow
def test_killed_and_run_again(toy_passages: str, tiny_model: str, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert run(toy_passages, tiny_model, killed, tmp_path / "home", kill_at=2) == -signal.SIGKILL
    with pytest.raises(ArtifactError):
        open_artifact(str(killed), "embeddings")
    assert run(toy_passages, tiny_model, killed, tmp_path / "home", kill_at=0) == 0
    assert run(toy_passages, tiny_model, whole, tmp_path / "other-home", kill_at=0) == 0
    names = [entry.path for entry in open_artifact(str(whole), "embeddings").manifest.files]
    for name in ["manifest.json", *names]:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
