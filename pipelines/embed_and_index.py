"""The sub-graph that encodes all passages with a model and builds the index: of training, and of a re-index.

It is a graph of its own, and not a function that adds tasks to the caller's graph, because kfp 2.17's local runner
gives a loop the loop's item in place of every other task output of the same graph.
"""

from typing import List  # noqa: UP035 - KFP reads these annotations

from kfp import dsl

from components.embed.component import embed_op
from components.index.component import index_op
from pipelines.profiles import place


def embed_and_index(
    passages: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    shards: List[int],  # noqa: UP006
    num_shards: int,
    embed: str,
    index: str,
    parent_run_id: str,
) -> dsl.Artifact:
    """Encode all passages with a model and build the index.

    Args:
        passages: the passages.
        model: the model whose passage encoder is used.
        shards: numbers of the shards to encode.
        num_shards: how many shards there are.
        embed: config of the embed stage, JSON.
        index: config of the index stage, JSON.
        parent_run_id: MLflow run of the pipeline run.
    """
    with dsl.ParallelFor(shards) as shard:
        embedded = embed_op(
            passages=passages,
            model=model,
            shard=shard,
            num_shards=num_shards,
            config=embed,
            parent_run_id=parent_run_id,
        )
        place(embedded, "encode", name="embed")
    shards_of_embeddings = dsl.Collected(embedded.outputs["embeddings"])
    built = index_op(embeddings=shards_of_embeddings, config=index, parent_run_id=parent_run_id)
    return place(built, "index", name="index").outputs["index"]


def update_index(
    passages: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    previous_passages: dsl.Input[dsl.Dataset],
    previous_index: dsl.Input[dsl.Artifact],
    shards: List[int],  # noqa: UP006
    num_shards: int,
    embed: str,
    index: str,
    parent_run_id: str,
) -> dsl.Artifact:
    """Encode the passages that an earlier index does not have, and build the next index.

    Args:
        passages: the passages.
        model: the model whose passage encoder is used.
        previous_passages: those of the earlier index.
        previous_index: the earlier index.
        shards: numbers of the shards to encode.
        num_shards: how many shards there are.
        embed: config of the embed stage, JSON.
        index: config of the index stage, JSON.
        parent_run_id: MLflow run of the pipeline run.
    """
    with dsl.ParallelFor(shards) as shard:
        embedded = embed_op(
            passages=passages,
            model=model,
            previous_index=previous_index,
            previous_passages=previous_passages,
            shard=shard,
            num_shards=num_shards,
            config=embed,
            parent_run_id=parent_run_id,
        )
        place(embedded, "encode", name="embed what is new")
    shards_of_embeddings = dsl.Collected(embedded.outputs["embeddings"])
    built = index_op(
        embeddings=shards_of_embeddings, previous=previous_index, config=index, parent_run_id=parent_run_id
    )
    return place(built, "index", name="index").outputs["index"]
