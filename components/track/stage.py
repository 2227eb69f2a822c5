"""The end of a pipeline run: its MLflow run is closed, and people are told what went wrong or was refused."""

from __future__ import annotations

import logging

from ralm import notify, tracking

logger = logging.getLogger(__name__)
DONE = ("SUCCEEDED", "COMPLETE", "CACHED")
STOPPED = ("CANCELLED", "CANCELED")
QUIET = ("succeeded", "nothing new", "cancelled")
"""Outcomes that nobody has to be told of."""


def finish(*, pipeline: str, kfp_run_id: str, state: str, error: str) -> str:
    """Close the parent run, tag it with the outcome, and notify unless all is well.

    Args:
        pipeline: its name.
        kfp_run_id: identity of the run, the tag of its parent run.
        state: SUCCEEDED, FAILED or CANCELLED; of kfp's backend COMPLETE, CACHED or CANCELED, and RUNNING where it does
            not know: then the tags of the run tell whether it came to its end.
        error: what failed, where that is known.

    Returns:
        The outcome: `succeeded`, `nothing new: ...`, `refused: ...`, `failed: ...` or `cancelled`.
    """
    promotion = tracking.read_parent_tag(kfp_run_id, tracking.PROMOTION_TAG)
    if state in STOPPED:
        status, outcome = "KILLED", "cancelled"
    elif state in DONE or (promotion and state != "FAILED"):
        status = "FINISHED"
        outcome = promotion if promotion.startswith(("refused", "nothing new")) else "succeeded"
    else:
        told = tracking.read_parent_tag(kfp_run_id, tracking.ERROR_TAG) or error or "see the logs of its tasks"
        status, outcome = "FAILED", f"failed: {told}"
    tracking.finish_parent_run(
        tag=tracking.KFP_RUN_TAG,
        value=kfp_run_id,
        status=status,
        tags={tracking.OUTCOME_TAG: outcome},
    )
    logger.info("%s: %s", pipeline, outcome)
    if not outcome.startswith(QUIET):
        text = f"RALM pipeline {pipeline}: {outcome} (run {kfp_run_id})"
        facts = {"pipeline": pipeline, "run_id": kfp_run_id, "state": outcome.partition(":")[0], "reason": outcome}
        notify.notify({"text": text, **facts})
    return outcome
