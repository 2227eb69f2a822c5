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
        passages: source of the corpus (dump, table, URL, asset); empty: as in the recipe.
        questions: what to predict: corpus:mlm (gaps), corpus:lm (the rest of a text) or corpus:section; empty: as in
            the recipe.
        model: source of a bundle of retriever and reader; empty: as in the recipe.
        retriever: source of the retriever, such as hf://facebook/contriever; empty: as in the recipe.
        reader: source of the reader, such as hf://google/t5-base-lm-adapt; empty: as in the recipe.
        num_shards: tasks that share the encoding of the passages; 0: as in the recipe.
        num_processes: processes of the training on each node, one for each GPU; 0: as in the recipe.
        nodes: machines that the training takes, as a TrainJob of the cluster where several; 0: as in the recipe.
        num_passages: passages for each text; 0: as in the recipe.
        num_steps: training steps; 0: as in the recipe.
        learning_rate: of the reader; 0: as in the recipe.
        seed: of training; -1: as in the recipe.
        settings: further settings as JSON, stage by stage, such as {"train": {"num_steps": 10}}.
    """
    with tracked(NAME, recipe) as parent:
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
        )
        start = Start(place(plan, "small", name="plan", is_cached=False), parent)
        trained = start.train(start.index(start.model, "index before training"))
        index = start.index(trained, "index after training")
        start.register(trained, index, start.evaluate(trained, index, "evaluate after training"))
