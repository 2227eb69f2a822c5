"""The index made anew during training: all passages embedded by the passage encoder as it is now, then swapped whole.

Shapes: `N` passages, `B` questions, `K` passages per question, `D` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ralm.artifacts.files import remove
from ralm.corpus.lookup import Passage, PassageLookup
from ralm.index.matrix import create_array
from ralm.index.search import Index, open_index
from ralm.log import progress

BLOCK_PASSAGES = 1024
"""A request to stop is heard between blocks."""
PREFIX = "index-"

EmbedPassages = Callable[[Sequence[Passage], progress], np.ndarray]
"""Passages to float32 vectors [N, D], counted on the progress."""


class IndexRefresher:
    """The index of a run as it is now, and the way to renew it.

    Until a new index is whole the one before is in use; its files stay until no checkpoint needs them. Each index has a
    folder of its own, named after the update before which it was made.

    Args:
        index: what the run starts with.
        passages: its corpus.
        folder: where this run's indices are kept, beside its checkpoints.
    """

    def __init__(self, index: Index, passages: PassageLookup, folder: Path) -> None:
        self.index = index
        self.step = 0
        """The update before which `index` was made; 0 for the index that the run started with."""
        self.passages = passages
        self._folder = folder

    def refresh(self, step: int, *, embed: EmbedPassages, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Embed every passage and take the new index into use.

        Args:
            step: the update before which this happens, at least 1.
            embed: the passage encoder.
            is_stopped: asked between blocks; True ends the work, and the index stays the one before.

        Returns:
            True if the new index is in use.

        Raises:
            ArtifactError: a vector holds values that are not finite: the training went wrong.
        """
        folder = self._folder_of(step)
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = folder.with_name(f".{folder.name}.npy")
        try:
            vector_ND = self._embed_all(work, embed, is_stopped)
            if vector_ND is None:
                return False
            self.index, self.step = self.index.with_vectors(vector_ND, folder), step
        finally:
            remove(work)
        return True

    def reopen(self, step: int) -> None:
        """Take the index that was made before this update into use again: at the start of a run that goes on.

        Args:
            step: as in a checkpoint; 0 is the index that the run started with.

        Raises:
            ArtifactError: its files are not there.
        """
        if step != self.step:
            self.index, self.step = open_index(str(self._folder_of(step)), passage_encoder=""), step

    def keep_only(self, steps: set[int]) -> None:
        """Remove the files of all indices but those of these updates and the one in use."""
        names = {self._folder_of(step).name for step in steps | {self.step}}
        for path in self._folder.glob(PREFIX + "*"):
            if path.name not in names:
                remove(path)

    def _folder_of(self, step: int) -> Path:
        return self._folder / f"{PREFIX}{step:08d}"

    def _embed_all(self, path: Path, embed: EmbedPassages, is_stopped: Callable[[], bool]) -> np.ndarray | None:
        """Vectors of all passages in a memory-mapped file; None if stopped."""
        ids_N = self.index.passage_ids
        shape = (len(ids_N), self.index.dimension)
        vector_ND = create_array(path, "<f4", shape)
        with progress(total=len(ids_N), what="refresh the index", unit="passages") as bar:
            for start in range(0, len(ids_N), BLOCK_PASSAGES):
                if is_stopped():
                    return None
                block = slice(start, start + BLOCK_PASSAGES)
                vector_ND[block] = embed(self.passages.get(ids_N[block]), bar)
        return vector_ND


def result_overlap(first_BK: np.ndarray, second_BK: np.ndarray) -> float:
    """Share of results that two searches have in common, 0 to 1: how stale the older index had become.

    Args:
        first_BK: ids that one search found, K different ones for each question.
        second_BK: ids that the other found for the same questions.

    Example:
        >>> result_overlap(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 9]]))
        0.75
    """
    shared = [
        len(set(first) & set(second)) for first, second in zip(first_BK.tolist(), second_BK.tolist(), strict=True)
    ]
    return sum(shared) / first_BK.size
