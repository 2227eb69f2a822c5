"""The documents stay true: links resolve, flags exist, and the reference names every setting, flag and variable."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import commands
from pipelines.cli import STAGES
from pipelines.recipes import RECIPES
from ralm.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WITH_COMMANDS = [ROOT / "README.md", ROOT / "docs" / "reference.md", ROOT / "docs" / "walkthrough.md"]
REFERENCE = ROOT / "docs" / "reference.md"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command by its words, such as `pipeline run`."""
    found: dict[str, argparse.ArgumentParser] = {}

    def collect(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> None:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for group in groups:
            for word, child in group.choices.items():
                collect(child, (*words, word))
        if not groups:
            found[" ".join(words)] = parser

    collect(commands.build_parser(), ())
    for stage in STAGES:
        found[stage] = build_parser(getattr(importlib.import_module(f"components.{stage}.stage"), stage))
    return found


def flags(parser: argparse.ArgumentParser) -> set[str]:
    """Flags as people write them; jsonargparse has underscores for dashes and knows a `+` form of lists."""
    found = [flag for action in parser._actions for flag in action.option_strings]
    return {flag.replace("_", "-") for flag in found if not flag.endswith("+")}


def code_blocks(path: Path) -> Iterator[str]:
    """Lines of the fenced blocks; lines that end in a backslash or go on indented under `ralm` are joined."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        joined = re.sub(r"\\\n\s*", " ", block)
        joined = re.sub(r"(?m)^(ralm .*)((?:\n +\[.*)+)", lambda match: " ".join(match[0].split()), joined)
        yield from joined.splitlines()


def written_commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each `ralm` command in a code block: its words, and the flags that follow."""
    known = parsers()
    for line in code_blocks(path):
        match = re.search(r"(?:^|[ /(])ralm ((?:pipeline |store |atlas )?[a-z]+)\b(.*)", line)
        if match and match[1] in known:
            lexer = shlex.shlex(match[2].split(" | ")[0], posix=True, punctuation_chars="[]()")
            lexer.whitespace_split = True
            lexer.commenters = "#"
            yield match[1], [word.partition("=")[0] for word in lexer if word.startswith("--")]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def config_rows(config: Any, prefix: str = "") -> Iterator[str]:
    """The first cells of the row of each setting."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from config_rows(value, f"{prefix}{field.name}.")
        else:
            yield f"| `{prefix}{field.name}` | `{json.dumps(value, ensure_ascii=False)}` | "


def section(heading: str) -> str:
    """Text of the reference below a heading, up to the next one."""
    match = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", REFERENCE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert match, f"docs/reference.md has no heading {heading!r}"
    return match[1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        place, _, anchor = "".join(target).partition("#")
        if "://" in place:
            continue
        linked = (path.parent / place).resolve() if place else path
        assert linked.exists(), f"{name_of(path)} links to {place}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name_of(path)} links to #{anchor}, which is no heading"


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name_of)
def test_flags_in_commands_exist(path: Path) -> None:
    known = {words: flags(parser) for words, parser in parsers().items()}
    found = list(written_commands(path))
    assert found
    for words, given in found:
        assert set(given) <= known[words], f"{name_of(path)}: ralm {words} {given}"


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name_of)
def test_flags_in_the_text_exist(path: Path) -> None:
    every = {flag for parser in parsers().values() for flag in flags(parser)}
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        if not code.startswith((".venv/bin/mlflow", "pip ")):
            assert set(re.findall(r"(?<!\S)--[a-z][\w.-]*", code)) <= every, f"{name_of(path)}: {code}"


@pytest.mark.parametrize("stage", STAGES)
def test_the_reference_has_every_setting_of_a_stage_with_its_default(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RALM_WIKI_BASE_URL", "RALM_ATLAS_BASE_URL", "RALM_DATASETS_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    config = getattr(importlib.import_module(f"components.{stage}.config"), f"{stage.title()}Config")
    expected = list(config_rows(config()))
    rows = [line for line in section(f"ralm {stage}").splitlines() if line.startswith("| `")]
    assert [row for row in expected if not any(line.startswith(row) for line in rows)] == []
    assert len(rows) == len(expected), "a setting that is gone, or a row twice"


@pytest.mark.parametrize("words", sorted(parsers()))
def test_the_reference_has_every_flag_of_a_command(words: str) -> None:
    text = section(f"ralm {words.split()[0]}")
    wanted = {flag for flag in flags(parsers()[words]) if flag.startswith("--") and not flag.startswith("--config.")}
    named = set(re.findall(r"--[a-z][\w-]*", text + section("Conventions")))
    assert wanted - named == set()


def test_the_reference_has_every_environment_variable() -> None:
    used = set()
    for folder in ("ralm", "components", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r"\"(RALM_[A-Z_]+)\"", path.read_text(encoding="utf-8")))
    named = set(re.findall(r"`(RALM_[A-Z_]+)`", section("Environment variables")))
    assert named == used | {"RALM_SHARED_DATA"}


def test_the_walkthrough_trains_as_the_quickstart_does() -> None:
    recipe = RECIPES["quickstart"]()
    text = " ".join((ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8").split())
    for stage, config in (("train", recipe.train), ("evaluate", recipe.evaluate), ("report", recipe.report)):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if value not in (
                field.default,
                field.default_factory is not dataclasses.MISSING and field.default_factory(),
            ):
                flag = f"--config.{field.name.replace('_', '-')}"
                found = re.search(rf"ralm {stage} (?:(?!END|ralm ).)*{flag} (\"[^\"]+\"|\S+)", text)
                assert found, f"ralm {stage}: {flag} {value} is missing"
                assert found[1].strip('"') == value or float(found[1]) == value
