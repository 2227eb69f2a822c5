"""What writes to the registry: registering a pair, and promoting it. Changes by hand are in `rollback.py`.

A promotion names the champion it was measured against. It happens only while that is the champion still: the check and
the move of the alias are under a lease (`lease.py`). Tags that say why are written first, the alias last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import mlflow
from mlflow.tracking import MlflowClient

from ralm import serving
from ralm.artifacts.files import ralm_home, write_json
from ralm.artifacts.lock import only_one
from ralm.lease import LeaseLostError, sole_promoter
from ralm.serving import (
    CHALLENGER,
    CHAMPION,
    MEASURED_TAG,
    PAIR_TAG,
    PARENT_TAG,
    PLACES_TAG,
    REASON_TAG,
    REPLACED_TAG,
    ROLLED_BACK_TAG,
    Pair,
    RegisteredVersion,
    aliases_of,
    asking_registry,
    read_version,
    search_versions,
)

MAX_ROUNDS: Final = 10
"""How often a pair is measured again because the champion changed meanwhile."""
EXAMPLE: Final = ["Who wrote Atlas Shrugged?"]
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a version takes the place of the champion it was compared with."""

    promote: bool
    reason: str


Judge = Callable[[RegisteredVersion | None], Verdict]
"""Compares the pair with a champion (None: there is none); asked again when another champion came up meanwhile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registration:
    """What the registry says about a pair."""

    name: str
    version: str
    alias: str
    """champion or challenger."""
    promoted: bool
    measured_against: str
    """Version of the champion it was compared with; empty where there was none."""
    replaced: str
    """Version of the champion whose place it took; empty where it took none."""
    reason: str


def register_pair(pair: Pair, *, tags: Mapping[str, str], judge: Judge) -> Registration:
    """Register a pair once, and promote it if it beats the champion that it would replace.

    Args:
        pair: what is registered; a pair that is registered already keeps its version.
        tags: facts for the version.
        judge: compares the pair with the champion; may take its time.

    Raises:
        ConfigError: MLflow refuses.
        RalmError: MLflow cannot be reached.
    """
    with asking_registry() as client:
        version = _find_or_log(client, pair, tags)
        for _ in range(MAX_ROUNDS):
            champion, own = _champion_and(client, pair.name, version)
            if own.alias == CHAMPION:
                return _registration(pair.name, own)
            verdict = _refuse_rolled_back(pair, own) or judge(champion)
            settled = _settle(client, pair.name, version, champion, verdict)
            if settled is not None:
                return settled
            logger.info("%s: the champion is no longer %s; measured again", pair.name, champion and champion.version)
        reason = f"the champion changed {MAX_ROUNDS} times while version {version} was compared with it; register again"
        client.set_model_version_tag(pair.name, version, REASON_TAG, reason)
        return Registration(
            name=pair.name,
            version=version,
            alias=own.alias,
            promoted=False,
            measured_against="",
            replaced="",
            reason=reason,
        )


def _settle(
    client: MlflowClient, name: str, version: str, champion: RegisteredVersion | None, verdict: Verdict
) -> Registration | None:
    """Do what the verdict says, if the champion is still the one it was said about; else None."""
    against = champion.version if champion else ""
    notes = {REASON_TAG: verdict.reason, MEASURED_TAG: against}
    if verdict.promote:
        notes[REPLACED_TAG] = against
    alias = CHAMPION if verdict.promote else CHALLENGER
    if not move_alias(client, name, alias, version, champion=against, notes={version: notes}):
        return None
    logger.info("%s version %s is %s: %s", name, version, alias, verdict.reason)
    return Registration(
        name=name,
        version=version,
        alias=alias,
        promoted=verdict.promote,
        measured_against=against,
        replaced=against if verdict.promote else "",
        reason=verdict.reason,
    )


def move_alias(
    client: MlflowClient, name: str, alias: str, version: str, *, champion: str, notes: Mapping[str, Mapping[str, str]]
) -> bool:
    """Move an alias to a version, while the champion is the expected one.

    Args:
        client: connected.
        name: of the registered model.
        alias: champion or challenger.
        version: that gets it.
        champion: version that has to be the champion at this moment; empty: there must be none.
        notes: tags by version, written before the alias is moved.

    Returns:
        False if the champion is another one, or MLflow was too slow to be sure; the alias is then as it was.
    """
    with contextlib.suppress(LeaseLostError), sole_promoter(client, name) as lease:
        aliases = aliases_of(client, name)
        if aliases.get(CHAMPION, "") != champion:
            return False
        for tagged, tags in notes.items():
            for key, text in tags.items():
                client.set_model_version_tag(name, tagged, key, text)
        if alias == CHAMPION and aliases.get(CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        lease.check()
        client.set_registered_model_alias(name, alias, version)
        return True
    return False


def _refuse_rolled_back(pair: Pair, own: RegisteredVersion) -> Verdict | None:
    """What a person took out of service comes back only by a person."""
    if not own.tags.get(ROLLED_BACK_TAG):
        return None
    command = f"ralm registry promote {own.version} --recipe {pair.recipe} --because ..."
    return Verdict(promote=False, reason=f"it was rolled back, {own.tags[ROLLED_BACK_TAG]}; `{command}` promotes it")


def _champion_and(client: MlflowClient, name: str, version: str) -> tuple[RegisteredVersion | None, RegisteredVersion]:
    """The champion and a version, as they are now."""
    aliases = aliases_of(client, name)
    own = read_version(client.get_model_version(name, version), aliases)
    if CHAMPION not in aliases:
        return None, own
    return read_version(client.get_model_version(name, aliases[CHAMPION]), aliases), own


def _registration(name: str, own: RegisteredVersion) -> Registration:
    """Of a version that is the champion already: what was noted when it became that."""
    return Registration(
        name=name,
        version=own.version,
        alias=own.alias,
        promoted=True,
        measured_against=own.tags.get(MEASURED_TAG, ""),
        replaced=own.tags.get(REPLACED_TAG, ""),
        reason=own.tags.get(REASON_TAG, "it is the champion already"),
    )


def _find_or_log(client: MlflowClient, pair: Pair, tags: Mapping[str, str]) -> str:
    """The pair's version; a new one gets its tags in the request that makes it."""
    facts = {**tags, PAIR_TAG: pair.fingerprint, PLACES_TAG: pair.places}
    with only_one(ralm_home() / "locks" / f"register-{pair.name}.lock", f"registering a version of {pair.name}"):
        version = _find_version(client, pair)
        if not version:
            uri = _log_model(pair)
            with sole_promoter(client, pair.name):
                version = _find_version(client, pair)  # of another machine
                if not version:
                    return str(mlflow.register_model(uri, pair.name, tags=facts).version)
        known = client.get_model_version(pair.name, version).tags
        for key, text in facts.items():
            if key != PARENT_TAG and known.get(key) != text:
                client.set_model_version_tag(pair.name, version, key, text)
    return version


def _find_version(client: MlflowClient, pair: Pair) -> str:
    found = search_versions(client, f"name = '{pair.name}' and tags.`{PAIR_TAG}` = '{pair.fingerprint}'")
    return str(min((int(version.version) for version in found), default=""))


def _log_model(pair: Pair) -> str:
    """Log the model, inside a stage's run, else in a run of its own; the URI of what was logged."""
    with TemporaryDirectory() as folder:
        reference = Path(folder) / "pair.json"
        write_json(reference, dataclasses.asdict(pair))
        info = mlflow.pyfunc.log_model(
            name="ralm",
            python_model=str(Path(serving.__file__).resolve()),
            artifacts={"pair": str(reference)},
            input_example=(EXAMPLE, {"k": 0}),
            pip_requirements=[f"ralm-pipelines[cpu]=={metadata.version('ralm-pipelines')}"],
            metadata={"pair": pair.fingerprint},
        )
    return f"models:/{info.model_id}"
