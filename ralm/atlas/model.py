"""An Atlas checkpoint -> `model` artifact, and back. Weights keep their number format, bit by bit.

The file brings weights and options only. Architectures are told from the weights, tokenizers are fetched: all T5 share
one, and the retriever's is Contriever's.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from ralm.artifacts.files import Location, is_remote, join, local_path
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.store import Contents, produce
from ralm.atlas.architecture import max_positions, write_encoder_architecture, write_reader_architecture
from ralm.atlas.checkpoint import FILE, Checkpoint, read_checkpoint, write_checkpoint
from ralm.atlas.preset import with_atlas_preset
from ralm.errors import ArtifactError, ConfigError
from ralm.fetch import atlas, hub
from ralm.model import (
    TOKENIZER,
    WEIGHTS,
    Model,
    model_details,
    open_model,
    write_reader_config,
    write_retriever_config,
)
from ralm.model_config import ModelConfig
from ralm.model_tokenizer import save_tokenizer
from ralm.pretrained import load_config
from ralm.retriever.config import RetrieverConfig, RetrieverSettings
from ralm.sources import fetch_file, fetch_tree, source_digest

logger = logging.getLogger(__name__)
IMPORT_VERSION = 1
READER_TOKENIZER = "hf://google-t5/t5-base"
"""The vocabulary is the same in T5, T5 v1.1 and its lm-adapt form, in every size; this one comes as tokenizer.json."""
RETRIEVER_TOKENIZER = "hf://facebook/contriever"
DIMENSION = 768
"""The size of vectors that is written into Atlas' code."""


def is_checkpoint(source: Location) -> bool:
    """True for `atlas:models/...`, a `model.pth.tar`, or a local folder with one."""
    if source.startswith(atlas.PREFIX) or source.endswith(FILE):
        return True
    return bool(source) and not is_remote(source) and (local_path(source) / FILE).is_file()


def import_model(model: Location, *, source: Location, retriever: str, reader: str, config: ModelConfig) -> Manifest:
    """Make a `model` artifact of an Atlas checkpoint.

    Args:
        model: folder that receives the artifact.
        source: see `is_checkpoint`.
        retriever: source of the retriever's tokenizer; empty: Contriever's on the hub.
        reader: source of the reader's tokenizer; empty: T5's on the hub.
        config: formats and lengths; what is left at its default becomes Atlas' own (`ralm.atlas.preset`).

    Raises:
        ConfigError: a question encoder is asked for; the checkpoint has its own.
        DataError: the checkpoint or a tokenizer cannot be fetched.
        ArtifactError: the checkpoint is damaged, not of Atlas, or asks for a class that is not allowed.
    """
    if config.question_encoder:
        raise ConfigError("model.question_encoder: an Atlas checkpoint brings its own; leave it empty")
    file = source if source.endswith(FILE) else join(source, FILE)
    config = with_atlas_preset(config)
    tokenizers = {"retriever": retriever or RETRIEVER_TOKENIZER, "reader": reader or READER_TOKENIZER}
    return produce(
        model,
        kind="model",
        stage="atlas-import",
        stage_version=IMPORT_VERSION,
        inputs={"checkpoint": source_digest(file), **{role: source_digest(name) for role, name in tokenizers.items()}},
        config=config,
        build=lambda folder: _build(folder, fetch_file(file), tokenizers, config),
    )


def export_model(model: Location, output: Location) -> Path:
    """Write a model as an Atlas checkpoint.

    Args:
        model: a `model` artifact with a BERT retriever.
        output: folder that receives `model.pth.tar`.

    Returns:
        The file.

    Raises:
        ArtifactError: the retriever is not one that Atlas can run: no BERT, another pooling than the mean, normalised.
        ConfigError: the file is there already.
    """
    opened = open_model(model)
    _check_for_atlas(opened)
    recorded = opened.manifest.details.get("atlas", {})
    question = None if opened.tied else _read_weights(opened.question_encoder_folder)
    path = local_path(join(output, FILE))
    if path.exists():
        raise ConfigError(f"output: {path} exists already; name another folder or remove it")
    write_checkpoint(
        path,
        Checkpoint(
            reader=_read_weights(opened.reader_folder),
            passage_encoder=_read_weights(opened.passage_encoder_folder),
            question_encoder=question,
            step=recorded.get("step", 0),
            options=recorded.get("options", {}),
        ),
    )
    return path


def _build(folder: Path, file: Path, tokenizers: Mapping[str, str], config: ModelConfig) -> Contents:
    checkpoint = read_checkpoint(file)
    trees = {role: _fetch_tokenizer(source) for role, source in tokenizers.items()}
    halves = {"passage": checkpoint.passage_encoder, "question": checkpoint.question_encoder}
    for half, weights in halves.items():
        if weights is not None:
            place = folder / "retriever" / half
            place.mkdir(parents=True)
            write_encoder_architecture(place, weights, file, trees["retriever"])
            _write_part(place, weights, trees["retriever"], rows=len(weights["embeddings.word_embeddings.weight"]))
    longest = min(max_positions(weights) for weights in halves.values() if weights is not None)
    tied = checkpoint.question_encoder is None
    write_retriever_config(folder, _retriever_config(config.retriever, longest), tied=tied)
    reader = folder / "reader"
    reader.mkdir()
    write_reader_architecture(reader, checkpoint.reader, file)
    _write_part(reader, checkpoint.reader, trees["reader"], rows=len(checkpoint.reader["shared.weight"]))
    write_reader_config(folder, config.reader)
    recorded = {"step": checkpoint.step, "options": dict(checkpoint.options)}
    return Contents(details={**model_details(folder), "atlas": recorded})


def _write_part(folder: Path, weights: Mapping[str, Tensor], tree: Path, *, rows: int) -> None:
    """Weights and tokenizer; tensors go from the mapped checkpoint to the file one by one."""
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    save_tokenizer(tree, folder, {})
    tokens = Tokenizer.from_file(str(folder / TOKENIZER)).get_vocab_size()
    if tokens > rows:
        raise ArtifactError(f"{tree}: the tokenizer has {tokens} tokens, but the checkpoint's embedding {rows} rows")


def _retriever_config(settings: RetrieverSettings, longest: int) -> RetrieverConfig:
    """Contriever's way where the user says nothing: the mean, not normalised."""
    plain = dataclasses.asdict(settings)
    limits = {name: min(plain[name], longest) for name in ("max_passage_tokens", "max_question_tokens")}
    pooling = "mean" if settings.pooling == "auto" else settings.pooling
    return RetrieverConfig(**{**plain, **limits, "pooling": pooling, "normalize": settings.normalize == "yes"})


def _fetch_tokenizer(source: str) -> Path:
    """A folder with the tokenizer; the weights of a hub's repository are not fetched."""
    if source.startswith(hub.PREFIX):
        return hub.fetch_hub_tree(source, with_weights=False)
    return fetch_tree(source)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a part, mapped."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{folder / WEIGHTS}: cannot read the weights: {error}") from error


def _check_for_atlas(model: Model) -> None:
    config = model.retriever
    if config.normalize or config.pooling != "mean":
        kind = "normalised" if config.normalize else config.pooling
        raise ArtifactError(f"{model.folder}: Atlas' retriever takes the plain mean, this one is {kind}")
    load_config(model.passage_encoder_folder, "retriever of Atlas", {"bert"})
    if model.dimension != DIMENSION:
        logger.warning("vectors have %d values; Atlas' code is written for %d", model.dimension, DIMENSION)
