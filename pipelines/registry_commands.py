"""`ralm registry`: which versions there are, back to an earlier one, on to one that was refused."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from typing import Any

from pipelines.parser import Parser, add_command
from ralm.errors import ConfigError

WIDTH = 110


def add_registry(commands: Any) -> None:
    """Add `registry` with its commands to those of `ralm`."""
    registry = commands.add_parser("registry", help="list, roll back or promote versions", allow_abbrev=False)
    actions = registry.add_subparsers(metavar="list|rollback|promote", required=True, parser_class=Parser)

    parser = add_command(actions, "list", run_list, show_versions, "List the versions in the registry, oldest first.")
    parser.add_argument("--recipe", default="", help="only those of this recipe")

    text = (
        "Make an earlier version the champion again: the one whose place the champion took, or the one before where "
        "that was rolled back too. The version that is rolled back is never promoted again by a pipeline."
    )
    parser = add_command(actions, "rollback", run_rollback, show_move, text)
    parser.add_argument("--recipe", required=True, help="whose champion")
    parser.add_argument("--to", default="", metavar="VERSION", help="another version")
    parser.add_argument("--because", default="", metavar="TEXT", help="why; kept with both versions")

    text = "Make a version the champion whatever was measured, also one that was rolled back."
    parser = add_command(actions, "promote", run_promote, show_move, text)
    parser.add_argument("version", metavar="VERSION", help="number of the version")
    parser.add_argument("--recipe", required=True, help="whose champion")
    parser.add_argument("--because", required=True, metavar="TEXT", help="why; kept with the version")


def run_list(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm registry list`."""
    from ralm.tracking import has_registry

    if not has_registry():
        return {"versions": []}
    from ralm import serving

    names = [arguments.recipe] if arguments.recipe else serving.recipes()
    return {"versions": [_facts(name, version) for name in names for version in serving.versions(name)]}


def _facts(recipe: str, version: Any) -> dict[str, str]:
    from ralm import serving

    tags = {
        "dump_date": serving.DUMP_TAG,
        "metric": serving.METRIC_TAG,
        "parent": serving.PARENT_TAG,
        "measured_against": serving.MEASURED_TAG,
        "replaced": serving.REPLACED_TAG,
        "reason": serving.REASON_TAG,
        "restored": serving.RESTORED_TAG,
        "rolled_back": serving.ROLLED_BACK_TAG,
    }
    found = {name: version.tags.get(tag, "") for name, tag in tags.items()}
    return {
        "recipe": recipe,
        "version": version.version,
        "alias": version.alias,
        "created": version.created_at,
        **found,
    }


def show_versions(result: dict[str, Any]) -> str:
    """Versions for people."""
    lines = []
    for item in result["versions"]:
        figure, _, value = item["metric"].partition("=")
        facts = [
            item["alias"],
            f"dump {item['dump_date']}" if item["dump_date"] else "",
            f"{figure} {value[:6]}" if value else "",
            f"from version {item['parent']}" if item["parent"] else "",
            item["created"],
        ]
        lines.append(f"{item['recipe']} {item['version']}: {', '.join(fact for fact in facts if fact)}")
        for name in ("reason", "restored", "rolled_back"):
            if item[name]:
                text = f"{name.replace('_', ' ')}: {item[name]}"
                lines.append(textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="      "))
    return "\n".join([*lines, f"{len(result['versions'])} versions"])


def run_rollback(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm registry rollback`."""
    _check_registry()
    from ralm.rollback import rollback

    return dataclasses.asdict(rollback(arguments.recipe, to=arguments.to, because=arguments.because))


def run_promote(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm registry promote`."""
    _check_registry()
    from ralm.rollback import promote

    return dataclasses.asdict(promote(arguments.recipe, arguments.version, because=arguments.because))


def _check_registry() -> None:
    from ralm.tracking import has_registry, is_enabled, tracking_uri

    if not has_registry():
        place = tracking_uri() if is_enabled() else "RALM_TRACKING=off"
        raise ConfigError(f"registry: there is none ({place}); register a pair first, or set MLFLOW_TRACKING_URI")


def show_move(result: dict[str, Any]) -> str:
    """A change of the champion for people."""
    before = f", was {result['before']}" if result["before"] else ""
    return f"{result['name']}: champion is version {result['after']}{before} ({result['reason']})"
