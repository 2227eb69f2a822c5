"""The error family: what a user can cause is a `RalmError` that says what was found, what was expected and where."""

from __future__ import annotations


class RalmError(Exception):
    """Base of all errors with a message meant for the user; the command line prints it on one line."""

    exit_code: int = 2
    """What the command ends with: 2 for bad input or settings."""


class ConfigError(RalmError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""


class ArtifactError(RalmError):
    """An artifact folder is missing, unfinished, damaged, of the wrong kind, or does not belong to the others."""


class DataError(RalmError):
    """The content of an input (a dump, a table, a question file) is not what its format promises."""


class UnreachableError(RalmError):
    """A server could not be reached."""


class StorageError(RalmError):
    """An object store refuses access, has no such bucket, or is none that is known: a setting is wrong."""


class StorageDownError(UnreachableError, StorageError):
    """An object store gave no good answer after all attempts: the same may do later."""

    exit_code = 1


class WorkerError(RalmError):
    """A process of a distributed stage went down.

    Args:
        message: which one, and how.
        exit_code: what the command ends with: that of the worker where it had one.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
