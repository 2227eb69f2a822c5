"""Put a `model` artifact together: a retriever and a reader from any source, in one layout, safetensors only."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5ForConditionalGeneration

from ralm.artifacts.files import Location, join, read_json
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.store import Contents, produce
from ralm.errors import ArtifactError, ConfigError, DataError
from ralm.model import TOKENIZER, model_details, write_reader_config, write_retriever_config
from ralm.model_config import ModelConfig
from ralm.onnx_reader import convert_onnx_reader, is_onnx_reader
from ralm.pretrained import load_config, load_weights
from ralm.retriever.config import Pooling, RetrieverConfig, RetrieverSettings
from ralm.retriever.encoder import MODEL_TYPES, load_encoder_model, max_encoder_tokens
from ralm.sources import bundle_parts, fetch_tree, source_digest

logger = logging.getLogger(__name__)
BUILD_VERSION = 1
ROLES = ("retriever", "reader")
_READER_TYPES = {"t5"}
_T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
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
            replace its parts.
        retriever: source of the encoder, a folder in transformers or sentence-transformers layout.
        reader: source of a T5, a folder in transformers layout or an int8 ONNX export.
        config: formats, lengths, pooling.

    Raises:
        ConfigError: a part is not named, or the settings contradict the retriever's own files.
        DataError: a source cannot be fetched.
        ArtifactError: a part has another architecture than its role needs.
    """
    config = config or ModelConfig()
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
    modules = _read_json(tree / "modules.json")
    kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ArtifactError(f"{tree / 'modules.json'}: modules {sorted(unknown)} are not supported")
    pooling: Pooling = "mean"
    if "Pooling" in kinds:
        place = tree / kinds["Pooling"] / "config.json"
        plain = _read_json(place)
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
    _save_tokenizer(tree, folder, {})


def _save_reader(tree: Path, folder: Path) -> None:
    if is_onnx_reader(tree):
        convert_onnx_reader(tree, folder)
        _save_tokenizer(tree, folder, _T5_TOKENS)
        return
    if not (tree / "config.json").is_file():
        raise ArtifactError(f"{tree}: neither config.json (transformers layout) nor encoder.onnx and decoder.onnx")
    config = load_config(tree, "reader", _READER_TYPES)
    reader = load_weights(T5ForConditionalGeneration, tree, config=config, dtype=torch.float32)
    reader.save_pretrained(folder)
    _save_tokenizer(tree, folder, {})


def _save_tokenizer(tree: Path, folder: Path, special: dict[str, str]) -> None:
    """Write the fast tokenizer, without the lengths that its maker happened to use."""
    if (tree / TOKENIZER).is_file():
        try:
            backend = Tokenizer.from_file(str(tree / TOKENIZER))
        except Exception as error:  # the Rust side raises bare Exception
            raise ArtifactError(f"{tree / TOKENIZER}: no readable tokenizer: {error}") from error
        special = special or _special_tokens(tree)
    else:
        try:
            loaded = AutoTokenizer.from_pretrained(tree)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ArtifactError(f"{tree}: cannot load the tokenizer: {str(error).splitlines()[0]}") from error
        backend = loaded.backend_tokenizer
        special = {name: str(value) for name in _SPECIAL if (value := getattr(loaded, name, None))}
    backend.no_truncation()
    backend.no_padding()
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    with tempfile.TemporaryDirectory() as name:
        fast.save_pretrained(name)
        for file in (TOKENIZER, "tokenizer_config.json"):
            shutil.copyfile(Path(name) / file, folder / file)


def _special_tokens(tree: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (tree / name).is_file():
            for role, token in _read_json(tree / name).items():
                if role in _SPECIAL and token:
                    found.setdefault(role, token["content"] if isinstance(token, dict) else str(token))
    return found


def _read_json(path: Path) -> Any:
    try:
        return read_json(str(path))
    except DataError as error:
        raise ArtifactError(str(error)) from error
