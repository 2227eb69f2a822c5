"""What a RALM_HOME holds: the registry, what its champion answers, which artifacts are whole, what was left behind."""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
import os
import sqlite3
from pathlib import Path
from typing import Any, Final

RECIPE: Final = "quickstart"
QUESTIONS: Final = ["what is the colour of granite", "what is the colour of falcon", "what is the colour of violin"]
ENDS_OF_RECORDS: Final = (".lock", ".db", ".db-journal", ".log", "events.jsonl", "last.json")
LIMIT_S: Final = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What can be said of a RALM_HOME from outside."""

    champion: str
    """Version number."""
    aliases: dict[str, str]
    pairs: dict[str, str]
    """Fingerprint of the pair of each version."""
    places: list[str]
    """All that the registry refers to."""
    promoted: bool
    """What the decision says that the champion came by; True for the first version."""
    reason: str
    answers: list[Any]
    """Of the champion."""
    artifacts: dict[str, str]
    """Fingerprints of the finished artifacts of the store, by `kind/key`."""
    unfinished: list[str]
    """What is there beside finished artifacts and records: work folders, outputs of tasks, files half written."""
    open_runs: list[str]
    """MLflow runs that are RUNNING, by name."""
    closed_runs: dict[str, str]
    """Pipeline runs by the state in which they ended, newest last."""
    problems: list[str]
    """What must never be: an artifact that is not whole, a champion that does not answer."""

    def result(self) -> dict[str, Any]:
        """What has to be the same however often a run was killed before.

        Left out is what says how it came to be: a decision holds measured times; a registration is missing where the
        run was killed between the promotion and the note about it.
        """
        artifacts = {
            name: fingerprint
            for name, fingerprint in self.artifacts.items()
            if not name.startswith(("decision/", "registration/"))
        }
        whole = dataclasses.asdict(self)
        return {**{name: whole[name] for name in _COMPARED}, "artifacts": artifacts}


_COMPARED: Final = (
    "champion",
    "aliases",
    "pairs",
    "places",
    "promoted",
    "reason",
    "answers",
    "unfinished",
    "open_runs",
)


def import_all() -> None:
    """Import here what each look needs; it is forked."""
    for module in ("torch", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "ralm.answer", "ralm.serving"):
        importlib.import_module(module)


def look(home: Path) -> State:
    """Look at a home in a forked child, so that nothing of one look is left for the next."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_look, args=(str(home), writer))
    child.start()
    writer.close()
    try:
        if not reader.poll(LIMIT_S):
            raise TimeoutError(f"{home}: the champion did not answer in {LIMIT_S:.0f} s")
        return State(**reader.recv())
    finally:
        child.kill()
        child.join()


def _look(home: str, writer: Any) -> None:
    os.environ.update({"RALM_HOME": home, "RALM_TRACKING": "on"})
    problems: list[str] = []
    artifacts = _artifacts(Path(home) / "store", problems)
    registry = _registry(problems)
    runs = _runs(Path(home) / "mlflow.db")
    state = State(artifacts=artifacts, unfinished=_unfinished(Path(home)), problems=problems, **registry, **runs)
    writer.send(dataclasses.asdict(state))


def _artifacts(store: Path, problems: list[str]) -> dict[str, str]:
    from ralm.artifacts.files import sha256_file
    from ralm.artifacts.manifest import MANIFEST, open_artifact, read_artifact
    from ralm.errors import RalmError

    found = {}
    for path in sorted(store.glob(f"[!.]*/*/{MANIFEST}")):
        place = str(path.parent)
        try:
            manifest = read_artifact(place).manifest
            artifact = open_artifact(place, manifest.kind, manifest.version)
            for entry in manifest.files:
                if sha256_file(Path(artifact.file(entry.path))) != entry.sha256:
                    problems.append(f"{place}: {entry.path} has other bytes than its manifest says")
        except RalmError as error:
            problems.append(str(error))
            continue
        found[path.parent.relative_to(store).as_posix()] = manifest.fingerprint
    return found


def _registry(problems: list[str]) -> dict[str, Any]:
    from pipelines.runs import resolve_pair
    from ralm import serving
    from ralm.answer import Answerer
    from ralm.artifacts.files import join, read_json
    from ralm.errors import RalmError

    answers: list[Any] = []
    known = {version.version: version for version in serving.versions(RECIPE)}
    with serving.asking_registry() as client:
        aliases = serving.aliases_of(client, serving.model_name(RECIPE))
    champion = aliases.get(serving.CHAMPION, "")
    tags = known[champion].tags if champion in known else {}
    decision = read_json(join(tags[serving.DECISION_TAG], "decision.json")) if tags.get(serving.DECISION_TAG) else {}
    try:
        pair = serving.open_pair(RECIPE)
        if pair is None:
            raise RalmError("there is no champion")
        pair.check()
        if pair.fingerprint != tags[serving.PAIR_TAG]:
            raise RalmError(f"champion {champion} is tagged as pair {tags[serving.PAIR_TAG]}, found {pair.fingerprint}")
        served = resolve_pair(model="", index="", passages="", recipe=RECIPE)
        if not served.source.endswith("@champion"):
            raise RalmError(f"`ralm ask` would not ask the champion, but {served.source}")
        answerer = Answerer(model=served.model, index=served.index, passages=served.passages)
        answers = [
            answer.to_json() for answer in answerer.answer(QUESTIONS, k=7)
        ]  # all: whatever a random model finds, the changed ones are among them
    except RalmError as error:
        problems.append(str(error))
    return {
        "champion": champion,
        "aliases": aliases,
        "pairs": {number: version.tags.get(serving.PAIR_TAG, "") for number, version in known.items()},
        "places": [place for place in serving.registered_places() if "/decision/" not in place],
        "promoted": bool(decision.get("promote", True)),
        "reason": tags.get(serving.REASON_TAG, ""),
        "answers": json.loads(json.dumps(answers)),
    }


def _runs(database: Path) -> dict[str, Any]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "select runs.name, runs.status, tags.value from runs left join tags on tags.run_uuid = runs.run_uuid "
            "and tags.key = 'ralm.run_id' order by runs.start_time"
        ).fetchall()
    closed = {run_id: status for _, status, run_id in rows if run_id and status != "RUNNING"}
    return {"open_runs": [name for name, status, _ in rows if status == "RUNNING"], "closed_runs": closed}


def _unfinished(home: Path) -> list[str]:
    """Folders of work, and files under no finished artifact that are no records which are meant to stay."""
    finished = {path.parent for path in home.glob("store/[!.]*/*/manifest.json")}
    found = set(home.glob("store/.work/*")) | set(home.glob("runs/*/outputs"))
    for path in home.rglob("*"):
        is_record = path.is_dir() or path.name.endswith(ENDS_OF_RECORDS) or home / "mlartifacts" in path.parents
        if not is_record and not finished & set(path.parents):
            found.add(path)
    return sorted({"/".join(path.relative_to(home).parts[:3]) for path in found})
