"""What the checks of a compiled pipeline look at: its components, tasks, executors and their types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

ROOT: Final = "root"
Kind = Literal["parameters", "artifacts"]
KINDS: Final[tuple[Kind, ...]] = ("parameters", "artifacts")
_DRIVER_IMAGES: Final = ("argostub/createpvc", "argostub/deletepvc")


@dataclass(frozen=True)
class Graph:
    """A compiled pipeline as protobuf messages, which carry no static types."""

    components: Mapping[str, Any]
    """`ComponentSpec` by name; the pipeline itself is `root`."""
    executors: Mapping[str, Any]
    """`ExecutorSpec` by label."""
    platform: Mapping[str, Any]
    """`KubernetesExecutorConfig` by label."""
    is_for_cluster: bool = False

    def tasks(self) -> Iterator[tuple[str, str, Any]]:
        """All tasks: name of the component they are in, their own name, `PipelineTaskSpec`."""
        for name, component in self.components.items():
            for task_name, task in sorted(component.dag.tasks.items()):
                yield name, task_name, task

    def executor(self, task: Any) -> Any | None:
        """The `ExecutorSpec` of a task; None where it is a graph or refers to nothing."""
        component = self.components.get(task.component_ref.name)
        return self.executors.get(component.executor_label) if component is not None else None

    def container(self, task: Any) -> Any | None:
        """What a task runs in a container; None where it is a graph, an importer, or refers to nothing."""
        return container_of(self.executor(task))

    @cached_property
    def in_loops(self) -> frozenset[str]:
        """Components that run once for each item of a loop, directly or further out."""
        found: set[str] = set()
        before = -1
        while len(found) > before:
            before = len(found)
            inner = [task for name, _, task in self.tasks() if name in found or task.WhichOneof("iterator")]
            found.update(task.component_ref.name for task in inner)
        return frozenset(found)

    def unset(self, name: str, kind: Kind) -> set[str]:
        """Optional inputs of a component that have no value in at least one place where it is called."""
        inputs = getattr(self.components[name].input_definitions, kind).items()
        optional = {key for key, spec in inputs if spec.is_optional and not has_default(spec)}
        calls = [getattr(task.inputs, kind) for _, _, task in self.tasks() if task.component_ref.name == name]
        return {key for key in optional if name == ROOT or any(key not in bound for bound in calls)}


def container_of(executor: Any | None) -> Any | None:
    """The container of an executor; None where it is none, or an image that stands for work of the driver itself."""
    if executor is None or executor.WhichOneof("spec") != "container" or executor.container.image in _DRIVER_IMAGES:
        return None
    return executor.container


def has_default(spec: Any) -> bool:
    """Whether an input has a value where none is bound to it."""
    # An artifact has no such field; a value for the other two types comes from kfp.
    from_kfp = (pb.ParameterType.TASK_FINAL_STATUS, pb.ParameterType.TASK_CONFIG)
    is_parameter = "default_value" in spec.DESCRIPTOR.fields_by_name
    return is_parameter and (spec.HasField("default_value") or spec.parameter_type in from_kfp)


def is_exit_task(task: Any) -> bool:
    """Whether a task runs after others whatever became of them: on a cluster it is their exit hook."""
    strategies = pb.PipelineTaskSpec.TriggerPolicy
    return bool(task.trigger_policy.strategy == strategies.ALL_UPSTREAM_TASKS_COMPLETED)


def type_of(spec: Any) -> str:
    """Type of an input or output, such as `STRING`, `system.Model` or `List[system.Dataset]`; empty without one."""
    if "parameter_type" in spec.DESCRIPTOR.fields_by_name:
        is_unset = spec.parameter_type == pb.ParameterType.PARAMETER_TYPE_ENUM_UNSPECIFIED
        return "" if is_unset else str(pb.ParameterType.ParameterTypeEnum.Name(spec.parameter_type))
    schema = spec.artifact_type
    title = str(schema.schema_title or schema.schema_uri or schema.instance_schema)
    return f"List[{title}]" if title and spec.is_artifact_list else title


def types_of(definitions: Any, kind: Kind) -> dict[str, str]:
    """Types of all inputs or outputs of a kind."""
    return {key: type_of(spec) for key, spec in getattr(definitions, kind).items()}


def bindings_in(message: Any | None) -> Iterator[Any]:
    """Parameters (names of secrets and claims, tolerations) anywhere in the kubernetes settings of an executor."""
    for descriptor, value in message.ListFields() if message is not None else ():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if descriptor.message_type.name == "InputParameterSpec":
                yield part
            else:
                yield from bindings_in(part)


def texts_of(message: Any) -> Iterator[str]:
    """All texts in a message, at any depth."""
    waiting = [json_format.MessageToDict(message)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting.extend([*value, *value.values()])
        elif isinstance(value, list):
            waiting.extend(value)


def one_of(names: Iterable[str]) -> str:
    """The end of a line that names what was expected."""
    return f"expected one of: {', '.join(sorted(names)) or '(none)'}"
