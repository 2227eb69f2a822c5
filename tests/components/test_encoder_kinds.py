"""Any BERT-like retriever of any size goes from its files to an index that is searched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from components.download.stage import download
from components.embed.stage import embed
from components.index.stage import index
from ralm.index.search import open_index
from ralm.model import open_model
from ralm.retriever.embed import embed_questions
from ralm.retriever.encoder import MODEL_TYPES, Encoder

DIMENSION = 20
SIZES: dict[str, Any] = {
    "hidden_size": DIMENSION,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 70,
    "embedding_size": DIMENSION,
}
OF_DISTILBERT: dict[str, Any] = {"dim": DIMENSION, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}


def write_bundle(kind: str, source: Path, target: Path) -> None:
    """The tiny bundle with an encoder of another kind; tokens keep their numbers."""
    shutil.copytree(source, target)
    tokens = len(json.loads((source / "retriever" / "tokenizer.json").read_text())["model"]["vocab"])
    sizes = {**OF_DISTILBERT, "max_position_embeddings": 70} if kind == "distilbert" else SIZES
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=tokens, **sizes, **special))
    for path in ("config.json", "model.safetensors"):
        (target / "retriever" / path).unlink()
    model.save_pretrained(target / "retriever")


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_from_files_to_a_search(kind: str, tiny_model_files: Path, toy_passages: str, tmp_path: Path) -> None:
    """Defect 23: one model and 768 values were hard-coded."""
    write_bundle(kind, tiny_model_files, tmp_path / "files")
    download(source=str(tmp_path / "files"), model=str(tmp_path / "model"))
    model = open_model(str(tmp_path / "model"))
    assert model.dimension == DIMENSION
    embed(passages=toy_passages, model=str(tmp_path / "model"), embeddings=str(tmp_path / "embeddings"))
    index(embeddings=str(tmp_path / "embeddings"), index=str(tmp_path / "index"))
    opened = open_index(str(tmp_path / "index"), passage_encoder=model.fingerprints["passage_encoder"])
    encoder = Encoder.load(
        model.question_encoder_folder, model.retriever, device=torch.device("cpu"), dtype=torch.float32
    )
    question_BD = embed_questions(encoder, model.retriever, ["what is the colour of granite", "use of copper"])
    score_BK, row_BK, _ = opened.search(question_BD, 3)
    all_BN = question_BD @ opened.vectors(np.arange(30)).T
    np.testing.assert_allclose(score_BK, -np.sort(-all_BN, axis=1)[:, :3], atol=1e-3)
    assert row_BK.shape == (2, 3)
