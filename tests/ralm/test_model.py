from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from ralm.errors import ArtifactError, ConfigError
from ralm.model import model_details, open_model, read_retriever_config, write_reader_config, write_retriever_config
from ralm.model_build import build_model
from ralm.model_config import ModelConfig
from ralm.reader.config import ReaderConfig
from ralm.retriever.config import RetrieverConfig, RetrieverSettings


@pytest.fixture
def files(tiny_model_files: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's files that a test may change."""
    return Path(shutil.copytree(tiny_model_files, tmp_path / "files"))


def build(files: Path, target: Path, **settings: object) -> Path:
    build_model(str(target), source=str(files), config=ModelConfig(**settings))  # type: ignore[arg-type]
    return target


def test_layout_and_settings(files: Path, tmp_path: Path) -> None:
    reader = ReaderConfig(num_passages=3)
    model = open_model(str(build(files, tmp_path / "model", reader=reader)))
    found = {entry.path for entry in model.manifest.files}
    assert found >= {
        "retriever/retriever.json",
        "retriever/passage/config.json",
        "retriever/passage/model.safetensors",
        "retriever/passage/tokenizer.json",
        "reader/config.json",
        "reader/model.safetensors",
        "reader/tokenizer.json",
        "reader/reader.json",
    }
    assert model.tied
    assert model.question_encoder_folder == model.passage_encoder_folder
    assert model.reader == reader
    assert (model.retriever.pooling, model.retriever.normalize) == ("mean", False)
    assert (model.retriever.max_passage_tokens, model.dimension) == (128, 32)
    assert model_details(model.folder) == model.manifest.details
    assert not any("pooler" in name for name in load_file(model.passage_encoder_folder / "model.safetensors"))


def test_a_question_encoder_of_its_own(files: Path, tmp_path: Path) -> None:
    model = open_model(str(build(files, tmp_path / "model", question_encoder=str(files / "retriever"))))
    assert not model.tied
    assert model.question_encoder_folder.name == "question"
    tied = open_model(str(build(files, tmp_path / "tied")))
    assert model.fingerprints == tied.fingerprints


def test_equal_builds_are_equal(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = []
    for name in ("a", "b"):
        monkeypatch.setenv("RALM_HOME", str(tmp_path / f"home-{name}"))
        manifests.append((build(files, tmp_path / name) / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize(
    ("pooling", "modules", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, ["Transformer", "Pooling", "Normalize"], ("mean", True)),
        ({"pooling_mode_cls_token": True, "include_prompt": True}, ["Transformer", "Pooling"], ("cls", False)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ["Transformer", "Pooling"], ("sqrt", False)),
        ({"pooling_mode": "cls"}, ["Transformer", "Pooling"], ("cls", False)),
    ],
)
def test_pooling_of_sentence_transformers(
    files: Path, tmp_path: Path, pooling: dict[str, object], modules: list[str], expected: tuple[str, bool]
) -> None:
    write_modules(files / "retriever", pooling, modules)
    config, _ = read_retriever_config(build(files, tmp_path / "model"))
    assert (config.pooling, config.normalize) == expected
    settings = RetrieverSettings(pooling="sqrt", normalize="yes")
    config, _ = read_retriever_config(build(files, tmp_path / "explicit", retriever=settings))
    assert (config.pooling, config.normalize) == ("sqrt", True)


@pytest.mark.parametrize(
    ("pooling", "modules", "message"),
    [
        ({"pooling_mode_max_tokens": True}, ["Transformer", "Pooling"], "expected one pooling of"),
        ({"pooling_mode_mean_tokens": True}, ["Transformer", "Pooling", "Dense"], r"modules \['Dense'\]"),
    ],
)
def test_unsupported_sentence_transformers(
    files: Path, tmp_path: Path, pooling: dict[str, object], modules: list[str], message: str
) -> None:
    write_modules(files / "retriever", pooling, modules)
    with pytest.raises(ArtifactError, match=message):
        build(files, tmp_path / "model")
    assert not (tmp_path / "model" / "manifest.json").exists()


def write_modules(folder: Path, pooling: dict[str, object], modules: list[str]) -> None:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    listed = [{"path": paths[name], "type": f"sentence_transformers.models.{name}"} for name in modules]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))


def test_pickled_weights_become_safetensors(files: Path, tmp_path: Path) -> None:
    expected = open_model(str(build(files, tmp_path / "model"))).fingerprints
    for part in ("retriever", "reader"):
        torch.save(load_file(files / part / "model.safetensors"), files / part / "pytorch_model.bin")
        (files / part / "model.safetensors").unlink()
    model = open_model(str(build(files, tmp_path / "from-bin")))
    assert model.fingerprints == expected
    assert not list(model.folder.rglob("*.bin"))


def test_the_output_layer_stays_apart_from_the_embedding(files: Path, tmp_path: Path) -> None:
    original = load_file(files / "reader" / "model.safetensors")
    model = open_model(str(build(files, tmp_path / "model")))
    reader = T5ForConditionalGeneration.from_pretrained(model.reader_folder)
    torch.testing.assert_close(reader.lm_head.weight.detach(), original["lm_head.weight"], rtol=0, atol=0)
    torch.testing.assert_close(reader.shared.weight.detach(), original["shared.weight"], rtol=0, atol=0)
    assert not torch.equal(reader.lm_head.weight, reader.shared.weight)
    config = json.loads((model.reader_folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False  # what version 4 of transformers goes by


def test_swapped_parts(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a t5 model is no retriever; expected one of bert"):
        build_model(str(tmp_path / "model"), retriever=str(files / "reader"), reader=str(files / "reader"))
    with pytest.raises(ArtifactError, match="a bert model is no reader; expected one of t5"):
        build_model(str(tmp_path / "model"), retriever=str(files / "retriever"), reader=str(files / "retriever"))
    with pytest.raises(ConfigError, match="reader: no source given"):
        build_model(str(tmp_path / "model"), retriever=str(files / "retriever"))


def test_damaged_weights(files: Path, tmp_path: Path) -> None:
    weights = files / "retriever" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="cannot load the weights"):
        build(files, tmp_path / "model")


class Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_pickle_that_would_run_code_is_refused(files: Path, tmp_path: Path) -> None:
    (files / "retriever" / "model.safetensors").unlink()
    torch.save({"weight": Intruder()}, files / "retriever" / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="cannot load the weights"):
        build(files, tmp_path / "model")


def test_weights_that_are_missing(files: Path, tmp_path: Path) -> None:
    path = files / "retriever" / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"1 weights are missing, such as encoder.layer.1.output.dense.weight"):
        build(files, tmp_path / "model")


def test_each_fingerprint_covers_its_own_part(files: Path, tmp_path: Path) -> None:
    folder = build(files, tmp_path / "model")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = model_details(copy)["fingerprints"]
    config = RetrieverConfig(max_passage_tokens=128)

    def changed(retriever: RetrieverConfig = config, reader: ReaderConfig = ReaderConfig()) -> set[str]:  # noqa: B008
        write_retriever_config(copy, retriever, tied=True)
        write_reader_config(copy, reader)
        after = model_details(copy)["fingerprints"]
        return {name for name in before if after[name] != before[name]}

    assert changed() == set()
    assert changed(retriever=RetrieverConfig(max_passage_tokens=64)) == {"passage_encoder"}
    assert changed(retriever=RetrieverConfig(max_passage_tokens=128, question_format="q: {question}")) == {
        "question_encoder"
    }
    assert changed(retriever=RetrieverConfig(max_passage_tokens=128, normalize=True)) == {
        "question_encoder",
        "passage_encoder",
    }
    assert changed(reader=ReaderConfig(max_target_tokens=9)) == {"reader"}


def test_settings_that_cannot_be_read(files: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(build(files, tmp_path / "model"), tmp_path / "copy"))
    path = copy / "retriever" / "retriever.json"
    path.chmod(0o644)
    path.write_text('{"pooling": "max"}')
    with pytest.raises(ArtifactError, match=r"retriever.json: no valid RetrieverConfig: retriever.pooling"):
        read_retriever_config(copy)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"retriever.json"):
        model_details(copy)
