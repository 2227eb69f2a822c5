"""`ralm quickstart`: the main job on real input, and the same model on a user's own documents."""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from pathlib import PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final

from pipelines import runs
from pipelines.compile import Runner
from ralm.artifacts.files import Location, exists, is_remote
from ralm.errors import DataError

RECIPE: Final = "quickstart"
QUESTION: Final = "Who hosted the 1969 NASA documentary Debrief: Apollo 8?"
logger = logging.getLogger(__name__)


def run(runner: Runner = "subprocess") -> dict[str, Any]:
    """Run the quickstart recipe."""
    return dataclasses.asdict(runs.run_recipe(RECIPE, {}, runner=runner)) | {"ask": f'{sys.argv[0]} ask "{QUESTION}"'}


def index_own(corpus: Location) -> dict[str, Any]:
    """Index own documents with the quickstart's trained model, and note them as the last run.

    Args:
        corpus: csv, tsv or jsonl file, Parquet, or a folder of .txt or .md files.

    Raises:
        DataError: there are no such documents.
    """
    if not is_remote(corpus) and ":" not in corpus and not exists(corpus):
        raise DataError(f"{corpus}: no such file or folder")
    last = runs.read_last()
    if last is None or not last.recipe.startswith(RECIPE) or not exists(last.model):
        logger.info("the quickstart's model is not trained yet: running the quickstart first")
        runs.run_recipe(RECIPE, {})
        last = runs.read_last()
        assert last is not None
    indexed, num_passages, reused = _index(corpus, last)
    runs.record_last(indexed)
    return {
        "recipe": indexed.recipe,
        "passages": num_passages,
        "model": indexed.model,
        "index": indexed.index,
        "passages_uri": indexed.passages,
        "reused": reused,
        "ask": f'{sys.argv[0]} ask "..."',
    }


def _index(corpus: Location, last: runs.LastRun) -> tuple[runs.LastRun, int, list[str]]:
    """Passages, embeddings and index of own documents with the last run's model."""
    from components.download.stage import download
    from components.embed.stage import embed
    from components.index.stage import index
    from pipelines.recipes import RECIPES
    from ralm.artifacts.store import handing_over_by_reference, stored_location
    from ralm.cli import call_tracked

    recipe = RECIPES[RECIPE]()
    with TemporaryDirectory() as folder, handing_over_by_reference():
        places = {name: f"{folder}/{name}" for name in ("passages", "embeddings", "index")}
        made = [
            call_tracked(download, {"source": corpus, "passages": places["passages"], "config": recipe.download}),
            call_tracked(
                embed,
                {
                    "passages": places["passages"],
                    "model": last.model,
                    "embeddings": places["embeddings"],
                    "config": recipe.embed,
                },
            ),
            call_tracked(index, {"embeddings": places["embeddings"], "index": places["index"], "config": recipe.index}),
        ]
    passages, _, built = made
    stem = re.sub(r"[^A-Za-z0-9.-]+", "-", PurePosixPath(corpus.rstrip("/")).stem).strip("-.") or "own"
    indexed = dataclasses.replace(
        last,
        recipe=f"{RECIPE}-{stem}",
        index=stored_location(built),
        passages=stored_location(passages),
        report="",
        is_registered=False,
    )
    return indexed, passages.rows, [manifest.kind for manifest in made if manifest.reused]


def show_quickstart(result: dict[str, Any]) -> str:
    """The summary for people."""
    if "before" in result:
        return f"{runs.show_run(result)}\n\nask it:            {result['ask']}"
    lines = [
        f"recipe             {result['recipe']}",
        f"passages           {result['passages']:,}",
        f"index              {result['index']}",
        f"reused             {', '.join(result['reused']) or 'nothing'}",
        "",
        f"ask it:            {result['ask']}",
    ]
    return "\n".join(lines)
