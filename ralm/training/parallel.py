"""What several processes do with the weights of a run: each holds all of them, or they are split (ZeRO-2 by FSDP2).

`fully_shard` is used in an unusual way: the weights come together once at the start of an update, everything inside it
runs without exchanges, and one pass over a single token with gradient zero, at the end, makes FSDP add up and split the
gradients. So one process may encode more passages than another, more questions, or nothing at all, which the usual way,
an exchange with each layer's call, would not survive.

Source: Rajbhandari et al., "ZeRO" (arXiv 1910.02054), section 5.2 (gradients and optimiser states); PyTorch FSDP2.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ralm.device import use_device
from ralm.distributed import TIMEOUT, World, backend_of

BUCKET_BYTES = 64 * 2**20
"""Gradients are added up over the processes so many bytes at a time."""
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")  # nothing is done in place


class Parallel(Protocol):
    """How the processes of a run share what learns."""

    loss_factor: float
    """What a process multiplies its part of the batch's loss with."""

    def together(self) -> Any:
        """A context in which the modules can be computed with."""

    def add_up(self, modules: Iterable[nn.Module]) -> None:
        """Make the gradients of these modules those of all processes' questions."""


class WholeWeights:
    """Every process holds weights, gradients and optimiser state of the whole model.

    Args:
        world: the processes.
    """

    loss_factor = 1.0

    def __init__(self, world: World) -> None:
        self._world = world

    @contextmanager
    def together(self) -> Iterator[None]:
        """They are."""
        yield

    def add_up(self, modules: Iterable[nn.Module]) -> None:
        """Sum the gradients over the processes; one that had no questions adds zeros."""
        if self._world.size == 1:
            return
        gradients = []
        for weight in (weight for module in modules for weight in module.parameters()):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, values in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(values.view_as(gradient))


class SplitWeights:
    """Each process holds a part of every weight, of its gradient and of its optimiser state.

    Args:
        world: the processes; with one alone everything is in its part.
        roots: the models to split; each layer is a unit of exchange.
        dtype: number format of matrix products; with bf16 the weights come together in it, else in fp32.
        device: where the parts are.
    """

    def __init__(self, world: World, roots: Sequence[nn.Module], dtype: torch.dtype, device: torch.device) -> None:
        if not dist.is_initialized():  # one process that no launcher started
            dist.init_process_group(backend_of(device), store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
        mesh = init_device_mesh(device.type, (world.size,))
        low = dtype if dtype == torch.bfloat16 else None  # fp16 sums between layers overflow: autocast alone casts
        use_device(device)
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
        for root in roots:
            for layer in _layers(root):
                fully_shard(layer, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
            fully_shard(root, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
        self.loss_factor = float(world.size)  # FSDP takes the mean over the processes
        self._units = {id(root): [unit for unit in root.modules() if isinstance(unit, FSDPModule)] for root in roots}
        with torch.no_grad():  # the first call has to be the root's, also where later only a part of it is called
            for root in roots:
                _touch(root)
        self._part_again()

    @contextmanager
    def together(self) -> Iterator[None]:
        """All weights of all roots are whole inside, and nothing is exchanged but by `add_up`."""
        for units in self._units.values():
            for unit in units:
                unit.set_requires_gradient_sync(False, recurse=False)
                unit.set_reshard_after_backward(False, recurse=False)
                unit.unshard()
        try:
            yield
        finally:
            self._part_again()

    def add_up(self, modules: Iterable[nn.Module]) -> None:
        """Sum the gradients and split them; ends with the weights split again."""
        roots = list(modules)
        for root in roots:  # of parts that were called without their root, move what is left to the fp32 sums
            (_touch(root) * 0).backward()
        for root in roots:
            for unit in self._units[id(root)]:
                unit.set_requires_gradient_sync(True, recurse=False)
                unit.set_reshard_after_backward(True, recurse=False)
        for root in roots:
            (_touch(root) * 0).backward()

    def _part_again(self) -> None:
        for units in self._units.values():
            for unit in units:
                unit.reshard()


def whole(weight: Tensor) -> Tensor:
    """A weight that may be split, whole; every process has to call it."""
    full = getattr(weight, "full_tensor", None)
    return weight if full is None else full()


def _touch(root: nn.Module) -> Tensor:
    """A number that depends on every weight of a T5 or an encoder, from one token."""
    token = torch.zeros((1, 1), dtype=torch.long, device=next(root.parameters()).device)
    if getattr(root.config, "is_encoder_decoder", False):  # type: ignore[union-attr]
        return root(input_ids=token, decoder_input_ids=token, use_cache=False).logits.float().sum()
    return root(input_ids=token).last_hidden_state.float().sum()


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated layers of a model: the entries of its outermost lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
