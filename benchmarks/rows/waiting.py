"""J2: the share of an update's wall time that waits for passages and data, in real runs of the training loop.

The real models, 4 questions x 20 passages, real passages; the index holds made vectors, one for each passage, since
which passages are found does not matter. `waiting_share` is the larger one of the two modes that retrieve with an
encoder that learns, as they are by default: passages are searched for, read and tokenized before each update. In both,
`retrieve_ahead` does it during the update before, with the question encoder as it then is, so the result is another.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks import inputs
from benchmarks.gpu.joint_step import QUESTION
from benchmarks.suite import Bench, Measured
from components.index.stage import index
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.schemas import embeddings_schema
from ralm.artifacts.store import Contents, produce
from ralm.artifacts.tables import TableWriter, read_table
from ralm.corpus.lookup import PassageLookup
from ralm.device import resolve_dtype
from ralm.index.search import open_index
from ralm.model import Model
from ralm.reader.fusion import FusionReader
from ralm.retriever.encoder import Encoder
from ralm.retriever.vectors import binary_column
from ralm.tasks.base import Question
from ralm.tasks.config import TaskConfig
from ralm.training.config import TrainingConfig
from ralm.training.examples import make_training_set
from ralm.training.learner import Learner
from ralm.training.loop import TrainingResult, train_model
from ralm.training.refresh import IndexRefresher

CPU = torch.device("cpu")
PARTS = ("encode", "forward", "score", "retriever_forward", "backward", "exchange", "update")
RUNS: dict[str, dict[str, Any]] = {
    "joint": {"mode": "joint"},
    "query-side": {"mode": "query_side"},
    "joint, ahead": {"mode": "joint", "retrieve_ahead": True},
}
BY_DEFAULT = ("joint", "query-side")


def measure(bench: Bench) -> Measured:
    """Train for some updates in each mode."""
    model, passages = inputs.quickstart_model(bench), inputs.passages(bench)
    place = made_index(bench, model, passages)
    plain = TrainingConfig(num_steps=2 if bench.small else 3, num_passages=3 if bench.small else 20)
    figures: dict[str, float] = {"vectors": float(open_artifact(place, "index").manifest.rows)}
    table = ["| run | s for an update | waiting, ms | share | not in any part, share |", "|---|---|---|---|---|"]
    for name, changes in RUNS.items():
        result, total_s = train(bench, model, passages, place, dataclasses.replace(plain, **changes))
        total_ms = 1000 * total_s / plain.num_steps
        waiting_ms = result.timings["wait_ms"]
        rest_ms = total_ms - waiting_ms - sum(result.timings.get(f"{part}_ms", 0.0) for part in PARTS)
        figures[_key(name)] = waiting_ms / total_ms
        table.append(
            f"| {name} | {total_ms / 1000:.3f} | {waiting_ms:.1f} | {waiting_ms / total_ms:.4f} "
            f"| {rest_ms / total_ms:.4f} |"
        )
    figures["waiting_share"] = max(figures[_key(name)] for name in BY_DEFAULT)
    return Measured(figures, table)


def train(
    bench: Bench, model: Model, passages: str, place: str, config: TrainingConfig
) -> tuple[TrainingResult, float]:
    """A run of the training loop, and its wall time."""
    reader = FusionReader.load(model.reader_folder, model.reader, device=CPU)
    encoder = Encoder.load(model.passage_encoder_folder, model.retriever, device=CPU, dtype=torch.float32)
    is_joint = config.mode == "joint"
    learner = Learner(reader, encoder, encoder if is_joint else None, config, resolve_dtype("auto", CPU))
    folder = bench.work / "waiting-checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    found = open_index(place, passage_encoder=model.fingerprints["passage_encoder"], device=CPU)
    questions = [
        Question(question_id=str(number), task="base", question=QUESTION.format(number), answers=(f"answer {number}",))
        for number in range(64)
    ]
    examples = make_training_set(
        questions,
        settings=TaskConfig(),
        tokenizer=reader.tokenizer,
        max_input_tokens=reader.config.max_input_tokens,
        target_choice=config.target_choice,
        seed=config.seed,
    )
    refresher = IndexRefresher(found, PassageLookup(passages), folder)
    started_at = time.perf_counter()
    result = train_model(learner, examples=examples, refresher=refresher, config=config, checkpoints=folder)
    return result, time.perf_counter() - started_at


def made_index(bench: Bench, model: Model, passages: str) -> str:
    """A flat index of random vectors of unit length, one for each passage."""
    corpus = open_artifact(passages, "passages")
    id_N = read_table([place for place, _ in corpus.tables()], "passages/1").column("passage_id")
    encoder = model.fingerprints["passage_encoder"]
    vector_ND = np.random.default_rng(3).standard_normal((len(id_N), model.dimension), dtype=np.float32)
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)

    def build(folder: Path) -> Contents:
        schema = embeddings_schema(model.dimension, "f16", encoder)
        with TableWriter(folder / "part-00000.parquet", schema) as writer:
            columns = [id_N.combine_chunks(), binary_column(vector_ND, "f16")]
            writer.write(pa.Table.from_arrays(columns, schema=schema))
        details = {"passages": corpus.fingerprint, "passage_encoder": encoder, "dimension": model.dimension}
        return Contents(
            rows={"part-00000.parquet": len(id_N)},
            counts={"passages": len(id_N)},
            details={**details, "dtype": "f16", "shard": 0, "num_shards": 1},
        )

    name = "tiny-" if bench.small else ""
    vectors, place = (str(bench.work / f"{name}made-{kind}") for kind in ("vectors", "index"))
    inputs_of = {"passages": corpus.fingerprint, "encoder": encoder}
    produce(vectors, kind="embeddings", stage="benchmark", stage_version=1, inputs=inputs_of, config={}, build=build)
    index(embeddings=vectors, index=place)
    return place


def _key(mode: str) -> str:
    return "waiting_share_" + mode.replace(",", "").replace(" ", "_").replace("-", "_")
