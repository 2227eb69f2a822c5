"""Load a model in `transformers` layout: quietly, whole or not at all, and never from a pickle that could run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from ralm.artifacts.files import read_json
from ralm.errors import ArtifactError, DataError

_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError)


def quiet_transformers() -> None:
    """Show only errors of `transformers`, and no bars: what it warns of (weights left out, tied) is checked here."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_config(folder: Path, role: str, model_types: set[str]) -> Any:
    """Read `config.json` and check that the architecture fits its role.

    Args:
        folder: a model in `transformers` layout.
        role: `retriever` or `reader`, for the message.
        model_types: what fits.

    Raises:
        ArtifactError: missing, unreadable, or another architecture.
    """
    from transformers import AutoConfig

    quiet_transformers()
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder}: no config.json; expected a {role} in transformers layout")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except _UNREADABLE as error:
        raise ArtifactError(f"{folder}/config.json: {_first_line(error)}") from error
    if config.model_type not in model_types:
        expected = ", ".join(sorted(model_types))
        raise ArtifactError(f"{folder}: a {config.model_type} model is no {role}; expected one of {expected}")
    return config


def load_weights(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a model; weights that the checkpoint lacks are an error, not a random start.

    Args:
        kind: the model's class (`AutoModel`, `T5ForConditionalGeneration`).
        folder: a model in `transformers` layout.
        options: for `from_pretrained`.

    Raises:
        ArtifactError: unreadable, or some weights are missing or of another shape.
    """
    quiet_transformers()
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, weights_only=True, output_loading_info=True, **options
        )
    except _UNREADABLE as error:
        raise ArtifactError(f"{folder}: cannot load the weights: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ArtifactError(f"{folder}: {len(missing)} weights are missing, such as {missing[0]}")
    return model


def read_model_json(path: Path) -> Any:
    """Parse a JSON file of a model.

    Raises:
        ArtifactError: it is missing or is no JSON.
    """
    try:
        return read_json(str(path))
    except DataError as error:
        raise ArtifactError(str(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
