"""The encoder on a GPU against the CPU. Skips itself where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ralm.model import open_model
from ralm.retriever.embed import embed_texts
from ralm.retriever.encoder import Encoder

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
