"""Read a pickle of plain values without running anything that is in it.

A pickle is a small program for a stack machine. All that can do harm goes through a class or function that the program
names: it asks for it by module and name (`GLOBAL`, `STACK_GLOBAL`, `INST`, `EXT1`, ...), by a persistent id, or gets an
object from outside. Here every such request is refused, so nothing callable ever comes onto the stack and what is left
(`REDUCE`, `OBJ`, `NEWOBJ`, `BUILD`) has nothing to call. Dicts, lists, tuples, sets, text, bytes, numbers, booleans and
None need no names: they have opcodes of their own in every protocol from 1 on (protocol 0 too).

Not prevented: a file that is made to use much memory or time. Only the file's size is limited.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from ralm.errors import ArtifactError

MAX_FILE_BYTES = 8 << 30
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)


class RefusedError(Exception):
    """A pickle asks for more than plain values; the message names what."""


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows no class and no function."""

    def find_class(self, module: str, name: str, /) -> NoReturn:
        """Refuse a class or function.

        Raises:
            RefusedError: always.
        """
        raise RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        """Refuse an object that is kept outside the pickle.

        Raises:
            RefusedError: always.
        """
        raise RefusedError(f"the outside object {pid!r}"[:100])


def load_plain_pickle(path: Path) -> Any:
    """The value in a pickle file of plain containers and values, protocol 0 to 5.

    Args:
        path: a local file; it may come from anybody.

    Raises:
        ArtifactError: the file asks for a class, a function or an outside object, is no whole pickle, or is too large.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ArtifactError(f"{path}: {size} bytes; expected at most {MAX_FILE_BYTES}, save it in more shards")
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file).load()
    except RefusedError as error:
        raise ArtifactError(f"{path}: the pickle asks for {error}; only plain values are read") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(f"{path}: no whole pickle of plain values: {reason}") from error
