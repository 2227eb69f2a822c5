"""KFP declaration of `index`."""

from typing import List  # noqa: UP035 - KFP reads this annotation, and knows lists of artifacts only by this name

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def index_op(
    embeddings: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    index: dsl.Output[dsl.Artifact],
    previous: dsl.Input[dsl.Artifact] = None,
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Build one index of all shards of embeddings, out of the previous one where that can be updated."""
    from components.index.stage import index as index_stage
    from ralm.cli import run_task

    shards = [shard.path for shard in embeddings]
    places = {"embeddings": shards, "index": index.path, "previous": previous.path if previous else ""}
    run_task(index_stage, **places, config=config, parent_run_id=parent_run_id)
