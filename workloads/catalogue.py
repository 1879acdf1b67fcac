"""The workloads of this version: what the rest of the package must know of each, as strings.

Adding a workload touches its folder, one entry here, one service, one image target, one profile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

_TRAINING = ("torch", "transformers", "accelerate", "datasets", "peft", "safetensors", "pyarrow")


@dataclass(frozen=True)
class Workload:
    """schema: `module:class` of its config. packages: what its image must be able to import.

    fake_step: `module:function` that builds one training step on fake tensors.

    tasks: evaluation → (module with `add_arguments` and `main`, one line of help).
    """

    schema: str
    fake_step: str
    packages: tuple[str, ...]
    tasks: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    is_policy_gradient: bool = False  # its loss is no measure of progress


_COUNTING = "workloads.grpo.evaluate.command"
WORKLOADS: Mapping[str, Workload] = {
    "llm": Workload(
        "workloads.llm.config:LlmConfig",
        "workloads.llm.fake_step:build",
        (*_TRAINING, "trl"),
        {
            "gsm8k": ("workloads.llm.evaluate.command", "grade-school maths, scored by the answer"),
            "tasks": (
                "workloads.llm.evaluate.tasks_command",
                "tasks of lm-evaluation-harness, or your own from a file",
            ),
        },
    ),
    "grpo": Workload(
        "workloads.grpo.config:GrpoConfig",
        "workloads.grpo.fake_step:build",
        (*_TRAINING, "trl", "math_verify", "PIL"),
        {
            "superclevr": (_COUNTING, "counting objects in images, as R1-V scores it"),
            "geoqa": (_COUNTING, "geometry questions, as R1-V scores them"),
        },
        is_policy_gradient=True,
    ),
    "vla": Workload(
        "workloads.vla.config:VlaConfig",
        "workloads.vla.fake_step:build",
        (*_TRAINING, "PIL", "av", "google_crc32c"),
        {
            "reach": ("workloads.vla.reach.command", "a policy's success in the reach simulator"),
            "recall": (
                "workloads.vla.reach.command",
                "the same, with a goal to remember",
            ),
            "calvin": ("workloads.vla.calvin.command", "five tasks in a row in CALVIN's simulator"),
        },
    ),
}
