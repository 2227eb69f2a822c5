"""What the benchmarks are to reach, row by row. Only the standard library is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A figure of a row and its bound."""

    row: str
    figure: str
    """Its name among the figures that the row measures."""
    text: str
    bound: float
    stretch: float | None = None
    is_limit: bool = False
    """True: the figure is to be at most the bound; else at least."""

    def is_met(self, value: float) -> bool:
        """Whether a value reaches the bound.

        Example:
            >>> Goal("T1", "share", "less", 0.02, is_limit=True).is_met(0.1)
            False
        """
        return value <= self.bound if self.is_limit else value >= self.bound

    @property
    def wanted(self) -> str:
        """The bound for a table.

        Example:
            >>> Goal("T1", "share", "less", 0.02, 0.0, is_limit=True).wanted
            '≤ 0.02 (0)'
        """
        stretch = "" if self.stretch is None else f" ({self.stretch:g})"
        return f"{'≤' if self.is_limit else '≥'} {self.bound:g}{stretch}"


def _least(row: str, figure: str, text: str, bound: float, stretch: float | None = None) -> Goal:
    return Goal(row, figure, text, bound, stretch)


def _most(row: str, figure: str, text: str, bound: float, stretch: float | None = None) -> Goal:
    return Goal(row, figure, text, bound, stretch, is_limit=True)


GOALS = (
    _least("E1", "x_sentence_transformers", "MiniLM, text to Parquet: times sentence-transformers' defaults", 6, 7.5),
    _least("E1", "x_atlas_way", "times the Atlas way", 25),
    _least("E1", "least_cosine", "least cosine to fp32", 0.9999),
    _least("E2", "x_atlas_way", "BERT 12 x 768: times the Atlas way", 14, 16),
    _least("E2", "share_of_peak", "share of the GEMM peak", 0.63, 0.70),
    _most("T1", "tokenizing_share", "share of tokenizing in the CPU time of embedding", 0.02, 0),
    _least("P1", "x_wikiextractor", "wikitext to sections and infoboxes: times WikiExtractor", 4, 6),
    _least("P1", "x_wikitextparser", "times wikitextparser", 16, 25),
    _least("P1", "word_precision", "words against WikiExtractor's, precision", 0.995),
    _least("P1", "word_recall", "words against WikiExtractor's, recall", 0.995),
    _most("P1", "left_markup", "passages with markup left", 0),
    _least("P2", "share_of_bz2", "dump to Parquet: share of the rate of bz2 alone, per core", 0.5, 0.65),
    _least("P2", "scaling", "speed on all cores over speed on one, by core (multistream)", 0.9),
    _least("D1", "x_list_column", "vectors to numpy: times a fixed_size_list column", 10),
    _least("D1", "x_torch_load", "times torch.load", 4.5),
    _least("D1", "x_npy", "times .npy", 0.95),
    _most("D1", "size_ratio", "bytes over those of the values", 1.02),
    _least("S1", "x_faiss_32", "exact search, 1M x 384: times faiss as installed, 32 questions", 6),
    _least("S1", "x_faiss_256", "the same, 256 questions", 6),
    _least("S1", "x_tuned_1", "times tuned faiss, 1 question", 1, 2),
    _least("S1", "x_tuned_32", "the same, 32 questions", 1, 2),
    _least("S1", "x_tuned_256", "the same, 256 questions", 1, 2),
    _least("S1", "recall_at_100", "recall@100", 1.0),
    _least("S2", "x_tuned_exact", "approximate search, 1M, re-ranking included: times tuned exact faiss", 30, 50),
    _least("S2", "recall_at_10", "recall@10 at 1M", 0.99),
    _least("S2", "recall_at_10_real", "recall@10, at least 100,000 real vectors", 0.99),
    _most("S2", "bytes_per_vector", "resident bytes for a vector", 130),
    _least("S2", "built_per_core_s", "vectors built in a second on a core", 20_000),
    _least("S2", "x_hnsw", "times HNSW32 at equal recall", 3),
    _least("J1", "x_atlas_way", "joint update, 4 questions x 20 passages: times the Atlas way", 4, 5),
    _least("J1", "x_atlas_way_512", "the same where it pads to 512", 8, 12),
    _most("J1", "score_difference", "passage scores to the Atlas way's, fp32, no dropout", 1e-5),
    _most("J1", "loss_difference", "mean difference of the loss curves over the noise between seeds", 1),
    _most("J2", "waiting_share", "share of waiting for passages and data in an update", 0.05, 0.02),
    _least("G1", "x_generate", "answers from 20 passages: times transformers' generate", 3, 5),
    _least("G1", "same_answers", "its answers are those of generate", 1),
    _most("I1", "encoded_share", "re-index with 1 % changed passages: share of passages encoded", 0.0105),
    _most("I1", "time_share", "share of a full rebuild's time", 0.10, 0.05),
    _least("I1", "is_equal", "its result is that of a rebuild", 1),
    _most("I1", "unchanged_encoded", "passages encoded for an unchanged dump", 0),
    _most("O1", "overhead_s", "pipeline: seconds for a task without work", 1.5, 0.5),
    _most("O1", "torch_imports", "stages that import torch without need", 0),
    _most("M1", "growth", "peak memory of a stage without the index, 16 times the corpus over once", 1.1),
)
"""In the order of the table."""


def goals_of(row: str) -> list[Goal]:
    """The goals of a row."""
    return [goal for goal in GOALS if goal.row == row]
