"""Sizes on the disk against real files, and what is exchanged against what the real exchange hands over."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ralm.artifacts.schemas import embeddings_schema
from ralm.artifacts.tables import TableWriter
from ralm.capacity.architecture import BERT_BASE, T5, Models
from ralm.capacity.index_size import IndexSize, index_sizes
from ralm.capacity.storage import KEPT_CHECKPOINTS, storage
from ralm.capacity.traffic import PAIR_BYTES, traffic
from ralm.distributed import World
from ralm.index.config import IndexSettings
from ralm.index.shard import Found, search_parts
from ralm.retriever.vectors import binary_column
from ralm.training import state
from ralm.training.config import TrainingConfig
from ralm.training.state import Progress, save_checkpoint
from tests.ralm.capacity.toy import ENCODER, MODELS, full_batch, make_learner

LARGE = Models(
    reader=T5["large"],
    encoder=BERT_BASE,
    max_input_tokens=512,
    max_target_tokens=16,
    max_passage_tokens=512,
    max_question_tokens=512,
)


def plan(config: TrainingConfig, models: Models, *, passages: int, kind: str = "flat") -> dict[str, int]:
    settings = IndexSettings(kind=kind)  # type: ignore[arg-type]
    size = index_sizes(settings, passages=passages, dimension=models.encoder.model_size, processes=1, is_gpu=True)[
        settings.kind
    ]
    return storage(config, settings, models, size, passages=passages, embedding_dtype="f16")


def test_checkpoints_and_models_have_the_planned_size(tmp_path: Path) -> None:
    config = TrainingConfig(mode="joint", num_passages=2, batch_size=2, num_steps=3)
    learner = make_learner(config, torch.float32, tmp_path)
    for step in (1, 2, 3):
        learner.update(full_batch(config), step - 1)
        save_checkpoint(
            tmp_path / "checkpoints", Progress(step=step), weights=learner.weights, optimizer=learner.optimizer
        )
    planned = plan(config, MODELS, passages=100)
    real = sum(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    assert planned["checkpoints"] == pytest.approx(real, rel=0.02)
    assert KEPT_CHECKPOINTS == state.KEPT
    learner.reader.save(tmp_path / "reader")
    learner.question_encoder.save(tmp_path / "encoder")
    real = sum((tmp_path / name / "model.safetensors").stat().st_size for name in ("reader", "encoder"))
    assert planned["models"] == pytest.approx(2 * real, rel=0.02)


def test_embeddings_have_the_planned_size(tmp_path: Path) -> None:
    passages, dimension = 5000, ENCODER.model_size
    random = np.random.default_rng(1)
    schema = embeddings_schema(dimension, "f16", "abc")
    with TableWriter(tmp_path / "vectors.parquet", schema) as writer:
        import pyarrow as pa

        ids = pa.array(random.integers(0, 2**62, passages))
        vectors = binary_column(random.normal(size=(passages, dimension)).astype(np.float32), "f16")
        writer.write(pa.table([ids, vectors], schema=schema))
    planned = plan(TrainingConfig(), MODELS, passages=passages)["embeddings"]
    assert planned == pytest.approx((tmp_path / "vectors.parquet").stat().st_size, rel=0.03)


def test_a_joint_run_makes_embeddings_and_index_twice_and_may_renew_the_index() -> None:
    once = plan(TrainingConfig(), LARGE, passages=1000)
    twice = plan(TrainingConfig(mode="joint"), LARGE, passages=1000)
    renewed = plan(TrainingConfig(mode="joint", refresh_schedule="10"), LARGE, passages=1000)
    assert (twice["embeddings"], twice["index"]) == (2 * once["embeddings"], 2 * once["index"])
    assert once["renewed indices"] == twice["renewed indices"] == 0
    assert renewed["renewed indices"] == 2 * once["index"] + 1000 * 768 * 4
    assert plan(TrainingConfig(), LARGE, passages=1000, kind="pq")["index"] > once["index"]


@dataclasses.dataclass(frozen=True)
class CountingWorld(World):
    """Four processes of which this is one; the others ask as many questions and find the same."""

    size: int = 4
    sent: list[int] = dataclasses.field(default_factory=list)

    def gather(self, rows: Tensor) -> list[Tensor]:
        self.sent.append((self.size - 1) * rows.nbytes)  # to each of the others
        return [rows] * self.size

    def exchange(self, rows: Any) -> list[Tensor]:
        self.sent.append(sum(part.nbytes for part in rows[1:]))
        return [rows[0]] * self.size


def test_a_search_exchanges_what_the_plan_says() -> None:
    own, k = 6, 5
    world = CountingWorld()

    def search(question_BD: np.ndarray, depth: int) -> Found:
        shape = (len(question_BD), depth)
        return Found(np.zeros(shape, np.float32), np.zeros(shape, np.int64), np.zeros(shape, np.int64))

    search_parts(world, search, np.zeros((own, 768), np.float32), k, num_own=100)
    config = TrainingConfig(batch_size=4 * own, num_passages=k)
    planned = traffic(config, LARGE, devices=4, compute_bytes=2)
    assert planned["questions"] == world.sent[0]
    assert planned["scores and passages"] == sum(world.sent[1:]) == 3 * own * k * PAIR_BYTES


def test_gradients_go_round_the_ring() -> None:
    learnt = T5["large"].num_weights + BERT_BASE.num_weights
    config = TrainingConfig(mode="joint")
    whole = traffic(config, LARGE, devices=8, compute_bytes=2)
    assert (whole["weights"], whole["gradients"]) == (0, 2 * 7 * 4 * learnt / 8)
    split = traffic(dataclasses.replace(config, sharding="gradients"), LARGE, devices=8, compute_bytes=2)
    assert (split["weights"], split["gradients"]) == (7 * 2 * learnt / 8, 7 * 4 * learnt / 8)
    assert set(traffic(config, LARGE, devices=1, compute_bytes=2).values()) == {0}
    closed = TrainingConfig(mode="reader_only", closed_book=True)
    assert traffic(closed, LARGE, devices=2, compute_bytes=2)["questions"] == 0


def test_more_is_exchanged_where_passages_are_scored_again() -> None:
    config = TrainingConfig(mode="joint", num_passages=5, num_reranked=50)
    plain = traffic(TrainingConfig(mode="joint", num_passages=5), LARGE, devices=2, compute_bytes=2)
    again = traffic(config, LARGE, devices=2, compute_bytes=2)
    assert again["scores and passages"] == 10 * plain["scores and passages"]


def test_an_index_that_is_not_flat_has_a_file_beside_the_matrix() -> None:
    size = IndexSize(kind="pq", bytes_per_vector=192, fixed_bytes=1000, is_on_device=False)
    planned = storage(TrainingConfig(), IndexSettings(kind="pq"), LARGE, size, passages=10**6, embedding_dtype="f32")
    assert planned["index"] == 10**6 * (768 * 2 + 8 + 192) + 1000
    assert planned["embeddings"] == 10**6 * (768 * 4 + 8)
