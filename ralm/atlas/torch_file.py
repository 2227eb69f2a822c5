"""Read what `torch.save` wrote, without running anything that is in it.

`torch.load(weights_only=True)` has an unpickler of its own: it knows tensors, their storages and number formats,
`OrderedDict` and a few more harmless types, and refuses everything else. A caller may add classes; see
`ralm.atlas.checkpoint`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ralm.errors import ArtifactError

_ZIP_START = b"PK\x03\x04"
_BROKEN = (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError)
_REFUSED = re.compile(r"GLOBAL (\S+)|recognized function (.+?)(?: which belongs|\s*$)|but got (<class '\S+'>)")


def load_torch_file(path: Path, *, allowed: Sequence[type] = ()) -> Any:
    """The value in a file of `torch.save`, tensors on the CPU whatever device they were saved from.

    Files of torch 1.6 and later are mapped into memory: a tensor is read when it is used. Older ones are read whole.

    Args:
        path: a local file; it may come from anybody.
        allowed: classes that may be made beside torch's own; they must be harmless to make with any content.

    Raises:
        ArtifactError: another class or function is asked for (the message names it), or the file is damaged.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP_START)) == _ZIP_START
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except _BROKEN as error:
        if refused := _REFUSED.search(str(error)):
            name = next(part for part in refused.groups() if part)
            raise ArtifactError(f"{path}: the file asks for {name}; only tensors and plain values are read") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{path}: no readable file of torch.save: {reason}") from error


def save_torch_file(value: Any, file: IO[bytes]) -> None:
    """`torch.save`, whose own error hides that the disk is full.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        torch.save(value, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def dense_tensor(value: Any) -> Tensor | None:
    """The value as a tensor that is an ordinary array in memory; None for anything else (sparse, without content)."""
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return value.detach() if is_dense else None
