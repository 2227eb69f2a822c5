"""A process that works on a registry when it is told to: one JSON object a line in, one out."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ralm import lease, registry, rollback, serving
from ralm.errors import RalmError
from ralm.registry import Verdict
from ralm.serving import Pair, RegisteredVersion


def register_pair(name: str, think_s: float = 0.0) -> dict[str, Any]:
    """Promote a pair over whoever is champion; the reason says who that was."""

    def judge(champion: RegisteredVersion | None) -> Verdict:
        time.sleep(think_s)
        return Verdict(promote=True, reason=f"measured against {champion.version if champion else ''}")

    pair = Pair(recipe="race", fingerprints={"model": name}, model="m", index="i", passages="p")
    return dataclasses.asdict(registry.register_pair(pair, tags={}, judge=judge))


def register(recipe: str, registration: str, **places: str) -> dict[str, Any]:
    """The stage."""
    from components.register.config import RegisterConfig
    from components.register.stage import register as register_stage

    register_stage(**places, registration=registration, config=RegisterConfig(recipe=recipe))
    return json.loads((Path(registration) / "registration.json").read_text())


def roll_back(recipe: str) -> dict[str, Any]:
    """One version back."""
    return dataclasses.asdict(rollback.rollback(recipe, because="test"))


def hold() -> dict[str, Any]:
    """Take the lease, say so, and never come back."""
    with serving.asking_registry() as client, lease.sole_promoter(client, "ralm-race") as held:
        print(json.dumps({"ticket": held.ticket}), flush=True)
        time.sleep(3600)
    return {}


def register_stopped(name: str) -> dict[str, Any]:
    """Be stopped for a while with the lease in hand, right before the alias would move."""
    check = lease.Lease.check

    def stop_and_check(held: lease.Lease) -> None:
        lease.Lease.check = check  # type: ignore[method-assign]
        print(json.dumps({"ticket": held.ticket}), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        held.check()

    lease.Lease.check = stop_and_check  # type: ignore[method-assign]
    return register_pair(name)


COMMANDS = {call.__name__: call for call in (register_pair, register, roll_back, hold, register_stopped)}


def main() -> None:
    lease.LEASE_S = float(os.environ.get("TEST_LEASE_S", lease.LEASE_S))
    for line in sys.stdin:
        words = json.loads(line)
        time.sleep(max(0.0, words.pop("start_at", 0.0) - time.time()))
        try:
            answer = COMMANDS[words.pop("do")](**words)
        except RalmError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
