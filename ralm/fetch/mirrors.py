"""The sites that dumps are fetched from. Standard library only: pipelines are compiled with it."""

from __future__ import annotations

import os

from ralm.errors import ConfigError

WIKI_BASE_URL = "https://dumps.wikimedia.org"


def wiki_mirrors() -> str:
    """Addresses of the dump site and its mirrors: `$RALM_WIKI_BASE_URL`, else dumps.wikimedia.org."""
    return os.environ.get("RALM_WIKI_BASE_URL") or WIKI_BASE_URL


def split_mirrors(text: str, name: str = "wiki_base_url") -> tuple[str, ...]:
    """Base addresses from a text with commas between them, in order, each once.

    Args:
        text: `https://dumps.wikimedia.org, https://mirror.example/dumps/`.
        name: of the setting, for the message.

    Raises:
        ConfigError: one is no URL, or there is none.

    Example:
        >>> split_mirrors("https://a.example/, https://b.example/dumps")
        ('https://a.example', 'https://b.example/dumps')
    """
    addresses = [part.strip().rstrip("/") for part in text.split(",") if part.strip()]
    for address in addresses or [text]:
        if "://" not in address:
            raise ConfigError(f"{name}: expected URLs such as {WIKI_BASE_URL}, with commas between, found {text!r}")
    return tuple(dict.fromkeys(addresses))
