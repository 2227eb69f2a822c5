"""Check what kfp writes as text into a compiled pipeline: placeholders and the conditions of `dsl.If`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from kfp import dsl

from pipelines.lint_model import one_of, texts_of

_REFERENCE: Final = re.compile(r"\{\{\$\.(inputs|outputs)\.(parameters|artifacts)\['([^']*)'\]")
_PLACEHOLDER: Final = re.compile(r"\{\{\$.*?\}\}|\{\{channel:.*?\}\}")
_RUN_PLACEHOLDERS: Final = frozenset(
    {
        dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER,
        dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        dsl.PIPELINE_TASK_NAME_PLACEHOLDER,
        dsl.PIPELINE_TASK_ID_PLACEHOLDER,
        dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER,
        dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER,
    }
)
_WORKSPACE: Final = dsl.WORKSPACE_PATH_PLACEHOLDER
# kfp binds these beside a component's own inputs where a resource or the image is a parameter.
_RESOURCE_INPUTS: Final = frozenset(
    {f"{name}_{bound}" for name in ("cpu", "memory") for bound in ("request", "limit")}
    | {"accelerator_type", "accelerator_count", "base_image"}
)
_CONDITION_INPUT: Final = r"inputs\.parameter_values\['([^']+)'\]"
_CONDITION: Final = re.compile(
    rf"(?:{_CONDITION_INPUT}|'[^']*'|\b(?:int|double|true|false)\b|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
    r"|[=!<>]=|&&|\|\||[<>!()]|\s)+"
)


def constants_of(task: Any) -> Iterator[tuple[str, str]]:
    """The texts among a task's constants, with the input that each belongs to."""
    for key, binding in sorted(task.inputs.parameters.items()):
        if binding.runtime_value.WhichOneof("value") == "constant":
            yield from ((key, text) for text in texts_of(binding.runtime_value.constant))


def extra_inputs(task: Any, container: Any | None) -> set[str]:
    """Inputs that kfp binds to a task beside those of its component, for a placeholder that refers to them."""
    texts = [text for _, text in constants_of(task)] + (list(texts_of(container)) if container is not None else [])
    found = {name for text in texts for side, _, name in _REFERENCE.findall(text) if side == "inputs"}
    resources = (key for key, text in constants_of(task) if key in _RESOURCE_INPUTS and _REFERENCE.match(text))
    return found.union(resources)


def condition_problems(task: Any, component: Any, where: str) -> Iterator[str]:
    """What is wrong with the condition under which a task runs.

    Args:
        task: `PipelineTaskSpec`.
        component: `ComponentSpec` that the task runs.
        where: how lines begin.

    Yields:
        One line for each problem.
    """
    condition = task.trigger_policy.condition
    known = {*task.inputs.parameters, *component.input_definitions.parameters}
    for name in sorted(set(re.findall(_CONDITION_INPUT, condition)) - known):
        yield f"{where}: condition reads the input {name!r}, which does not exist, {one_of(known)}"
    # kfp puts a text into quotes without escaping: one with a quote of its own is no expression any more.
    if condition and not _CONDITION.fullmatch(condition):
        yield f"{where}: found the condition {condition!r}, expected comparisons of inputs and constants"


def constant_problems(task: Any, where: str, *, is_for_cluster: bool) -> Iterator[str]:
    """Placeholders in a task's constants that nothing will replace.

    Args:
        task: `PipelineTaskSpec`.
        where: how lines begin.
        is_for_cluster: whether a cluster replaces them: its driver knows those of the run only as a whole value.

    Yields:
        One line for each problem.
    """
    bound = set(task.inputs.parameters)
    for key, text in constants_of(task):
        for found in _PLACEHOLDER.findall(text):
            place = f"{where}, input {key!r}: placeholder {found}"
            reference = _REFERENCE.match(found)
            if reference and reference.group(1, 2) == ("inputs", "parameters"):
                if reference.group(3) not in bound:
                    yield f"{place} names no input that is bound, {one_of(bound)}"
            elif found not in _RUN_PLACEHOLDERS and found != _WORKSPACE:
                yield f"{place} is unknown, {one_of([*_RUN_PLACEHOLDERS, _WORKSPACE])}"
            elif is_for_cluster and found not in (text, _WORKSPACE):
                yield f"{place} is found inside a longer text, expected alone: a cluster replaces no part of a value"


def container_problems(task: Any, component: Any, container: Any, where: str) -> Iterator[str]:
    """Placeholders of a container (image, command, resources) for inputs and outputs that its task does not have.

    Args:
        task: `PipelineTaskSpec`.
        component: `ComponentSpec` that the task runs.
        container: `PipelineContainerSpec` of the component.
        where: how lines begin.

    Yields:
        One line for each problem.
    """
    for side, kind, name in sorted({*_REFERENCE.findall("\n".join(texts_of(container)))}):
        known = set(getattr(component.input_definitions if side == "inputs" else component.output_definitions, kind))
        if side == "inputs":
            known.update(getattr(task.inputs, kind))
        if name not in known:
            yield f"{where}: its container refers to {side} {kind} {name!r}, which does not exist, {one_of(known)}"
