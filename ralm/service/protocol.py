"""What a request may ask: the body of `POST /invocations`, in MLflow's scoring protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ralm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for."""

    max_questions: int = 64
    """In one request."""
    max_k: int = 100
    """Passages for each question."""
    max_body_bytes: int = 1 << 20
    """Size of the body."""

    def __post_init__(self) -> None:
        for name in ("max_questions", "max_k", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")


@dataclass(frozen=True)
class Asked:
    """A request that makes sense."""

    questions: list[str]
    k: int = 0
    """Passages for each question; 0: what the service takes where nothing is said."""


def parse_request(body: bytes, limits: Limits) -> Asked:
    """Read `{"inputs": ["question", ...], "params": {"k": 5}}`.

    Raises:
        ConfigError: it is not that, or asks for too much.

    Example:
        >>> parse_request(b'{"inputs": ["who?"], "params": {"k": 5}}', Limits())
        Asked(questions=['who?'], k=5)
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"body: expected a JSON object, found no JSON: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"body: expected a JSON object, found {_kind(content)}")
    if "inputs" not in content:
        raise ConfigError('body: expected "inputs", a list of questions; there is none')
    unknown = [name for name in content if name not in ("inputs", "params")]
    if unknown:
        raise ConfigError(f"body: expected inputs and params, found {_shown(unknown[0])} as well")
    return Asked(_questions(content["inputs"], limits), _k(content.get("params"), limits))


def _questions(inputs: Any, limits: Limits) -> list[str]:
    if not isinstance(inputs, list):
        raise ConfigError(f"inputs: expected a list of questions, found {_kind(inputs)}")
    if not 1 <= len(inputs) <= limits.max_questions:
        raise ConfigError(f"inputs: expected 1 to {limits.max_questions} questions, found {len(inputs)}")
    for number, question in enumerate(inputs):
        if not isinstance(question, str):
            raise ConfigError(f"inputs[{number}]: expected a text, found {_kind(question)}")
        if not question.strip():
            raise ConfigError(f"inputs[{number}]: expected a question, found an empty text")
        if any("\ud800" <= sign <= "\udfff" for sign in question):
            raise ConfigError(f"inputs[{number}]: expected a text, found half of a surrogate pair in it")
    return inputs


def _k(params: Any, limits: Limits) -> int:
    if params is None:
        return 0
    if not isinstance(params, dict):
        raise ConfigError(f"params: expected an object, found {_kind(params)}")
    unknown = [name for name in params if name != "k"]
    if unknown:
        raise ConfigError(f"params: expected k, found {_shown(unknown[0])}")
    k = params.get("k", 0)
    if not isinstance(k, int) or isinstance(k, bool):
        raise ConfigError(f"params.k: expected a whole number, found {_kind(k)}")
    if not 0 <= k <= limits.max_k:
        raise ConfigError(f"params.k: expected 0 to {limits.max_k}, found {_shown(k)}")
    return k


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno} column {error.colno}: {error.msg}"
    return "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else "nested too deeply, or too long"


def _kind(value: Any) -> str:
    """The type of a JSON value, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    """A client's value for an error message, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 50 else f"{text[:50]}..."
