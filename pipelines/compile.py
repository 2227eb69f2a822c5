"""Compile the graph, one file for each profile; the files are committed and run as they are, here and on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

Profile = Literal["local"]
PROFILES: Final[tuple[Profile, ...]] = ("local",)
COMPILED: Final = Path(__file__).resolve().parent / "compiled"


def compiled_file(profile: Profile, folder: Path = COMPILED) -> Path:
    """Where the compiled graph of a profile is kept."""
    return folder / f"train_and_evaluate.{profile}.yaml"


def compile_pipeline(profile: Profile, folder: Path = COMPILED) -> Path:
    """Compile the main graph for a profile and write it; equal sources give equal bytes.

    Args:
        profile: where it will run. `local` asks for no images, resources or secrets beyond the components' own.
        folder: where to write to.

    Returns:
        The written file.
    """
    from kfp import compiler

    from pipelines.train_and_evaluate import train_and_evaluate

    folder.mkdir(parents=True, exist_ok=True)
    path = compiled_file(profile, folder)
    compiler.Compiler().compile(train_and_evaluate, str(path))
    return path
