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
        recipe: whose registered model is evaluated, and from whose settings to start.
        registered_as: name of the registered model without ralm-, where it is not that of the recipe.
        version: champion, challenger or a version number of the registered model.
        model: place of a model artifact, instead of a registered one; goes with index and passages.
        index: place of an index artifact of this model.
        passages: place of the passages artifact that the index was made from.
        questions: question files, a folder of them, or dataset:NAME; empty: as in the recipe.
        num_passages: passages per question; 0: as in the recipe.
        settings: further settings as JSON, stage by stage, such as {"evaluate": {"split": "dev"}}.
    """
    with tracked(NAME, recipe) as parent:
        plan = plan_op(
            recipes=recipes_json(), recipe=recipe, questions=questions, num_passages=num_passages, settings=settings
        )
        config = place(plan, "small", name="plan", is_cached=False).outputs
        pair = select_pair_op(
            recipe=recipe,
            registered_as=registered_as,
            alias=version,
            model=model,
            index=index,
            passages=passages,
        )
        selected = place(pair, "small", name="select", is_cached=False).outputs
        asked = download_questions_op(
            source=config["questions"],
            corpus=selected["selected_passages"],
            config=config["download"],
            parent_run_id=parent,
        )
        evaluated = evaluate_op(
            passages=selected["selected_passages"],
            index=selected["selected_index"],
            model=selected["selected_model"],
            questions=place(asked, "corpus", name="download questions").outputs["questions"],
            config=config["evaluate"],
            parent_run_id=parent,
        )
        place(evaluated, "evaluate", name="evaluate")
