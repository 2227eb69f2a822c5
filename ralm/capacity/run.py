"""A run that is planned: the machines, the corpus, the models and the settings that decide what it needs."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from ralm.capacity.activations import FP32, Kernels
from ralm.capacity.architecture import MOST, Models, check_sizes
from ralm.capacity.index_size import IndexSize, index_sizes
from ralm.capacity.memory import GIB, embedding_memory, training_memory
from ralm.capacity.work import DEVICES, Device
from ralm.errors import ConfigError
from ralm.index.config import IndexSettings, Kind
from ralm.training.config import Sharding, TrainingConfig

FLAT_SHARE: Final = 0.6
"""Part of a GPU that a flat index may take; a larger one would be copied there anew for each search
(`ralm/index/flat.py`)."""
COMPUTE_BYTES: Final = {"bf16": 2, "fp16": 2, "fp32": FP32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines, and how fast they are."""

    devices: int
    """GPUs of all nodes together, or CPU machines; a training process for each."""
    nodes: int = 1
    memory_gib: float
    """Of one device."""
    device_rate: str = "a100"
    """Whose speed: one of `DEVICES`."""
    passages_per_s: float = 0.0
    """Passages that one device embeds in a second; 0: from the operations and `device_rate`."""
    efficiency: float = 0.0
    """Part of its peak that a device reaches in training; 0: as `device_rate` says."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_sizes(self)
        self._check("nodes", self.nodes <= self.devices, f"at most {self.devices}, the number of devices")
        self._check("devices", self.devices % self.nodes == 0, f"a multiple of the {self.nodes} nodes")
        self._check("memory_gib", 0 < self.memory_gib <= MOST, "a positive number")
        self._check("device_rate", self.device_rate in DEVICES, f"one of {', '.join(DEVICES)}")
        self._check("passages_per_s", 0 <= self.passages_per_s < math.inf, "0 or a positive number")
        self._check("efficiency", 0 <= self.efficiency <= 1, "0 to 1")

    def _check(self, name: str, is_fine: bool, expected: str) -> None:
        if not is_fine:
            raise ConfigError(f"{name}: expected {expected}, found {getattr(self, name)}")

    @property
    def device(self) -> Device:
        """Its speed."""
        return DEVICES[self.device_rate]

    @property
    def memory_bytes(self) -> int:
        """Of one device."""
        return int(self.memory_gib * GIB)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is to be run."""

    cluster: Cluster
    passages: int
    """In the corpus."""
    models: Models
    index: IndexSettings
    train: TrainingConfig
    evaluated_passages: int = 0
    """Passages that the evaluation gives the reader."""
    question_tokens: int
    """In a question, mean."""
    embedding_precision: str = "auto"
    embedding_dtype: str = "f16"
    token_budget: int = 0

    def __post_init__(self) -> None:
        """Check the numbers that have no limit of their own."""
        if not 1 <= self.passages <= MOST:
            raise ConfigError(f"passages: expected 1 to {MOST:,}, found {self.passages}")
        check_sizes(self, lowest=0)
        check_sizes(self.train, lowest=0)

    def number_format(self, precision: str) -> str:
        """A setting of precision as a number format.

        Raises:
            ConfigError: the device has no matrix products in it.
        """
        known = self.cluster.device.peak_tflops
        if precision == "auto":
            return "bf16" if "bf16" in known else "fp32"
        if precision not in known:
            rate = self.cluster.device_rate
            raise ConfigError(f"precision: expected auto or one of {', '.join(known)} on {rate}, found {precision}")
        return precision

    def index_sizes(self) -> dict[Kind, IndexSize]:
        """Size of the index by kind."""
        return index_sizes(
            self.index,
            passages=self.passages,
            dimension=self.models.encoder.model_size,
            processes=self.cluster.devices,
            is_gpu=self.cluster.device.is_gpu,
        )

    def training_memory(self, index: IndexSize, sharding: Sharding) -> dict[str, int]:
        """Bytes of a device in training, with any kind of index and any sharding."""
        return training_memory(
            dataclasses.replace(self.train, sharding=sharding),
            self.models,
            self._kernels(self.train.precision, has_dropout=self.train.dropout > 0),
            index,
            devices=self.cluster.devices,
            passages=self.passages,
        )

    def embedding_memory(self) -> dict[str, int]:
        """Bytes of a device while passages are embedded."""
        return embedding_memory(
            self.models.encoder,
            self._kernels(self.embedding_precision, has_dropout=False),
            tokens=self.models.max_passage_tokens,
            token_budget=self.token_budget,
        )

    def _kernels(self, precision: str, *, has_dropout: bool) -> Kernels:
        return Kernels(
            compute_bytes=COMPUTE_BYTES[self.number_format(precision)],
            has_dropout=has_dropout,
            is_gpu=self.cluster.device.is_gpu,
        )
