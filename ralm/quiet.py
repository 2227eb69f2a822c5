"""Keep the model library's own bars and loading reports off stderr: our progress lines say what is going on."""

from __future__ import annotations

from transformers.utils import logging as transformers_logging


def quiet_transformers() -> None:
    """Show only errors of `transformers`; what it warns of (architecture, tied weights) is checked here."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
