"""KFP declaration of `evaluate`."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def evaluate_op(
    passages: dsl.Input[dsl.Dataset],
    index: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    questions: dsl.Input[dsl.Dataset],
    predictions: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Answer questions and score the answers and the retrieval."""
    from components.evaluate.stage import evaluate
    from ralm.cli import run_task

    inputs = {"passages": passages.path, "index": index.path, "model": model.path, "questions": questions.path}
    places = {**inputs, "predictions": predictions.path}
    run_task(evaluate, **places, numbers=metrics.metadata, config=config, parent_run_id=parent_run_id)
