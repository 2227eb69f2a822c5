"""kill -9 at random moments of the re-index pipeline, and the same command again: `make test-faults`.

A champion is made once. Each round starts from a copy of that state, kills the re-index, asks the champion, runs the
command again and compares with what an undisturbed run left. Kills go to every task at least once, the others to
moments drawn evenly over the whole run; they hit the whole tree of processes, only the driver, or only one task.
Besides: SIGTERM, Ctrl-C, a full disk, a source that is away.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import toy_questions, write_tiny_model
from tests.faults.home_state import State, import_all, look
from tests.faults.pipeline_process import PipelineProcess, Span

EVALUATE: Final = {"num_passages": 2, "recall_at": [1, 5]}
TRAIN: Final = {"num_steps": 2, "batch_size": 2, "num_passages": 2, "mode": "joint"}
TITLES: Final = ("Granite", "Willow", "Otter", "Copper", "Falcon", "Harbour", "Violin")
COLOURS: Final = ("amber", "silver", "crimson", "iron", "wooden")
FIRST: Final = ("register", "gate", "index", "embed", "compare")
"""Tasks that are hit first, for when there are fewer kills than tasks."""
TARGETS: Final = ("all", "driver", "all", "task")
"""What is killed, in turn."""


@dataclass
class Bench:
    """Where the rounds happen, and what they are compared with."""

    folder: Path
    seed: int
    first: State = field(init=False)
    """Before the re-index."""
    expected: State = field(init=False)
    """After an undisturbed one."""
    spans: list[Span] = field(init=False)
    """Its tasks."""
    elapsed_s: float = field(init=False)

    @property
    def home(self) -> Path:
        """The RALM_HOME of all rounds: what the registry holds are absolute places."""
        return self.folder / "home"

    def restore(self) -> None:
        """Make the home what it was before the re-index."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.folder / "template", self.home)

    def reindex(self, *, source: str = "", around: Sequence[str] = ()) -> PipelineProcess:
        """Start a re-index, from the changed corpus if nothing else is said."""
        values = {
            "source": source or str(self.folder / "changed.csv"),
            "questions": str(self.folder / "questions"),
            "num_shards": "2",
            "settings": json.dumps({"evaluate": EVALUATE}),
        }
        words = [word for name, value in values.items() for word in ("--param", f"{name}={value}")]
        return PipelineProcess(["--pipeline", "reindex", *words], self.home, around)


def prepare(bench: Bench) -> None:
    """Register the champion, and see what an undisturbed re-index makes of it."""
    write_inputs(bench.folder)
    places = {"passages": "corpus.csv", "questions": "questions", "model": "model"}
    words = [word for name, file in places.items() for word in (f"--{name}", str(bench.folder / file))]
    settings = {"train": TRAIN, "evaluate": EVALUATE, "report": {"resamples": 100}}
    made = PipelineProcess([*words, "--num-shards", "2", "--settings", json.dumps(settings)], bench.home)
    if made.wait() != 0:
        raise SystemExit(f"the champion could not be made:\n{made.log.text}")
    shutil.copytree(bench.home, bench.folder / "template")
    bench.first = look(bench.home)
    whole = bench.reindex()
    if whole.wait() != 0:
        raise SystemExit(f"the undisturbed re-index failed:\n{whole.log.text}")
    bench.elapsed_s, bench.spans, bench.expected = whole.elapsed_s(), whole.log.spans(), look(bench.home)
    for state in (bench.first, bench.expected):
        if state.problems or state.unfinished or state.open_runs:
            raise SystemExit(f"already broken before anything was killed: {state}")
    if (bench.first.champion, bench.expected.champion) != ("1", "2") or bench.first.answers == bench.expected.answers:
        raise SystemExit("the re-index changes nothing, so that the rounds would show nothing")


def write_inputs(folder: Path) -> None:
    """A corpus, the same with three of seven articles changed, questions and a tiny model."""
    for name, shift in (("corpus.csv", 0), ("changed.csv", 1)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["title", "text"])
            for page, title in enumerate(TITLES):
                colour = COLOURS[(page + (shift if page % 3 == 0 else 0)) % len(COLOURS)]
                writer.writerow([title, f"The colour of {title} is mostly {colour} in the northern valleys."])
    (folder / "questions").mkdir()
    for split in ("train", "dev", "test"):
        lines = [json.dumps(row) for row in toy_questions(split)]
        (folder / "questions" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_tiny_model(folder / "model")


@dataclass
class Round:
    """One disturbance: what was wrong after it, and after the same command again."""

    what: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: list[PipelineProcess] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)

    def expect(self, is_so: bool, problem: str) -> None:
        """Note a problem unless something is so."""
        if not is_so:
            self.problems.append(problem)

    def show(self) -> str:
        """One line."""
        seconds = time.monotonic() - self.started_at
        return f"{self.what}: {', '.join(self.notes)}; {'; '.join(self.problems) or 'ok'} ({seconds:.0f} s)"


def check_disturbed(bench: Bench, done: Round, state: State) -> None:
    """The champion is the old or the new one, whole, and answers as that one does."""
    done.problems += state.problems
    known = next((one for one in (bench.first, bench.expected) if one.champion == state.champion), None)
    done.expect(known is not None, f"champion is {state.champion or 'none'}")
    done.expect(known is None or state.answers == known.answers, f"champion {state.champion} answers something else")
    wrong = {number for number, pair in state.pairs.items() if bench.expected.pairs.get(number) != pair}
    done.expect(not wrong, f"versions {wrong} are of another pair")
    for name, fingerprint in state.result()["artifacts"].items():
        done.expect(bench.expected.artifacts.get(name) == fingerprint, f"{name} is not what the whole run makes")
    finished = len(state.artifacts.keys() - bench.first.artifacts.keys())
    done.notes.append(f"champion {state.champion} of {len(state.pairs)} answers, {finished} new artifacts whole")
    if state.unfinished:
        done.notes.append(f"unfinished {' '.join(state.unfinished)}")
    if state.open_runs:
        done.notes.append(f"runs open {' '.join(state.open_runs)}")


def run_again(bench: Bench, done: Round) -> State:
    """The same command again ends, and leaves what an undisturbed run leaves."""
    again = bench.reindex()
    code = again.wait()
    done.runs.append(again)
    done.notes.append(f"again {again.elapsed_s():.0f} s")
    done.expect(code == 0, f"run again: exit code {code}")
    done.expect("Traceback" not in again.log.text, "run again: a traceback")
    state = look(bench.home)
    done.problems += state.problems
    expected = bench.expected.result()
    for name, found in state.result().items():
        done.expect(found == expected[name], f"{name} is {found}, undisturbed {expected[name]}")
    return state


def kill_round(bench: Bench, what: str, task: str, moment: float) -> tuple[Round, set[str]] | None:
    """Kill a re-index and run it again.

    Args:
        bench: where.
        what: all, driver or task.
        task: whose start is waited for; empty: the start of the command.
        moment: seconds to wait after that.

    Returns:
        What was found, and the tasks that were hit; None if the run ended before.
    """
    bench.restore()
    done = Round("")
    run = bench.reindex()
    done.runs.append(run)
    if task:
        run.wait_for_task(task)
    time.sleep(moment)
    while what == "task" and run.process.poll() is None and not run.tasks():
        time.sleep(0.01)
    hit, seconds = set(run.log.running()), run.elapsed_s()
    killed = run.kill(what)
    code = run.wait()
    if not killed:
        return None
    done.what = f"kill -9 {what} ({killed}) at {seconds:.2f} s in {' '.join(sorted(hit)) or 'no task'}"
    if what == "task":
        done.expect(code == 1, f"exit code {code}, expected 1")
        done.expect("ralm: error: task " in run.log.text, "the error names no task")
        done.expect("Traceback" not in run.log.text, "a traceback")
    else:
        done.expect(code == -9, f"exit code {code}, expected -9")
    state = look(bench.home)
    check_disturbed(bench, done, state)
    if what == "task":
        done.expect(not state.open_runs, "its MLflow runs are open though the driver saw it end")
    check_closed(bench, done, run_again(bench, done), "FAILED" if what == "task" else "KILLED")
    return done, hit


def check_closed(bench: Bench, done: Round, state: State, status: str) -> None:
    """The MLflow run of the disturbed pipeline run ended as what it was, that of the next one FINISHED."""
    *before, last = (state.closed_runs[run] for run in state.closed_runs if run not in bench.first.closed_runs)
    done.expect(last == "FINISHED", f"the MLflow run of the second try is {last}")
    done.expect(set(before) <= {status, "FINISHED"}, f"the disturbed MLflow run is {before}, expected {status}")


def signal_round(bench: Bench, name: str, number: int, is_for_all: bool, task: str) -> Round:
    """SIGTERM to the driver, or Ctrl-C to all in the terminal's foreground."""
    bench.restore()
    done = Round(f"{name} in {task}")
    run = bench.reindex()
    done.runs.append(run)
    run.wait_for_task(task)
    time.sleep(0.2)
    (os.killpg if is_for_all else os.kill)(run.process.pid, number)
    code = run.wait()
    done.expect(code == 130, f"exit code {code}, expected 130")
    done.expect("Traceback" not in run.log.text, "a traceback")
    state = look(bench.home)
    check_disturbed(bench, done, state)
    done.expect(not state.open_runs, "MLflow runs are open")
    check_closed(bench, done, run_again(bench, done), "KILLED")
    return done


FULL_DISK: Final = """
home=$0; template=$1; left=$2; free_kib=$3; shift 3
mount -t tmpfs none "$home" && cp -a "$template/." "$home" || exit 99
used_kib=$(df -k --output=used "$home" | tail -n 1)
mount -o "remount,size=$((used_kib + free_kib))k" "$home" || exit 99
"$@"
code=$?
cp -a "$home/." "$left"
exit $code
"""
"""Run a command with RALM_HOME on a small disk of its own, and keep what it left there."""


def full_disk_round(bench: Bench, free_kib: int) -> Round:
    """A disk with little space left: a file system of its own, in a name space of its own."""
    done = Round(f"disk full, {free_kib} KiB free")
    bench.restore()
    left = bench.folder / "left"
    left.mkdir()
    names = [str(bench.home), str(bench.folder / "template"), str(left), str(free_kib)]
    run = bench.reindex(around=["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, *names])
    done.runs.append(run)
    code = run.wait()
    shutil.rmtree(bench.home)
    left.rename(bench.home)
    error = next((line.strip() for _, line in run.log.lines if line.startswith("ralm: error")), "no error")
    done.notes.append(error)
    done.expect(code in (1, 2), f"exit code {code}")
    done.expect(re.search("disk (is )?full|no space left", error) is not None, "the error is not about the disk")
    done.expect(str(bench.home) in error, "the error names no place")
    done.expect("Traceback" not in run.log.text, "a traceback")
    state = look(bench.home)
    check_disturbed(bench, done, state)
    run_again(bench, done)
    return done


def no_source_round(bench: Bench) -> Round:
    """The site of the source does not answer."""
    done = Round("source away")
    bench.restore()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        source = f"http://127.0.0.1:{unused.getsockname()[1]}/changed.csv"
        run = bench.reindex(source=source)
        done.runs.append(run)
        code = run.wait()
    error = next((line.strip() for _, line in run.log.lines if line.startswith("ralm: error")), "no error")
    done.notes.append(error)
    done.expect(code == 2, f"exit code {code}, expected 2")
    done.expect("task watch failed" in error and source in error, "the error names not the task and the source")
    done.expect("Traceback" not in run.log.text, "a traceback")
    state = look(bench.home)
    check_disturbed(bench, done, state)
    done.expect(state.champion == "1" and len(state.pairs) == 1, "the registry changed")
    done.expect(not state.open_runs, "MLflow runs are open")
    return done


def kills(bench: Bench, number: int, report: Callable[[Round], None]) -> int:
    """That many kills; how many left the final state of an undisturbed run."""
    rng = random.Random(bench.seed)
    names = [span.name for span in bench.spans]
    missing = [*FIRST, *(name for name in dict.fromkeys(names) if name not in FIRST)]
    equal, done = 0, 0
    while done < number:
        task = missing[0] if missing else ""
        lasted = [span.end_s - span.start_s for span in bench.spans if span.name == task]
        moment = rng.uniform(0, 0.8 * max(lasted)) if task else rng.uniform(0, bench.elapsed_s)
        found = kill_round(bench, TARGETS[done % len(TARGETS)], task, moment)
        if found is None:
            continue
        one, hit = found
        missing = [name for name in missing if name not in hit]
        done += 1
        equal += not one.problems
        one.what = f"{done:2}/{number} {one.what}"
        report(one)
    if missing:
        print(f"not hit: {', '.join(missing)}", flush=True)
    return equal


def others(bench: Bench) -> list[Callable[[], Round]]:
    """The disturbances that are no kill."""
    import signal

    rounds = [
        lambda: signal_round(bench, "SIGTERM", signal.SIGTERM, False, "embed"),
        lambda: signal_round(bench, "Ctrl-C", signal.SIGINT, True, "register"),
        lambda: no_source_round(bench),
    ]
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0:
        rounds += [functools.partial(full_disk_round, bench, free) for free in map(int, os.environ["FREE"].split())]
    else:
        print("disk full: left out, this user may not make a name space", flush=True)
    return rounds


def main() -> int:
    """Exit code 0 if nothing was wrong after any disturbance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", default="", metavar="DIR", help="new folder for inputs and RALM_HOME, which stays")
    parser.add_argument("--only-kills", action="store_true")
    parser.add_argument("--only-others", action="store_true")
    arguments = parser.parse_args()
    started_at = time.monotonic()
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="ralm-faults-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, arguments.seed)
    bad: list[Round] = []

    def report(done: Round) -> None:
        print(done.show(), flush=True)
        if done.problems:
            bad.append(done)
            log = folder / f"problem-{len(bad)}.log"
            log.write_text("\n".join(run.log.text for run in done.runs), encoding="utf-8")
            print(f"  {log}", flush=True)

    import_all()
    prepare(bench)
    print(f"undisturbed: {bench.elapsed_s:.1f} s, {len(bench.spans)} tasks", flush=True)
    equal = kills(bench, arguments.kills, report) if not arguments.only_others else 0
    for one in others(bench) if not arguments.only_kills else []:
        report(one())
    print(f"{equal} of {arguments.kills}; {time.monotonic() - started_at:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
