"""The encoder on a GPU against the CPU. Skips itself where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from components.embed.config import EmbedConfig
from components.embed.stage import embed
from ralm.model import open_model
from ralm.retriever import packed
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder
from ralm.retriever.packed import PackedBert, attend_to_all
from ralm.retriever.vectors import read_vectors
from tests.ralm.retriever.test_packed import LENGTHS, make_ids, make_model, one_by_one

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("dtype", "least_cosine"), [(torch.float32, 0.9999), (torch.bfloat16, 0.99)])
def test_vectors_of_a_gpu(tiny_model: str, dtype: torch.dtype, least_cosine: float) -> None:
    opened = open_model(tiny_model)
    texts = [" ".join(["granite", "willow", "northern", "valleys"][: 1 + row % 4]) * (1 + row % 5) for row in range(50)]
    found = []
    for device, weights in ((torch.device("cpu"), torch.float32), (torch.device("cuda"), dtype)):
        encoder = Encoder.load(opened.passage_encoder_folder, opened.retriever, device=device, dtype=weights)
        vectors_ND = embed_texts(encoder, texts, max_tokens=32)
        found.append(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True))
    assert (found[0] * found[1]).sum(axis=1).min() >= least_cosine


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02), (torch.float16, 0.004)], ids=str
)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("has_flash", [True, False])
def test_states_without_padding(
    kind: str, dtype: torch.dtype, error: float, has_flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the library's own forward pass, one text at a time, in fp32 on the CPU."""
    if not has_flash:
        monkeypatch.setattr(packed, "has_flash_attention", lambda *_: False)
    by_flash: list[object] = []
    monkeypatch.setattr(packed, "attend_to_all", lambda *given: by_flash.append(given) or attend_to_all(*given))
    model, ids_T = make_model(kind, spread=0.1), make_ids()
    exact = one_by_one(model, ids_T)
    runs = PackedBert(model.cuda(), dtype, 64).forward(ids_T.cuda(), LENGTHS)
    for found, expected in zip([text for run in runs for text in run], exact, strict=True):
        assert found.dtype == dtype
        assert float((found.cpu().float() - expected).norm() / expected.norm()) < error
    can_flash = dtype != torch.float32 and torch.cuda.get_device_capability() >= (8, 0)
    assert bool(by_flash) == (has_flash and can_flash)


def test_the_stage_writes_what_the_cpu_writes(
    toy_passages: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 7 passages: the copies of one block are under way while the next is computed."""
    config = EmbedConfig(dtype="f32", precision="fp32", block_passages=7, token_budget=40)
    found = []
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("RALM_DEVICE", device)
        monkeypatch.setenv("RALM_HOME", str(tmp_path / f"home-{device}"))
        place = tmp_path / device
        embed(passages=toy_passages, model=tiny_model, embeddings=str(place), config=config)
        found.append(read_vectors(str(next(place.glob("*.parquet")))))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)
