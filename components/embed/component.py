"""KFP declaration of `embed`."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def embed_op(
    passages: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    embeddings: dsl.Output[dsl.Dataset],
    shard: int = 0,
    num_shards: int = 1,
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Encode one shard of the passages."""
    from components.embed.stage import embed
    from ralm.cli import run_task

    places = {"passages": passages.path, "model": model.path, "embeddings": embeddings.path}
    part = {"shard": int(shard), "num_shards": int(num_shards)}
    run_task(embed, **places, **part, config=config, parent_run_id=parent_run_id)
