"""The GPU benchmarks in a tiny size on a CPU: every row of their tables is there, and results are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu import embed, joint_step, search
from benchmarks.gpu.made_models import write_bert, write_t5
from benchmarks.peers import block_search
from benchmarks.peers.atlas_step import AtlasStep, PaddedBatch, pad_to_limit

pytestmark = pytest.mark.timeout(120)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_DEVICE", "cpu")


def rows_of(output: str) -> dict[str, list[str]]:
    """Cells of all table rows by the first one."""
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed.importlib.util, "find_spec", lambda name: None)
    embed.main(["--work", str(tmp_path), "--small"])
    output = capsys.readouterr().out
    rows = rows_of(output)
    assert float(rows["ralm embed, whole stage"][0].replace(",", "")) > 0
    assert {"encode on the device", "vectors to fp16", "write"} < rows.keys()
    assert "sentence-transformers is not installed: no peer" in output


def test_search(capsys: pytest.CaptureFixture[str]) -> None:
    search.main(["--small"])
    output = capsys.readouterr().out
    assert {"1", "32", "256"} < rows_of(output).keys()
    assert "results: as they should be" in output


def test_a_wrong_search_is_noticed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = search.FlatSearcher.search

    def second_best(searcher: search.FlatSearcher, question_BD: object, k: int) -> tuple[object, object]:
        score_BK, row_BK = right(searcher, question_BD, k + 1)  # type: ignore[arg-type]
        return score_BK[:, 1:], row_BK[:, 1:]

    monkeypatch.setattr(search.FlatSearcher, "search", second_best)
    with pytest.raises(SystemExit):
        search.main(["--small", "--batches", "1"])
    assert "results: WRONG" in capsys.readouterr().out


def test_joint_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    joint_step.main(["--work", str(tmp_path), "--small"])
    rows = rows_of(capsys.readouterr().out)
    assert {"ralm", "Atlas way", "Atlas way, attention of today"} < rows.keys()
    assert int(rows["Atlas way"][3].replace(",", "")) == 2 * 4 * 3 * 120  # padded to the limit, encoded twice
    assert int(rows["ralm"][3].replace(",", "")) <= 4 * 3 * 120


def test_without_a_gpu_only_the_small_size_runs(tmp_path: Path) -> None:
    for benchmark, arguments in ((embed, ["--work", str(tmp_path)]), (search, []), (joint_step, ["--work", "x"])):
        with pytest.raises(SystemExit, match="needs a CUDA device"):
            benchmark.main(arguments)


def test_the_peer_of_search_finds_the_best() -> None:
    matrix_ND = torch.eye(8).half()
    question_BD = torch.tensor([[0.0, 3.0, 0, 0, 0, 0, 2.0, 1.0]]).numpy()
    score_BK, row_BK = block_search.search(matrix_ND, question_BD, 3, block_rows=3)
    assert row_BK.tolist() == [[1, 6, 7]]
    assert score_BK.tolist() == [[3.0, 2.0, 1.0]]


def test_the_peer_of_training_learns(tmp_path: Path) -> None:
    write_bert(tmp_path / "retriever", "tiny", ["a b c d"])
    write_t5(tmp_path / "reader", "tiny", ["a b c d"])
    step = AtlasStep(tmp_path / "reader", tmp_path / "retriever", device=CPU, learning_rate=1e-2, dropout=0.0)
    before = step.retriever.embeddings.word_embeddings.weight.clone()
    texts = pad_to_limit([[5, 6, 1], [7, 1]] * 2, 8, 0, CPU)
    batch = PaddedBatch(texts, torch.tensor([[5, 1], [6, 1]]), pad_to_limit([[5], [6]], 8, 0, CPU), texts)
    losses = [step.update([batch])["reader_loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5
    assert not torch.equal(before, step.retriever.embeddings.word_embeddings.weight)
