"""Compile the graphs, one file for each pipeline and profile; the files are committed and run as they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from components import images
from ralm.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.profiles import Cluster

Profile = Literal["local", "container", "cluster"]
PROFILES: Final[tuple[Profile, ...]] = ("local", "container", "cluster")
Runner = Literal["subprocess", "container"]
RUNNERS: Final[dict[Runner, Profile]] = {"subprocess": "local", "container": "container"}
"""Ways to run a task on this machine, and the profile of each."""
TITLES: Final = {
    "train-and-evaluate": "RALM: train and evaluate",
    "reindex": "RALM: re-index a new dump",
    "evaluate": "RALM: evaluate",
    "pretrain": "RALM: pretrain on the corpus",
}
PIPELINES: Final = tuple(TITLES)
COMPILED: Final = Path(__file__).resolve().parent / "compiled"
IMAGES: Final = (images.BASE_IMAGE, images.CPU_IMAGE, images.GPU_IMAGE)
NEVER_CACHED: Final = (
    "plan-op",
    "start-op",
    "finish-op",
    "select-pair-op",
    "watch-op",
    "register-op",
    *(f"download-{kind}-op" for kind in ("passages", "questions", "model")),
)
"""What depends on more than its inputs: the registry, a site's newest dump, the files at a path."""


def compiled_file(profile: Profile, folder: Path = COMPILED, pipeline: str = "train-and-evaluate") -> Path:
    """Where the compiled graph of a pipeline is kept for a profile."""
    return folder / f"{pipeline.replace('-', '_')}.{profile}.yaml"


def compile_pipeline(
    profile: Profile,
    folder: Path = COMPILED,
    pipeline: str = "train-and-evaluate",
    cluster: Cluster | None = None,
) -> Path:
    """Compile a graph for a profile, check it and write it; equal sources give equal bytes.

    Args:
        profile: where it will run. `local` asks for no images, resources or secrets beyond the components' own.
        folder: where to write to.
        pipeline: which graph.
        cluster: what the profile `cluster` says of that cluster; by default the values of `Cluster`.

    Returns:
        The written file.

    Raises:
        ConfigError: the linter finds something wrong with the file, which is then not there.
    """
    import importlib

    from kfp import compiler

    from pipelines.lint import check_pipeline
    from pipelines.profiles import Cluster, tracing_for
    from pipelines.tracing import traced, with_parts

    name = pipeline.replace("-", "_")
    module = importlib.import_module(f"pipelines.{name}")
    site = cluster or Cluster()
    with tracing_for(profile, site), with_parts(module.PARTS):
        graph = traced(getattr(module, name), title=TITLES[pipeline])
    folder.mkdir(parents=True, exist_ok=True)
    path = compiled_file(profile, folder, pipeline)
    unchecked = path.with_name(f".{path.name}")
    prefix = f"{site.registry.rstrip('/')}/" if site.registry and profile == "cluster" else ""
    try:
        compiler.Compiler().compile(graph, str(unchecked))
        check_pipeline(
            unchecked,
            allowed_images=[f"{prefix}{image}" for image in IMAGES],
            is_for_cluster=profile == "cluster",
            never_cached=NEVER_CACHED,
        )
        unchecked.rename(path)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(unchecked), str(path))) from error
    finally:
        unchecked.unlink(missing_ok=True)
    return path
