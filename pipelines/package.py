"""A compiled pipeline file as a server gets it: its name, its inputs, and a version name made from its content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from components.images import VERSION
from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Package:
    """A compiled pipeline file."""

    path: Path
    name: str
    """The pipeline's own name, such as `train-and-evaluate`; the server's name for it too."""
    description: str
    inputs: Mapping[str, Mapping[str, Any]]
    """Definition of each input parameter of the graph, by name."""
    sha256: str
    """Of the file's bytes."""

    @property
    def version(self) -> str:
        """Name of the pipeline version: the same file always has the same one, so that it is uploaded once."""
        return f"{VERSION}-{self.sha256[:12]}"


def read_package(path: Path) -> Package:
    """Read a compiled pipeline file.

    Raises:
        ConfigError: no such file, or no compiled pipeline in it.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: expected a compiled pipeline with the suffix .yaml or .yml")
    if not path.is_file():
        raise ConfigError(f"{path}: no compiled pipeline; run `ralm pipeline compile`")
    content = path.read_bytes()
    spec = _read_documents(path, content)[0]
    root = spec.get("root", {})
    inputs = root.get("inputDefinitions", {})
    needed = [name for name, about in inputs.get("artifacts", {}).items() if not _is_optional(about)]
    if needed:
        raise ConfigError(f"{path}: needs artifacts as inputs, which a server cannot be given: {', '.join(needed)}")
    return Package(
        path=path,
        name=spec["pipelineInfo"]["name"],
        description=spec["pipelineInfo"].get("description", ""),
        inputs=inputs.get("parameters", {}),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _is_optional(about: Mapping[str, Any]) -> bool:
    """Whether an input may be left out; kfp marks so each one that has a default."""
    return bool(about.get("isOptional"))


def _read_documents(path: Path, content: bytes) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.load_all(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no YAML: {error}") from error
    if not all(isinstance(document, dict) for document in documents) or not documents:
        raise ConfigError(f"{path}: expected a compiled pipeline, found other YAML")
    if not documents[0].get("pipelineInfo", {}).get("name") or "root" not in documents[0]:
        raise ConfigError(f"{path}: expected a compiled pipeline, found no pipelineInfo.name and root")
    return documents


def without_caching(package: Package, folder: Path) -> Package:
    """A copy of the file in `folder` whose tasks all run, whatever the server has cached.

    A run of an uploaded version has no switch for it (kfp's `enable_caching` only acts on a file that is sent with the
    run), so that the copy is a version of its own.
    """
    documents = _read_documents(package.path, package.path.read_bytes())
    for task in _tasks(documents[0]):
        if "cachingOptions" in task:
            task["cachingOptions"] = {}
    copy = folder / package.path.name
    copy.write_text(yaml.safe_dump_all(documents, sort_keys=True, allow_unicode=True), encoding="utf-8")
    content = copy.read_bytes()
    return dataclasses.replace(package, path=copy, sha256=hashlib.sha256(content).hexdigest())


def _tasks(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All tasks of a graph and of the graphs in it."""
    for component in (spec["root"], *spec.get("components", {}).values()):
        yield from component.get("dag", {}).get("tasks", {}).values()


def parse_parameters(package: Package, given: Sequence[str]) -> dict[str, Any]:
    """Values of a pipeline's inputs from `name=value` words, each of the type that the file declares.

    Raises:
        ConfigError: an unknown or repeated name, a value of another type, or a required input that is missing.
    """
    values: dict[str, Any] = {}
    for word in given:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"param: expected NAME=VALUE, found {word!r}")
        if name not in package.inputs:
            known = ", ".join(sorted(package.inputs)) or "none at all"
            raise ConfigError(f"param: {package.name} has no input {name!r}, expected one of {known}")
        if name in values:
            raise ConfigError(f"param {name}: given twice")
        values[name] = _parse(name, text, str(package.inputs[name].get("parameterType")))
    missing = [name for name, about in sorted(package.inputs.items()) if name not in values and not _is_optional(about)]
    if missing:
        raise ConfigError(f"param: {package.name} needs {', '.join(missing)}; give --param NAME=VALUE")
    return values


def _parse(name: str, text: str, kind: str) -> Any:
    if kind not in _KINDS:
        raise ConfigError(f"param {name}: inputs of type {kind} cannot be given, only {', '.join(_KINDS)}")
    words, parse = _KINDS[kind]
    try:
        return parse(text)
    except ValueError:
        raise ConfigError(f"param {name}: expected {words}, found {text!r}") from None


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # JSON has no word for it
        raise ValueError(text)
    return number


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _json_of(kind: type[Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(text)
        return value

    return parse


_KINDS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "STRING": ("text", str),
    "NUMBER_INTEGER": ("a whole number", int),
    "NUMBER_DOUBLE": ("a number", _number),
    "BOOLEAN": ("true or false", _boolean),
    "LIST": ("a JSON list", _json_of(list)),
    "STRUCT": ("a JSON object", _json_of(dict)),
}
