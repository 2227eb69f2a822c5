"""Put a `model` artifact together: a retriever and a reader from any source, in one layout, safetensors only."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import T5ForConditionalGeneration

from ralm.artifacts.files import Location, join
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.store import Contents, produce
from ralm.atlas.model import import_model, is_checkpoint
from ralm.errors import ArtifactError, ConfigError
from ralm.model import model_details, write_reader_config, write_retriever_config
from ralm.model_config import ModelConfig
from ralm.model_tokenizer import save_tokenizer
from ralm.onnx_reader import convert_onnx_reader, is_onnx_reader
from ralm.pretrained import load_config, load_weights, read_model_json
from ralm.reader.fusion import tell_untied
from ralm.retriever.config import Pooling, RetrieverConfig, RetrieverSettings
from ralm.retriever.encoder import MODEL_TYPES, load_encoder_model, max_encoder_tokens
from ralm.sources import bundle_parts, fetch_tree, source_digest

logger = logging.getLogger(__name__)
BUILD_VERSION = 2
ROLES = ("retriever", "reader")
_READER_TYPES = {"t5"}
_T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_sqrt_len_tokens": "sqrt",
}


def build_model(
    model: Location, *, source: str = "", retriever: str = "", reader: str = "", config: ModelConfig | None = None
) -> Manifest:
    """Fetch a retriever and a reader and write them as one `model` artifact.

    Args:
        model: folder that receives the artifact.
        source: a bundle of both (`asset:quickstart`), or a place with `retriever/` and `reader/` below it; the next two
            replace its parts. Or an Atlas checkpoint (`ralm.atlas.model`); the next two are then its tokenizers.
        retriever: source of the encoder, a folder in transformers or sentence-transformers layout.
        reader: source of a T5, a folder in transformers layout or an int8 ONNX export.
        config: formats, lengths, pooling.

    Raises:
        ConfigError: a part is not named, or the settings contradict the retriever's own files.
        DataError: a source cannot be fetched.
        ArtifactError: a part has another architecture than its role needs.
    """
    config = config or ModelConfig()
    if is_checkpoint(source):
        return import_model(model, source=source, retriever=retriever, reader=reader, config=config)
    parts = bundle_parts(source) or ({role: join(source, role) for role in ROLES} if source else {})
    sources = {"retriever": retriever or parts.get("retriever", ""), "reader": reader or parts.get("reader", "")}
    for role, name in sources.items():
        if not name:
            raise ConfigError(f"{role}: no source given, such as hf://owner/name, pypi://..., asset:NAME or a folder")
    if config.question_encoder:
        sources["question_encoder"] = config.question_encoder
    return produce(
        model,
        kind="model",
        stage="download",
        stage_version=BUILD_VERSION,
        inputs={role: source_digest(name) for role, name in sources.items()},
        config=config,
        build=lambda folder: _build(folder, sources, config),
    )


def _build(folder: Path, sources: dict[str, str], config: ModelConfig) -> Contents:
    trees = {role: fetch_tree(name) for role, name in sources.items()}
    tied = "question_encoder" not in trees
    _save_encoder(trees["retriever"], folder / "retriever" / "passage")
    if not tied:
        _save_encoder(trees["question_encoder"], folder / "retriever" / "question")
    write_retriever_config(folder, resolve_retriever(trees["retriever"], config.retriever), tied=tied)
    _save_reader(trees["reader"], folder / "reader")
    write_reader_config(folder, config.reader)
    return Contents(details=model_details(folder))


def resolve_retriever(tree: Path, settings: RetrieverSettings) -> RetrieverConfig:
    """Fill in what is `auto` from sentence-transformers' files; without them as Contriever: mean, not normalised.

    Lengths are cut to what the encoder has positions for.

    Raises:
        ArtifactError: the files name a pooling that is not supported.
    """
    pooling, normalize = _sentence_transformers_pooling(tree)
    longest = max_encoder_tokens(load_config(tree, "retriever", MODEL_TYPES))
    return RetrieverConfig(
        pooling=pooling if settings.pooling == "auto" else settings.pooling,
        normalize=normalize if settings.normalize == "auto" else settings.normalize == "yes",
        passage_format=settings.passage_format,
        question_format=settings.question_format,
        max_passage_tokens=min(settings.max_passage_tokens, longest),
        max_question_tokens=min(settings.max_question_tokens, longest),
    )


def _sentence_transformers_pooling(tree: Path) -> tuple[Pooling, bool]:
    if not (tree / "modules.json").is_file():
        return "mean", False
    modules = read_model_json(tree / "modules.json")
    kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ArtifactError(f"{tree / 'modules.json'}: modules {sorted(unknown)} are not supported")
    pooling: Pooling = "mean"
    if "Pooling" in kinds:
        place = tree / kinds["Pooling"] / "config.json"
        plain = read_model_json(place)
        active = [name for name, value in plain.items() if name.startswith("pooling_mode_") and value is True]
        if isinstance(plain.get("pooling_mode"), str):  # newer files name it
            active = [f"pooling_mode_{plain['pooling_mode']}_tokens".replace("cls_tokens", "cls_token")]
        if len(active) != 1 or active[0] not in _POOLING_FLAGS:
            raise ArtifactError(f"{place}: expected one pooling of {', '.join(_POOLING_FLAGS)}, found {active}")
        pooling = _POOLING_FLAGS[active[0]]
    return pooling, "Normalize" in kinds


def _save_encoder(tree: Path, folder: Path) -> None:
    encoder = load_encoder_model(tree, torch.float32)
    encoder.save_pretrained(folder)
    save_tokenizer(tree, folder, {})


def _save_reader(tree: Path, folder: Path) -> None:
    if is_onnx_reader(tree):
        convert_onnx_reader(tree, folder)
        save_tokenizer(tree, folder, _T5_TOKENS)
        return
    if not (tree / "config.json").is_file():
        raise ArtifactError(f"{tree}: neither config.json (transformers layout) nor encoder.onnx and decoder.onnx")
    config = load_config(tree, "reader", _READER_TYPES)
    reader = load_weights(T5ForConditionalGeneration, tree, config=config, dtype=torch.float32)
    reader.save_pretrained(folder)
    tell_untied(folder / "config.json")
    save_tokenizer(tree, folder, {})
