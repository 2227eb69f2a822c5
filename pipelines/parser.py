"""How the commands of `ralm` that are no stages are declared."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from pipelines.compile import RUNNERS
from ralm.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """A parser that raises `ConfigError` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Report a wrong flag.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.prog}: {message}")


def add_command(commands: Any, name: str, run: Any, show: Any, text: str) -> argparse.ArgumentParser:
    """Add a command with the flags that all have.

    Args:
        commands: what `add_subparsers` gave.
        name: of the command.
        run: from the parsed arguments to a JSON object.
        show: from that object to text for people.
        text: what it does.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--verbose", action="store_true", help="log details")
    parser.set_defaults(run=run, show=show)
    return parser


def add_runner_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag of commands that run a pipeline on this machine."""
    parser.add_argument(
        "--runner", choices=RUNNERS, default="subprocess", help="tasks as processes of this Python, or as containers"
    )
