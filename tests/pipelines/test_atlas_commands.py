"""`ralm atlas import` and `ralm atlas export` on the toy corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main


def ralm(*words: str) -> None:
    assert main(list(words)) == 0


def test_there_and_back(
    toy_passages: str,
    toy_index: str,
    tiny_model: str,
    tiny_model_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Model and index leave as Atlas' files, come back, and find the same passages."""
    checkpoint, shards = tmp_path / "checkpoint", tmp_path / "shards"
    ralm("atlas", "export", "--model", tiny_model, "--output", str(checkpoint))
    ralm("atlas", "export", "--index", toy_index, "--passages", toy_passages, "--output", str(shards))
    assert capsys.readouterr().out.splitlines() == [str(checkpoint / "model.pth.tar"), str(shards)]
    assert len(list(shards.iterdir())) == 256

    model, passages, embeddings, index = (str(tmp_path / name) for name in ("model", "passages", "embeddings", "index"))
    parts = [word for name in ("retriever", "reader") for word in (f"--{name}", str(tiny_model_files / name))]
    settings = ["--config.model.preset", "none", "--config.model.retriever.max-passage-tokens", "128"]
    ralm("download", "--source", str(checkpoint), "--model", model, *parts, *settings)
    places = ["--model", model, "--passages", passages, "--embeddings", embeddings]
    ralm("atlas", "import", "--source", str(shards), *places, "--num-checked", "10", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["passages"]["counts"]["passages"] == printed["embeddings"]["counts"]["passages"] == 30
    ralm("index", "--embeddings", embeddings, "--index", index)

    found = []
    for trio in ((tiny_model, toy_index, toy_passages), (model, index, passages)):
        flags = [word for pair in zip(("--model", "--index", "--passages"), trio, strict=True) for word in pair]
        ralm("search", *flags, "--question", "the colour of otter", "--k", "5", "--json")
        found.append([hit["text"] for hit in json.loads(capsys.readouterr().out)["passages"]])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["export", "--output", "x"], "expected exactly one of --model, --index and --predictions, found none"),
        (["export", "--model", "m", "--index", "i", "--output", "x"], "found --model and --index"),
        (["export", "--index", "i", "--output", "x"], "--index goes with the --passages"),
        (["export", "--model", "nowhere", "--output", "x"], "nowhere: no such artifact"),
        (["export", "--predictions", "nowhere", "--output", "x"], "nowhere: no such artifact"),
        (["import", "--source", "nowhere"], "the following arguments are required"),
        (
            ["import", "--source", "s", "--model", "nowhere", "--passages", "p", "--embeddings", "e"],
            "nowhere: no such artifact",
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atlas", *words]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("ralm: error: ")]
    assert expected in line


def test_hostile_shards_end_with_one_line(
    toy_passages: str, toy_index: str, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    ralm(
        *("atlas", "export", "--index", toy_index, "--passages", toy_passages),
        *("--output", str(shards), "--num-shards", "2"),
    )
    (shards / "passages.1.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    places = ["--passages", str(tmp_path / "passages"), "--embeddings", str(tmp_path / "embeddings")]
    assert main(["atlas", "import", "--source", str(shards), "--model", tiny_model, *places]) == 2
    assert "passages.1.pt: the pickle asks for os.system" in capsys.readouterr().err
    assert not (tmp_path / "passages").exists()
