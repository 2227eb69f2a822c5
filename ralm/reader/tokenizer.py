"""The reader's tokenizer without its weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ralm.errors import ArtifactError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a reader's folder.

    Raises:
        ArtifactError: there is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: expected a T5 reader in transformers' layout, found: {error}") from error
    return tokenizer
