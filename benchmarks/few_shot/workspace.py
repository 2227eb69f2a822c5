"""The stages as an experiment calls them: named artifacts in a work folder; repeated parts come from the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.few_shot.data import write_data
from components.download.config import DownloadConfig
from components.download.stage import download
from components.embed.config import EmbedConfig
from components.embed.stage import embed
from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import evaluate
from components.index.config import IndexConfig
from components.index.stage import index
from components.train.config import TrainConfig
from components.train.stage import train
from ralm.artifacts.files import read_json
from ralm.device import best_device
from ralm.index.search import open_index
from ralm.model import open_model
from ralm.model_config import ModelConfig
from ralm.retriever.embed import embed_questions
from ralm.retriever.encoder import Encoder

RECALL_AT = (1, 5, 20)


@dataclass(frozen=True)
class Workspace:
    """A corpus with its questions, and the folder where models, indices and predictions go."""

    folder: Path
    passages: str
    questions: str

    def place(self, name: str) -> str:
        """Folder of an artifact."""
        return str(self.folder / name)

    def model(self, name: str, *, retriever: str = "", reader: str = "", config: ModelConfig | None = None) -> str:
        """The quickstart's model, perhaps with another half."""
        settings = DownloadConfig(model=config or ModelConfig())
        sources = {"source": "asset:quickstart", "retriever": retriever, "reader": reader}
        download(**sources, model=self.place(name), config=settings)
        return self.place(name)

    def index(self, name: str, model: str, config: IndexConfig | None = None) -> str:
        """An index of the corpus with this model's passage encoder."""
        vectors = self.place(f"{name}-vectors")
        embed(passages=self.passages, model=model, embeddings=vectors, config=EmbedConfig())
        index(embeddings=vectors, index=self.place(name), config=config or IndexConfig())
        return self.place(name)

    def train(self, name: str, *, model: str, index: str, config: TrainConfig) -> tuple[str, dict[str, Any]]:
        """A trained model, and its timings with `s_per_step` (loading of the models included)."""
        inputs: dict[str, Any] = {
            "passages": self.passages,
            "questions": self.questions,
            "index": index,
            "model": model,
        }
        manifest = train(**inputs, trained=self.place(name), config=config)
        times = dict(read_json(f"{self.place(name)}/timings.json"))
        return self.place(name), times | {"s_per_step": times["elapsed_s"] / manifest.counts["steps"]}

    def score(self, name: str, *, model: str, index: str, config: EvaluateConfig) -> dict[str, Any]:
        """Exact match and F1 of an evaluation, and milliseconds a question."""
        inputs = {"passages": self.passages, "questions": self.questions, "index": index, "model": model}
        place = self.place(f"{name}-{config.split}")
        evaluate(**inputs, predictions=place, config=config)
        return dict(read_json(f"{place}/metrics.json")) | dict(read_json(f"{place}/timings.json"))

    def recall(self, *, model: str, index: str, split: str) -> dict[str, float]:
        """Share of questions whose gold paragraph is among the first k passages: `recall@1` and so on."""
        rows, ids_NK = self.search(model=model, index=index, split=split, k=max(RECALL_AT))
        is_gold_NK = ids_NK == np.array([row["positive_ids"] for row in rows])
        return {f"recall@{k}": float(is_gold_NK[:, :k].any(axis=1).mean()) for k in RECALL_AT}

    def search(self, *, model: str, index: str, split: str, k: int) -> tuple[list[dict[str, Any]], np.ndarray]:
        """The questions of a split, and the ids of the k passages found for each."""
        opened = open_model(model)
        searched = open_index(index, passage_encoder=opened.fingerprints["passage_encoder"])
        rows = pq.read_table(f"{self.questions}/{split}.parquet").to_pylist()
        folder, settings = opened.question_encoder_folder, opened.retriever
        encoder = Encoder.load(folder, settings, device=best_device(), dtype=torch.float32)
        question_ND = embed_questions(encoder, settings, [row["question"] for row in rows])
        return rows, searched.search(question_ND, k).passage_ids


def open_workspace(data: Path, work: Path, *, max_passages: int) -> Workspace:
    """Build the corpus and the questions of an experiment."""
    folder = work / f"corpus-{max_passages}"
    write_data(data, folder / "data", max_passages=max_passages)
    passages, questions = str(folder / "passages"), str(folder / "questions")
    download(source=str(folder / "data" / "corpus.jsonl"), passages=passages, config=DownloadConfig(format="atlas"))
    download(source=str(folder / "data" / "questions"), questions=questions)
    return Workspace(folder, passages, questions)
