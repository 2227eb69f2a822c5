"""Vectors and scores of retrievers of every public recipe against stock encoders, text by text without padding."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from ralm.model import Model, open_model
from ralm.objectives.divergence import retriever_scores
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.embed import embed_questions, embed_texts
from ralm.retriever.encoder import Encoder

CPU = torch.device("cpu")
QUESTIONS = ["who built the northern valley", "granite", "where did the river willow begin in the old days ?"]
PASSAGES = [
    ("Granite", "", "The granite of the northern valleys is old."),
    ("Willow", "Use", "Baskets."),
    ("River", "", "A river runs through the valley and " * 6),
    ("Copper", "History", "Copper was found under the lantern of the otter."),
]
RECIPES: dict[str, dict[str, Any]] = {
    "contriever": {"pooling": "mean", "normalize": False, "passage_format": "{title} {text}"},
    "minilm": {"pooling": "mean", "normalize": True, "passage_format": "{title} {text}"},
    "e5": {
        "pooling": "mean",
        "normalize": True,
        "question_format": "query: {question}",
        "passage_format": "passage: {title} {text}",
    },
    "gte": {"pooling": "mean", "normalize": True, "passage_format": "{text}"},
    "bge": {
        "pooling": "cls",
        "normalize": True,
        "question_format": "Represent this sentence for searching relevant passages: {question}",
        "passage_format": "{text}",
    },
    "sqrt": {"pooling": "sqrt", "normalize": False, "passage_format": "{title} {text}"},
}


def stock_vectors(folder: Path, texts: list[str], longest: int, pooling: str, *, normalize: bool) -> np.ndarray:
    """The recipe of the model's card in plain numpy."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    rows = []
    for text in texts:
        batch = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            states = model(input_ids=batch["input_ids"]).last_hidden_state[0].double().numpy()
        pooled = {"mean": states.mean(0), "cls": states[0], "sqrt": states.sum(0) / math.sqrt(len(states))}[pooling]
        rows.append(pooled / math.sqrt((pooled**2).sum()) if normalize else pooled)
    return np.stack(rows)


@pytest.fixture(scope="module")
def question_tower(tiny_model_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question encoder with weights of its own."""
    folder = tmp_path_factory.mktemp("question-tower")
    config = BertConfig.from_pretrained(tiny_model_files / "retriever")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for path in (tiny_model_files / "retriever").glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def check(model: Model, recipe: dict[str, Any], question_tower: Path, passage_tower: Path) -> None:
    """Vectors and scores by the stages' own functions against stock encoders of the files the model came from."""
    settings = model.retriever
    halves = [
        Encoder.load(folder, settings, device=CPU, dtype=torch.float32)
        for folder in (model.question_encoder_folder, model.passage_encoder_folder)
    ]
    found_BD = embed_questions(halves[0], settings, QUESTIONS)
    texts = [settings.format_passage(*passage) for passage in PASSAGES]
    found_ND = embed_texts(halves[1], texts, max_tokens=settings.max_passage_tokens, token_budget=64)
    asked = [recipe.get("question_format", "{question}").replace("{question}", text) for text in QUESTIONS]
    pattern = recipe["passage_format"]
    told = [pattern.replace("{title}", title).replace("{text}", text) for title, _, text in PASSAGES]
    how = {"pooling": recipe["pooling"], "normalize": recipe["normalize"]}
    expected_BD = stock_vectors(question_tower, asked, settings.max_question_tokens, **how)
    expected_ND = stock_vectors(passage_tower, told, settings.max_passage_tokens, **how)
    np.testing.assert_allclose(found_BD, expected_BD, atol=1e-5)
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5)
    near = {"atol": 1e-5, "rtol": 1e-6}  # products of vectors that are not normalised reach 700
    np.testing.assert_allclose(found_BD @ found_ND.T, expected_BD @ expected_ND.T, **near)
    dimension = found_BD.shape[1]
    assert dimension == 32  # from the encoder's own configuration, no constant
    passage_BKD = torch.tensor(found_ND).expand(len(QUESTIONS), -1, -1)
    trained_BK = retriever_scores(torch.tensor(found_BD), passage_BKD)
    np.testing.assert_allclose(trained_BK.numpy(), expected_BD @ expected_ND.T / math.sqrt(dimension), **near)


@pytest.mark.parametrize("towers", ["tied", "untied"])
@pytest.mark.parametrize("name", list(RECIPES))
def test_settings_of_a_download_give_the_stock_vectors(
    name: str,
    towers: str,
    tiny_model_files: Path,
    question_tower: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From `download.model` to vectors: prefixes, pooling, normalising, one tower or two."""
    from components.download.config import DownloadConfig
    from components.download.stage import download
    from ralm.model_config import ModelConfig
    from ralm.retriever.config import RetrieverSettings

    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))
    recipe = RECIPES[name]
    settings = RetrieverSettings(**{**recipe, "normalize": "yes" if recipe["normalize"] else "no"})
    own = str(question_tower) if towers == "untied" else ""
    config = DownloadConfig(model=ModelConfig(retriever=settings, question_encoder=own))
    download(source=str(tiny_model_files), model=str(tmp_path / "model"), config=config)
    model = open_model(str(tmp_path / "model"))
    passage_tower = tiny_model_files / "retriever"
    check(model, recipe, question_tower if own else passage_tower, passage_tower)


def test_no_text_is_padded_beyond_the_longest_of_its_batch(tiny_model: str) -> None:
    opened = open_model(tiny_model)
    config: RetrieverConfig = replace(opened.retriever, max_passage_tokens=64)
    encoder = Encoder.load(opened.passage_encoder_folder, config, device=CPU, dtype=torch.float32)
    shapes: list[tuple[tuple[int, ...], int]] = []

    def note(module: Any, inputs: Any, values: dict[str, Any]) -> None:
        ids_BL, mask_BL = values["input_ids"], values["attention_mask"]
        longest = ids_BL.shape[1] if mask_BL is None else int(mask_BL.sum(dim=1).max())
        shapes.append((tuple(ids_BL.shape), longest))

    encoder.model.register_forward_pre_hook(note, with_kwargs=True)
    texts = [" ".join(["granite"] * (1 + number % 40)) for number in range(50)]
    embed_texts(encoder, texts, max_tokens=64, token_budget=128)
    assert sum(rows for (rows, _), _ in shapes) == 50
    assert all(width == longest < 64 for (_, width), longest in shapes)
