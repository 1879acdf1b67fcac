"""What does an attached monitor cost a training, and how much memory does it take?

    python -m bench.monitor            # prints the figures
    python -m bench.monitor --write    # and writes docs/benchmarks/monitor.md

One real training of the demo profile runs all the time, with a monitor attached to it in a
terminal of 140 x 44 cells. In turns the monitor is suspended and goes on. Compared are the medians
of the step times in metrics.jsonl of neighbouring turns; read from /proc is what the monitor takes.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from bench._pair import benchmark_parser, facts, write_page
from workloads.processes import is_stopped

# Seconds of a turn, and of its beginning that does not count: going on, a monitor draws all anew.
WINDOW, SETTLE = 6.5, 0.5
ROWS, COLUMNS = 44, 140
# Steps are short, so that a turn has many of them, and nothing but steps happens.
QUICK = (
    "train.epochs=100000",
    "train.per_device_batch_size=2",
    "checkpoints.every_steps=null",
    "evaluation.every_steps=null",
    "evaluation.task=null",
    "export.enabled=false",
)
ONE_RANK = ("parallel.nodes=1", "parallel.strategy=single")


@dataclass(frozen=True)
class Taken:
    """What the attached monitor took: share of a processor in every turn, bytes at its highest."""

    cpu: list[float]
    peak: int


@dataclass(frozen=True)
class Result:
    name: str
    ratios: list[float]  # step time with the monitor awake over step time without, by round
    work: list[float]  # the same of the ranks' processor time a step
    off: float  # median seconds of a step without
    steps: int
    taken: Taken


def main() -> None:
    arguments = benchmark_parser("monitor", __doc__, rounds=16).parse_args()
    # What was started here ends here, whoever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = [
        measure("1 rank, the other processor free", ONE_RANK, arguments.rounds),
        measure("2 ranks, both processors busy", (), arguments.rounds),
    ]
    text = table(results)
    sources = ["workloads/monitor", "bench/monitor.py", "bench/_pair.py"]
    known = facts(["textual", "torch", "transformers"], sources, arguments.machine)
    verdict = _verdict(results)
    print(f"{text}\n\n{verdict}\n\n{known}")
    if arguments.write:
        page = [*_introduction(arguments.rounds), text, verdict, known]
        print(f"wrote {write_page('monitor', page)}")


def _introduction(rounds: int) -> list[str]:
    return [
        "# A monitor attached to a training",
        "The demo profile trains without a pause and `tatara monitor` is attached to it in a "
        f"terminal of {COLUMNS} x {ROWS} cells; in {rounds} rounds it is suspended for a turn and "
        f"goes on for a turn, in changing order. A turn counts for {WINDOW - SETTLE:.0f} s: the "
        "median step time of metrics.jsonl, and the processor time of the ranks over the steps. "
        "Ratios are taken within a round; in brackets is their middle half. On a machine that does "
        "other work too, neighbouring turns differ by far more than the monitor costs; the share "
        "of one processor that it took, from /proc, is the firmer figure: a training that keeps "
        "all processors busy can lose no more than that share of one of them.",
        "The goals are 0.5 % of step time and 60 MB.",
        "Run it: `python -m bench.monitor --write`.",
    ]


def measure(name: str, words: tuple[str, ...], rounds: int) -> Result:
    """Start a training, attach a monitor, and let it sleep every other turn."""
    turns: dict[bool, list[Turn]] = {True: [], False: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        training(Path(folder), words) as run,
        contextlib.closing(Attached(Path(folder), run.name)) as monitor,
    ):
        time.sleep(5)  # attached once, it is attached for hours: its start does not count
        for number in range(rounds):
            for awake in (True, False) if number % 2 else (False, True):
                turns[awake].append(turn(run, monitor, awake))
            print(f"{name}: round {number + 1} of {rounds}", flush=True)
        monitor.wake(True)
        time.sleep(2)
        peak = monitor.peak()
        monitor.detach()
    pairs = list(zip(turns[True], turns[False], strict=True))
    return Result(
        name,
        ratios=[on.step / off.step for on, off in pairs],
        work=[on.work / off.work for on, off in pairs],
        off=median(item.step for item in turns[False]),
        steps=sum(item.steps for item in turns[True] + turns[False]),
        taken=Taken([item.share for item in turns[True]], peak),
    )


@contextlib.contextmanager
def training(outputs: Path, words: tuple[str, ...]) -> Iterator[Path]:
    """A training of the demo profile, well past its first steps; stopped at the end."""
    env = {**os.environ, "TATARA_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workloads.cli", "train", "profiles/demo.yaml", *QUICK, *words]
    log = (outputs / "console.log").open("wb")
    with log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + 180
            while not (run := next(outputs.glob("demo/*"), None)) or len(_rows(run)) < 30:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((outputs / "console.log").read_text()[-2000:])
                time.sleep(0.2)
            yield run
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


@dataclass(frozen=True)
class Turn:
    """Seconds of a step, the ranks' processor seconds a step, the monitor's processor share."""

    step: float
    work: float
    share: float
    steps: int


def turn(run: Path, monitor: "Attached", awake: bool) -> Turn:
    """Measure one turn."""
    monitor.wake(awake)
    ranks = [json.loads(path.read_text())["pid"] for path in run.glob("status/[0-9]*.json")]
    time.sleep(SETTLE)
    begun, before = time.monotonic(), (monitor.seconds(), sum(map(_seconds, ranks)))
    time.sleep(WINDOW - SETTLE)
    ended, after = time.monotonic(), (monitor.seconds(), sum(map(_seconds, ranks)))
    rows = [row for row in _rows(run) if begun <= row["monotonic"] <= ended]
    return Turn(
        step=median(row["seconds_per_step"] for row in rows),
        work=(after[1] - before[1]) / len(rows),
        share=(after[0] - before[0]) / (ended - begun),
        steps=len(rows),
    )


def _seconds(pid: int) -> float:
    """Processor time that a process has taken."""
    text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")


def _rows(run: Path) -> list[dict[str, float]]:
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    except OSError:
        return []
    return [row for line in lines if "loss" in (row := json.loads(line))]


class Attached:
    """A monitor in a terminal of its own."""

    def __init__(self, outputs: Path, run: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        env = {**os.environ, "TATARA_OUTPUTS": str(outputs), "TERM": "xterm-256color"}
        command = [sys.executable, "-m", "workloads.cli", "monitor", run]
        self._process = subprocess.Popen(
            command, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.shown = b""
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while part := os.read(self._master, 1 << 16):
                self.shown = (self.shown + part)[-(1 << 16) :]

    def wake(self, awake: bool) -> None:
        """Suspend it as Ctrl-Z does, or let it go on."""
        if awake == is_stopped(self._process.pid):
            os.kill(self._process.pid, signal.SIGCONT if awake else signal.SIGTSTP)

    def seconds(self) -> float:
        return _seconds(self._process.pid)

    def peak(self) -> int:
        """Its resident memory at its highest, in bytes."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) * 1024

    def detach(self) -> None:
        """Press q, as a person does; it must end by itself, and must have shown the run."""
        os.write(self._master, b"q")
        code = self._process.wait(20)
        assert code == 0 and b"training" in self.shown, self.shown[-500:]

    def close(self) -> None:
        """End it in any case."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)


def table(results: list[Result]) -> str:
    heads = ["training", "step", "steps", "step time, awake / asleep"]
    heads += ["ranks' processor time a step, awake / asleep"]
    lines = [[*heads, "monitor: share of a processor", "monitor: peak memory"]]
    lines.append(["---"] * len(lines[0]))
    for result in results:
        cpu = result.taken.cpu
        share = f"**{sum(cpu) / len(cpu):.2%}** ({min(cpu):.2%}–{max(cpu):.2%})"
        cells = [
            result.name,
            f"{result.off * 1e3:.0f} ms",
            f"{result.steps:,}",
            _ratio(result.ratios),
        ]
        cells += [_ratio(result.work), share, f"**{result.taken.peak / 1e6:.1f} MB**"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _verdict(results: list[Result]) -> str:
    share = max(sum(result.taken.cpu) / len(result.taken.cpu) for result in results)
    processors = len(os.sched_getaffinity(0))
    return (
        f"The monitor takes {share:.2%} of one processor: {share / processors:.2%} of the "
        f"{processors} here, which is what a training that fills them all can lose to it."
    )


def _ratio(values: list[float]) -> str:
    """Median and the middle half: single turns meet whatever else the machine does."""
    low, middle, high = quantiles(values, n=4)
    return f"**{middle:.3f}** ({low:.3f}–{high:.3f})"


if __name__ == "__main__":
    main()
