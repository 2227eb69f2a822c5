"""What a complete run is: where everything comes from, and the config of every stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.compare.config import CompareConfig
from components.download.config import DownloadConfig
from components.embed.config import EmbedConfig
from components.evaluate.config import EvaluateConfig
from components.gate.config import GateConfig
from components.index.config import IndexConfig
from components.register.config import RegisterConfig
from components.report.config import ReportConfig
from components.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a run's inputs come from: a path, a URL, or `asset:`, `pypi://`, `hf://`, `wiki:`."""

    passages: str
    """The corpus."""
    questions: str = ""
    """A folder of train.jsonl, dev.jsonl and test.jsonl; empty: every run has to name one."""
    model: str = ""
    """A bundle of both halves of the model."""
    retriever: str = ""
    reader: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete run."""

    sources: Sources
    num_shards: int = 1
    """Tasks that share the encoding of the passages."""
    num_processes: int = 1
    """Processes of the training on each node, one for each GPU."""
    nodes: int = 1
    """Machines that the training takes; several become a TrainJob of the cluster."""
    download: DownloadConfig = field(default_factory=DownloadConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)
