"""KFP declarations that open and close the MLflow parent run of a pipeline run."""

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def start_op(recipe: str, kfp_run_id: str) -> str:
    """Make the parent run; the tasks' runs become its children."""
    from ralm.cli import run_step
    from ralm.tracking import start_parent_run

    return run_step(start_parent_run, name=recipe, kfp_run_id=kfp_run_id, params={"recipe": recipe})


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def finish_op(status: dsl.PipelineTaskFinalStatus, pipeline: str, kfp_run_id: str) -> None:
    """Close the parent run with the outcome of the pipeline, and notify of a failure or a refusal."""
    from components.track.stage import finish
    from ralm.cli import run_step

    run_step(finish, pipeline=pipeline, kfp_run_id=kfp_run_id, state=status.state, error=status.error_message)
