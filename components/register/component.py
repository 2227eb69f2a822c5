"""KFP declaration of `register`."""

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def register_op(
    model: dsl.Input[dsl.Model],
    index: dsl.Input[dsl.Artifact],
    passages: dsl.Input[dsl.Dataset],
    predictions: dsl.Input[dsl.Dataset],
    registration: dsl.Output[dsl.Artifact],
    decision: dsl.Input[dsl.Artifact] = None,
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Register the pair of model and index."""
    from components.register.stage import register
    from ralm.cli import run_task

    inputs = {"model": model.path, "index": index.path, "passages": passages.path, "predictions": predictions.path}
    places = {**inputs, "decision": decision.path if decision else "", "registration": registration.path}
    run_task(register, **places, config=config, parent_run_id=parent_run_id)
