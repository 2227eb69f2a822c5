"""Check what the tasks of a compiled pipeline run in: images, environment, mounts, resources, retries, caching."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from google.protobuf import json_format

from pipelines.lint_model import Graph, bindings_in, container_of, is_exit_task, one_of
from pipelines.lint_texts import constants_of

_IMAGE: Final = re.compile(r"(?:.*/)?[^/:@]+(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?")
_SECRET_NAME: Final = re.compile(r"_KEY$|(?:^|_)(?:TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?)$", re.IGNORECASE)
_NAMES_OF_SECRETS: Final = ("RALM_JOB_SECRET",)
"""Variables whose value is the name of a kubernetes secret."""
_SECRET_URL: Final = re.compile(r"://[^/@:\s]*:[^/@\s]+@")
_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_OBJECT_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)(m|k|[MGTPE]|[KMGTPE]i)?")
_UNITS: Final[Mapping[str, float]] = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    **{unit: 1000.0**power for power, unit in enumerate("MGTPE", start=2)},
    **{f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", start=1)},
}
_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
MAX_ARGUMENT_BYTES: Final = 131_071
"""Longest argument of a process under Linux. A task's code is one, and all its inputs together, as JSON, are one."""


def container_rules(graph: Graph, allowed_images: Collection[str]) -> Iterator[str]:
    """What is wrong with the containers, one line each.

    Args:
        graph: the parsed pipeline.
        allowed_images: all images that may be used, as they are written in the file.

    Yields:
        Lines that begin with the executor, and say what was found and what was expected.
    """
    for label, executor in sorted(graph.executors.items()):
        spec, where = executor.WhichOneof("spec"), f"executor {label}"
        if spec not in ("container", "importer"):
            yield f"{where}: found {spec or 'nothing to run'}, expected a container or an importer"
        container, config = container_of(executor), graph.platform.get(label)
        if container is None:
            continue
        yield from _image_problems(container, allowed_images, where)
        yield from _environment_problems(container, config, where)
        yield from _resource_problems(container.resources, graph.is_for_cluster, where)
        if config is not None:
            yield from _settings_problems(config, where)
        if graph.is_for_cluster:
            yield from _cluster_problems(container, config, where)


def task_rules(graph: Graph, never_cached: Collection[str]) -> Iterator[str]:
    """What is wrong with retries, caching and the size of what tasks are given, one line each.

    Args:
        graph: the parsed pipeline.
        never_cached: components whose tasks must run every time; `plan-op`, `comp-plan-op` and `comp-plan-op-2` mean
            the same component.

    Yields:
        Lines that begin with component/task, and say what was found and what was expected.
    """
    never = {_plain_name(name) for name in never_cached}
    for dag, name, task in graph.tasks():
        where = f"{dag}/{name}"
        if task.caching_options.enable_cache and _plain_name(task.component_ref.name) in never:
            yield f"{where}: found caching enabled, expected none: {task.component_ref.name} has to run every time"
        if graph.container(task) is None:
            continue
        size = sum(len(json.dumps(text, ensure_ascii=False).encode()) for _, text in constants_of(task))
        if size > MAX_ARGUMENT_BYTES:
            yield f"{where}: found constants of {size} bytes, expected at most {MAX_ARGUMENT_BYTES}"
        policy = task.retry_policy
        has_retry = policy.max_retry_count > 0 and policy.backoff_duration.ToTimedelta().total_seconds() > 0
        if graph.is_for_cluster and not has_retry and not is_exit_task(task):
            yield f"{where}: found no retry with a backoff, expected maxRetryCount and backoffDuration over 0"


def is_secret(name: str, value: str) -> bool:
    """Whether a value written in the file looks like a credential, by its name or as part of a URL."""
    is_constant = value != "" and "{{$." not in value and name not in _NAMES_OF_SECRETS
    return is_constant and (_SECRET_NAME.search(name) is not None or _SECRET_URL.search(value) is not None)


def _plain_name(component: str) -> str:
    return re.sub(r"-\d+$", "", component.removeprefix("comp-"))


def _image_problems(container: Any, allowed_images: Collection[str], where: str) -> Iterator[str]:
    image = container.image
    if image not in allowed_images:
        yield f"{where}: found the image {image!r}, {one_of(allowed_images)}"
    parts = _IMAGE.fullmatch(image)
    if parts is None or not (parts["digest"] or parts["tag"]) or parts["tag"] == "latest" and not parts["digest"]:
        yield f"{where}: found the image {image!r} unpinned, expected a tag other than latest, or a digest"
    words = [*container.command, *container.args]
    if "pip install" in " ".join(words):
        yield f"{where}: found pip install in its command, expected packages to be in the image"
    for size in (len(word.encode()) for word in words):
        if size > MAX_ARGUMENT_BYTES:
            yield f"{where}: found an argument of {size} bytes, expected at most {MAX_ARGUMENT_BYTES}"


def _environment_problems(container: Any, config: Any | None, where: str) -> Iterator[str]:
    names = [variable.name for variable in container.env]
    if config is not None:
        names += [part.env_var for source in config.secret_as_env for part in source.key_to_env]
        names += [part.env_var for source in config.config_map_as_env for part in source.key_to_env]
        names += [part.name for part in config.field_path_as_env]
    for name, count in sorted(Counter(names).items()):
        if count > 1:
            yield f"{where}: found the environment variable {name!r} {count} times, expected once"
        if not _ENVIRONMENT_NAME.fullmatch(name):
            yield f"{where}: found the environment variable {name!r}, expected letters, digits and underscores"
    for variable in container.env:
        if is_secret(variable.name, variable.value):
            yield f"{where}: found a secret in the environment variable {variable.name!r}, expected a kubernetes secret"


def _cluster_problems(container: Any, config: Any | None, where: str) -> Iterator[str]:
    if config is None or config.active_deadline_seconds <= 0:
        yield f"{where}: found no timeout, expected activeDeadlineSeconds in its kubernetes settings"
    tolerations = list(config.tolerations) if config is not None else []
    has_accelerator = container.resources.HasField("accelerator")
    if has_accelerator and not tolerations:
        yield f"{where}: found an accelerator without a toleration, expected one for the taint of such nodes"
    # kfp drops the type of an accelerator whose limit was not set, and says nothing.
    if not has_accelerator and any("gpu" in toleration.key for toleration in tolerations):
        yield f"{where}: found a toleration for nodes with GPUs without an accelerator, expected its type and limit"


def _quantity(resources: Any, name: str, unit: str) -> str:
    # The number without `resource` is what older clusters read.
    old = getattr(resources, name)
    return getattr(resources, f"resource_{name}") or (f"{old:g}{unit}" if old else "")


def _amount(quantity: str) -> float | None:
    parts = _QUANTITY.fullmatch(quantity)
    return None if parts is None else float(parts[1]) * _UNITS[parts[2] or ""]


def _resource_problems(resources: Any, is_for_cluster: bool, where: str) -> Iterator[str]:
    for name, unit in (("cpu", ""), ("memory", "G")):
        amounts = []
        for bound in ("request", "limit"):
            quantity = _quantity(resources, f"{name}_{bound}", unit)
            amount = None if "{{$." in quantity else _amount(quantity)
            if not quantity and is_for_cluster:
                yield f"{where}: found no {name} {bound}, expected one"
            elif quantity and "{{$." not in quantity and not amount:
                # kfp itself lets `512K` pass.
                yield f"{where}: found the {name} {bound} {quantity!r}, expected a quantity over 0, such as 500m or 2Gi"
            amounts.append(amount)
        if amounts[0] and amounts[1] and amounts[0] > amounts[1]:
            yield f"{where}: found a {name} request over its limit, expected at most the limit"
    if resources.HasField("accelerator"):
        accelerator = resources.accelerator
        count = accelerator.resource_count or str(accelerator.count)
        if not (accelerator.resource_type or accelerator.type):
            yield f"{where}: found an accelerator without a type, expected one such as nvidia.com/gpu"
        if "{{$." not in count and not (count.isdigit() and int(count) > 0):
            yield f"{where}: found {count!r} accelerators, expected a whole number over 0"


def _settings_problems(config: Any, where: str) -> Iterator[str]:
    mounts = [
        part.mount_path
        for descriptor, value in config.ListFields()
        if descriptor.message_type is not None and "mount_path" in descriptor.message_type.fields_by_name
        for part in value
    ]
    for path, count in sorted(Counter(path.rstrip("/") or path for path in mounts).items()):
        if count > 1:
            yield f"{where}: found {count} mounts at {path!r}, expected one"
        if not path.startswith("/"):
            yield f"{where}: found a mount at {path!r}, expected an absolute path"
    values = (binding.runtime_value for binding in bindings_in(config) if binding.WhichOneof("kind") == "runtime_value")
    for name in (json_format.MessageToDict(value.constant) for value in values):
        if not isinstance(name, (dict, list)) and not _OBJECT_NAME.fullmatch(str(name)):
            yield f"{where}: found the kubernetes name {name!r}, expected lower-case letters, digits, '-' and '.'"
    for toleration in config.tolerations:
        if toleration.HasField("toleration_json"):
            continue
        if toleration.operator not in ("", "Equal", "Exists") or toleration.effect not in ("", *_EFFECTS):
            found = f"{toleration.operator!r} {toleration.effect!r}"
            yield f"{where}: found a toleration {found}, expected Equal or Exists with {one_of(_EFFECTS)}"
        elif (toleration.operator == "Exists") == bool(toleration.value) or not (
            toleration.key or toleration.operator == "Exists"
        ):
            yield f"{where}: found a toleration of {toleration.key!r}, expected a key and value, or operator Exists"
