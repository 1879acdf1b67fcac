"""How long from the command to the first step? Beside torchrun and `accelerate launch`.

    python -m bench.launch            # prints the figures
    python -m bench.launch --write    # and writes docs/benchmarks/launch.md

Two ranks over gloo on this machine train one step of a tiny Llama on the demo's rows: `tatara
train`, and the script that one writes for TRL by hand (bench/_peer_sft.py) under both launchers.
The clock runs from the start of the command to the moment that rank 0 has logged its first step;
all must log the same loss. Nothing is cached but the files of the libraries.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bench._pair import ROOT, Timed, benchmark_parser, facts, write_page

BIN = Path(sys.executable).parent
DEMO = ROOT / "data" / "demo"
SCRIPT = ROOT / "bench" / "_peer_sft.py"
RANKS = 2
OURS, TORCHRUN, ACCELERATE = "tatara train", "torchrun script.py", "accelerate launch script.py"
GOALS = {TORCHRUN: 1.1, ACCELERATE: 0.6}
PROFILE = """
workload: llm
model: {{name: {model}}}
data: {{source: {rows}, format: qa, max_length: 320}}
optim: {{learning_rate: 2.0e-3}}
train: {{max_steps: 1, per_device_batch_size: 8, precision: fp32}}
parallel: {{nodes: 1, ranks_per_node: 2, strategy: ddp}}
export: {{enabled: false}}
tracking: {{tensorboard: false}}
"""


@dataclass(frozen=True)
class Started:
    """Seconds from the command to the first logged step, and that step's loss."""

    seconds: float
    loss: float


def main() -> None:
    options = benchmark_parser("launch", __doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        timed = _measure(Path(folder), options.rounds)
    text = _table(timed)
    known = facts(
        ["torch", "transformers", "trl", "accelerate"],
        ["workloads", "bench/launch.py", "bench/_peer_sft.py"],
        options.machine,
    )
    print(f"{text}\n\n{known}")
    if options.write:
        print(f"wrote {write_page('launch', [*_introduction(options.rounds), text, known])}")


def _introduction(rounds: int) -> list[str]:
    return [
        "# From the command to the first step",
        "Two ranks over gloo on one machine, a tiny Llama, the demo's rows, DDP in fp32: from the "
        "start of the command to the first step that rank 0 has logged, in turns, "
        f"{rounds} times after one that warms the file cache. The peers run the script that one "
        "writes for TRL by hand. All log the same loss at that step. Rows are tokenised anew each "
        "time on all sides. Ours also checks the profile, the disk and the plan, makes the run "
        "directory, and digests the data.",
        "The goals are at most "
        + " and ".join(f"{goal:.1f} times `{name}`" for name, goal in GOALS.items())
        + ". Most of the time is imports: those of the launcher, then those of the ranks.",
        "Run it: `python -m bench.launch --write`.",
    ]


def _measure(folder: Path, rounds: int) -> Timed:
    model = _model(folder / "model")
    rows = DEMO / "gsm8k.jsonl"
    profile = folder / "launch.yaml"
    profile.write_text(PROFILE.format(model=model, rows=rows))
    peer = [str(SCRIPT), str(model), str(rows)]
    torchrun = [str(BIN / "torchrun"), "--standalone", f"--nproc-per-node={RANKS}"]
    # `--multi_gpu` is how accelerate starts several ranks here; the script says `use_cpu`.
    accelerate = [str(BIN / "accelerate"), "launch", "--multi_gpu", f"--num_processes={RANKS}"]
    accelerate += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    starts: dict[str, Callable[[Path], Started]] = {
        OURS: lambda out: _ours(profile, out),
        TORCHRUN: lambda out: _peer([*torchrun, *peer, str(out)], out),
        ACCELERATE: lambda out: _peer([*accelerate, *peer, str(out)], out),
    }
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(rounds + 1):
        turn = {
            name: start(folder / f"{number}-{place}")
            for place, (name, start) in enumerate(starts.items())
        }
        _assert_same(turn)
        print({name: round(side.seconds, 1) for name, side in turn.items()}, flush=True)
        for name, side in turn.items() if number else ():
            seconds[name].append(side.seconds)
    return Timed(seconds)


def _model(folder: Path) -> Path:
    """Weights on disk, so that all sides begin with the same ones."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(DEMO / "tiny-llama")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "tiny-llama").save_pretrained(folder)
    return folder


def _ours(profile: Path, out: Path) -> Started:
    words = [sys.executable, "-m", "workloads.cli", "train", str(profile)]
    since = _run(words, out)
    (metrics,) = out.glob("outputs/*/*/metrics.jsonl")
    return _first(metrics, since)


def _peer(words: Sequence[str], out: Path) -> Started:
    since = _run(words, out)
    return _first(out / "steps.jsonl", since)


def _run(words: Sequence[str], out: Path) -> float:
    """Run a command to its end with caches of its own; when it was started, seconds since 1970."""
    out.mkdir()
    env = {
        **os.environ,
        "TATARA_OUTPUTS": str(out / "outputs"),
        "TATARA_CACHE": str(out / "cache"),
        "HF_DATASETS_CACHE": str(out / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    since = time.time()
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return since


def _first(path: Path, since: float) -> Started:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    row = next(row for row in rows if row["step"] == 1 and "loss" in row)
    return Started(row["time"] - since, row["loss"])


def _assert_same(turn: dict[str, Started]) -> None:
    ours = turn[OURS].loss
    for name, started in turn.items():
        loss = started.loss
        assert abs(loss - ours) < 1e-4, f"{name} logged {loss}, ours {ours}"


def _table(timed: Timed) -> str:
    heads = ["command", "median", "range", "ours takes (range)", "goal"]
    lines: list[list[Any]] = [heads, ["---"] * len(heads)]
    for name, seconds in timed.seconds.items():
        cells = [f"`{name}`", f"{median(seconds):.1f} s"]
        cells += [f"{min(seconds):.1f}–{max(seconds):.1f}", "–", "–"]
        if name in GOALS:
            ratios = [1 / ratio for ratio in timed.ratios(name)]
            cells[3] = f"**{median(ratios):.2f}x** ({min(ratios):.2f}–{max(ratios):.2f})"
            met = "met" if median(ratios) <= GOALS[name] else "missed"
            cells[4] = f"{GOALS[name]:.1f}x, {met}"
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
