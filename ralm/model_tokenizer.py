"""The tokenizer of a model: any that `transformers` reads, written as one fast tokenizer."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ralm.errors import ArtifactError
from ralm.model import TOKENIZER
from ralm.pretrained import read_model_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def save_tokenizer(tree: Path, folder: Path, special: dict[str, str]) -> None:
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
            for role, token in read_model_json(tree / name).items():
                if role in _SPECIAL and token:
                    found.setdefault(role, token["content"] if isinstance(token, dict) else str(token))
    return found
