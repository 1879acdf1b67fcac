"""A tiny OpenVLA on recorded CRANE-X7 episodes, through the command that people type."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes import Training, events, losses, rows, state
from workloads.data.robot import open_dataset
from workloads.engine.pretrained import weights
from workloads.run import Run
from workloads.vla.model import load_pretrained
from workloads.vla.policy import Observation, Policy
from workloads.vla.serve.client import PolicyClient

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).resolve().parent.parent.parent
EPISODES = ROOT / "tests/golden/crane_x7/v2"
GOLDEN = ROOT / "tests/golden/openvla/tiny_fused"
PICTURE = "tests/golden/openvla/image_processor/img_224x224.png"
PROFILE = "profiles/recipes/vla-tiny.yaml"
# Over the harness' own words, which come first.
WORDS = (
    "train.max_steps=6",
    "train.per_device_batch_size=2",
    "checkpoints.every_steps=3",
    "evaluation.every_steps=3",
    "parallel.ranks_per_node=1",
)


def unpack(root: Path) -> Path:
    """The golden episodes as a robot's recorder leaves them: two to train on, one held out."""
    for source in sorted(EPISODES.iterdir()):
        target = root / source.name
        shutil.copytree(source, target)
        for packed in target.glob("*.xz"):
            packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
            packed.unlink()
    return root


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("tfrecord_logs"))


def train(folder: Path, recordings: Path, *words: str, **more: Any) -> Training:
    """`tatara train` with the tiny profile; the harness' words for llm alone are left out."""
    settings = [f"data.source={recordings}", *WORDS, "tracking.tensorboard=false", *words]
    cache = {"TATARA_CACHE": str(folder / "cache")}
    return Training(folder, settings, cache, profile=PROFILE, defaults=(), **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Run:
    return train(tmp_path_factory.mktemp("whole"), recordings).end().run


def test_it_trains_looks_and_exports(whole: Run) -> None:
    assert sorted(losses(whole)) == [1, 2, 3, 4, 5, 6]
    looks = [row for row in rows(whole.evaluations) if "eval_loss" in row]
    assert [row["step"] for row in looks] == [3, 6]
    assert {f"eval_error_{at}" for at in range(8)} <= set(looks[0])
    assert all("action_accuracy" in row for row in rows(whole.metrics) if "loss" in row)
    assert json.loads((whole.evaluation / "held_out.json").read_text())["step"] == 6
    assert events(whole, "exported")


def test_what_is_exported_is_the_golden_layout_and_reloads(whole: Run) -> None:
    golden = json.loads((GOLDEN / "config.json").read_text())
    config = json.loads((whole.final / "config.json").read_text())
    assert set(config) == set(golden)
    assert set(config["text_config"]) == set(golden["text_config"])
    changing = ("norm_stats", "torch_dtype", "text_config")
    same = [name for name in golden if name not in changing]
    assert {name: config[name] for name in same} == {name: golden[name] for name in same}
    statistics = json.loads((whole.final / "dataset_statistics.json").read_text())
    assert config["norm_stats"] == statistics
    assert len(statistics["crane_x7"]["action"]["q01"]) == 8
    trained = load_file(whole.checkpoints / "checkpoint-6" / "model.safetensors")
    shapes = {name: tuple(value.shape) for name, value in trained.items()}
    assert weights.load_shapes(whole.final) == shapes
    batch = load_file(GOLDEN / "forward.safetensors")
    names = ("pixel_values", "input_ids", "attention_mask", "labels")
    inputs = {name: batch[name] for name in names}
    exported = load_pretrained(whole.final)
    checkpoint = load_pretrained(whole.checkpoints / "checkpoint-6")
    with torch.no_grad():
        assert torch.equal(exported(**inputs).logits, checkpoint(**inputs).logits)
    actions = exported.predict_action(inputs["input_ids"][:1, :5], inputs["pixel_values"][:1])
    assert actions.shape == (8,)


def test_what_is_trained_is_served_until_it_is_stopped(whole: Run, recordings: Path) -> None:
    env = {**os.environ, "TATARA_OUTPUTS": str(whole.path.parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workloads.cli", "serve", whole.id, "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        episode = open_dataset(recordings)[0]
        image = episode.image("primary", 3)
        client = PolicyClient(url, send="png")
        action = client.act(episode.instruction, image)
        policy = Policy.from_pretrained(whole.final, device="cpu")
        observation = Observation({"primary": image}, episode.instruction)
        assert np.array_equal(action, policy.act([observation])[0, 0])
        ask = subprocess.run(
            [sys.executable, "-m", "workloads.vla.serve.client", "--url", url, "--image", PICTURE]
            + ["--instruction", "take the cube", "--repeat", "3"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        answers = [json.loads(line) for line in ask.stdout.splitlines()]
        assert len(answers) == 3 and all(len(answer["action"]) == 8 for answer in answers)
        assert client.health()["served"] == 4
    finally:
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate(timeout=60)
    assert server.returncode == 0 and "stopped after 4 actions" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        (),
        ("adapter.method=lora", "adapter.r=4", "action_head.kind=oft", "train.workers=1"),
    ],
    ids=["full", "lora-oft"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, recordings: Path, case: tuple[str, ...]
) -> None:
    words = ("train.max_steps=40", "checkpoints.every_steps=100", *case)
    straight = train(tmp_path / "straight", recordings, *words).end().run
    part = train(tmp_path / "part", recordings, *words, fault="wait:5:0")
    part.until_step(4)
    part.signal(signal.SIGTERM)
    part.end(expected=3)
    resumed = train(tmp_path / "part", recordings, *words, resume=True).end().run
    assert losses(resumed) == losses(straight)
    assert len(losses(resumed)) == 40
    assert state(resumed) == state(straight)
