"""Policy heads on a tiny Kosmos-2 and a small CALVIN, through the command that people type."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.calvin_cases import write_calvin
from tests.support.policy_heads import HEADS, answers_as_its_checkpoint
from tests.support.processes import Training, losses, rows, state
from workloads.data.robot import open_dataset
from workloads.engine.pretrained import weights
from workloads.vla.policy import Observation, Policy

pytestmark = pytest.mark.smoke
ROOT = Path(__file__).resolve().parents[2]
PROFILE = "profiles/recipes/policy-tiny.yaml"
SETTINGS = (
    "data.window=4", "data.eval_share=0.3", "action_head.chunk=3", "action_head.hidden=16",
    "train.max_steps=6", "train.per_device_batch_size=2", "train.global_batch_size=4",
    "checkpoints.every_steps=3", "evaluation.every_steps=3", "parallel.ranks_per_node=1",
    "tracking.tensorboard=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calvin") / "training"
    return write_calvin(folder, spans=((0, 12), (8, 20), (28, 36)))


def train(folder: Path, data: Path, *settings: str, **more: Any) -> Training:
    """`tatara train` with the tiny profile."""
    words = [f"data.source={data}", *SETTINGS, *settings]
    cache = {"TATARA_CACHE": str(folder / "cache")}
    return Training(folder, words, cache, profile=PROFILE, defaults=(), **more)


def frames(data: Path, count: int) -> list[Observation]:
    episode = open_dataset(data)[0]
    return [
        Observation(
            {camera: episode.image(camera, step) for camera in episode.cameras},
            episode.instruction,
            episode.states[step],
        )
        for step in range(count)
    ]


def acted(policy: Policy, seen: list[Observation]) -> np.ndarray:
    memory = policy.new_memory()
    return np.stack([policy.act([observation], memories=[memory])[0] for observation in seen])


@pytest.mark.parametrize(
    "head",
    ["lstm", *(pytest.param(name, marks=pytest.mark.slow) for name in HEADS if name != "lstm")],
)
def test_it_trains_on_two_ranks_sharded_and_exports(tmp_path: Path, data: Path, head: str) -> None:
    """FSDP2; the export answers as the last checkpoint does."""
    settings = ("parallel.ranks_per_node=2", "parallel.strategy=fsdp2", *HEADS[head])
    sharded = train(tmp_path / "two", data, *settings).end().run
    found = [row for row in rows(sharded.metrics) if "loss" in row]
    assert sorted(losses(sharded)) == [1, 2, 3, 4, 5, 6]
    measures = {"action_accuracy"} if head == "discrete" else {"loss_arm", "loss_gripper"}
    assert {*measures, "gripper_accuracy", "l1"} <= set(found[0])
    looks = [row for row in rows(sharded.evaluations) if "eval_loss" in row]
    assert [row["step"] for row in looks] == [3, 6]
    of_heads = {f"eval_{name}" for name in (*measures, "gripper_accuracy", "error_5")}
    assert of_heads <= set(looks[0])
    assert weights.layout(sharded.checkpoints / "checkpoint-6") == "sharded"
    assert answers_as_its_checkpoint(sharded)
    policy = Policy.from_pretrained(sharded.final, device="cpu", report=lambda text: None)
    assert policy.cameras == ("static", "gripper") and policy.remembers
    assert acted(policy, frames(data, 6)).shape == (6, 3, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ("train.workers=1",),
        ("adapter.method=lora", "adapter.targets=all-linear", "action_head.kind=gpt"),
        ("action_head.kind=discrete", "action_head.history=interleaved"),
        ("action_head.kind=fc", "action_head.history=interleaved", "action_head.state=true"),
    ],
    ids=["lstm", "gpt-lora", "discrete", "fc-interleaved"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, data: Path, case: tuple[str, ...]
) -> None:
    settings = ("train.max_steps=24", "checkpoints.every_steps=100", *case)
    straight = train(tmp_path / "straight", data, *settings).end().run
    part = train(tmp_path / "part", data, *settings, fault="wait:5:0")
    part.until_step(4)
    part.signal(signal.SIGTERM)
    part.end(expected=3)
    resumed = train(tmp_path / "part", data, *settings, resume=True).end().run
    assert losses(resumed) == losses(straight) and len(losses(resumed)) == 24
    assert state(resumed) == state(straight)
    seen = frames(data, 6)
    both = [
        Policy.from_pretrained(run.final, device="cpu", report=lambda text: None)
        for run in (straight, resumed)
    ]
    assert np.array_equal(acted(both[0], seen), acted(both[1], seen))
