"""Bytes that the artifacts of a run take on the disk. Predictions, reports and tokenizers are too small to count."""

from __future__ import annotations

from typing import Final

from ralm.capacity.architecture import Models
from ralm.capacity.index_size import ID_BYTES, ITEM_BYTES, IndexSize, file_bytes
from ralm.capacity.memory import FP32, learning_weights
from ralm.index.config import IndexSettings
from ralm.training.config import TrainingConfig
from ralm.training.refresh_schedule import parse_refresh_schedule

PASSAGE_BYTES: Final = 280
"""Of one passage in Parquet: 283 and 273 in the two Wikipedia slices of `docs/planning.md`."""
KEPT_CHECKPOINTS: Final = 2


def storage(
    config: TrainingConfig,
    settings: IndexSettings,
    models: Models,
    index: IndexSize,
    *,
    passages: int,
    embedding_dtype: str,
) -> dict[str, int]:
    """Bytes by artifact; what a joint run makes twice, before and after training, is counted twice.

    Args:
        config: of the training.
        settings: of the index.
        models: shapes.
        index: size of the index.
        passages: in the corpus.
        embedding_dtype: f16 or f32.
    """
    dimension, rounds = models.encoder.model_size, 2 if config.mode == "joint" else 1
    vectors = passages * (dimension * ITEM_BYTES[embedding_dtype] + ID_BYTES)
    matrix = passages * (dimension * ITEM_BYTES[settings.storage] + ID_BYTES)
    one_index = matrix + file_bytes(index, passages=passages)
    halves = 1 if models.is_tied else 2
    model = FP32 * (models.reader.num_weights + halves * models.encoder.num_weights)
    renewed = KEPT_CHECKPOINTS * one_index + passages * dimension * FP32  # and the vectors of the next one
    return {
        "passages": passages * PASSAGE_BYTES,
        "embeddings": rounds * vectors,
        "index": rounds * one_index,
        "models": 2 * model,
        "checkpoints": KEPT_CHECKPOINTS * 3 * FP32 * learning_weights(config, models),
        "renewed indices": renewed if parse_refresh_schedule(config.refresh_schedule) else 0,
    }
