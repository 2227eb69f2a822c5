from __future__ import annotations

import json
from typing import Any

import pytest

from ralm.errors import ConfigError
from ralm.service.protocol import Asked, Limits, parse_request

LIMITS = Limits(max_questions=3, max_k=10)


def body(**content: Any) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (body(inputs=["a"]), Asked(["a"], 0)),
        (body(inputs=["a", "b"], params={"k": 10}), Asked(["a", "b"], 10)),
        (body(inputs=["a"], params={}), Asked(["a"], 0)),
        (body(inputs=["a"], params=None), Asked(["a"], 0)),
        (body(inputs=["größer 😀 \u0000"]), Asked(["größer 😀 \u0000"], 0)),
    ],
)
def test_what_is_understood(content: bytes, expected: Asked) -> None:
    assert parse_request(content, LIMITS) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "body: expected a JSON object, found no JSON: line 1 column 1: Expecting value"),
        (b'{"inputs": ["a"]', "found no JSON: line 1 column 17"),
        (b'{"inputs": ["\xff"]}', "found no JSON: bytes that are not UTF-8"),
        (b"[" * 100_000, "found no JSON: nested too deeply, or too long"),
        (b'{"inputs": ["a"], "params": {"k": ' + b"9" * 5000 + b"}}", "nested too deeply, or too long"),
        (b'["a"]', "expected a JSON object, found a list"),
        (b"null", "expected a JSON object, found null"),
        (body(), 'body: expected "inputs", a list of questions; there is none'),
        (body(instances=["a"]), 'body: expected "inputs"'),
        (body(inputs=["a"], k=5), 'body: expected inputs and params, found "k" as well'),
        (body(inputs="a"), "inputs: expected a list of questions, found a text"),
        (body(inputs={"q": "a"}), "inputs: expected a list of questions, found an object"),
        (body(inputs=[]), "inputs: expected 1 to 3 questions, found 0"),
        (body(inputs=["a"] * 4), "inputs: expected 1 to 3 questions, found 4"),
        (body(inputs=["a", 5]), r"inputs\[1\]: expected a text, found a number"),
        (body(inputs=[None]), r"inputs\[0\]: expected a text, found null"),
        (body(inputs=[["a"]]), r"inputs\[0\]: expected a text, found a list"),
        (body(inputs=["a", " \n"]), r"inputs\[1\]: expected a question, found an empty text"),
        (b'{"inputs": ["\\ud800"]}', r"inputs\[0\]: expected a text, found half of a surrogate pair"),
        (body(inputs=["a"], params=[5]), "params: expected an object, found a list"),
        (body(inputs=["a"], params={"kk": 5}), 'params: expected k, found "kk"'),
        (body(inputs=["a"], params={"k": 11}), "params.k: expected 0 to 10, found 11"),
        (body(inputs=["a"], params={"k": -1}), "params.k: expected 0 to 10, found -1"),
        (body(inputs=["a"], params={"k": "5"}), "params.k: expected a whole number, found a text"),
        (body(inputs=["a"], params={"k": True}), "params.k: expected a whole number, found true or false"),
        (body(inputs=["a"], params={"k": 1.5}), "params.k: expected a whole number, found a number"),
        (body(inputs=["a"], params={"x" * 1000: 1}), r'params: expected k, found "x{49}\.\.\.$'),
    ],
)
def test_what_is_refused_is_told_in_one_sentence(content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_request(content, LIMITS)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_surrogate_pair_is_one_sign() -> None:
    assert parse_request(b'{"inputs": ["\\ud83d\\ude00"]}', LIMITS).questions == ["😀"]


@pytest.mark.parametrize("name", ["max_questions", "max_k", "max_body_bytes"])
def test_limits_allow_something(name: str) -> None:
    changed: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=f"{name}: expected at least 1, found 0"):
        Limits(**changed)
