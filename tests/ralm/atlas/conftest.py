"""Files as the public Atlas code writes them, with tiny weights; built from the format's description alone."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel, T5ForConditionalGeneration

OPTIONS = {
    "name": "run",
    "query_side_retriever_training": False,
    "text_maxlength": 512,
    "n_context": 40,
    "dropout": 0.1,
    "eval_data": ["dev.jsonl", "test.jsonl"],
    "target_maxlength": None,
    "closed_book": False,
}


def bert_entries(bert: BertModel, prefix: str) -> dict[str, torch.Tensor]:
    """A BERT of transformers 4.18 under a prefix: its weights and the buffer that newer versions do not save."""
    positions = torch.arange(bert.config.max_position_embeddings).expand((1, -1))
    return {
        f"{prefix}.embeddings.position_ids": positions,
        **{f"{prefix}.{name}": tensor.detach() for name, tensor in bert.state_dict().items()},
    }


@pytest.fixture
def t5(tiny_model_files: Path) -> T5ForConditionalGeneration:
    """The reader inside the checkpoint."""
    return T5ForConditionalGeneration.from_pretrained(tiny_model_files / "reader").eval()


@pytest.fixture
def bert(tiny_model_files: Path) -> BertModel:
    """The (passage) encoder inside the checkpoint."""
    return BertModel.from_pretrained(tiny_model_files / "retriever", add_pooling_layer=False).eval()


WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def write_official(t5: T5ForConditionalGeneration, bert: BertModel, tmp_path: Path) -> WriteCheckpoint:
    """Writes `official/model.pth.tar`; `change` may alter the dict before."""

    def write(
        *,
        untied: bool = False,
        wrapped: bool = False,
        dtype: torch.dtype = torch.float32,
        legacy: bool = False,
        change: Callable[[dict[str, Any]], None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Path:
        module = ".module" if wrapped else ""
        model = {f"reader{module}.{name}": tensor.detach() for name, tensor in t5.to(dtype).state_dict().items()}
        bert.to(dtype)
        if untied:
            asked = BertModel(bert.config, add_pooling_layer=False).to(dtype)
            model |= bert_entries(asked, f"retriever{module}.query_contriever")
            model |= bert_entries(bert, f"retriever{module}.passage_contriever")
        else:
            model |= bert_entries(bert, f"retriever{module}.contriever")
        settings = {**OPTIONS, "query_side_retriever_training": untied, **(options or {})}
        plain: dict[str, Any] = {
            "step": 30,
            "model": model,
            "optimizer": None,
            "retr_optimizer": None,
            "scheduler": None,
            "retr_scheduler": None,
            "opt": argparse.Namespace(**settings),
        }
        if change:
            change(plain)
        path = tmp_path / "official" / "model.pth.tar"
        path.parent.mkdir(exist_ok=True)
        torch.save(plain, path, _use_new_zipfile_serialization=not legacy)
        return path

    return write


def passage_rows(rows: list[dict[str, object]]) -> list[dict[str, str]]:
    """Passages as Atlas keeps them in memory: a section has been added to the title."""
    return [
        {
            "id": f"id-{number}",
            "title": f"{row['title']}: {row['section']}" if row["section"] else str(row["title"]),
            "section": str(row["section"]),
            "text": str(row["text"]),
        }
        for number, row in enumerate(rows)
    ]


def write_shard(folder: Path, number: int, passages: list[dict[str, Any]], vectors_DN: torch.Tensor) -> None:
    """One shard of an index."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(vectors_DN, folder / f"embeddings.{number}.pt")
    with (folder / f"passages.{number}.pt").open("wb") as file:
        pickle.dump(passages, file)
