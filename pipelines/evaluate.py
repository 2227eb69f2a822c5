"""The graph of an evaluation: a registered pair, or any other, on given questions."""

from components.download.component import download_questions_op
from components.evaluate.component import evaluate_op
from components.plan.component import plan_op
from components.select.component import select_pair_op
from pipelines.profiles import place
from pipelines.recipes import recipes_json
from pipelines.tracing import tracked

NAME = "evaluate"
PARTS = ()


def evaluate(
    recipe: str = "quickstart",
    registered_as: str = "",
    version: str = "champion",
    model: str = "",
    index: str = "",
    passages: str = "",
    questions: str = "",
    num_passages: int = 0,
    settings: str = "{}",
) -> None:
    """Answer questions with a model and its index, and score the answers and the retrieval.

    Args:
        recipe: name of the recipe that the model was trained with, such as nq-base; its questions and settings are
            taken where no others are given.
        registered_as: name of the registered model without ralm-, where it is not that of the recipe.
        version: which version of the registered model: champion, challenger or a number.
        model: a model artifact (path or URL) instead of a registered one; index and passages are then needed too.
        index: an index artifact that was made with this model.
        passages: the passages artifact that the index was made from.
        questions: question files, a folder of them, or dataset:NAME such as dataset:nq-open; empty: as in the recipe.
        num_passages: passages per question; 0: as in the recipe.
        settings: further settings as JSON, stage by stage (docs/reference.md), such as {"evaluate": {"split": "dev"}}.
    """
    with tracked(NAME, recipe) as start:
        plan = plan_op(
            recipes=recipes_json(), recipe=recipe, questions=questions, num_passages=num_passages, settings=settings
        ).after(start)
        config = place(plan, "small", name="plan", is_cached=False).outputs
        pair = select_pair_op(
            recipe=recipe,
            registered_as=registered_as,
            alias=version,
            model=model,
            index=index,
            passages=passages,
        ).after(start)
        selected = place(pair, "small", name="select", is_cached=False).outputs
        asked = download_questions_op(
            source=config["questions"],
            corpus=selected["selected_passages"],
            config=config["download"],
            parent_run_id=start.output,
        )
        evaluated = evaluate_op(
            passages=selected["selected_passages"],
            index=selected["selected_index"],
            model=selected["selected_model"],
            questions=place(asked, "corpus", name="download questions", is_cached=False).outputs["questions"],
            config=config["evaluate"],
            parent_run_id=start.output,
        )
        # A last task from its cache would leave kfp's backend in the dark about the end of the run.
        place(evaluated, "evaluate", name="evaluate", is_cached=False)
