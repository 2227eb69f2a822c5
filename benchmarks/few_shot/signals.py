"""How well does the frozen reader know the gold paragraph? Its signal on what the weak encoder finds at first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.few_shot import reader, retriever
from benchmarks.few_shot.workspace import Workspace
from components.train.config import TrainConfig
from ralm.corpus.lookup import PassageLookup
from ralm.device import best_device
from ralm.model import open_model
from ralm.objectives.config import Objective
from ralm.reader.fusion import FusionReader
from ralm.training.signal import passage_signal

NUM_QUESTIONS = 30
COLUMNS = ("gold first", "lead of the gold paragraph", "lead / temperature")


@torch.no_grad()
def compare(space: Workspace, *, model: str, index: str) -> dict[str, list[dict[str, float]]]:
    """For questions whose gold paragraph is among the passages found: is it the one the signal prefers?

    They are training questions of the retriever that the reader has not learnt from.

    `lead`: median of its score less the best other one; divided by the temperature it says how sharp the target is.
    """
    found: dict[Objective, list[tuple[float, float]]] = {name: [] for name in retriever.OBJECTIVES}
    opened = open_model(model)
    fusion = FusionReader.load(opened.reader_folder, opened.reader, device=best_device())
    fusion.eval()
    lookup = PassageLookup(space.passages)
    rows, ids_NK = space.search(model=model, index=index, split="train", k=retriever.TRAIN.num_passages)
    unseen = list(zip(rows, ids_NK, strict=True))[reader.SHOTS :]
    pairs = [(row, ids_K) for row, ids_K in unseen if row["positive_ids"][0] in ids_K]
    for row, ids_K in pairs[:NUM_QUESTIONS]:
        passages = [lookup.get(ids_K)]
        encoded = fusion.encode(fusion.tokenize_inputs([row["question"]], passages))
        label_BT = fusion.tokenize_targets([row["answers"][0]], [row["question"]])
        gold = ids_K.tolist().index(row["positive_ids"][0])
        for name, config in retriever.OBJECTIVES.items():
            score_K = passage_signal(fusion, encoded, label_BT, [row["question"]], config).gold[0]
            found[name].append(_lead(score_K.sum(dim=-1) if score_K.dim() == 2 else score_K, gold))
    return {name: [_summary(pairs, retriever.OBJECTIVES[name])] for name, pairs in found.items()}


def _lead(score_K: Tensor, gold: int) -> tuple[float, float]:
    others = torch.cat([score_K[:gold], score_K[gold + 1 :]])
    lead = float(score_K[gold] - others.max())
    return float(lead > 0), lead


def _summary(pairs: list[tuple[float, float]], config: TrainConfig) -> dict[str, float]:
    first, leads = zip(*pairs, strict=True)
    lead = float(np.median(leads))
    values = (float(np.mean(first)), lead, lead / config.gold_temperature)
    return dict(zip(COLUMNS, values, strict=True))
