"""How far are the plan's formulas from one step on fake tensors, and what does that step cost?

    python -m bench.plan_exact            # prints the figures
    python -m bench.plan_exact --write    # and writes docs/benchmarks/plan-exact.md

Each case is a profile at a shape that people train. The step runs as `tatara plan --exact` runs it,
in a process of its own, whose processor time and largest memory are noted. The slow tests of
`tests/unit/engine/fake_step` hold the same cases to 3 %.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._pair import ROOT, facts, write_page
from workloads.config.merge import resolve
from workloads.config.sections import Profile
from workloads.device import GIB, MIB
from workloads.plan.estimate import Breakdown, estimate
from workloads.plan.known_shapes import fields_of

GOAL = 0.03
OFFLINE = {"HF_HUB_OFFLINE": "1"}
LLAMA_1B, LLAMA_8B = "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Meta-Llama-3-8B"
QWEN3_SMALL, QWEN3_8B = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"
GEMMA2 = "google/gemma-2-2b-it"


def _shape(family: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Fields of a config.json: layers, hidden, heads, key heads, head size, MLP, vocabulary."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
             "head_dim", "intermediate_size", "vocab_size")  # fmt: skip
    return {"model_type": family, **dict(zip(names, sizes, strict=True)), **more}


MISTRAL = _shape("mistral", (32, 4096, 32, 8, 128, 14336, 32768))
GEMMA = _shape("gemma", (18, 2048, 8, 1, 256, 16384, 256000))
PHI = _shape("phi3", (32, 3072, 32, 32, 96, 8192, 32064), pad_token_id=0)
NEOX = _shape("gpt_neox", (32, 2560, 32, 32, 80, 10240, 50432))
STABLELM = _shape("stablelm", (32, 2560, 32, 32, 80, 6912, 50304))


@dataclass(frozen=True)
class Case:
    """model: the name of a known model, or the fields of its config.json, for a profile of the llm
    workload; profile: one of profiles/ instead."""

    name: str
    settings: tuple[str, ...] = ()
    model: str | Mapping[str, Any] = LLAMA_1B
    profile: str = ""
    gpus: int = 1

    def config(self, folder: Path) -> Profile:
        """Through the same door as the command; folder: for what has to be written."""
        path = ROOT / "profiles" / f"{self.profile}.yaml"
        if not self.profile:
            name = self.model
            if not isinstance(name, str):
                (folder / "config.json").write_text(json.dumps(self.model))
                name = str(folder)
            path = folder / "profile.yaml"
            path.write_text(
                f"workload: llm\nmodel: {{name: {name}}}\ndata: {{source: rows.jsonl}}\n"
            )
        return resolve(path, {}, list(self.settings))[0]


CHECKPOINTING, EAGER = "train.gradient_checkpointing=true", "model.attention=eager"
FULL, LORA, QLORA = "adapter.method=full", "adapter.method=lora", "adapter.method=qlora"
ALL = "adapter.targets=[all-linear]"


def _rows(batch: int, length: int) -> tuple[str, str]:
    return f"train.per_device_batch_size={batch}", f"data.max_length={length}"


CASES = [
    Case("llm-4090: Llama-3.2-1B, FSDP2, 4 ranks", profile="llm-4090", gpus=2),
    Case("vla: OpenVLA-7B, LoRA, batch 8", profile="vla"),
    Case("vla, all weights, checkpointing", (FULL, CHECKPOINTING), profile="vla"),
    Case("recipe vla-oft", profile="recipes/vla-oft"),
    Case("recipe vla-published: LoRA all-linear, batch 16", profile="recipes/vla-published"),
    Case("recipe policy-80gb: Kosmos-2, LSTM", profile="recipes/policy-80gb"),
    Case("policy-80gb with discrete actions, window 4",
         ("action_head.kind=discrete", "action_head.history=none", "data.window=4"),
         profile="recipes/policy-80gb"),
    Case("recipe policy-24gb: Kosmos-2, LoRA", profile="recipes/policy-24gb"),
    Case("recipe policy-paligemma", profile="recipes/policy-paligemma"),
    Case("policy-paligemma on PaliGemma 2, eager",
         ("model.name=google/paligemma2-3b-pt-224", EAGER), profile="recipes/policy-paligemma"),
    Case("recipe policy-qwen: Qwen2.5-VL-3B", profile="recipes/policy-qwen"),
    Case("recipe policy-smolvlm: SmolVLM2-500M", profile="recipes/policy-smolvlm"),
    Case("grpo-h100: Qwen2.5-VL-7B, LoRA, GRPO's loss", profile="grpo-h100"),
    Case("grpo-h100, LoRA all-linear, batch 4",
         (ALL, "train.per_device_batch_size=4"), profile="grpo-h100"),
    Case("recipe grpo-sft: the supervised stage", profile="recipes/grpo-sft"),
    Case("8B, QLoRA, checkpointing, 2,048 tokens",
         (QLORA, CHECKPOINTING, *_rows(1, 2048)), LLAMA_8B),
    Case("8B, QLoRA, 2 x 1,024", (QLORA, "adapter.dropout=0", *_rows(2, 1024)), LLAMA_8B),
    Case("8B, LoRA, 4 x 1,024", (LORA, *_rows(4, 1024)), LLAMA_8B),
    Case("8B, full in bf16, checkpointing, 2,048 tokens",
         ("train.master_weights=compute", CHECKPOINTING, *_rows(1, 2048)), LLAMA_8B),
    Case("8B, int8, checkpointing, 2,048 tokens",
         (QLORA, "adapter.quantisation=int8", CHECKPOINTING, *_rows(1, 2048)), LLAMA_8B),
    Case("8B, QLoRA, FSDP2 on 2 GPUs",
         (QLORA, CHECKPOINTING, "parallel.strategy=fsdp2", *_rows(1, 2048)), LLAMA_8B, gpus=2),
    Case("8B, ZeRO-3 on 4 GPUs",
         (CHECKPOINTING, "parallel.strategy=zero3", *_rows(1, 2048)), LLAMA_8B, gpus=4),
    Case("1B, full, whole logits, FSDP2 on 2 GPUs",
         (CHECKPOINTING, "train.fused_cross_entropy=false", "parallel.strategy=fsdp2",
          *_rows(1, 1024)), gpus=2),
    Case("1B, ZeRO-2 on 2 GPUs, 4 x 2,048",
         (CHECKPOINTING, "parallel.strategy=zero2", *_rows(4, 2048)), gpus=2),
    Case("1B, LoRA, 32,768 tokens", (LORA, CHECKPOINTING, *_rows(1, 32768))),
    Case("1B, LoRA, eager, 8,192 tokens", (LORA, EAGER, CHECKPOINTING, *_rows(1, 8192))),
    Case("1B, LoRA in fp32, 2 x 2,048",
         (LORA, "train.precision=fp32", CHECKPOINTING, *_rows(2, 2048))),
    Case("1B, full, accumulation",
         (CHECKPOINTING, "train.global_batch_size=8", *_rows(2, 2048))),
    Case("Mistral-7B, LoRA, sdpa, 8,192 tokens", (LORA, CHECKPOINTING, *_rows(1, 8192)), MISTRAL),
    Case("Mistral-7B, LoRA, eager, 4,096 tokens",
         (LORA, EAGER, CHECKPOINTING, *_rows(1, 4096)), MISTRAL),
    Case("Qwen3-8B, QLoRA, 8,192 tokens", (QLORA, CHECKPOINTING, *_rows(1, 8192)), QWEN3_8B),
    Case("Qwen3-0.6B, tied, full, 8 x 1,024", (CHECKPOINTING, *_rows(8, 1024)), QWEN3_SMALL),
    Case("Qwen3-0.6B, 8-bit AdamW, 8 x 1,024",
         ("optim.optimizer=adamw_8bit", CHECKPOINTING, *_rows(8, 1024)), QWEN3_SMALL),
    Case("Gemma-2B, full, 4 x 1,024", (CHECKPOINTING, *_rows(4, 1024)), GEMMA),
    Case("Gemma-2B, LoRA, 64 x 128", (LORA, CHECKPOINTING, *_rows(64, 128)), GEMMA),
    Case("Gemma-2-2B, QLoRA, eager, 4,096 tokens",
         (QLORA, EAGER, CHECKPOINTING, *_rows(1, 4096)), GEMMA2),
    Case("Phi-3-mini, LoRA all-linear, 2 x 2,048",
         (LORA, ALL, CHECKPOINTING, *_rows(2, 2048)), PHI),
    Case("GPT-NeoX-2.8B, full in fp16, 1,024 tokens",
         ("train.precision=fp16", CHECKPOINTING, *_rows(1, 1024)), NEOX),
    Case("StableLM-3B, QLoRA all-linear, 4 x 1,024",
         (QLORA, ALL, CHECKPOINTING, *_rows(4, 1024)), STABLELM),
]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What the command's step found, with the seconds and bytes that its process took."""

    allocated: int
    seconds: float
    memory: int


def planned(case: Case, folder: Path) -> tuple[Profile, Breakdown]:
    config = case.config(folder)
    return config, estimate(config, case.gpus, OFFLINE)


def step_of(case: Case, config: Profile, world: int, folder: Path) -> Step:
    """One step in a process of its own, as `tatara plan --exact` starts it."""
    fields, _ = fields_of(config.model, OFFLINE)
    file = folder / "job.json"
    file.write_text(
        json.dumps({"config": config.model_dump(), "fields": dict(fields), "world": world})
    )
    call = [sys.executable, "-m", "workloads.engine.fake_step", str(file)]
    env = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(call, stdout=subprocess.PIPE, cwd=ROOT, env=env, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{case.name}: exit {process.returncode}")
    allocated = int(json.loads(text.splitlines()[-1])["allocated"])
    return Step(allocated, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def report() -> str:
    heads = ["step, GiB allocated", "formulas", "fake step", "error", "processor s", "memory MiB"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    errors, steps = [], []
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            config, found = planned(case, Path(name))
            step = step_of(case, config, found.world_size, Path(name))
        assert found.allocated is not None, found.unknown
        error = found.allocated / step.allocated - 1
        errors.append(abs(error))
        steps.append(step)
        cells = [case.name, f"{found.allocated / GIB:.2f}", f"{step.allocated / GIB:.2f}"]
        cells += [f"{error:+.1%}", f"{step.seconds:.0f}", f"{step.memory / MIB:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    verdict = "met" if max(errors) <= GOAL else "missed"
    seconds, memory = [step.seconds for step in steps], max(step.memory for step in steps)
    lines += [
        "",
        f"Error: median {statistics.median(errors):.1%}, largest {max(errors):.1%}. Goal: at most "
        f"{GOAL:.0%} in every case, {verdict}. The step took {min(seconds):.0f} to "
        f"{max(seconds):.0f} seconds of one processor, and at most {memory / GIB:.2f} GiB.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/plan-exact.md")
    arguments = parser.parse_args()
    text = report()
    print(text.splitlines()[-1])
    if arguments.write:
        print(write_page("plan-exact", _page(text)))


def _page(text: str) -> list[str]:
    sources = ["workloads/plan/gpu_memory.py", "workloads/plan/activations.py"]
    sources.append("workloads/plan/head.py")
    sources += ["workloads/engine/fake_step", "bench/plan_exact.py"]
    packages = ["torch", "transformers", "trl", "peft"]
    return [
        "# Formulas against one step on fake tensors",
        "`tatara plan PROFILE --exact` runs one step of the real module on fake tensors. How far "
        "are the formulas of `tatara plan` from it at the shapes that people train, and what "
        "does it cost? Under ZeRO what DeepSpeed adds and shards is by the formulas on both sides.",
        facts(packages, sources, f"CPU, {os.cpu_count()} cores"),
        text,
        "Tests hold the formulas to 3 %: `pytest tests/unit/engine/fake_step`.",
        "Run it: `python -m bench.plan_exact --write`.",
    ]


if __name__ == "__main__":
    main()
