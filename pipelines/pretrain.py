"""The graph of pretraining: a model learns on texts of the corpus itself, before it is trained on questions."""

from components.plan.component import plan_op
from pipelines.embed_and_index import embed_and_index
from pipelines.profiles import place
from pipelines.recipes import recipes_json
from pipelines.tracing import tracked
from pipelines.train_and_evaluate import Start

NAME = "pretrain"
PARTS = (embed_and_index,)


def pretrain(
    recipe: str = "atlas-pretrain-mlm",
    passages: str = "",
    questions: str = "",
    model: str = "",
    retriever: str = "",
    reader: str = "",
    num_shards: int = 0,
    num_processes: int = 0,
    nodes: int = 0,
    num_passages: int = 0,
    num_steps: int = 0,
    learning_rate: float = 0.0,
    seed: int = -1,
    settings: str = "{}",
) -> None:
    """Train retriever and reader together on texts of the corpus itself, and register the model.

    Args:
        recipe: name of the complete run to start from, such as atlas-pretrain-mlm or atlas-pretrain-lm; the other
            inputs change it where they are given.
        passages: where the texts come from: a dump such as wiki:enwiki/latest, a CSV or JSON lines file, a folder, a
            URL; empty: as in the recipe.
        questions: what to predict: corpus:mlm (gaps), corpus:lm (the rest of a text) or corpus:section; empty: as in
            the recipe.
        model: retriever and reader in one folder or checkpoint, such as atlas:models/atlas/base; empty: as in the
            recipe.
        retriever: the retriever alone, such as hf://facebook/contriever; empty: as in the recipe.
        reader: the reader alone, such as hf://google/t5-base-lm-adapt; empty: as in the recipe.
        num_shards: parallel tasks that share the encoding of the passages; 0: as in the recipe.
        num_processes: processes of the training on each node, one for each GPU; 0: as in the recipe.
        nodes: machines that the training takes, several as a TrainJob of Kubeflow Trainer; 0: as in the recipe.
        num_passages: passages for each text; 0: as in the recipe.
        num_steps: training steps; 0: as in the recipe.
        learning_rate: learning rate of the reader; 0: as in the recipe.
        seed: seed of the training; -1: as in the recipe.
        settings: further settings as JSON, stage by stage (docs/reference.md), such as {"train": {"batch_size": 32}}.
    """
    with tracked(NAME, recipe) as start:
        plan = plan_op(
            recipes=recipes_json(),
            recipe=recipe,
            passages=passages,
            questions=questions,
            model=model,
            retriever=retriever,
            reader=reader,
            num_shards=num_shards,
            num_processes=num_processes,
            nodes=nodes,
            num_passages=num_passages,
            num_steps=num_steps,
            learning_rate=learning_rate,
            seed=seed,
            settings=settings,
        ).after(start)
        begun = Start(place(plan, "small", name="plan", is_cached=False), start.output)
        trained = begun.train(begun.index(begun.model, "index before training"))
        index = begun.index(trained, "index after training")
        begun.register(trained, index, begun.evaluate(trained, index, "evaluate after training"))
