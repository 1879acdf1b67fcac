"""A DeepSpeed file is followed field by field, or refused by the field (G-F13)."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.profile_folder import ProfileFolder
from workloads.config.deepspeed import settings_of
from workloads.engine.training.arguments import _deepspeed
from workloads.errors import UserError

pytestmark = pytest.mark.unit

HOST = {"device": "cpu", "pin_memory": True}
LEAST: dict[str, Any] = {"zero_optimization": {"stage": 2, "offload_optimizer": HOST}}


def written(folder: Path, content: dict[str, Any]) -> Path:
    file = folder / "ds_config.json"
    file.write_text(json.dumps(content))
    return file


def zero(**fields: Any) -> dict[str, Any]:
    return {"zero_optimization": {**LEAST["zero_optimization"], **fields}}


def test_a_usual_file_becomes_settings(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {
            "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000},
            "bf16": {"enabled": True},
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": 5e-7, "betas": [0.9, 0.95], "eps": "auto", "weight_decay": 0.1},
            },
            "zero_optimization": {
                "stage": 3,
                "offload_optimizer": HOST,
                "offload_param": {"device": "none", "pin_memory": True},
                "overlap_comm": False,
                "contiguous_gradients": True,
                "sub_group_size": 1e9,
                "reduce_bucket_size": "auto",
                "stage3_max_live_parameters": 2e8,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": 0.5,
            "steps_per_print": 100,
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": 2,
            "wall_clock_breakdown": False,
        },
    )
    profiles = ProfileFolder(tmp_path)
    config, provenance = profiles.resolve("", {}, ["--deepspeed", str(file)])
    assert (config.parallel.strategy, config.train.precision) == ("zero3", "bf16")
    assert (config.train.per_device_batch_size, config.train.global_batch_size) == (2, None)
    optim = config.optim
    assert (optim.learning_rate, optim.beta1, optim.beta2) == (5e-7, 0.9, 0.95)
    assert (optim.weight_decay, optim.epsilon, optim.max_grad_norm) == (0.1, 1e-8, 0.5)
    assert provenance["optim.learning_rate"] == f"command line --deepspeed {file}"
    handed = _deepspeed(config, 3)["zero_optimization"]
    assert handed["overlap_comm"] is False
    assert (handed["sub_group_size"], handed["reduce_bucket_size"]) == (1_000_000_000, "auto")
    later, _ = profiles.resolve("", {}, [f"--deepspeed={file}", "optim.learning_rate=1e-6"])
    assert later.optim.learning_rate == 1e-6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage: expected 2 or 3, found 1"),
        ({"zero_optimization": {"stage": 2}}, "offload_optimizer.device: expected 'cpu', found"),
        (zero(offload_optimizer={"device": "nvme"}), "device: expected 'cpu', found 'nvme'"),
        (zero(offload_param={"device": "cpu"}), "weights stay on the GPUs here"),
        (zero(overlap_com=True), "did you mean 'zero_optimization.overlap_comm'"),
        (LEAST | {"scheduler": {"type": "WarmupLR"}}, "scheduler: not taken: write optim.schedule"),
        (LEAST | {"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "found both"),
        (LEAST | {"fp16": {"loss_scale": 128}}, "fp16.loss_scale: expected 0, found 128"),
        (LEAST | {"optimizer": {"type": "Lamb"}}, "expected 'AdamW' or 'Adam', found 'Lamb'"),
        (LEAST | {"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: found 4; it"),
        (LEAST | {"sparse_attention": {"mode": "fixed"}}, "sparse_attention.mode: not taken"),
    ],
)
def test_what_cannot_be_followed_is_named(
    content: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        settings_of(written(tmp_path, content))
    assert said in str(refused.value)
    assert all(line.startswith("--deepspeed ") for line in str(refused.value).splitlines())


def test_every_refused_field_is_named_at_once(tmp_path: Path) -> None:
    content = {
        "scheduler": {"type": "WarmupLR"},
        "zero_optimization": {"stage": 0},
        "amp": {"a": 1},
    }
    with pytest.raises(UserError) as refused:
        settings_of(written(tmp_path, content))
    assert [line.split(": ")[1] for line in str(refused.value).splitlines()] == [
        "scheduler",
        "amp",
        "zero_optimization.stage",
    ]


def test_batches_that_agree(tmp_path: Path) -> None:
    sizes = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 8,
    }
    found = settings_of(written(tmp_path, LEAST | sizes | {"bf16": {"enabled": False}}))
    assert (found["train.global_batch_size"], found["train.precision"]) == (32, "fp32")
    with pytest.raises(UserError, match="in numbers that agree"):
        settings_of(written(tmp_path, LEAST | sizes | {"gradient_accumulation_steps": 5}))


def test_fields_of_zero_need_zero(tmp_path: Path) -> None:
    profiles = ProfileFolder(tmp_path)
    said = profiles.refused("", {}, ["parallel.zero.overlap_comm=true"])
    assert "need parallel.strategy=zero2 or zero3" in said
    words = ["parallel.strategy=zero2", "parallel.zero.sub_group_size=auto"]
    assert "zero.sub_group_size: auto is for reduce_bucket_size" in profiles.refused("", {}, words)
