"""Check the graph of a compiled pipeline: names, types and order, at every level of nesting.

kfp checks them while it compiles, from its own objects; nobody checks what it wrote. What is known here of a cluster
was read in the source of the backend (the compiler to Argo, and the driver).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, TypeVar

from google.protobuf import json_format

from pipelines.lint_model import (
    KINDS,
    ROOT,
    Graph,
    Kind,
    bindings_in,
    has_default,
    is_exit_task,
    one_of,
    type_of,
    types_of,
)
from pipelines.lint_texts import condition_problems, constant_problems, container_problems, extra_inputs

GENERIC: Final = "system.Artifact"
"""The artifact type that goes with any other."""

_JSON_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "STRING": str,
    "NUMBER_DOUBLE": (int, float),
    "NUMBER_INTEGER": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Dag:
    graph: Graph
    name: str

    @cached_property
    def component(self) -> Any:
        return self.graph.components[self.name]

    @cached_property
    def tasks(self) -> dict[str, Any]:
        return dict(self.component.dag.tasks)


class _UnresolvedError(Exception):
    """A name that leads nowhere."""


def graph_problems(graph: Graph) -> Iterator[str]:
    """Everything that is wrong with the graph, one line each.

    Args:
        graph: the parsed pipeline.

    Yields:
        Lines that begin with the component, or component/task, and say what was found and what was expected.
    """
    yield from _reachability_problems(graph)
    for name in graph.components:
        dag = _Dag(graph, name)
        yield from _component_problems(dag)
        for task in sorted(dag.tasks):
            yield from _task_problems(dag, task)
        yield from _order_problems(dag)
        yield from _exit_problems(dag)
        yield from _output_problems(dag)


def _find(name: str, known: Mapping[str, _T], what: str, owner: str) -> _T:
    if name not in known:
        raise _UnresolvedError(f"{what} {name!r} of {owner} does not exist, {one_of(known)}")
    return known[name]


def _does_fit(value: object, parameter_type: str) -> bool:
    if isinstance(value, bool):
        return parameter_type == "BOOLEAN"
    if parameter_type == "NUMBER_INTEGER" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _JSON_TYPES.get(parameter_type, object))


def _is_compatible(given: str, wanted: str) -> bool:
    is_generic = bool({given, wanted} & {GENERIC, f"List[{GENERIC}]"})
    return given == wanted or (is_generic and given.startswith("List[") == wanted.startswith("List["))


def _reachability_problems(graph: Graph) -> Iterator[str]:
    calls: dict[str, set[str]] = {name: set() for name in graph.components}
    for name, _, task in graph.tasks():
        calls[name].add(task.component_ref.name)
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        yield f"components contain each other: {' -> '.join(error.args[1])}; expected none that contains itself"
    used, waiting = {ROOT}, [ROOT]
    while waiting:
        new = calls.get(waiting.pop(), set()) - used
        used |= new
        waiting.extend(new)
    for name in sorted(set(graph.components) - used):
        yield f"component {name}: found unused, expected a task of the pipeline that runs it"
    labels = {component.executor_label for name, component in graph.components.items() if name in used}
    for label in sorted(set(graph.executors) - labels):
        yield f"executor {label}: found unused, expected a component of the pipeline that names it"
    for label in sorted(set(graph.platform) - set(graph.executors)):
        yield f"kubernetes settings: executor {label!r} does not exist, {one_of(graph.executors)}"


def _component_problems(dag: _Dag) -> Iterator[str]:
    component, where = dag.component, f"component {dag.name}"
    implementation = component.WhichOneof("implementation")
    if implementation is None or (implementation == "dag" and not dag.tasks):
        yield f"{where}: found neither tasks nor an executor, expected either"
    elif implementation == "executor_label" and component.executor_label not in dag.graph.executors:
        yield f"{where}: executor {component.executor_label!r} does not exist, {one_of(dag.graph.executors)}"
    for side, definitions in (("input", component.input_definitions), ("output", component.output_definitions)):
        for key in (key for kind in KINDS for key, found in types_of(definitions, kind).items() if not found):
            yield f"{where}, {side} {key!r}: found no type, expected one"
    types = types_of(component.input_definitions, "parameters")
    for key, spec in component.input_definitions.parameters.items():
        default = json_format.MessageToDict(spec.default_value) if spec.HasField("default_value") else None
        if default is not None and types[key] and not _does_fit(default, types[key]):
            yield f"{where}, input {key!r}: found the default {default!r}, expected {types[key]}"


def _task_problems(dag: _Dag, name: str) -> Iterator[str]:
    task, where = dag.tasks[name], f"{dag.name}/{name}"
    for dependency in sorted(set(task.dependent_tasks) - set(dag.tasks)):
        yield f"{where}: waits for task {dependency!r}, which does not exist, {one_of(dag.tasks)}"
    component = dag.graph.components.get(task.component_ref.name)
    if component is None:
        yield f"{where}: component {task.component_ref.name!r} does not exist, {one_of(dag.graph.components)}"
        return
    container = dag.graph.container(task)
    for kind in KINDS:
        inputs, bound = getattr(component.input_definitions, kind), getattr(task.inputs, kind)
        item = getattr(task, f"{kind[:-1]}_iterator").item_input
        for key in sorted(set(bound) - set(inputs) - extra_inputs(task, container)):
            yield f"{where}, input {key!r}: {task.component_ref.name} has no such input, {one_of(inputs)}"
        for key in sorted(set(inputs) - set(bound) - {item}):
            if not inputs[key].is_optional and not has_default(inputs[key]):
                yield f"{where}, input {key!r}: found unbound, expected a value: it has no default"
        for key in sorted(bound):
            yield from _binding_problems(dag, bound[key], inputs.get(key), kind, f"{where}, input {key!r}")
    yield from _status_problems(task, component, where)
    yield from _iterator_problems(dag, task, component, where)
    yield from condition_problems(task, component, where)
    yield from constant_problems(task, where, is_for_cluster=dag.graph.is_for_cluster)
    if container is not None:
        yield from container_problems(task, component, container, where)
    for binding in bindings_in(dag.graph.platform.get(component.executor_label)):
        yield from _binding_problems(dag, binding, None, "parameters", f"{where}, its kubernetes settings")


def _binding_problems(dag: _Dag, binding: Any, wanted: Any | None, kind: Kind, where: str) -> Iterator[str]:
    """What is wrong with the source of an input; `wanted` is its definition, None where there is none."""
    try:
        given = _source_type(dag, binding)
    except _UnresolvedError as error:
        yield f"{where}: {error}"
        return
    if wanted is None:
        return
    expected = type_of(wanted)
    if kind == "parameters" and binding.WhichOneof("kind") == "runtime_value":
        value = json_format.MessageToDict(binding.runtime_value.constant)
        if not _does_fit(value, expected):
            yield f"{where}: found the constant {value!r:.80}, expected {expected}"
    elif given is not None and not _is_untyped(binding, given) and not _is_compatible(given, expected):
        yield f"{where}: found {given}, expected {expected}"
    # A driver refuses to read an input that was left out: an artifact always, a parameter where the reader needs it.
    read = getattr(binding, f"component_input_{kind[:-1]}")
    is_refused = not wanted.is_optional or (kind == "artifacts" and dag.graph.is_for_cluster)
    if is_refused and read in dag.graph.unset(dag.name, kind):
        yield f"{where}: reads {read!r} of {dag.name}, found optional without a default, expected a value in every run"


def _is_untyped(binding: Any, given: str) -> bool:
    # kfp calls the items of a loop STRING where it does not know better, and a selected field of one has no type.
    selector = getattr(binding, "parameter_expression_selector", "")
    return bool(selector) or (given == "STRING" and "loop-item" in getattr(binding, "component_input_parameter", ""))


def _source_type(dag: _Dag, binding: Any) -> str | None:
    """Type of what an input reads; None where there is none to compare (constants; errors reported elsewhere)."""
    source = binding.WhichOneof("kind")
    if source == "component_input_parameter":
        types = types_of(dag.component.input_definitions, "parameters")
        return _find(binding.component_input_parameter, types, "input parameter", dag.name)
    if source == "component_input_artifact":
        types = types_of(dag.component.input_definitions, "artifacts")
        return _find(binding.component_input_artifact, types, "input artifact", dag.name)
    if source == "task_output_parameter":
        output = binding.task_output_parameter
        return _output_type(dag, output.producer_task, output.output_parameter_key, "parameters")
    if source == "task_output_artifact":
        output = binding.task_output_artifact
        return _output_type(dag, output.producer_task, output.output_artifact_key, "artifacts")
    if source == "task_final_status":
        _find(binding.task_final_status.producer_task, dag.tasks, "task", dag.name)
        return "TASK_FINAL_STATUS"
    if source is None or binding.runtime_value.WhichOneof("value") != "constant":
        raise _UnresolvedError("found bound to nothing, expected a constant, an input or an output of a task")
    return None


def _output_type(dag: _Dag, producer: str, key: str, kind: Kind) -> str | None:
    task = _find(producer, dag.tasks, "task", dag.name)
    component = dag.graph.components.get(task.component_ref.name)
    if component is None:
        return None
    return _find(key, types_of(component.output_definitions, kind), f"output {kind[:-1]}", f"task {producer!r}")


def _status_problems(task: Any, component: Any, where: str) -> Iterator[str]:
    types = types_of(component.input_definitions, "parameters")
    for key in sorted(key for key, found in types.items() if found == "TASK_FINAL_STATUS"):
        binding = task.inputs.parameters.get(key)
        if binding is None or binding.WhichOneof("kind") != "task_final_status":
            yield f"{where}, input {key!r}: found no final status bound, expected that of an exit handler"
            continue
        producer = binding.task_final_status.producer_task
        if not is_exit_task(task) or list(task.dependent_tasks[:1]) != [producer]:  # a driver reads the first
            yield f"{where}, input {key!r}: found no exit task that waits for {producer!r} first, expected one"


def _iterator_problems(dag: _Dag, task: Any, component: Any, where: str) -> Iterator[str]:
    iterator = task.WhichOneof("iterator")
    if iterator is None:
        return
    kind: Kind = "parameters" if iterator == "parameter_iterator" else "artifacts"
    loop, types = getattr(task, iterator), types_of(component.input_definitions, kind)
    if loop.item_input not in types:
        yield f"{where}: loop item {loop.item_input!r} is no input of {task.component_ref.name}, {one_of(types)}"
    if kind == "artifacts" and dag.graph.is_for_cluster:
        yield f"{where}: found a loop over artifacts, expected one over a parameter: a cluster does not run it"
    if kind == "parameters" and loop.items.WhichOneof("kind") == "raw":
        yield from _raw_item_problems(loop.items.raw, types.get(loop.item_input, "STRING"), where)
        return
    source = loop.items.input_parameter if kind == "parameters" else loop.items.input_artifact
    bound = getattr(task.inputs, kind)
    if source not in bound:
        yield f"{where}: loops over its input {source!r}, which does not exist, {one_of(bound)}"
    elif not types.get(source, "LIST").startswith(("LIST", "List[")) and not _is_untyped(bound[source], ""):
        yield f"{where}: loops over its input {source!r}, found {types[source]}, expected a list"


def _raw_item_problems(raw: str, item_type: str, where: str) -> Iterator[str]:
    try:
        items = json.loads(raw)
    except ValueError:
        items = None
    if not isinstance(items, list) or not items:
        yield f"{where}: found the loop items {raw!r:.80}, expected a JSON list with at least one"
    elif item_type != "STRING" and not all(_does_fit(item, item_type) for item in items):
        yield f"{where}: found the loop items {raw!r:.80}, expected items of type {item_type}"


def _producers(task: Any) -> set[str]:
    parameters = (binding.task_output_parameter.producer_task for binding in task.inputs.parameters.values())
    artifacts = (binding.task_output_artifact.producer_task for binding in task.inputs.artifacts.values())
    return {*parameters, *artifacts} - {""}


def _order_problems(dag: _Dag) -> Iterator[str]:
    before = {name: (_producers(task) | set(task.dependent_tasks)) & set(dag.tasks) for name, task in dag.tasks.items()}
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        yield f"{dag.name}: tasks wait for each other: {' -> '.join(error.args[1])}; expected no cycle"
    for name, task in sorted(dag.tasks.items()):
        # A cluster works this out; kfp's local runner orders by the list alone.
        for producer in sorted(_producers(task) & set(dag.tasks) - set(task.dependent_tasks)):
            yield f"{dag.name}/{name}: reads from {producer!r}, expected it among the dependentTasks"


def _exit_problems(dag: _Dag) -> Iterator[str]:
    exits = {name: task for name, task in dag.tasks.items() if is_exit_task(task)}
    for name in sorted(name for name, task in exits.items() if not task.dependent_tasks):
        yield f"{dag.name}/{name}: found an exit task that follows no other, expected one in dependentTasks"
    if not dag.graph.is_for_cluster:
        return
    for name, task in sorted(dag.tasks.items()):
        hooks = sorted(exit_name for exit_name, exit_task in exits.items() if name in exit_task.dependent_tasks)
        executor = dag.graph.executor(task)
        is_importer = executor is not None and executor.WhichOneof("spec") == "importer"
        if len(hooks) > 1:
            yield f"{dag.name}/{name}: found the exit tasks {', '.join(hooks)}, expected one: a cluster runs the last"
        if hooks and (is_importer or task.WhichOneof("iterator")):
            yield f"{dag.name}/{hooks[0]}: follows {name!r}, expected no loop or importer: a cluster never runs it then"
        for dependency in sorted(set(task.dependent_tasks) & set(exits)):
            yield f"{dag.name}/{name}: waits for the exit task {dependency!r}, expected none: a cluster refuses that"


def _selectors(outputs: Any, kind: Kind) -> Iterator[tuple[str, str, str]]:
    for key, output in sorted(getattr(outputs, kind).items()):
        if kind == "artifacts":
            selectors = list(output.artifact_selectors)
        elif output.WhichOneof("kind") == "value_from_oneof":
            selectors = list(output.value_from_oneof.parameter_selectors)
        else:
            selectors = [output.value_from_parameter]
        for selector in selectors:
            yield key, selector.producer_subtask, getattr(selector, f"output_{kind[:-1]}_key")


def _output_problems(dag: _Dag) -> Iterator[str]:
    if dag.component.WhichOneof("implementation") != "dag":
        return
    for kind in KINDS:
        types = types_of(dag.component.output_definitions, kind)
        selectors = list(_selectors(dag.component.dag.outputs, kind))
        for key in sorted(set(types) - {key for key, _, _ in selectors}):
            yield f"{dag.name}, output {key!r}: found no task that makes it, expected one"
        for key, producer, output in selectors:
            try:
                wanted = _find(key, types, f"declared output {kind[:-1]}", dag.name)
                given = _output_type(dag, producer, output, kind)
            except _UnresolvedError as error:
                yield f"{dag.name}, output {key!r}: {error}"
                continue
            # Inside a loop kfp declares the list of all iterations, and the task inside makes one item.
            item = "" if kind == "parameters" else wanted.removeprefix("List[").removesuffix("]")
            is_item = wanted == "LIST" or (item not in ("", wanted) and _is_compatible(given or "", item))
            if given and not _is_compatible(given, wanted) and not (is_item and dag.name in dag.graph.in_loops):
                yield f"{dag.name}, output {key!r}: found {given} of task {producer!r}, expected {wanted}"
