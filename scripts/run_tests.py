"""Run the groups of tests that this machine can, and say which were left out and why.

    python scripts/run_tests.py [--full [--rest]] [--deadline SECONDS]

Without --full: what needs neither GPU nor containers and is not slow. --full adds the containers,
the slow half of the fault matrix and, where there is one, the GPU. Exit code 1 where a test failed
or the deadline cut the quick groups; groups of --full that the deadline cuts are named.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache" / "tests"
NOTHING_COLLECTED = 5
LEAST_SECONDS = 60  # less is not worth starting a group for
CODE = ("unit", "golden", "shell")
PROCESSES = ("smoke", "fault")


@dataclass(frozen=True)
class Group:
    """Test folders that run together, the marker expression, and how many at once."""

    name: str
    folders: tuple[str, ...]
    markers: str
    workers: int
    essential: bool = True
    python: str = sys.executable
    setup: str = ""  # what makes that Python, in the repository


@dataclass
class Outcome:
    """Counts of one group; `cut` where the deadline ended it.

    unsteady: how many of those that passed did so at the second try.
    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    cut: bool = False
    unsteady: int = 0


QUICK = (
    Group("code", CODE, "not slow and not gpu", workers=2),
    Group("processes", PROCESSES, "not slow and not gpu", workers=2),
)
SLOW = Group("slow", (*CODE, *PROCESSES), "slow and not gpu", workers=2, essential=False)
COMPOSE = Group("compose", ("compose",), "not slow and not gpu", workers=0, essential=False)
# Jobs of a scheduler that signals them: a Slurm with two nodes.
CLUSTER = Group("cluster", ("cluster",), "cluster", workers=0, essential=False)
# Images of many gigabytes.
LARGE = Group("large images", ("compose",), "slow and not gpu", workers=0, essential=False)
VLLM = Group(
    "vllm",
    ("vllm",),
    "vllm",
    workers=0,
    essential=False,
    python=str(ROOT / ".cache" / "venv-vllm" / "bin" / "python"),
    setup="scripts/vllm_environment.sh",
)
OPTIONAL = Group(
    "optional packages",
    ("unit", "fault"),
    "optional",
    workers=0,
    essential=False,
    python=str(ROOT / ".cache" / "venv-optional" / "bin" / "python"),
    setup="scripts/optional_environment.sh",
)
GPU = Group("gpu", ("gpu", *CODE, *PROCESSES), "gpu", workers=0, essential=False)


def main() -> int:
    """Run the groups in order of what they tell per second."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--full", action="store_true", help="containers, slow tests and GPU too")
    parser.add_argument("--rest", action="store_true", help="of --full, what the quick run has not")
    parser.add_argument("--deadline", type=float, default=3600.0, help="seconds for everything")
    args = parser.parse_args()
    # What a shell in the background, nohup or a supervisor ignores would be ignored by all that is
    # started from here: tests that press Ctrl-C, end a job or close a terminal would wait forever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    end = time.monotonic() + args.deadline
    groups, left_out = choose(args.full)
    groups = [group for group in groups if not (args.rest and group in QUICK)]
    total, code = Outcome(), 0
    for group in groups:
        seconds = end - time.monotonic()
        if seconds < LEAST_SECONDS:
            left_out[group.name] = f"the deadline of {args.deadline:.0f} s had come"
            code |= int(group.essential)
            continue
        if not is_set_up(group):
            left_out[group.name] = f"{group.setup} could not make its environment"
            continue
        outcome, group_code = run(group, end - time.monotonic())
        if outcome.cut:
            left_out[group.name] = f"cut at the deadline, after {outcome.passed} tests that passed"
        code |= group_code
        total.passed += outcome.passed
        total.failed += outcome.failed
        total.skipped += outcome.skipped
        total.unsteady += outcome.unsteady
    for name, reason in left_out.items():
        print(f"LEFT OUT {name}: {reason}")
    if total.unsteady:
        told = "passed at the second try only, alone; they are named above"
        print(f"UNSTEADY: {total.unsteady} {told}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return code


def choose(full: bool) -> tuple[list[Group], dict[str, str]]:
    """The groups to run, and the reason for each that is not."""
    left_out = {}
    groups = list(QUICK)
    if not full:
        left_out["slow"] = "more than half a minute each; 'make test-full' runs them"
        left_out["compose"] = "needs containers; 'make test-full' runs them"
        left_out["cluster"] = "needs a Slurm; 'make test-full' runs them where one answers"
        left_out["vllm"] = "needs vLLM for CPUs; 'make test-full' installs it and runs them"
        left_out["optional"] = "needs bitsandbytes and lm_eval; 'make test-full' installs them"
        left_out["gpu"] = "needs an NVIDIA GPU; 'make test-full' runs them where there is one"
        return groups, left_out
    if slurm_answers():
        groups.append(CLUSTER)
    else:
        left_out["cluster"] = "no Slurm with two nodes answers"
    if engine_answers():
        groups += [COMPOSE, VLLM, OPTIONAL, SLOW, LARGE]
    else:
        left_out["compose"] = "no Docker engine answers; start one"
        groups += [VLLM, OPTIONAL, SLOW]
    if gpu_is_there():
        groups.append(GPU)
    else:
        left_out["gpu"] = "no NVIDIA GPU on this machine"
    return groups, left_out


def engine_answers() -> bool:
    """Whether `docker version` reaches a server."""
    if shutil.which("docker") is None:
        return False
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


def slurm_answers() -> bool:
    """Whether `sinfo` lists two nodes that answer."""
    if shutil.which("sbatch") is None:
        return False
    command = ["sinfo", "--noheader", "--Node", "--responding", "--format=%N"]
    listing = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return len(set(listing.stdout.split())) >= 2


def gpu_is_there() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def is_set_up(group: Group) -> bool:
    """Whether the group's own Python is there; it is made where it is not."""
    script = ROOT / group.setup
    return not group.setup or (script.is_file() and subprocess.run([script]).returncode == 0)


def run(group: Group, seconds: float) -> tuple[Outcome, int]:
    """Run one group within the seconds given; its counts and 0 where nothing failed."""
    folders = [f"tests/{name}" for name in group.folders if has_tests(ROOT / "tests" / name)]
    print(f"--- {group.name}: {' '.join(folders) or 'no tests'}", flush=True)
    if not folders:
        return Outcome(), 0
    report = REPORTS / f"{group.name}.xml"
    REPORTS.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [group.python, "-m", "pytest", "-q", "--durations=5", "--durations-min=5"]
    command += ["-m", group.markers, f"--junitxml={report}", f"--session-timeout={seconds:.0f}"]
    command += ["-n", str(group.workers), "--dist", "worksteal"] if group.workers else []
    begin = time.monotonic()
    returncode = run_bounded([*command, *folders], seconds + LEAST_SECONDS)
    outcome = read(report)
    if returncode in (0, NOTHING_COLLECTED):
        return outcome, 0
    left = seconds - (time.monotonic() - begin)
    if outcome.failed and left > LEAST_SECONDS:
        return second_look(
            command[: command.index("-n")] if group.workers else command, folders, outcome, left
        )
    outcome.cut = not outcome.failed and (returncode < 0 or ran_out_of_time(report, seconds))
    return outcome, 0 if outcome.cut and not group.essential else 1


def second_look(
    command: list[str], folders: list[str], first: Outcome, seconds: float
) -> tuple[Outcome, int]:
    """Run what failed once more, one at a time; what passes now is named as such.

    Processes, threads and sockets race with whatever else a machine does: one such test among
    thousands would hide what all others say.
    """
    report = REPORTS / "again.xml"
    report.unlink(missing_ok=True)
    words = [word for word in command if not word.startswith(("--junitxml=", "--session-timeout="))]
    words += ["--last-failed", f"--junitxml={report}", f"--session-timeout={seconds:.0f}"]
    print(f"--- once more, alone: {first.failed} that failed", flush=True)
    returncode = run_bounded([*words, *folders], seconds + LEAST_SECONDS)
    again = read(report)
    print(f"--- {again.passed} passed at the second try, {again.failed} failed twice", flush=True)
    passed = first.passed + again.passed
    whole = Outcome(passed, again.failed, first.skipped, unsteady=again.passed)
    return whole, int(returncode != 0)


def has_tests(folder: Path) -> bool:
    return any(folder.rglob("test_*.py"))


def run_bounded(command: list[str], seconds: float) -> int:
    """Run a command in a group of its own, which is ended as a whole when its time is over."""
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    with subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True) as process:
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return process.returncode or -signal.SIGKILL
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ran_out_of_time(report: Path, seconds: float) -> bool:
    """Whether the tests of a report took all the time there was."""
    if not report.is_file():
        return False
    suite = ElementTree.parse(report).getroot().find("testsuite")
    return suite is not None and float(suite.get("time", 0)) >= seconds


def read(report: Path) -> Outcome:
    """The counts of a JUnit report; none where the tests were killed before they wrote it."""
    if not report.is_file():
        return Outcome()
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        return Outcome()
    tests, failures, errors, skipped = (
        int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return Outcome(passed=tests - failed - skipped, failed=failed, skipped=skipped)


if __name__ == "__main__":
    sys.exit(main())
