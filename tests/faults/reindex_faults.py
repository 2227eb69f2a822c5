"""kill -9 at random moments of the re-index pipeline, and the same command again: `make test-faults`.

A champion is made once. Each round starts from a copy of that state, disturbs the re-index, asks the champion, runs the
same command again and compares with what an undisturbed run left. The kills go to every task, the rest of them to
moments drawn evenly over the whole run; they hit the whole tree of processes, only the driver, or only one task.
Besides: SIGTERM, Ctrl-C, a source that is away, a full disk. Two lanes work side by side, each with its own RALM_HOME.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.home_state import State, import_all, look
from tests.faults.pipeline_process import PipelineProcess
from tests.faults.reindex_bench import Bench, prepare

LANES: Final = 2
FIRST: Final = ("register", "index", "gate", "embed", "compare")
"""Tasks that are hit first, for when there are fewer kills than tasks."""
TARGETS: Final = ("all", "driver", "all", "task")
"""What is killed, in turn."""
FREE_KIB: Final = 64
"""Room on the full disk: some tasks pass."""
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


@dataclass
class Round:
    """One disturbance: what was wrong after it, and after the same command again."""

    what: str
    is_kill: bool = False
    answered: bool = False
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    log: str = ""
    started_at: float = field(default_factory=time.monotonic)

    def expect(self, is_so: bool, problem: str) -> None:
        """Note a problem unless something is so."""
        if not is_so:
            self.problems.append(problem)

    def wait(self, run: PipelineProcess) -> int:
        """Wait for the end of a run; nobody is to see a traceback."""
        code = run.wait()
        self.log += f"{run.log.text}exit code {code}\n\n"
        self.expect("Traceback" not in run.log.text, "a traceback")
        return code

    def show(self) -> str:
        """One line."""
        seconds = time.monotonic() - self.started_at
        return f"{self.what}: {', '.join(self.notes)}; {'; '.join(self.problems) or 'ok'} ({seconds:.0f} s)"


def look_at_disturbed(bench: Bench, done: Round) -> State:
    """The champion is the old or the new one, whole, and answers as that one does."""
    state = look(bench.home)
    before = len(done.problems)
    done.problems += state.problems
    known = next((one for one in (bench.first, bench.expected) if one.champion == state.champion), None)
    done.expect(known is not None, f"champion is {state.champion or 'none'}")
    done.expect(known is None or state.answers == known.answers, f"champion {state.champion} answers something else")
    done.answered = len(done.problems) == before
    wrong = {number for number, pair in state.pairs.items() if bench.expected.pairs.get(number) != pair}
    done.expect(not wrong, f"versions {wrong} are of another pair")
    for name, fingerprint in state.result()["artifacts"].items():
        done.expect(bench.expected.artifacts.get(name) == fingerprint, f"{name} is not what the undisturbed run made")
    finished = len(state.artifacts.keys() - bench.first.artifacts.keys())
    done.notes.append(f"champion {state.champion} of {len(state.pairs)} answers, {finished} new artifacts")
    if state.unfinished:
        done.notes.append(f"unfinished {' '.join(state.unfinished)}")
    if state.open_runs:
        done.notes.append(f"MLflow runs open: {' '.join(state.open_runs)}")
    return state


def run_again(bench: Bench, done: Round, status: str) -> None:
    """The same command ends well, and leaves what an undisturbed run leaves.

    Args:
        bench: where.
        done: gets what is wrong.
        status: of the disturbed run in MLflow, where it had begun one and not ended it.
    """
    again = bench.reindex()
    code = done.wait(again)
    done.notes.append(f"again {again.elapsed_s():.0f} s")
    done.expect(code == 0, f"the second run: exit code {code}")
    state = look(bench.home)
    done.problems += state.problems
    expected = bench.expected.result()
    for name, found in state.result().items():
        done.expect(found == expected[name], f"in the end {name} is {found}, undisturbed {expected[name]}")
    *before, last = [found for run, found in state.closed_runs.items() if run not in bench.first.closed_runs] or [""]
    done.expect(last == "FINISHED", f"the MLflow run of the second run is {last or 'not there'}")
    done.expect(set(before) <= {status, "FINISHED"}, f"the disturbed MLflow run is {before}, expected {status}")


def kill_round(bench: Bench, what: str, task: str, moment_s: float) -> tuple[Round, set[str]] | None:
    """Kill a re-index and run it again.

    Args:
        bench: where.
        what: all, driver or task.
        task: whose start is waited for; empty: the start of the command.
        moment_s: seconds to wait after that.

    Returns:
        What was found, and the tasks that were hit; None if the run ended before.
    """
    bench.restore()
    done = Round("", is_kill=True)
    run = bench.reindex()
    if task:
        run.wait_for_task(task)
    time.sleep(moment_s)
    while what == "task" and run.process.poll() is None and not run.tasks():
        time.sleep(0.01)
    hit, seconds = set(run.log.running()), run.elapsed_s()
    killed = run.kill(what)
    code = done.wait(run)
    if not killed or (what != "task" and code == 0):  # it had ended already
        return None
    if what == "task" and code == 0 and look(bench.home).result() == bench.expected.result():  # it had done its work
        return None
    done.what = f"kill -9 {what} ({killed}) at {seconds:.2f} s in {' '.join(sorted(hit)) or 'no task'}"
    if what == "task":
        done.expect(code == 1, f"exit code {code}, expected 1")
        done.expect(re.search("ralm: error: task .* killed by SIGKILL", run.log.text) is not None, "no task is named")
    else:
        done.expect(code == -signal.SIGKILL, f"exit code {code}, expected -9")
    state = look_at_disturbed(bench, done)
    if what == "task":
        left = [place for place in state.unfinished if not place.startswith("store/.work/")]
        done.expect(not (state.open_runs or left), "the driver did not tidy up")
    run_again(bench, done, "FAILED" if what == "task" else "KILLED")
    return done, hit


def signal_round(bench: Bench, name: str, number: int, task: str) -> Round:
    """SIGTERM to the driver, or Ctrl-C, which goes to all in the terminal's foreground."""
    bench.restore()
    done = Round(f"{name} in {task}")
    run = bench.reindex()
    run.wait_for_task(task)
    time.sleep(0.2)
    (os.killpg if number == signal.SIGINT else os.kill)(run.process.pid, number)
    code = done.wait(run)
    done.expect(code == 130, f"exit code {code}, expected 130")
    state = look_at_disturbed(bench, done)
    done.expect(not (state.open_runs or state.unfinished), "the driver did not tidy up")
    run_again(bench, done, "KILLED")
    return done


def full_disk_round(bench: Bench) -> Round:
    """A disk with little space left: a file system of its own, in a name space of its own."""
    bench.restore()
    done = Round(f"disk full, {FREE_KIB} KiB free")
    left = bench.folder / "left"
    left.mkdir()
    names = [str(bench.home), str(bench.template), str(left), str(FREE_KIB)]
    run = bench.reindex(around=["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, *names])
    code = done.wait(run)
    shutil.rmtree(bench.home)
    left.rename(bench.home)
    error = _error_of(run, done)
    done.expect(code in (1, 2), f"exit code {code}, expected 1 or 2")
    done.expect(re.search("disk full|no space left", error) is not None, "the error is not about the disk")
    done.expect(str(bench.home) in error, "the error names no place")
    look_at_disturbed(bench, done)
    run_again(bench, done, "FAILED")
    return done


def no_source_round(bench: Bench) -> Round:
    """The site of the source does not answer."""
    bench.restore()
    done = Round("source away")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        source = f"http://127.0.0.1:{unused.getsockname()[1]}/changed.csv"
        run = bench.reindex(source=source)
        code = done.wait(run)
    error = _error_of(run, done)
    done.expect(code == 2, f"exit code {code}, expected 2")
    done.expect("task watch failed" in error and source in error, "the error does not name task and source")
    state = look_at_disturbed(bench, done)
    done.expect(state.champion == "1" and len(state.pairs) == 1, "the registry changed")
    done.expect(not (state.open_runs or state.unfinished), "the driver did not tidy up")
    return done


def _error_of(run: PipelineProcess, done: Round) -> str:
    error = next((line.strip() for _, line in run.log.lines if line.startswith("ralm: error")), "no error")
    done.notes.append(error)
    return error


OTHERS: Final[tuple[Callable[[Bench], Round], ...]] = (
    functools.partial(signal_round, name="SIGTERM", number=signal.SIGTERM, task="embed"),
    functools.partial(signal_round, name="Ctrl-C", number=signal.SIGINT, task="register"),
    no_source_round,
    full_disk_round,
)


def run_lane(lane: int, folder: Path, seed: int, kills: range, others: bool, results: Any) -> None:
    """Do every `LANES`-th kill and other disturbance; each round goes to the queue, at last what was not hit."""
    bench = Bench(folder / f"lane-{lane}")
    bench.folder.mkdir()
    try:
        prepare(bench)
        names = [span.name for span in bench.spans]
        tasks = [*FIRST, *(name for name in dict.fromkeys(names) if name not in FIRST)][lane::LANES]
        rng = random.Random(f"{seed} {lane}")
        for number in kills[lane::LANES]:
            found = None
            while found is None:
                lasted = max((span.end_s - span.start_s for span in bench.spans if span.name in tasks[:1]), default=0)
                moment_s = rng.uniform(0, 0.8 * lasted) if tasks else rng.uniform(0, bench.elapsed_s)
                found = kill_round(bench, TARGETS[number % len(TARGETS)], tasks[0] if tasks else "", moment_s)
            done, hit = found
            tasks = [name for name in tasks if name not in hit]
            results.put(done)
        for disturb in OTHERS[lane::LANES] if others else ():
            if disturb is not full_disk_round or may_mount():
                results.put(disturb(bench))
        results.put(tasks)
    finally:
        if bench.run is not None:
            bench.run.kill("all")


def main() -> int:
    """Exit code 0 if nothing was wrong after any disturbance."""
    arguments = _parse()
    if arguments.keep:
        Path(arguments.keep).mkdir(parents=True)
    folder = Path(arguments.keep or tempfile.mkdtemp(prefix="ralm-faults-")).absolute()
    started_at = time.monotonic()
    import_all()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    kills, others = range(arguments.kills), not arguments.only_kills
    given = [(lane, folder, arguments.seed, kills, others, results) for lane in range(LANES)]
    lanes = [context.Process(target=run_lane, args=one) for one in given]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # here and in the lanes, so that they stop what they started
    try:
        for process in lanes:
            process.start()
        rounds, is_whole = collect(lanes, results, folder)
    finally:
        for process in lanes:
            process.terminate()
            process.join()
    killed = [done for done in rounds if done.is_kill]
    answered, equal = sum(done.answered for done in killed), sum(not done.problems for done in killed)
    always = "always answered" if answered == len(killed) else f"answered after {answered} of {len(killed)}"
    print(f"{len(killed)} kills: champion {always}, final state equal in {equal} of {len(killed)}")
    rest = [done for done in rounds if not done.is_kill]
    if rest:
        print(f"{sum(not done.problems for done in rest)} of {len(rest)} other disturbances ended as they should")
    print(f"{time.monotonic() - started_at:.0f} s")
    is_well = is_whole and not any(done.problems for done in rounds)
    if is_well and not arguments.keep:
        shutil.rmtree(folder)
    return 0 if is_well else 1


def collect(lanes: Sequence[Any], results: Any, folder: Path) -> tuple[list[Round], bool]:
    """Show the rounds as they end; all of them, and whether every lane came to its end."""
    rounds: list[Round] = []
    missed: list[str] = []
    ended = 0
    while ended < len(lanes):
        try:
            found = results.get(timeout=1)
        except queue.Empty:
            if any(lane.is_alive() for lane in lanes):
                continue
            print(f"a lane broke off; see {folder}", flush=True)
            return rounds, False
        if isinstance(found, list):
            ended += 1
            missed += found
            continue
        rounds.append(found)
        print(f"{len(rounds):2} {found.show()}", flush=True)
        if found.problems:
            log = folder / f"problem-{len(rounds)}.log"
            log.write_text(found.log, encoding="utf-8")
            print(f"   see {log}", flush=True)
    if missed:
        print(f"tasks that no kill hit: {', '.join(missed)}")
    return rounds, True


def may_mount() -> bool:
    """True if this user may have a disk of his own, in a name space of its own."""
    words = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return (
        shutil.which("unshare") is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    parser.add_argument("--keep", default="", metavar="DIR", help="new folder for all files, which stays")
    parser.add_argument("--only-kills", action="store_true", help="no signals, full disk and missing source")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
