"""KFP declarations that open and close the MLflow parent run of a pipeline run."""

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def start_op(recipe: str, kfp_run_id: str) -> str:
    """Make the parent run; the tasks' runs become its children."""
    from ralm.log import set_up_logging
    from ralm.tracking import start_parent_run

    set_up_logging()
    return start_parent_run(recipe, kfp_run_id=kfp_run_id, params={"recipe": recipe})


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def finish_op(status: dsl.PipelineTaskFinalStatus, kfp_run_id: str) -> None:
    """Close the parent run with the outcome of the pipeline."""
    from ralm.log import set_up_logging
    from ralm.tracking import KFP_RUN_TAG, finish_parent_run

    set_up_logging()
    outcome = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}.get(status.state, "FAILED")
    finish_parent_run(tag=KFP_RUN_TAG, value=kfp_run_id, status=outcome)
