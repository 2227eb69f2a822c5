"""Atlas' checkpoint `model.pth.tar`: its names for the weights <-> ours, which are those of `transformers`.

One file of `torch.save` with the keys `step`, `model`, `optimizer`, `retr_optimizer`, `scheduler`, `retr_scheduler` and
`opt`. `model` holds `reader.*` (a T5) and `retriever.contriever.*` (one BERT for questions and passages) or
`retriever.query_contriever.*` and `retriever.passage_contriever.*`. Source: the format as the public code of Atlas
(arXiv 2208.03299) reads and writes it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ralm.artifacts.files import atomic_file
from ralm.atlas.torch_file import dense_tensor, load_torch_file, save_torch_file
from ralm.errors import ArtifactError

FILE = "model.pth.tar"
ALLOWED_CLASSES = (argparse.Namespace,)
"""Beside torch's own: the class of `opt`, a bag of attributes without any behaviour. Optimisers and schedules are saved
as dicts of tensors and numbers, so nothing else is needed. numpy's scalars are not allowed: their maker takes a number
format that can hold any object."""
_ENCODERS = {
    "retriever.contriever.": "passage",
    "retriever.passage_contriever.": "passage",
    "retriever.query_contriever.": "question",
}
_READER = "reader."
_POSITION_IDS = "embeddings.position_ids"
_SHARED = "shared.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The weights of an Atlas checkpoint under `transformers`' names, each once."""

    reader: Mapping[str, Tensor]
    """Of a T5; without `lm_head.weight` where it is the embedding."""
    passage_encoder: Mapping[str, Tensor]
    """Of a BERT without pooler."""
    question_encoder: Mapping[str, Tensor] | None
    """None where questions and passages share one encoder."""
    step: int
    options: Mapping[str, Any]
    """`opt`, as far as its values are plain."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; the optimisers' states in it are not used.

    Args:
        path: `model.pth.tar` on this machine, in torch's present format (mapped, not read) or that before torch 1.6.

    Raises:
        ArtifactError: no such checkpoint, it asks for a class that is not allowed, or weights are missing or unknown.
    """
    plain = load_torch_file(path, allowed=ALLOWED_CLASSES)
    if not isinstance(plain, dict) or not isinstance(plain.get("model"), dict):
        raise ArtifactError(f"{path}: no Atlas checkpoint: expected a dict with the key 'model'")
    parts = _split(path, plain["model"])
    for name in ("reader", "passage"):
        if not parts[name]:
            raise ArtifactError(f"{path}: no weights of the {name.replace('passage', 'passage encoder')}")
    step = plain.get("step")
    return Checkpoint(
        reader=_untie(path, parts["reader"]),
        passage_encoder=parts["passage"],
        question_encoder=parts["question"] or None,
        step=step if isinstance(step, int) else 0,
        options=_plain_options(plain.get("opt")),
    )


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint that Atlas loads with all names given (it also wants BERT's `position_ids`, a buffer)."""
    reader = dict(checkpoint.reader)
    copies = dict.fromkeys(_COPIES, reader[_SHARED])
    weights = {_READER + name: tensor for name, tensor in {_HEAD: reader[_SHARED], **reader, **copies}.items()}
    is_tied = checkpoint.question_encoder is None
    encoders = {"contriever" if is_tied else "passage_contriever": checkpoint.passage_encoder}
    if checkpoint.question_encoder is not None:
        encoders["query_contriever"] = checkpoint.question_encoder
    for encoder, tensors in encoders.items():
        positions = tensors["embeddings.position_embeddings.weight"].shape[0]
        buffer = {_POSITION_IDS: torch.arange(positions).unsqueeze(0)}
        weights |= {f"retriever.{encoder}.{name}": tensor for name, tensor in {**buffer, **tensors}.items()}
    options = {**checkpoint.options, "query_side_retriever_training": not is_tied}
    nothing = dict.fromkeys(("optimizer", "retr_optimizer", "scheduler", "retr_scheduler"))
    plain = {"step": checkpoint.step, "model": weights, **nothing, "opt": argparse.Namespace(**options)}
    with atomic_file(path) as file:
        save_torch_file(plain, file)


def _split(path: Path, weights: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    """The weights of each part, checked, under `transformers`' names."""
    parts: dict[str, dict[str, Tensor]] = {"reader": {}, "passage": {}, "question": {}}
    kinds = set()
    for key, tensor in weights.items():
        name = str(key).replace("reader.module.", _READER, 1).replace("retriever.module.", "retriever.", 1)
        prefix = next((prefix for prefix in (_READER, *_ENCODERS) if name.startswith(prefix)), None)
        if prefix is None:
            raise ArtifactError(f"{path}: unknown weight {key!r}; expected reader.*, {', '.join(sorted(_ENCODERS))}*")
        kinds.add(prefix)
        inside = name.removeprefix(prefix)
        if inside == _POSITION_IDS:
            continue
        dense = dense_tensor(tensor)
        if dense is None or not dense.is_floating_point():
            raise ArtifactError(f"{path}: {key!r}: expected a tensor of floating-point numbers")
        parts[_ENCODERS.get(prefix, "reader")][inside] = dense
    if "retriever.contriever." in kinds and len(kinds & set(_ENCODERS)) > 1:
        raise ArtifactError(f"{path}: holds both a shared encoder and encoders of its own; expected one of the two")
    return parts


def _untie(path: Path, reader: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reader's weights without the copies of its embedding."""
    shared = reader.get(_SHARED)
    if shared is None:
        raise ArtifactError(f"{path}: no weight reader.{_SHARED}")
    for name in _COPIES:
        if name in reader and not _is_same(reader.pop(name), shared):
            raise ArtifactError(f"{path}: reader.{name} differs from reader.{_SHARED}; a T5 has one embedding")
    if _HEAD in reader and _is_same(reader[_HEAD], shared):
        del reader[_HEAD]
    return reader


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _plain_options(options: Any) -> dict[str, Any]:
    """What of `opt` can be written to a manifest: numbers, text, and lists of them."""
    if not isinstance(options, argparse.Namespace):
        return {}
    return {name: value for name, value in vars(options).items() if _is_text(name) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_scalar(item) for item in value)
    return _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # JSON knows no infinity
    return value is None or isinstance(value, int) or _is_text(value)


def _is_text(value: Any) -> bool:
    """True for text without halves of characters, which cannot be written."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
