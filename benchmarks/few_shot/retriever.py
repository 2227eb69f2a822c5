"""Does the retriever learn from the reader's signal alone? A weakened encoder, a frozen reader, no gold passages.

The encoder is the first 5 of MiniLM's 6 layers, compared by dot product: the sixth does much of the work, so there is
something to learn again. The reader has learnt from 64 questions before and stays as it is; only its signal on the
retrieved passages moves the encoder, which is trained with the index as it was at the start.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.few_shot import reader
from benchmarks.few_shot.workspace import Workspace
from components.train.config import TrainConfig
from ralm.model_config import ModelConfig
from ralm.objectives.config import Objective
from ralm.reader.config import ReaderConfig
from ralm.retriever.config import RetrieverSettings
from ralm.sources import fetch_tree

CORPUS = 2_500
NUM_LAYERS = 5
READER = dataclasses.replace(reader.TRAIN, num_passages=5, dropout=0.0)
TRAIN = TrainConfig(
    mode="joint",
    freeze_reader=True,
    num_steps=60,
    batch_size=4,
    micro_batch_size=2,
    num_passages=8,
    retriever_learning_rate=1e-4,
    schedule="constant",
    warmup_steps=5,
    dropout=0.0,
    temperature_score=0.05,
    temperature_gold=0.2,
)
MODEL = ModelConfig(
    retriever=RetrieverSettings(pooling="mean", normalize="no", max_passage_tokens=128),
    reader=ReaderConfig(max_input_tokens=192),
)
"""Shorter inputs than usual, for time."""
OBJECTIVES: dict[Objective, TrainConfig] = {
    "pdist": TRAIN,
    "emdr2": dataclasses.replace(TRAIN, objective="emdr2", temperature_gold="auto"),
    "adist": dataclasses.replace(TRAIN, objective="adist", temperature_gold=0.003),
    "loop": dataclasses.replace(TRAIN, objective="loop"),
}
"""Attention scores of passages differ by about 0.01, log-likelihoods by about 3: hence the other temperature."""
COLUMNS = ("recall@1", "recall@5", "recall@20", "s_per_step")


def cut_encoder(tree: Path, folder: Path, num_layers: int = NUM_LAYERS) -> str:
    """Write the first layers of a BERT, in transformers' layout without any word on pooling; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads((tree / "config.json").read_text())
    dropped = tuple(f"encoder.layer.{layer}." for layer in range(num_layers, settings["num_hidden_layers"]))
    weights = {
        name: value for name, value in load_file(tree / "model.safetensors").items() if not _is_in(name, dropped)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": num_layers}))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(tree / name, folder / name)
    return str(folder)


def _is_in(name: str, prefixes: Sequence[str]) -> bool:
    return any(prefix in name for prefix in prefixes)


def start_model(space: Workspace, whole: Workspace) -> tuple[str, str]:
    """The cut encoder with a reader that has learnt from 64 questions, and the index of that encoder.

    Args:
        space: where the retriever learns.
        whole: where the reader does, with the passages that the uncut MiniLM finds.
    """
    complete = whole.model("model")
    index = whole.index("index", complete)
    tuned, _ = whole.train("reader-for-retriever", model=complete, index=index, config=READER)
    encoder = cut_encoder(fetch_tree("asset:minilm"), space.folder / "encoder")
    model = space.model("start", retriever=encoder, reader=f"{tuned}/reader", config=MODEL)
    return model, space.index("start-index", model)


def compare(
    space: Workspace,
    *,
    model: str,
    index: str,
    objectives: Sequence[Objective],
    seeds: Sequence[int],
    split: str,
) -> dict[str, list[dict[str, Any]]]:
    """Recall of the gold paragraph before and after, over the re-embedded corpus; an entry for each seed."""
    runs: dict[str, list[dict[str, Any]]] = {"frozen": [space.recall(model=model, index=index, split=split)]}
    for objective in objectives:
        runs[objective] = [
            learn(space, f"{objective}-{config.seed}", model=model, index=index, split=split, config=config)
            for config in (dataclasses.replace(OBJECTIVES[objective], seed=seed) for seed in seeds)
        ]
    return runs


def learn(space: Workspace, name: str, *, model: str, index: str, split: str, config: TrainConfig) -> dict[str, Any]:
    """Train, embed the corpus again where the passage encoder has changed, and measure."""
    trained, times = space.train(name, model=model, index=index, config=config)
    after = index if config.mode == "query_side" else space.index(f"{name}-index", trained)
    return space.recall(model=trained, index=after, split=split) | times
