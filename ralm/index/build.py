"""From `matrix.npy` to a finished index: the faiss file of approximate kinds, tuning, recall, bytes per vector."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from ralm.errors import ArtifactError
from ralm.index import fast_scan_lists
from ralm.index.approximate import (
    CPU,
    FAISS_FILE,
    ApproximateSearcher,
    Effort,
    Layout,
    build_faiss,
    read_faiss,
    resolve_layout,
)
from ralm.index.config import USED_BY, IndexSettings, Kind
from ralm.index.faiss_gpu import to_device
from ralm.index.faiss_import import faiss
from ralm.index.flat import FlatSearcher, is_resident
from ralm.index.rows_on_demand import RowsOnDemand, part_of
from ralm.index.shard import part_of_faiss
from ralm.index.tuning import TUNED_CUT, make_probes, measure_recall, tune

logger = logging.getLogger(__name__)


def finish_index(
    folder: Path, matrix_ND: np.ndarray, settings: IndexSettings, device: torch.device = CPU
) -> dict[str, Any]:
    """Write what the kind needs beside `matrix.npy`, and measure it.

    Args:
        folder: of the index.
        matrix_ND: its `matrix.npy`, filled.
        settings: kind and options.
        device: where to build.

    Returns:
        Facts for the manifest: kind, metric, dimension, storage, resolved options, resident bytes per vector, recall.

    Raises:
        ConfigError: the corpus is too small for the kind, or an option does not fit it.
    """
    if settings.kind == "flat":
        flat = FlatSearcher(matrix_ND, device)
        per_value = 4 if is_resident(matrix_ND) else matrix_ND.itemsize
        probe_BD = make_probes(matrix_ND, settings.num_probes, seed=2)
        return {
            **_common_facts(matrix_ND, settings),
            "bytes_per_vector": per_value * matrix_ND.shape[1],
            "recall": measure_recall(flat.search, probe_BD, matrix_ND),
        }
    layout = resolve_layout(settings, *matrix_ND.shape)
    return write_faiss(folder, build_faiss(matrix_ND, layout, device), matrix_ND, layout, settings)


def write_faiss(
    folder: Path, index: Any, matrix_ND: np.ndarray, layout: Layout, settings: IndexSettings
) -> dict[str, Any]:
    """Write a filled faiss index, tune the effort of a search to it, and measure what it finds.

    Args:
        folder: of the index.
        index: the filled faiss index, in main memory.
        matrix_ND: the vectors it was filled with.
        layout: how it was built.
        settings: what is to be tuned, and the recall it should reach.

    Returns:
        Facts for the manifest, see `finish_index`.
    """
    faiss.write_index(index, str(folder / FAISS_FILE))
    effort, tuned_recall = tune(index, matrix_ND, layout, settings)
    if tuned_recall < settings.recall_target:
        logger.warning(
            "index: %s finds %.3f of the true top %d at its best, short of recall_target %.3f",
            settings.kind,
            tuned_recall,
            TUNED_CUT,
            settings.recall_target,
        )
    probe_BD = make_probes(matrix_ND, settings.num_probes, seed=2)
    searcher = ApproximateSearcher(index, matrix_ND, layout, effort)
    unranked = ApproximateSearcher(index, matrix_ND, layout, dataclasses.replace(effort, rerank=0))
    return {
        **_common_facts(matrix_ND, settings),
        "bytes_per_vector": round((folder / FAISS_FILE).stat().st_size / len(matrix_ND), 2),
        "options": plain_options(layout, effort),
        "recall_target_reached": tuned_recall >= settings.recall_target,
        "recall": measure_recall(searcher.search, probe_BD, matrix_ND),
        "recall_without_rerank": measure_recall(unranked.search, probe_BD, matrix_ND),
    }


def _common_facts(matrix_ND: np.ndarray, settings: IndexSettings) -> dict[str, Any]:
    return {
        "kind": settings.kind,
        "metric": "inner_product",
        "dimension": matrix_ND.shape[1],
        "storage": settings.storage,
    }


def plain_options(layout: Layout, effort: Effort) -> dict[str, float]:
    """The options that the kind uses, each with the number it was given or tuned to.

    Example:
        >>> plain_options(Layout(kind="ivf_flat", storage="f16", nlist=64), Effort(breadth=8, rerank=0))
        {'nlist': 64, 'nprobe': 8}
    """
    numbers = {
        **dataclasses.asdict(layout),
        "nprobe": effort.breadth,
        "hnsw_ef": effort.breadth,
        "rerank": effort.rerank,
    }
    reaches = {"list_reach": effort.reach} if layout.kind == fast_scan_lists.KIND else {}
    return {name: numbers[name] for name, kinds in USED_BY.items() if layout.kind in kinds} | reaches


def read_layout(details: Mapping[str, Any]) -> Layout:
    """The layout of an approximate index, from the facts that `finish_index` returned."""
    fixed = {name: details["options"][name] for name in ("nlist", "code_size", "hnsw_m") if name in details["options"]}
    return Layout(kind=details["kind"], storage=details["storage"], **fixed)


def open_searcher(
    faiss_file: Path | None,
    matrix_ND: np.ndarray | RowsOnDemand,
    details: Mapping[str, Any],
    device: torch.device,
    *,
    id_N: np.ndarray | None = None,
    rows: slice = slice(None),
) -> FlatSearcher | ApproximateSearcher:
    """The searcher of some rows of a finished index.

    Args:
        faiss_file: its `index.faiss`, None for a flat index.
        matrix_ND: its whole `matrix.npy`; of a flat index it has to be mapped.
        details: as `finish_index` returned them.
        device: where it is searched.
        id_N: ids of these rows; among equal scores the lower one comes first. By default the rows.
        rows: which, by default all; they count from 0 in what the searcher finds.

    Raises:
        ArtifactError: `index.faiss` is missing or damaged, or the kind is none of this version's.
    """
    if details["kind"] not in get_args(Kind):
        known = ", ".join(get_args(Kind))
        raise ArtifactError(f"index: expected one of the kinds {known}, found {details['kind']!r}; build it again")
    own_ND = part_of(matrix_ND, rows)
    if isinstance(own_ND, np.ndarray) and details["kind"] == "flat":
        return FlatSearcher(own_ND, device, id_N)
    if faiss_file is None:
        raise ArtifactError(f"an index of kind {details['kind']} needs a file {FAISS_FILE}; build it again")
    layout = read_layout(details)
    options = details["options"]
    effort = Effort(
        breadth=options.get("nprobe", options.get("hnsw_ef", 1)),
        rerank=options.get("rerank", 0),
        reach=options.get("list_reach", 0.0),
    )
    index, first_row = read_faiss(faiss_file, *matrix_ND.shape), 0
    if len(own_ND) < len(matrix_ND):
        index, first_row = part_of_faiss(index, rows, faiss_file, layout.kind)
    index = to_device(index, layout.kind, device)
    return ApproximateSearcher(index, own_ND, layout, effort, id_N=id_N, first_row=first_row)
