"""The index made anew during training: all passages embedded by the passage encoder as it is now, then swapped whole.

Each process embeds its own rows, all into one file; the first one makes the index of it when the last row is there. A
process that dies leaves the index before, of which nothing was touched.

Shapes: `N` passages, `B` questions, `K` passages per question, `D` embedding size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ralm.artifacts.files import remove
from ralm.corpus.lookup import Passage, PassageLookup
from ralm.index.matrix import create_array
from ralm.index.search import Index, open_index
from ralm.log import progress
from ralm.training.state import check_shared

BLOCK_PASSAGES = 1024
"""A request to stop is heard between blocks."""
PREFIX = "index-"

EmbedPassages = Callable[[Sequence[Passage], progress], np.ndarray]
"""Passages to float32 vectors [N, D], counted on the progress."""


class IndexRefresher:
    """The index of a run as it is now, and the way to renew it. Every process has to make the same calls.

    Until a new index is whole the one before is in use; its files stay until no checkpoint needs them. Each index has a
    folder of its own, named after the update before which it was made.

    Args:
        index: what the run starts with.
        passages: its corpus.
        folder: where this run's indices are kept, beside its checkpoints; all processes have to see it.
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
            ConfigError: the processes do not see the same folder.
        """
        world, folder = self.index.world, self._folder_of(step)
        work = folder.with_name(f".{folder.name}.npy")
        shape = (self.index.num_passages, self.index.dimension)
        try:
            if world.is_first:
                folder.parent.mkdir(parents=True, exist_ok=True)
                create_array(work, "<f4", shape)
            world.barrier()
            check_shared(work, world)
            is_whole = self._embed_own(work, embed, is_stopped)
            if not world.all(is_whole):
                return False
            self.index.release()  # a GPU has no room for both
            if world.is_first:
                self.index = self.index.with_vectors(np.load(work, mmap_mode="r"), folder)
            world.barrier()
            if not world.is_first:
                self.index = self._open(step)
            self.step = step
        finally:
            if world.is_first:
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
            self.index, self.step = self._open(step), step

    def keep_only(self, steps: set[int]) -> None:
        """Remove the files of all indices but those of these updates and the one in use."""
        if not self.index.world.is_first:
            return
        names = {self._folder_of(step).name for step in steps | {self.step}}
        for path in self._folder.glob(PREFIX + "*"):
            if path.name not in names:
                remove(path)

    def _folder_of(self, step: int) -> Path:
        return self._folder / f"{PREFIX}{step:08d}"

    def _open(self, step: int) -> Index:
        return open_index(str(self._folder_of(step)), passage_encoder="", world=self.index.world)

    def _embed_own(self, path: Path, embed: EmbedPassages, is_stopped: Callable[[], bool]) -> bool:
        """Write the vectors of this process' rows; False if stopped.

        Not by a map: on a network disk a page of two processes' rows would be written back by both.
        """
        ids_N, first = self.index.passage_ids, self.index.rows.start
        row_bytes = 4 * self.index.dimension
        header_bytes = path.stat().st_size - row_bytes * self.index.num_passages
        total = progress(total=len(ids_N), what="refresh the index", unit="passages")
        with path.open("r+b") as file, total as bar:
            for start in range(0, len(ids_N), BLOCK_PASSAGES):
                if is_stopped():
                    return False
                part_N = ids_N[start : start + BLOCK_PASSAGES]
                file.seek(header_bytes + row_bytes * (first + start))
                file.write(np.ascontiguousarray(embed(self.passages.get(part_N), bar), "<f4").data)
            file.flush()
            os.fsync(file.fileno())
        return True


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
