"""KFP declaration of `gate`."""

from kfp import dsl

from components.images import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def gate_op(
    challenger: dsl.Input[dsl.Dataset],
    decision: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
    champion: dsl.Input[dsl.Dataset] = None,
    champion_index: dsl.Input[dsl.Artifact] = None,
    challenger_index: dsl.Input[dsl.Artifact] = None,
    fresh_champion: dsl.Input[dsl.Dataset] = None,
    fresh_challenger: dsl.Input[dsl.Dataset] = None,
    changes: dsl.Input[dsl.Artifact] = None,
    champion_version: str = "",
    config: str = "{}",
    parent_run_id: str = "",
) -> None:
    """Decide whether a challenger may take the champion's place."""
    from components.gate.stage import gate
    from ralm.cli import run_task

    sides = {"champion": champion, "champion_index": champion_index, "challenger_index": challenger_index}
    others = {"fresh_champion": fresh_champion, "fresh_challenger": fresh_challenger, "changes": changes}
    given = {name: artifact.path if artifact else "" for name, artifact in {**sides, **others}.items()}
    places = {**given, "challenger": challenger.path, "decision": decision.path}
    shown = {"views": {"decision.md": summary.path, "decision.html": page.path}, "numbers": metrics.metadata}
    settings = {"champion_version": champion_version, "config": config, "parent_run_id": parent_run_id}
    run_task(gate, **places, **shown, **settings)
