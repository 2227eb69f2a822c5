"""What all graphs have: how they are traced, and the MLflow run around their tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from kfp import dsl
from kfp.dsl.pipeline_task import PipelineTask

from components.track.component import finish_op, start_op
from pipelines.profiles import pipeline_config, place


def traced(graph: Callable[..., Any], *, title: str = "") -> Any:
    """Trace a graph for the profile that is set.

    Args:
        graph: a function with a docstring: its first line is the description, its `Args` those of the inputs.
        title: shown in the user interface instead of the name.
    """
    name = graph.__name__.replace("_", "-")
    description = (graph.__doc__ or "").split("\n\n")[0]
    config = pipeline_config() if title else None  # of a whole run, not of a part
    decorate = dsl.pipeline(name=name, description=description, display_name=title or None, pipeline_config=config)
    return decorate(graph)


_parts: ContextVar[dict[str, Any]] = ContextVar("parts", default={})  # noqa: B039 - never changed


@contextlib.contextmanager
def with_parts(graphs: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Inside, `part` knows these sub-graphs; kfp traces no graph while it traces another one."""
    token = _parts.set({graph.__name__: traced(graph) for graph in graphs})
    try:
        yield
    finally:
        _parts.reset(token)


def part(graph: Callable[..., Any]) -> Any:
    """A sub-graph as a component, to be called inside another graph."""
    return _parts.get()[graph.__name__]


@contextlib.contextmanager
def tracked(pipeline: str, recipe: str) -> Iterator[PipelineTask]:
    """Around the tasks of a graph: the parent run of their MLflow runs, and the task that closes it and notifies.

    Returns:
        The task whose output is the parent run. What can fail comes after it: errors are noted on that run.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    finished = place(
        finish_op(pipeline=pipeline, kfp_run_id=run_id), "small", name="finish", is_cached=False, is_last=True
    )
    with dsl.ExitHandler(finished, name="run"):
        yield place(start_op(recipe=recipe, kfp_run_id=run_id), "small", name="start", is_cached=False)
