"""KFP declaration of `report`."""

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def report_op(
    before: dsl.Input[dsl.Dataset],
    after: dsl.Input[dsl.Dataset],
    trained: dsl.Input[dsl.Model],
    passages: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
    closed_book: dsl.Input[dsl.Dataset] = None,
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Merge the evaluations before and after training into one page."""
    from components.report.stage import report as report_stage
    from ralm.cli import run_task

    inputs = {"before": before.path, "after": after.path, "trained": trained.path, "passages": passages.path}
    third = closed_book.path if closed_book else ""
    places = {**inputs, "closed_book": third, "report": report.path}
    shown = {"views": {"report.md": summary.path, "report.html": page.path}, "numbers": metrics.metadata}
    run_task(report_stage, **places, **shown, config=config, parent_run_id=parent_run_id)
