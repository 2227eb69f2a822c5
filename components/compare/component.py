"""KFP declaration of `compare`."""

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def compare_op(
    previous: dsl.Input[dsl.Dataset],
    passages: dsl.Input[dsl.Dataset],
    changes: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Tell what changed between two dumps, page by page and in total."""
    from components.compare.stage import compare
    from ralm.cli import run_task

    places = {"previous": previous.path, "passages": passages.path, "changes": changes.path}
    shown = {"views": {"changes.md": summary.path}, "numbers": metrics.metadata}
    run_task(compare, **places, **shown, config=config, parent_run_id=parent_run_id)
