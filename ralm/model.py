"""The `model` artifact: a retriever (one shared encoder, or two) and a reader, with a fingerprint of each part.

    retriever/retriever.json              RetrieverConfig and `tied`
    retriever/passage/, question/         config.json, model.safetensors, tokenizer.json; no question/ when tied
    reader/                               config.json, model.safetensors, tokenizer.json, reader.json

How one is put together from downloaded parts is in `model_build.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, TypeVar

from ralm.artifacts.files import Location, encode_json, read_json, sha256_file, write_json
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.errors import ArtifactError, ConfigError, DataError
from ralm.reader.config import ReaderConfig
from ralm.retriever.config import RetrieverConfig

C = TypeVar("C")
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
_RETRIEVER, _READER = "retriever/retriever.json", "reader/reader.json"
_NOT_ARCHITECTURE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """An open `model` artifact on the local disk."""

    folder: Path
    manifest: Manifest
    retriever: RetrieverConfig
    reader: ReaderConfig
    tied: bool
    """True where questions and passages share one encoder."""
    fingerprints: dict[str, str]
    """Of `question_encoder`, `passage_encoder` and `reader`."""

    @property
    def passage_encoder_folder(self) -> Path:
        """Weights and tokenizer of the passage half."""
        return self.folder / "retriever" / "passage"

    @property
    def question_encoder_folder(self) -> Path:
        """Weights and tokenizer of the question half: the passage half when tied."""
        return self.passage_encoder_folder if self.tied else self.folder / "retriever" / "question"

    @property
    def reader_folder(self) -> Path:
        """Weights, tokenizer and settings of the reader."""
        return self.folder / "reader"

    @property
    def dimension(self) -> int:
        """D, values in a vector."""
        return int(self.manifest.details["dimension"])


def open_model(location: Location) -> Model:
    """Open a finished model; a remote one is fetched into the cache.

    Raises:
        ArtifactError: missing, unfinished, damaged, or no model.
    """
    artifact = open_artifact(location, "model")
    folder = artifact.local()
    retriever, tied = read_retriever_config(folder)
    details = artifact.manifest.details
    return Model(
        folder=folder,
        manifest=artifact.manifest,
        retriever=retriever,
        reader=_read_config(folder / _READER, ReaderConfig),
        tied=tied,
        fingerprints=dict(details["fingerprints"]),
    )


def read_retriever_config(folder: Path) -> tuple[RetrieverConfig, bool]:
    """The retriever's settings in a model folder, and whether its halves are tied.

    Raises:
        ArtifactError: the file is missing or not valid.
    """
    plain = _read_plain(folder / _RETRIEVER)
    tied = bool(plain.pop("tied", False))
    return _to_config(folder / _RETRIEVER, RetrieverConfig, plain), tied


def write_retriever_config(folder: Path, config: RetrieverConfig, *, tied: bool) -> None:
    """Write `retriever/retriever.json` of a model folder."""
    write_json(folder / _RETRIEVER, {**dataclasses.asdict(config), "tied": tied})


def write_reader_config(folder: Path, config: ReaderConfig) -> None:
    """Write `reader/reader.json` of a model folder."""
    write_json(folder / _READER, dataclasses.asdict(config))


def model_details(folder: Path) -> dict[str, Any]:
    """Manifest details of a model folder that is about to be published: fingerprints, tied, dimension.

    Raises:
        ArtifactError: a file is missing or not valid, or the two halves have vectors of different length.
    """
    retriever, tied = read_retriever_config(folder)
    passage = folder / "retriever" / "passage"
    question = passage if tied else folder / "retriever" / "question"
    dimensions = {half.name: _dimension(half) for half in (passage, question)}
    if len(set(dimensions.values())) != 1:
        raise ArtifactError(f"{folder}: the halves of the retriever have vectors of different length: {dimensions}")
    fingerprints = {
        "question_encoder": _part_fingerprint(question, _question_settings(retriever)),
        "passage_encoder": _part_fingerprint(passage, _passage_settings(retriever)),
        "reader": _part_fingerprint(folder / "reader", _read_plain(folder / _READER)),
    }
    return {"fingerprints": fingerprints, "tied": tied, "dimension": dimensions["passage"]}


def _dimension(half: Path) -> int:
    """Values in a vector; DistilBERT's configuration calls them `dim`."""
    plain = _read_plain(half / "config.json")
    return int(plain.get("hidden_size") or plain.get("dim") or 0)


def _question_settings(config: RetrieverConfig) -> dict[str, Any]:
    return {
        "pooling": config.pooling,
        "normalize": config.normalize,
        "format": config.question_format,
        "max_tokens": config.max_question_tokens,
    }


def _passage_settings(config: RetrieverConfig) -> dict[str, Any]:
    return {
        "pooling": config.pooling,
        "normalize": config.normalize,
        "format": config.passage_format,
        "max_tokens": config.max_passage_tokens,
    }


def _part_fingerprint(folder: Path, settings: dict[str, Any]) -> str:
    """sha256 over weights, tokenizer, architecture and the settings that change the result."""
    architecture = {
        name: value for name, value in _read_plain(folder / "config.json").items() if name not in _NOT_ARCHITECTURE
    }
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder}: no {name}")
    parts = {
        "weights": sha256_file(folder / WEIGHTS),
        "tokenizer": sha256_file(folder / TOKENIZER),
        "architecture": architecture,
        "settings": settings,
    }
    return hashlib.sha256(encode_json(parts)).hexdigest()


def _read_config(path: Path, kind: type[C]) -> C:
    return _to_config(path, kind, _read_plain(path))


def _to_config(path: Path, kind: type[C], plain: dict[str, Any]) -> C:
    try:
        return kind(**plain)
    except (TypeError, ConfigError) as error:
        raise ArtifactError(f"{path}: no valid {kind.__name__}: {error}") from error


def _read_plain(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(str(path)))
    except (DataError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}") from error
