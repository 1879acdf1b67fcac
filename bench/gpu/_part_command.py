"""`tatara train` and `tatara export` as a person types them, also where something goes wrong.

Faults are put into a real training by tests/fault/inject: a step whose loss is NaN, a rank that
hangs; on a CPU also torch's own error for a GPU that is full.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bench._pair import ROOT
from bench.gpu._train import base_model, free
from bench.gpu.part import Report
from workloads.config.merge import resolve
from workloads.plan.estimate import estimate
from workloads.run import Run
from workloads.run.directory import rows_in
from workloads.run.integrity import sealed

PROFILE = "profiles/demo.yaml"
INJECT = ROOT / "tests" / "fault" / "inject"
PATIENCE = 300.0  # seconds for a state that has to come
# The demo's rows and the run's model, on one rank, without what only costs time here.
SETTINGS = {
    "model.random_init": "false",
    "parallel.nodes": "1",
    "parallel.strategy": "auto",
    "parallel.restart_delay": "0.1",
    "evaluation.task": "null",
    "evaluation.every_steps": "null",
    "evaluation.before": "false",
    "data.eval_rows": "0",
    "export.enabled": "false",
    "tracking.tensorboard": "false",
    "train.epochs": "50",
    "train.max_steps": "12",
    "train.per_device_batch_size": "4",
    "train.precision": "bf16",
    "optim.learning_rate": "1e-4",
    "checkpoints.every_steps": "4",
}


class Training:
    """A `tatara train` of its own outputs folder, as a process."""

    def __init__(self, report: Report, name: str, small: bool = True, fault: str = "") -> None:
        self.report, self.small = report, small
        self.outputs = report.runs / name
        shutil.rmtree(self.outputs, ignore_errors=True)
        self.outputs.mkdir(parents=True)
        self.env = {**os.environ, "TATARA_OUTPUTS": str(self.outputs)}
        if fault:
            path = os.pathsep.join([str(INJECT), os.environ.get("PYTHONPATH", "")])
            self.env |= {"FAULT": fault, "PYTHONPATH": path}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, settings: Mapping[str, str] | None = None, resume: bool = False) -> "Training":
        words = self._words(settings or {}) + (["--resume", "latest"] if resume else [])
        command = [sys.executable, "-m", "workloads.cli", "train", PROFILE, *words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=log)
        return self

    def _words(self, settings: Mapping[str, str]) -> list[str]:
        own = {**SETTINGS, "model.name": str(self.model)}
        return [f"{name}={value}" for name, value in (own | dict(settings)).items()]

    @property
    def model(self) -> Path:
        """Its checkpoints are written again and again: a small model unless told otherwise."""
        if self.small:
            return _small_model(self.report)
        return base_model(self.report)

    @property
    def log(self) -> Path:
        return self.outputs / "console.log"

    @property
    def console(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def run(self) -> Run:
        self.until(lambda: any(self.outputs.glob("*/*/config.json")), "a run directory")
        return Run(max(self.outputs.glob("*/*/config.json")).parent)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something to show in the run's files."""
        end = time.monotonic() + PATIENCE
        while not condition():
            ended = self.process is not None and self.process.poll() is not None
            if (ended and not condition()) or time.monotonic() > end:
                raise RuntimeError(f"expected {what}, found none: {self.console[-1500:]}")
            time.sleep(0.05)

    def end(self) -> int:
        """Wait for the end; its exit code as a shell gives it."""
        assert self.process is not None
        code = self.process.wait()
        print(self.console[-3000:])
        return code if code >= 0 else 128 - code

    def ends(self, expected: int, what: str = "exit code") -> None:
        """Note its exit code; without the expected one there is nothing more to look at."""
        code = self.end()
        self.report.check(what, code == expected, code)
        if code != expected:
            raise RuntimeError(f"{what}: expected {expected}, found {code}: {self.console[-900:]}")

    def losses(self) -> dict[int, float]:
        """The loss of every step, the last word on each."""
        rows = rows_in(self.run.metrics)
        return {row["step"]: row["loss"] for row in rows if row.get("loss") is not None}

    def events(self, name: str) -> list[dict[str, Any]]:
        return [row for row in rows_in(self.run.events) if row["event"] == name]


def _small_model(report: Report) -> Path:
    """A folder with a model of 30 million weights on a GPU, the tiny one on a CPU."""
    if not report.on_gpu:
        return base_model(report)
    folder = report.work / "models" / "llama-small"
    if not (folder / "config.json").is_file():
        source = base_model(report)
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        shape = {
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1408,
            "vocab_size": 1536,
        }
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**shape, pad_token_id=0, eos_token_id=2)).save_pretrained(
            folder
        )
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def train(report: Report) -> None:
    """From rows to an exported model, which is loaded again."""
    training = Training(report, "train", small=False)
    wanted = {"export.enabled": "true", "checkpoints.every_steps": "null"}
    training.start({**wanted, "train.max_steps": "20"}).ends(0)
    losses = list(training.losses().values())
    report.check("the loss falls", losses[-1] < losses[0], f"{losses[0]:.3f} → {losses[-1]:.3f}")
    manifest = json.loads((training.run.path / "manifest.json").read_text())
    report.figures["memory"] = manifest.get("memory")
    report.check("the manifest has its memory", "memory" in manifest)
    if report.on_gpu:
        report.check("the manifest names the card", manifest["memory"]["card"] == report.ran_on)
    made = AutoModelForCausalLM.from_pretrained(training.run.final, dtype=torch.bfloat16)
    report.check("the exported model loads", made.num_parameters() > 0, made.num_parameters())
    del made
    free()
    attention = [line for line in training.console.splitlines() if line.startswith("attention:")]
    report.figures["attention"] = attention[:1]


def resume(report: Report) -> None:
    """Killed and stopped on the way, it ends with the losses of one that was left alone."""
    long = {"train.max_steps": "40", "train.epochs": "100"}
    whole = Training(report, "whole").start(long)
    hurt = Training(report, "hurt").start(long)  # beside it: both are small
    hurt.until(lambda: any(step >= 6 for step in hurt.losses()), "step 6")
    os.kill(int(hurt.run.statuses()[0]["pid"]), signal.SIGKILL)
    hurt.until(lambda: bool(hurt.events("restarted")), "a restart")
    report.check("killed: it is started again", True, hurt.events("restarted")[0]["reason"])
    hurt.until(lambda: any(step >= 12 for step in hurt.losses()), "step 12")
    assert hurt.process is not None
    hurt.process.send_signal(signal.SIGTERM)
    hurt.ends(3, "stopped: exit code")
    kept = sealed(hurt.run.checkpoints)
    report.check("stopped: a checkpoint is there", bool(kept), [path.name for path in kept])
    hurt.start(long, resume=True).ends(0, "resumed: exit code")
    whole.ends(0, "left alone: exit code")
    mine, other = hurt.losses(), whole.losses()
    report.check("every step is there", mine.keys() == other.keys(), len(mine))
    worst = max(abs(mine[step] / other[step] - 1) for step in other if step in mine)
    report.check("the same losses", worst < 1e-3, f"at most {worst:.2e} off")


def nan(report: Report) -> None:
    """A step with a NaN is left out, named, and the run goes on."""
    training = Training(report, "nan", fault="nan:5:0").start()
    training.ends(0)
    found = training.events("nonfinite")
    report.check("the step is named", [item["step"] for item in found] == [5], found[:1])
    weights = load_file(sealed(training.run.checkpoints)[-1] / "model.safetensors")
    finite = all(bool(torch.isfinite(value).all()) for value in weights.values())
    report.check("the weights hold no NaN", finite)
    after = [loss for step, loss in training.losses().items() if step > 5]
    report.check("later losses are numbers", bool(after) and all(map(math.isfinite, after)))


def hang(report: Report) -> None:
    """A rank that makes no progress is named and started again."""
    training = Training(report, "hang", fault="hang:5:0")
    # The first step on a GPU loads kernels and compiles some, which is no hang.
    training.start({"parallel.hang_timeout": "30" if report.on_gpu else "20"})
    training.ends(0)
    restart = (training.events("restarted") or [{"reason": ""}])[-1]
    named = "rank 0" in restart["reason"] and "no progress" in restart["reason"]
    report.check("the rank is named", named, restart["reason"])
    logs = "".join(path.read_text() for path in (training.run.path / "logs").glob("*.log"))
    report.check("its stack is in the log", "strike" in logs)


def memory(report: Report) -> None:
    """Out of memory: what to change is said; halving finds a micro-batch that fits."""
    settings = _too_large(report) if report.on_gpu else {}
    fault = "" if report.on_gpu else "oom:3:0"
    if not report.on_gpu:
        report.note("on a CPU torch's error for a full GPU is raised by hand, not met")
    training = Training(report, "advice", small=not report.on_gpu, fault=fault).start(settings)
    training.ends(1, "stop: exit code")
    said = training.console
    fixes = said.count("train.") + said.count("adapter.")
    report.check("stop: it says what to change", "out of memory" in said and fixes >= 3, fixes)
    report.figures["advice"] = said[-900:]
    training = Training(report, "halve", small=not report.on_gpu, fault=fault)
    training.start({**settings, "train.on_out_of_memory": "halve"}).ends(0, "halve: exit code")
    starts = training.events("training")
    sizes = [start["per_device_batch_size"] for start in starts]
    rows = {start["per_device_batch_size"] * start["accumulation_steps"] for start in starts}
    report.check("halve: smaller micro-batches", sizes[-1] < max(sizes) or len(sizes) == 1, sizes)
    report.check("halve: the same rows a step", len(rows) == 1, sorted(rows))


def _too_large(report: Report) -> dict[str, str]:
    """A micro-batch of packed rows that does not fit this card, by the plan, while half of it
    does."""
    total = torch.cuda.get_device_properties(0).total_memory
    free()
    # An adapter's checkpoint is small; one of all weights and moments has 15 GB.
    base = {"data.packing": "true", "data.max_length": "2048", "train.max_steps": "3",
            "checkpoints.every_steps": "null", "train.epochs": "500",
            "adapter.method": "lora"}  # fmt: skip
    size = 4
    while True:
        words = {**SETTINGS, **base, "model.name": str(base_model(report))}
        words["train.per_device_batch_size"] = str(size)
        config, _ = resolve(ROOT / PROFILE, {}, [f"{a}={b}" for a, b in words.items()])
        if (estimate(config, 1, {}).total or 0) > 1.15 * total:
            return {**base, "train.per_device_batch_size": str(size)}
        size += 2


def merge(report: Report) -> None:
    """A LoRA adapter learns, is merged into the base, and the whole model computes the same."""
    training = Training(report, "merge", small=False)
    lora = {"adapter.method": "lora", "optim.learning_rate": "1e-3"}
    training.start({**lora, "export.enabled": "true"}).ends(0)
    whole = training.outputs / "whole"
    command = [sys.executable, "-m", "workloads.cli", "export", str(training.run.path)]
    done = subprocess.run(
        [*command, "--merge", "--output", str(whole)],
        cwd=ROOT, env=training.env, capture_output=True, text=True,
    )  # fmt: skip
    report.check("export --merge: exit code", done.returncode == 0, done.returncode)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "logits" in line]
    report.check("merged logits were compared", bool(said), said[:1])
    made = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(training.model, dtype=torch.bfloat16)
    changed = any(
        not torch.equal(drawn, other)
        for drawn, other in zip(made.parameters(), base.parameters(), strict=True)
    )
    report.check("the merged weights differ from the base's", changed)
