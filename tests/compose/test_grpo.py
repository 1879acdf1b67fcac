"""The service and image of GRPO, themselves, without a GPU: both stages, one after the other."""

from collections.abc import Callable

import pytest

from tests.compose.project import Project, arguments
from tests.support.processes import events, rows
from workloads.grpo.rollouts.rollouts import read_rollouts

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(1800)]

FILES = ("compose.yaml", "compose.cpu.yaml")
SHORT = (
    "data.scenes.count=60",
    "train.max_steps=2",
    "checkpoints.every_steps=2",
    "train.per_device_batch_size=16",
)


def test_the_supervised_stage_and_then_grpo(project: Callable[..., Project]) -> None:
    grpo = project("grpo-h100", FILES, **arguments(*SHORT))
    grpo.up("grpo-h100")
    grpo.ends(grpo_h100=0)
    first = grpo.run("demo-grpo-sft")
    assert (first.final / "model.safetensors").is_file()

    model = f"model.name=outputs/demo-grpo-sft/{first.id}/final"
    words = arguments(*SHORT, model, "rollouts.every_steps=1")
    grpo.write_settings(TATARA_PROFILE="profiles/demo-grpo.yaml", **words)
    grpo.up("grpo-h100")
    grpo.ends(grpo_h100=0)
    run = grpo.run("demo-grpo")
    steps = [row["step"] for row in rows(run.metrics) if "reward" in row]
    assert max(steps) == 2 and events(run, "exported")
    assert {row["step"] for row in read_rollouts(run.path)} == {1, 2}
    written = list(grpo.outputs.rglob("*"))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in written} == {(grpo.uid, grpo.gid)}
