"""Which device and which number format to compute in. The only place that asks what the hardware can do."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeVar, cast

import numpy as np
import torch

from ralm.errors import ConfigError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
Precision = Literal["auto", "bf16", "fp16", "fp32"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def best_device() -> torch.device:
    """A GPU where there is one (each worker of a node its own), else the CPU.

    `RALM_DEVICE` (`cpu`, `cuda`, `cuda:1`, `mps`) overrides it.
    """
    wanted = os.environ.get("RALM_DEVICE", "")
    if wanted:
        try:
            device = torch.device(wanted)
        except RuntimeError as error:
            raise ConfigError(f"RALM_DEVICE: expected a device such as cpu or cuda:0, found {wanted!r}") from error
        if device.type != "cuda":
            return device
        if not torch.cuda.is_available():
            raise ConfigError(f"RALM_DEVICE={wanted}: this machine has no CUDA device that torch can use")
        if device.index is None:
            return _own_gpu()
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise ConfigError(f"RALM_DEVICE={wanted}: expected cuda, since each of several processes takes its own GPU")
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return _own_gpu()


def _own_gpu() -> torch.device:
    """The GPU of this worker; the only one it sees where its launcher shows it one."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def count_gpus() -> int:
    """CUDA devices of this machine."""
    return torch.cuda.device_count()


def free_cached(device: torch.device) -> None:
    """Give back what torch keeps of a GPU's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def use_device(device: torch.device) -> None:
    """Make a GPU the one that torch takes where none is named, as its exchanges between processes do."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def take_any_shape(device: torch.device) -> None:
    """Attention on a GPU without cuDNN, which prepares a plan for each new shape of a batch.

    Batches here have as many rows and tokens as the texts want, so nearly each is a new shape: with cuDNN the first
    32,768 passages of a process took 4.6 s to encode, later ones of the same shapes 2.1 s (torch 2.11, H100). Without
    it an encoder reaches the same share of the peak.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def free_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that is not in use."""
    return torch.cuda.mem_get_info(device)[0]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of main memory on a device; a GPU copies it when its turn comes, and nobody waits for that.

    A plain `to` waits until the GPU has done all that it was given before.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class HostCopy:
    """A tensor on its way to main memory: the device goes on computing meanwhile.

    Args:
        tensor: must not be changed before `numpy` has returned.

    Example:
        >>> HostCopy(torch.ones(2)).numpy().tolist()
        [1.0, 1.0]
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._is_there: torch.cuda.Event | None = None
        if tensor.is_cuda:
            # Page-locked memory, as a copy that nobody waits for needs.
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._is_there = torch.cuda.Event()
            self._is_there.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> np.ndarray:
        """Its values, once they are there."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return self._tensor.cpu().numpy()


def has_fast_bf16(device: torch.device) -> bool:
    """True where bf16 matrix products run on hardware units; elsewhere bf16 is emulated and slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def has_flash_attention(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """True where torch has flash attention over texts that lie one after the other, whatever their lengths."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_size % 8 or head_size > 256:
        return False
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def resolve_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Turn a precision setting into a dtype; `RALM_PRECISION` (auto, bf16 or fp32) replaces `auto`.

    A bf16 that the hardware has no units for is what was asked for; a line in the log says that it takes long.

    Raises:
        ConfigError: the setting or `RALM_PRECISION` is none of these.
    """
    if precision == "auto":
        precision = cast(Precision, os.environ.get("RALM_PRECISION", "auto"))
        if precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"precision: expected auto, bf16 or fp32, found {precision!r}")
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    elif precision == "bf16" and device.type in ("cpu", "cuda") and not has_fast_bf16(device):
        logger.warning("precision bf16: found no units for it on this %s, where it takes longer than fp32", device.type)
    return DTYPES[precision]


def precision_name(dtype: torch.dtype) -> str:
    """The setting that gives this dtype: bf16, fp16 or fp32."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def each_on_a_core(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """`map` on a CPU in as many threads as torch has, each of which computes alone.

    Operations that are too small to be shared by cores lose nothing this way. Close it where it may be left early: then
    only the items at hand are finished.

    Example:
        >>> list(each_on_a_core(abs, [-1, -2, -3]))
        [1, 2, 3]
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(cores, "core", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # what new threads begin with, too
