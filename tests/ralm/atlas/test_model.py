"""Official checkpoints -> our artifacts -> official checkpoints. Spec 2.1, rows 24 and B."""

from __future__ import annotations

import argparse
import collections
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel, T5ForConditionalGeneration

from ralm.artifacts.manifest import open_artifact
from ralm.atlas.model import export_model
from ralm.errors import ArtifactError, ConfigError
from ralm.model import Model, open_model
from ralm.model_build import build_model
from ralm.model_config import ModelConfig
from ralm.reader.config import ReaderConfig
from ralm.reader.fusion import FusionReader
from ralm.reader.prompts import format_inputs, format_target
from ralm.retriever.config import RetrieverSettings
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder
from tests.ralm.atlas.conftest import OPTIONS, WriteCheckpoint

PROMPT = "question: {question} answer: <extra_id_0>"


@pytest.fixture
def load(tiny_model_files: Path, tmp_path: Path) -> Any:
    def load(checkpoint: Path, **settings: Any) -> Model:
        parts = {name: str(tiny_model_files / name) for name in ("retriever", "reader")}
        build_model(str(tmp_path / "model"), source=str(checkpoint), **parts, config=ModelConfig(**settings))
        return open_model(str(tmp_path / "model"))

    return load


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in format, shape and every bit."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("untied", [False, True])
def test_official_to_ours_to_official_is_bit_exact(
    write_official: WriteCheckpoint, load: Any, tmp_path: Path, untied: bool, dtype: torch.dtype
) -> None:
    path = write_official(untied=untied, dtype=dtype)
    model = load(path)
    assert model.tied == (not untied)
    back = export_model(str(model.folder), str(tmp_path / "back"))
    assert back == tmp_path / "back" / "model.pth.tar"
    before, after = (torch.load(place, weights_only=False) for place in (path, back))
    assert before.keys() == after.keys()
    assert before["model"].keys() == after["model"].keys()
    assert [name for name, tensor in before["model"].items() if not same(tensor, after["model"][name])] == []
    assert (before["step"], before["opt"]) == (after["step"], after["opt"])
    assert [name for name in after if after[name] is None] == [
        "optimizer",
        "retr_optimizer",
        "scheduler",
        "retr_scheduler",
    ]


def test_ours_to_official_to_ours_is_bit_exact(tiny_model: str, load: Any, tmp_path: Path) -> None:
    first = open_model(tiny_model)
    config = {"retriever": RetrieverSettings(max_passage_tokens=128), "reader": first.reader, "preset": "none"}
    second = load(export_model(tiny_model, str(tmp_path / "official")), **config)
    for part in ("reader", "retriever/passage"):
        before, after = (load_file(model.folder / part / "model.safetensors") for model in (first, second))
        assert before.keys() == after.keys()
        assert all(same(tensor, after[name]) for name, tensor in before.items())
    assert second.retriever == first.retriever
    assert second.reader == first.reader


def test_the_exported_names_are_those_that_atlas_loads_strictly(
    tiny_model: str, t5: T5ForConditionalGeneration, tmp_path: Path
) -> None:
    plain = torch.load(export_model(tiny_model, str(tmp_path / "official")), weights_only=False)
    reader = {name.removeprefix("reader.") for name in plain["model"] if name.startswith("reader.")}
    assert reader == set(t5.state_dict())  # with both copies of the embedding
    buffer = plain["model"]["retriever.contriever.embeddings.position_ids"]
    assert buffer.tolist() == [list(range(128))]
    assert plain["opt"] == argparse.Namespace(query_side_retriever_training=False)


def test_a_loaded_checkpoint_computes_what_its_modules_compute(
    write_official: WriteCheckpoint, load: Any, t5: T5ForConditionalGeneration, bert: BertModel
) -> None:
    model = load(write_official())
    cpu = torch.device("cpu")
    encoder = Encoder.load(model.passage_encoder_folder, model.retriever, device=cpu, dtype=torch.float32)
    ids = encoder.tokenize(["the colour of granite", "willow"], 64)
    reader = FusionReader.load(model.reader_folder, model.reader, device=cpu)
    tokens = reader.tokenizer("what is the use of copper", return_tensors="pt").input_ids
    labels = reader.tokenizer("iron tools", return_tensors="pt").input_ids
    with torch.inference_mode():
        for row in ids:
            state = bert(torch.tensor(row.astype("int64"))[None]).last_hidden_state
            torch.testing.assert_close(encoder(*encoder.pad([row])), state.mean(1), rtol=1e-5, atol=1e-6)
        expected = t5(input_ids=tokens, labels=labels).logits
        torch.testing.assert_close(reader.model(input_ids=tokens, labels=labels).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_reader_with_a_tied_head(write_official: WriteCheckpoint, load: Any, tmp_path: Path) -> None:
    """T5 before v1.1: the file repeats the embedding as `lm_head`, and scores are scaled."""

    def tie(plain: dict[str, Any]) -> None:
        plain["model"]["reader.lm_head.weight"] = plain["model"]["reader.shared.weight"]

    path = write_official(change=tie)
    model = load(path)
    assert "lm_head.weight" not in load_file(model.reader_folder / "model.safetensors")
    config = T5ForConditionalGeneration.from_pretrained(model.reader_folder).config
    assert config.scale_decoder_outputs
    after = torch.load(export_model(str(model.folder), str(tmp_path / "back")), weights_only=False)["model"]
    assert same(after["reader.lm_head.weight"], after["reader.shared.weight"])


def test_layout_of_data_parallel_runs(write_official: WriteCheckpoint, load: Any) -> None:
    expected = load(write_official()).fingerprints
    assert load(write_official(wrapped=True)).fingerprints == expected


def test_files_of_torch_before_1_6(write_official: WriteCheckpoint, load: Any) -> None:
    expected = load(write_official()).fingerprints
    path = write_official(legacy=True)
    assert path.read_bytes()[:2] != b"PK"
    assert load(path).fingerprints == expected


def test_tensors_saved_from_a_gpu(write_official: WriteCheckpoint, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(write_official()).fingerprints
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = write_official()
    assert b"cuda:0" in path.read_bytes()
    assert load(path).fingerprints == expected


def test_optimisers_and_schedules_in_the_file_are_passed_over(write_official: WriteCheckpoint, load: Any) -> None:
    def fill(plain: dict[str, Any]) -> None:
        weight = torch.nn.Parameter(torch.zeros(3))
        optimiser = torch.optim.AdamW([weight])
        weight.grad = torch.ones(3)
        optimiser.step()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
        plain |= {"optimizer": optimiser.state_dict(), "scheduler": schedule.state_dict()}
        plain["model"] = collections.OrderedDict(plain["model"])

    assert load(write_official(change=fill)).dimension == 32


def test_options_and_step_are_recorded(write_official: WriteCheckpoint, load: Any) -> None:
    odd = {"device": torch.device("cpu"), "clip": float("inf"), "half": "\ud83d", "nested": [[1]], 3: "no name"}
    recorded = load(write_official(change=lambda plain: vars(plain["opt"]).update(odd))).manifest.details
    assert recorded["atlas"] == {"step": 30, "options": OPTIONS}


def test_formats_are_those_of_atlas(write_official: WriteCheckpoint, load: Any) -> None:
    """Spec 1.2: prompts byte for byte; the retriever is asked the reader's templated question."""
    model = load(write_official())
    passage = argparse.Namespace(title="Emma", section="Plot", text="Emma is clever.")
    question = "question: who is clever answer: <extra_id_0>"
    assert format_inputs(model.reader, "who is clever", [passage]) == [
        f"{question} title: Emma: Plot context: Emma is clever."
    ]
    assert format_target(model.reader, "Emma") == "<extra_id_0> Emma"
    assert model.retriever.format_question("who is clever") == question
    assert model.retriever.format_passage("Emma", "Plot", "Emma is clever.") == "Emma: Plot Emma is clever."
    assert model.retriever.format_passage("Emma", "", "Emma is clever.") == "Emma Emma is clever."
    assert (model.retriever.pooling, model.retriever.normalize) == ("mean", False)
    assert model.reader.max_input_tokens == 512
    assert (model.retriever.max_passage_tokens, model.retriever.max_question_tokens) == (128, 128)  # its positions


def test_settings_of_the_user_win(write_official: WriteCheckpoint, load: Any) -> None:
    model = load(write_official(), reader=ReaderConfig(question_format="{question}", num_passages=3))
    assert (model.reader.question_format, model.reader.num_passages) == ("{question}", 3)
    assert model.reader.target_format == "<extra_id_0> {target}"
    plain = load(write_official(), preset="none")
    assert plain.reader == ReaderConfig()


class Intruder:
    """Runs a command when it is unpickled by the ordinary pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch intruded",)


class Unknown:
    """Any class of another project."""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("guest", "name"), [(Intruder(), "posix.system"), (Unknown(), r"[\w.]*test_model\.Unknown")])
@pytest.mark.parametrize("place", ["opt", "model", "optimizer"])
def test_a_checkpoint_cannot_run_code(
    write_official: WriteCheckpoint,
    load: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    guest: object,
    name: str,
    legacy: bool,
) -> None:
    """Spec 2.1, row 24: a pickle with anything but tensors, plain values and `opt`'s class is refused by its name."""
    monkeypatch.chdir(tmp_path)

    def hide(plain: dict[str, Any]) -> None:
        if place == "opt":
            plain["opt"].guest = guest
        else:
            plain[place] = {"guest": guest}

    with pytest.raises(ArtifactError, match=rf"model.pth.tar: the file asks for {name}; only tensors and plain values"):
        load(write_official(change=hide, legacy=legacy))
    assert not (tmp_path / "intruded").exists()
    assert not (tmp_path / "model").exists()


def broken(change: str, plain: dict[str, Any]) -> None:
    model = plain["model"]
    if change == "no model":
        del plain["model"]
    elif change == "a weight less":
        del model["reader.decoder.block.1.layer.2.DenseReluDense.wo.weight"]
    elif change == "a weight more":
        model["retriever.contriever.pooler.dense.weight"] = torch.zeros(2, 2)
    elif change == "a shape":
        model["retriever.contriever.embeddings.LayerNorm.bias"] = torch.zeros(31)
    elif change == "a foreign part":
        model["generator.weight"] = torch.zeros(2)
    elif change == "no retriever":
        plain["model"] = {name: tensor for name, tensor in model.items() if name.startswith("reader.")}
    elif change == "another embedding":
        model["reader.encoder.embed_tokens.weight"] = model["reader.shared.weight"] + 1
    elif change == "both kinds":
        model["retriever.query_contriever.embeddings.LayerNorm.bias"] = torch.zeros(32)
    elif change == "no content":
        model["reader.shared.weight"] = model["reader.shared.weight"].to("meta")
    elif change == "no tensor":
        model["reader.shared.weight"] = "text"
    else:
        model["reader.shared.weight"] = model["reader.shared.weight"][:20]
        for half in ("encoder", "decoder"):
            model[f"reader.{half}.embed_tokens.weight"] = model["reader.shared.weight"]
        model["reader.lm_head.weight"] = model["reader.lm_head.weight"][:20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no model", "no Atlas checkpoint: expected a dict with the key 'model'"),
        (
            "a weight less",
            "1 weights of the reader are missing, such as decoder.block.1.layer.2.DenseReluDense.wo.weight",
        ),
        ("a weight more", "1 unknown weights in the retriever, such as pooler.dense.weight"),
        ("a shape", r"the retriever's embeddings.LayerNorm.bias has shape \[31\], expected \[32\]"),
        ("a foreign part", "unknown weight 'generator.weight'"),
        ("no retriever", "no weights of the passage encoder"),
        ("another embedding", "reader.encoder.embed_tokens.weight differs from reader.shared.weight"),
        ("both kinds", "both a shared encoder and encoders of its own"),
        ("no content", "'reader.shared.weight': expected a tensor of floating-point numbers"),
        ("no tensor", "'reader.shared.weight': expected a tensor of floating-point numbers"),
        ("few rows", "the tokenizer has .* tokens, but the checkpoint's embedding 20 rows"),
    ],
)
def test_checkpoints_that_are_not_whole(
    write_official: WriteCheckpoint, load: Any, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(write_official(change=lambda plain: broken(change, plain)))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no zip", b"no pickle at all"])
def test_a_damaged_file(load: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth.tar"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="model.pth.tar: "):
        load(path)


def test_a_cut_off_file(write_official: WriteCheckpoint, load: Any) -> None:
    path = write_official()
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ArtifactError, match="no readable file of torch.save"):
        load(path)


def test_equal_imports_are_reused(write_official: WriteCheckpoint, load: Any) -> None:
    path = write_official()
    first = load(path.parent)  # a folder with the file
    assert open_artifact(str(first.folder), "model").fingerprint == load(path).manifest.fingerprint


def test_a_question_encoder_cannot_be_given(write_official: WriteCheckpoint, load: Any) -> None:
    with pytest.raises(ConfigError, match="an Atlas checkpoint brings its own"):
        load(write_official(), question_encoder="somewhere")


def test_the_heads_of_a_bert_of_unknown_origin(
    write_official: WriteCheckpoint, tiny_model_files: Path, tmp_path: Path
) -> None:
    """Contriever's heads have 64 values; without a config beside the tokenizer nothing else is assumed."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_bytes((tiny_model_files / "retriever" / "tokenizer.json").read_bytes())
    output, reader = str(tmp_path / "model"), str(tiny_model_files / "reader")
    build_model(output, source=str(write_official()), retriever=str(tokenizer), reader=reader)
    config = BertModel.from_pretrained(open_model(output).passage_encoder_folder, add_pooling_layer=False).config
    assert config.num_attention_heads == 1


def test_a_retriever_that_atlas_cannot_run(tiny_model_files: Path, tmp_path: Path) -> None:
    config = ModelConfig(retriever=RetrieverSettings(normalize="yes"))
    build_model(str(tmp_path / "model"), source=str(tiny_model_files), config=config)
    with pytest.raises(ArtifactError, match="Atlas' retriever takes the plain mean, this one is normalised"):
        export_model(str(tmp_path / "model"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_questions_and_passages_use_their_own_half(write_official: WriteCheckpoint, load: Any) -> None:
    model = load(write_official(untied=True))
    folders = (model.question_encoder_folder, model.passage_encoder_folder)
    vectors = [
        embed_texts(
            Encoder.load(folder, model.retriever, device=torch.device("cpu"), dtype=torch.float32),
            ["the colour of granite"],
            max_tokens=64,
        )
        for folder in folders
    ]
    assert abs(vectors[0] - vectors[1]).max() > 0.01


def test_by_key_with_tokenizers_from_elsewhere(
    write_official: WriteCheckpoint,
    load: Any,
    tiny_model_files: Path,
    site: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = load(write_official())
    site.files["/models/atlas_nq/base/model.pth.tar"] = write_official().read_bytes()
    monkeypatch.setenv("RALM_ATLAS_BASE_URL", site.url)
    for role in ("retriever", "reader"):  # where none is named
        monkeypatch.setattr(f"ralm.atlas.model.{role.upper()}_TOKENIZER", str(tiny_model_files / role))
    build_model(str(tmp_path / "by-key"), source="atlas:models/atlas_nq/base")
    assert open_model(str(tmp_path / "by-key")).fingerprints == expected.fingerprints
