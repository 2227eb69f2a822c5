"""KFP declaration of `embed`."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def embed_op(
    passages: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    embeddings: dsl.Output[dsl.Dataset],
    previous_index: dsl.Input[dsl.Artifact] = None,
    previous_passages: dsl.Input[dsl.Dataset] = None,
    shard: int = 0,
    num_shards: int = 1,
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Encode one shard of the passages; what an earlier index has of them is taken over."""
    from components.embed.stage import embed
    from ralm.cli import run_task

    index = previous_index.path if previous_index else ""
    corpus = previous_passages.path if previous_passages else ""
    before = {"previous_index": index, "previous_passages": corpus}
    places = {"passages": passages.path, "model": model.path, "embeddings": embeddings.path, **before}
    part = {"shard": int(shard), "num_shards": int(num_shards)}
    run_task(embed, **places, **part, config=config, parent_run_id=parent_run_id)
