"""`tatara eval superclevr` by the real vLLM: the same answers and score as by transformers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.test_grpo_train import GrpoTraining
from tests.support.processes import ROOT
from tests.vllm.engine import environment
from tests.vllm.tiny_qwen import write_qwen
from workloads.grpo.data.rows import QUESTION, generate_scenes, write_imagefolder

pytestmark = pytest.mark.vllm

PROFILE = """\
workload: grpo
stage: sft
summary: a tiny model learns to answer in the form that is scored
model: {{name: {model}}}
data:
  source: scenes
  prompt: superclevr
  scenes: {{count: 64, least: 1, most: 4, width: 72, height: 36}}
grpo: {{max_prompt_length: 480, max_completion_length: 40}}
optim: {{learning_rate: 5e-3}}
train: {{max_steps: 60, per_device_batch_size: 16, precision: fp32}}
parallel: {{ranks_per_node: 1, restarts: 0}}
evaluation: {{rows: 0}}
tracking: {{tensorboard: false}}
"""
COUNT = 12


def ask(engine: str, model: Path, folder: Path) -> dict[str, Any]:
    out = folder / f"{engine}.json"
    command = [sys.executable, "-m", "workloads.cli", "eval", "superclevr", "--model", str(model)]
    command += ["--prompts", str(folder / "prompts.jsonl"), "--images", str(folder / "images")]
    command += ["--precision", "fp32", "--batch-size", "4", "--engine", engine, "--out", str(out)]
    env = environment(folder / "out")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Qwen2.5-VL-3B-Instruct, GRPO 100 steps" in done.stdout
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_both_engines_answer_and_score_alike(tmp_path: Path) -> None:
    profile = tmp_path / "form.yaml"
    profile.write_text(PROFILE.format(model=write_qwen(tmp_path / "qwen")))
    more = environment(tmp_path / "out") | {"TATARA_CACHE": str(tmp_path / "cache")}
    model = GrpoTraining(profile, tmp_path / "out", (), more).end().run.final
    scenes = generate_scenes(COUNT, 7, "A", (1, 4), (72, 36))
    write_imagefolder(scenes, tmp_path / "images")
    lines = [
        {
            "image_path": f"./images/{place:06d}.png",
            "question": QUESTION,
            "ground_truth": int(scene["solution"].split()[1]),
        }
        for place, scene in enumerate(scenes)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "prompts.jsonl").write_text(text)
    own, other = (ask(engine, model, tmp_path) for engine in ("transformers", "vllm"))
    assert len(own["results"]) == COUNT
    outputs = [[answer["model_output"] for answer in result["results"]] for result in (own, other)]
    assert outputs[0] == outputs[1]
    assert own["accuracy"] == other["accuracy"] > 0
