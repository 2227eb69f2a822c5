"""The end of a pipeline run: its MLflow run is closed, and people are told what went wrong or was refused."""

from __future__ import annotations

import logging

from ralm import notify, tracking

logger = logging.getLogger(__name__)
STATES = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}


def finish(*, pipeline: str, kfp_run_id: str, state: str, error: str) -> str:
    """Close the parent run, tag it with the outcome, and notify unless all is well.

    Args:
        pipeline: its name.
        kfp_run_id: identity of the run, the tag of its parent run.
        state: as Kubeflow Pipelines names it: SUCCEEDED, FAILED, CANCELLED.
        error: what failed, where something did.

    Returns:
        The outcome: `succeeded`, `refused: ...`, `failed: ...` or `cancelled`.
    """
    if state == "SUCCEEDED":
        promotion = tracking.read_parent_tag(kfp_run_id, tracking.PROMOTION_TAG)
        outcome = promotion if promotion.startswith("refused") else "succeeded"
    else:
        outcome = "cancelled" if state == "CANCELLED" else f"failed: {error or 'see the logs of its tasks'}"
    tracking.finish_parent_run(
        tag=tracking.KFP_RUN_TAG,
        value=kfp_run_id,
        status=STATES.get(state, "FAILED"),
        tags={tracking.OUTCOME_TAG: outcome},
    )
    logger.info("%s: %s", pipeline, outcome)
    if outcome not in ("succeeded", "cancelled"):
        text = f"RALM pipeline {pipeline}: {outcome} (run {kfp_run_id})"
        facts = {"pipeline": pipeline, "run_id": kfp_run_id, "state": outcome.partition(":")[0], "reason": outcome}
        notify.notify({"text": text, **facts})
    return outcome
