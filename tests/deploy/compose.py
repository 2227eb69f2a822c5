"""Reads deploy/compose.yaml as `docker compose` does: merged, and with values for its variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.deploy.manifests import DEPLOY

EXAMPLE = DEPLOY / "compose.env.example"


def example_names() -> dict[str, str]:
    """The variables of the example; those that are needed have an empty value, those that are not a comment sign."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(?:# )?([A-Z_]+)=(.*)", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def needed_names() -> list[str]:
    """The variables that are needed."""
    return re.findall(r"(?m)^([A-Z_]+)=$", EXAMPLE.read_text(encoding="utf-8"))


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Put values in for `${NAME}`, `${NAME:-DEFAULT}` and `${NAME:?MESSAGE}`.

    Raises:
        KeyError: one that has to be given is not; with its message.
    """

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match[1], match[2], match[3]
        if values.get(name):
            return values[name]
        if kind == ":-":
            return rest
        raise KeyError(f"{name}: {rest}")

    return re.sub(r"\$\{([A-Z_]+)(?:(:-|:\?)([^}]*))?\}", value, text)


def read_compose(name: str = "compose.yaml", **values: str) -> dict[str, Any]:
    """A compose file with values for its variables; for those that are needed their names stand in."""
    given = {**{needed: needed for needed in needed_names()}, **values}
    text = interpolate((DEPLOY / name).read_text(encoding="utf-8"), given)
    return dict(yaml.safe_load(text))
