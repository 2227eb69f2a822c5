"""faiss on a GPU where there are both; what runs on the CPU instead is always said."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ralm.index.config import Kind
from ralm.index.faiss_import import faiss

GPU_KINDS: frozenset[Kind] = frozenset({"ivf_flat", "ivf_sq8", "ivf_sq4", "ivf_pq"})
"""Kinds that faiss has for GPUs."""
logger = logging.getLogger(__name__)


def why_not(kind: Kind, device: torch.device) -> str:
    """Why an index of this kind is not kept on this device; empty if it is.

    Example:
        >>> why_not("hnsw", torch.device("cuda"))
        'faiss has no hnsw for GPUs'
    """
    if kind not in GPU_KINDS:
        return f"faiss has no {kind} for GPUs"
    if getattr(faiss, "get_num_gpus", int)() == 0:
        return "the installed faiss is built without GPU support (extra gpu) or sees no GPU"
    return ""


def to_device(index: Any, kind: Kind, device: torch.device) -> Any:
    """A faiss index, empty or filled, on the device: on a GPU where faiss can, else the same one; the log says why."""
    if device.type != "cuda":
        return index
    if reason := why_not(kind, device):
        logger.warning("index: %s stays on the CPU: %s", kind, reason)
        return index
    options = faiss.GpuClonerOptions()  # type: ignore[attr-defined]
    options.useFloat16 = True
    try:
        return faiss.index_cpu_to_gpu(_resources(), device.index or 0, index, options)  # type: ignore[attr-defined]
    except RuntimeError as error:
        logger.warning("index: %s stays on the CPU: %s", kind, str(error).splitlines()[0])
        return index


def to_memory(index: Any) -> Any:
    """A faiss index in main memory, where it can be written to a file, whichever device it was filled on."""
    return index if not hasattr(index, "getDevice") else faiss.index_gpu_to_cpu(index)  # type: ignore[attr-defined]


def _resources() -> Any:
    """Scratch memory of faiss on the GPU; one for the process."""
    if not _kept:
        _kept.append(faiss.StandardGpuResources())  # type: ignore[attr-defined]
    return _kept[0]


_kept: list[Any] = []
