from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from ralm.errors import ArtifactError
from ralm.model import open_model
from ralm.retriever.config import RetrieverConfig
from ralm.retriever.embed import embed_questions, embed_texts, length_batches
from ralm.retriever.encoder import Encoder, load_tokenizer

CPU = torch.device("cpu")
TEXTS = [
    " ".join(["granite", "the", "northern", "valleys", "willow"][: 1 + row % 5]) * (1 + row % 7) for row in range(60)
]


def load(model: str, **changes: object) -> Encoder:
    opened = open_model(model)
    config = dataclasses.replace(opened.retriever, **changes)  # type: ignore[arg-type]
    return Encoder.load(opened.passage_encoder_folder, config, device=CPU, dtype=torch.float32)


def plain_vectors(folder: Path, texts: list[str], max_tokens: int) -> np.ndarray:
    """Mean over real tokens, length 1: the recipe on the model card, one text at a time, written apart from ours."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            batch = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
            states = model(input_ids=batch["input_ids"]).last_hidden_state[0]
            mean = states.mean(dim=0)
            rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("token_budget", [1, 64, 100_000])
def test_vectors_equal_plain_transformers(tiny_model: str, token_budget: int) -> None:
    encoder = load(tiny_model, normalize=True)
    found_ND = embed_texts(encoder, TEXTS, max_tokens=24, token_budget=token_budget)
    expected_ND = plain_vectors(open_model(tiny_model).passage_encoder_folder, TEXTS, 24)
    assert found_ND.dtype == np.float32
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5)


def test_equal_calls_give_equal_bytes(tiny_model: str) -> None:
    first, second = (embed_texts(load(tiny_model), TEXTS, max_tokens=24).tobytes() for _ in range(2))
    assert first == second


def test_no_texts_no_vectors(tiny_model: str) -> None:
    encoder = load(tiny_model)
    assert embed_texts(encoder, [], max_tokens=8).shape == (0, encoder.dimension)


def test_questions_take_their_own_format_and_length(tiny_model: str) -> None:
    config = RetrieverConfig(question_format="origin of {question}", max_question_tokens=8, max_passage_tokens=16)
    encoder = load(tiny_model)
    question = "granite willow otter copper lantern glacier saffron"
    found_ND = embed_questions(encoder, config, [question])
    np.testing.assert_array_equal(found_ND, embed_texts(encoder, [f"origin of {question}"], max_tokens=8))


def test_batches_cover_each_row_once_within_the_budget() -> None:
    lengths_N = np.random.default_rng(3).integers(1, 90, size=500)
    batches = list(length_batches(lengths_N, 256))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(len(rows) == 1 or len(rows) * lengths_N[rows].max() <= 256 for rows in batches)
    padded = sum(len(rows) * int(lengths_N[rows].max()) for rows in batches)
    assert padded <= 1.05 * int(lengths_N.sum())


def test_a_batch_of_equal_lengths_has_no_mask(tiny_model: str) -> None:
    encoder = load(tiny_model)
    ids = [np.array([2, 7, 3], np.uint32)] * 2
    assert encoder.pad(ids)[1] is None
    _, mask_BL = encoder.pad([*ids, np.array([2, 3], np.uint32)])
    assert mask_BL is not None
    assert mask_BL.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]


def test_save_and_load_keep_the_vectors(tiny_model: str, tmp_path: Path) -> None:
    encoder = load(tiny_model)
    encoder.save(tmp_path / "half")
    again = Encoder.load(tmp_path / "half", encoder.config, device=CPU, dtype=torch.float32)
    found = embed_texts(again, TEXTS, max_tokens=24)
    np.testing.assert_array_equal(found, embed_texts(encoder, TEXTS, max_tokens=24))
    assert {path.name for path in (tmp_path / "half").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_folders_that_hold_no_encoder(tiny_model: str, tmp_path: Path) -> None:
    opened = open_model(tiny_model)
    with pytest.raises(ArtifactError, match=r"no config.json"):
        Encoder.load(tmp_path, opened.retriever, device=CPU, dtype=torch.float32)
    with pytest.raises(ArtifactError, match="a t5 model is no retriever"):
        Encoder.load(opened.reader_folder, opened.retriever, device=CPU, dtype=torch.float32)
    longer = dataclasses.replace(opened.retriever, max_passage_tokens=100_000)
    with pytest.raises(ArtifactError, match="takes 128 tokens, but the retriever's settings allow 100000"):
        Encoder.load(opened.passage_encoder_folder, longer, device=CPU, dtype=torch.float32)
    with pytest.raises(ArtifactError, match=r"no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)
