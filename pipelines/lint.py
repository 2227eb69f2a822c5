"""Find what is wrong with a compiled pipeline before a cluster does: strict parse, graph, images, resources.

kfp compiles from objects and trusts what it writes; its loader takes a file in which a task reads from one that does
not exist. Here every such line is a problem with a name, what was found and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_pb
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

from pipelines.lint_containers import container_rules, is_secret, task_rules
from pipelines.lint_graph import graph_problems
from pipelines.lint_model import KINDS, ROOT, Graph
from ralm.errors import ConfigError

_REQUIRED: Final = frozenset({"pipelineInfo", "root", "deploymentSpec"})
_PIPELINE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
_UNKNOWN_FIELD: Final = re.compile(r'no field named "([^"]*)" at "(.*?)"\. Available Fields.*?"\[(.*?)\]"')
_M = TypeVar("_M")


def lint_pipeline(
    path: Path,
    *,
    allowed_images: Collection[str],
    is_for_cluster: bool = False,
    never_cached: Collection[str] = (),
) -> list[str]:
    """Everything that is wrong with a compiled pipeline.

    Args:
        path: the file that kfp wrote: the pipeline, and in a second document what is for kubernetes alone.
        allowed_images: all images that may be used, as they are written in the file.
        is_for_cluster: ask for what a cluster needs as well: resources, timeouts, retries, tolerations; and for
            nothing that its backend cannot run.
        never_cached: components whose tasks must run every time, such as `plan-op`.

    Returns:
        One line for each problem, with where it is, what was found and what was expected; empty if there is none.

    Raises:
        ConfigError: the file cannot be read, or is no compiled pipeline.
    """
    documents = _read(path)
    problems: list[str] = []
    if len(documents) > 2:
        problems.append(f"found {len(documents)} YAML documents, expected the pipeline and one for its platform")
    graph = Graph(
        components=_components(documents[0], problems),
        executors=_executors(documents[0], problems),
        platform=_platform(documents[1] if len(documents) > 1 else {}, problems),
        is_for_cluster=is_for_cluster,
    )
    problems += _interface_problems(documents[0], graph)
    problems += graph_problems(graph)
    problems += container_rules(graph, allowed_images)
    problems += task_rules(graph, never_cached)
    return problems


def check_pipeline(
    path: Path,
    *,
    allowed_images: Collection[str],
    is_for_cluster: bool = False,
    never_cached: Collection[str] = (),
) -> None:
    """Refuse a compiled pipeline that `lint_pipeline` finds something wrong with.

    Args:
        path: as for `lint_pipeline`.
        allowed_images: as for `lint_pipeline`.
        is_for_cluster: as for `lint_pipeline`.
        never_cached: as for `lint_pipeline`.

    Raises:
        ConfigError: it has a problem; names the file, the first one, and how many others there are.
    """
    problems = lint_pipeline(
        path, allowed_images=allowed_images, is_for_cluster=is_for_cluster, never_cached=never_cached
    )
    if problems:
        others = f" (and {len(problems) - 1} other problems)" if len(problems) > 1 else ""
        raise ConfigError(f"{path}: {problems[0]}{others}")


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        found = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{line}: found {found}, expected YAML as kfp compiles it") from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise ConfigError(f"{path}: is no compiled pipeline, expected one or two YAML mappings")
    if missing := sorted(_REQUIRED - set(documents[0])):
        found = ", ".join(sorted(map(str, documents[0])))
        raise ConfigError(f"{path}: is no compiled pipeline: found {found}, expected {', '.join(missing)} as well")
    return documents


def _parse(content: object, message: _M, where: str, problems: list[str]) -> _M:
    """Fill a message; what does not belong becomes a problem and is left out, so that the rest is checked as well."""
    if not isinstance(content, dict):
        problems.append(f"{where}: found {content!r:.80}, expected a mapping")
        return message
    try:
        return json_format.ParseDict(content, message)  # type: ignore[no-any-return]
    except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"{where}: {_told(error)}")
    try:
        return json_format.ParseDict(content, type(message)(), ignore_unknown_fields=True)  # type: ignore[no-any-return]
    except (json_format.ParseError, TypeError, ValueError, AttributeError):
        return type(message)()


def _told(error: Exception) -> str:
    text = re.sub(r"Failed to parse (\w+) field: (?=Failed|Message)", "", " ".join(str(error).split()))
    if (unknown := _UNKNOWN_FIELD.search(text)) is None:
        return f"{text.rstrip('.')}, expected what kfp writes"
    return f"found the unknown field '{unknown[1]}' at {unknown[2]}, expected one of: {unknown[3].replace(chr(39), '')}"


def _mapping(content: object, key: str, where: str, problems: list[str]) -> dict[str, Any]:
    value = content.get(key, {}) if isinstance(content, dict) else None
    if isinstance(value, dict):
        return value
    problems.append(f"{where}: found {value!r:.80}, expected a mapping")
    return {}


def _components(document: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    named = {ROOT: document["root"], **_mapping(document, "components", "components", problems)}
    _parse({**document, "components": {}, "root": {}, "deploymentSpec": {}}, pb.PipelineSpec(), "pipeline", problems)
    return {name: _parse(content, pb.ComponentSpec(), f"component {name}", problems) for name, content in named.items()}


def _executors(document: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    named = _mapping(document["deploymentSpec"], "executors", "deploymentSpec.executors", problems)
    rest = {**document["deploymentSpec"], "executors": {}} if isinstance(document["deploymentSpec"], dict) else {}
    _parse(rest, pb.PipelineDeploymentConfig(), "deploymentSpec", problems)
    return {
        label: _parse(content, pb.PipelineDeploymentConfig.ExecutorSpec(), f"executor {label}", problems)
        for label, content in named.items()
    }


def _platform(document: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    _parse(document, pb.PlatformSpec(), "platform document", problems)
    platforms = _mapping(document, "platforms", "platforms", problems)
    for name in sorted(set(platforms) - {"kubernetes"}):
        problems.append(f"platforms: found {name!r}, expected kubernetes")
    deployment = _mapping(platforms.get("kubernetes", {}), "deploymentSpec", "kubernetes deploymentSpec", problems)
    named = _mapping(deployment, "executors", "kubernetes executors", problems)
    return {
        label: _parse(content, kubernetes_pb.KubernetesExecutorConfig(), f"kubernetes executor {label}", problems)
        for label, content in named.items()
    }


def _interface_problems(document: Mapping[str, Any], graph: Graph) -> Iterator[str]:
    """What a person sees of a pipeline and its runs: name, description, a form with the inputs, and constants."""
    info = _parse(document["pipelineInfo"], pb.PipelineInfo(), "pipelineInfo", [])
    if not _PIPELINE_NAME.fullmatch(info.name):
        yield f"pipelineInfo: found the name {info.name!r}, expected lower-case letters, digits and '-'"
    if not info.description.strip():
        yield "pipelineInfo: found no description, expected one"
    if not str(document.get("schemaVersion", "")).startswith("2."):
        yield f"schemaVersion: found {document.get('schemaVersion')!r}, expected 2.x"
    inputs = graph.components[ROOT].input_definitions
    for key, spec in ((key, spec) for kind in KINDS for key, spec in sorted(getattr(inputs, kind).items())):
        if not spec.description.strip():
            yield f"component root, input {key!r}: found no description, expected one"
    for key, spec in sorted(inputs.parameters.items()):
        if is_secret(key, spec.default_value.string_value):
            yield f"component root, input {key!r}: found a secret as its default, expected none: every run shows it"
    for dag, name, task in graph.tasks():
        for key, binding in sorted(task.inputs.parameters.items()):
            if is_secret(key, binding.runtime_value.constant.string_value):
                yield f"{dag}/{name}, input {key!r}: found a secret as its value, expected a kubernetes secret"
