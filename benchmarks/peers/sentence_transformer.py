"""sentence-transformers as its users run it: the honest peer of embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch


def load(folder: Path, device: torch.device, dtype: torch.dtype, max_tokens: int) -> Callable[..., np.ndarray]:
    """A function of texts and a batch size that gives vectors, float32; mean pooling, all other settings the defaults.

    Args:
        folder: an encoder in transformers' layout.
        device: where to compute.
        dtype: of the weights.
        max_tokens: longer texts are cut.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device=str(device), model_kwargs={"dtype": dtype}, local_files_only=True)
    model.max_seq_length = max_tokens

    def encode(texts: Sequence[str], batch_size: int) -> np.ndarray:
        return np.asarray(model.encode(list(texts), batch_size=batch_size, show_progress_bar=False), np.float32)

    return encode
