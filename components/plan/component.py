"""KFP declaration of `plan`."""

from typing import List, NamedTuple  # noqa: UP035 - KFP reads these annotations

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def plan_op(
    recipes: str,
    recipe: str,
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
    mirrors: str = "",
    max_loss: float = -1.0,
    confidence: float = 0.0,
    registered_as: str = "",
    made_with: str = "{}",
    settings: str = "{}",
) -> NamedTuple(  # type: ignore[valid-type]
    "Plan",
    [
        ("Output", List[int]),  # noqa: UP006
        ("num_shards", int),
        ("num_processes", int),
        ("nodes", int),
        ("train_gpus", str),
        ("passages", str),
        ("questions", str),
        ("model", str),
        ("retriever", str),
        ("reader", str),
        ("download", str),
        ("embed", str),
        ("index", str),
        ("train", str),
        ("evaluate", str),
        ("report", str),
        ("compare", str),
        ("gate", str),
        ("register", str),
    ],
):
    """Merge the recipe with the pipeline's inputs into the config of each stage."""
    from components.plan.stage import Changes, plan
    from ralm.cli import run_step

    sources = {"passages": passages, "questions": questions, "model": model, "retriever": retriever, "reader": reader}
    tasks = {"num_shards": num_shards, "num_processes": num_processes, "nodes": nodes}
    sizes = {**tasks, "num_passages": num_passages, "num_steps": num_steps}
    gate = {"max_loss": max_loss, "confidence": confidence, "mirrors": mirrors}
    pair = {"registered_as": registered_as, "made_with": made_with}
    given = {**sources, **sizes, **gate, **pair, "learning_rate": learning_rate, "seed": seed, "settings": settings}
    changes = Changes(**given)  # type: ignore[arg-type]
    return run_step(plan, recipes=recipes, recipe=recipe, changes=changes)
