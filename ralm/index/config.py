"""Settings of an index: its kind, and what the kinds can be told. Only the standard library is imported here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from ralm.errors import ConfigError

Kind = Literal["flat", "ivf_flat", "ivf_sq8", "ivf_sq4", "pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan", "hnsw"]
Storage = Literal["f16", "f32", "bf16"]
Auto = Literal["auto"]

USED_BY: dict[str, tuple[str, ...]] = {
    "nlist": ("ivf_flat", "ivf_sq8", "ivf_sq4", "ivf_pq", "ivf_pq_fast_scan"),
    "nprobe": ("ivf_flat", "ivf_sq8", "ivf_sq4", "ivf_pq", "ivf_pq_fast_scan"),
    "code_size": ("pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan"),
    "rerank": ("ivf_sq8", "ivf_sq4", "pq", "ivf_pq", "pq_fast_scan", "ivf_pq_fast_scan"),
    "hnsw_m": ("hnsw",),
    "hnsw_ef": ("hnsw",),
}
"""Which kinds a setting means something to."""
MAX_PROBES = 1_000_000
_MAX_INT = 2**31 - 1
"""faiss takes its options as C's int."""


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How passage vectors are laid out for search; similarity is the inner product in every kind."""

    kind: Kind = "flat"
    """flat: every vector is compared, the result is the true top k. ivf_*: only the `nprobe` nearest of `nlist` lists
    are compared, of whole vectors (ivf_flat), 8 or 4 bits a value (ivf_sq8, ivf_sq4) or product-quantiser codes
    (ivf_pq). pq: every product-quantiser code is compared (8 bits a part); pq_fast_scan: the same with 4 bits a part,
    several times faster on a CPU. ivf_pq_fast_scan: codes of 4 bits a part, of the nearest lists only: the fastest on a
    CPU, and small. hnsw: a graph over whole vectors."""

    storage: Storage = "f16"
    """Number format of the vectors in `matrix.npy`, and of whole vectors inside ivf_flat and hnsw."""

    nlist: int | Auto = "auto"
    """Lists of the ivf kinds; auto: four times the square root of the number of passages, with 39 passages a list at
    least, of ivf_pq_fast_scan 256."""

    nprobe: int | Auto = "auto"
    """Lists that are searched for one question; auto: as many as `recall_target` needs, in ivf_pq_fast_scan more for
    one question than for another."""

    code_size: int | Auto = "auto"
    """Bytes of a product-quantiser code; auto: a quarter of the vector's size in values, or the next smaller number
    that divides it."""

    rerank: int | Auto = "auto"
    """Candidates beyond k whose exact score is computed from `matrix.npy`, for compressed kinds; 0: none, the scores
    are those of the codes; auto: as many as `recall_target` needs."""

    hnsw_m: int | Auto = "auto"
    """Neighbours of a vector in the hnsw graph; auto: 32."""

    hnsw_ef: int | Auto = "auto"
    """Vectors kept in view during a search of the hnsw graph; auto: as many as `recall_target` needs."""

    recall_target: float = 0.95
    """Share of the true ten best passages that an index with `auto` settings has to find."""

    num_probes: int = 256
    """Probe vectors on which the finished index is compared with a brute-force search; as many others serve to tune
    it."""

    def __post_init__(self) -> None:
        for name, kinds in USED_BY.items():
            value = getattr(self, name)
            if value == "auto":
                continue
            lowest = 0 if name == "rerank" else 2 if name == "hnsw_m" else 1
            highest = 1024 if name == "hnsw_m" else _MAX_INT
            if value < lowest:
                raise ConfigError(f"{name}: expected auto or a number from {lowest}, found {value}")
            if value > highest:
                raise ConfigError(f"{name}: expected auto or a number from {lowest} to {highest}, found {value}")
            if self.kind not in kinds:
                raise ConfigError(f"{name}: expected auto, since kind {self.kind} does not use it, found {value}")
        if not isinstance(self.nlist, str) and not isinstance(self.nprobe, str) and self.nprobe > self.nlist:
            raise ConfigError(f"nprobe: expected at most nlist, which is {self.nlist}, found {self.nprobe}")
        if not 0 < self.recall_target <= 1:
            raise ConfigError(f"recall_target: expected more than 0 and at most 1, found {self.recall_target}")
        if self.num_probes < 1:
            raise ConfigError(f"num_probes: expected at least 1, found {self.num_probes}")
        if self.num_probes > MAX_PROBES:
            raise ConfigError(f"num_probes: expected 1 to {MAX_PROBES}, found {self.num_probes}")


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(IndexSettings):
    """Settings of an index that may be made out of an earlier one (`ralm.index.update`)."""

    max_drift: float = 0.02
    """How much quantisation error and imbalance of the lists may grow after the index was trained, as a share of what
    they were then; beyond that it is trained anew. 0: always anew. With 0.02 about 0.002 of recall may be lost."""

    max_added: float = 0.5
    """Share of the vectors that may have been added after the index was trained; beyond that it is trained anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_drift < float("inf"):
            raise ConfigError(f"max_drift: expected a finite number from 0, found {self.max_drift}")
        if not 0 <= self.max_added <= 1:
            raise ConfigError(f"max_added: expected 0 to 1, found {self.max_added}")

    @property
    def without_update(self) -> dict[str, Any]:
        """The settings that matter where there is no earlier index."""
        return {field.name: getattr(self, field.name) for field in fields(IndexSettings)}
