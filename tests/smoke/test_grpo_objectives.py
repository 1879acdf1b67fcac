"""What GRPO optimises, resumed and stopped, on a tiny language model in this process."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.smoke.test_grpo_train import profile, share_of_early_letters
from tests.support.inline import Trained, as_one_rank, train_inline
from tests.support.tiny_llava import write_llava
from workloads.config.merge import resolve
from workloads.grpo.rollouts.rollouts import read_rollouts

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    as_one_rank(monkeypatch)


def fails_later(completion: str) -> float:
    """A reward that may break at step 3 of a run that scores four completions a step."""
    scored.append(completion)
    if breaks and len(scored) > 10:
        raise ZeroDivisionError("broken")
    return share_of_early_letters(completion)


scored: list[str] = []
breaks: list[bool] = []
FAILING = ("rewards=[tests.smoke.test_grpo_objectives:fails_later]", "checkpoints.every_steps=100")


@pytest.fixture
def broken() -> Any:
    """From here on the reward breaks."""
    scored.clear()
    breaks.append(True)
    yield
    breaks.clear()
    scored.clear()


def test_a_reward_that_fails_costs_no_work(tmp_path: Path, broken: None) -> None:
    """G-F10: the last good step is saved, and going on from it is as if nothing had been."""
    path = profile(tmp_path, 4)
    first = train_inline(path, tmp_path / "run", *FAILING)
    assert "failed with ZeroDivisionError: broken" in str(first.error)
    assert "checkpoint-2 saved: `--resume` goes on there" in first.console
    breaks.clear()
    resumed = train_inline(path, tmp_path / "run", *FAILING)
    whole = train_inline(path, tmp_path / "whole", *FAILING)
    assert resumed.course == whole.course


@pytest.mark.parametrize(("on_error", "given"), [("zero", 0.0), ("abstain", None)])
def test_a_run_goes_on_past_a_reward_that_fails(
    tmp_path: Path, broken: None, on_error: str, given: float | None
) -> None:
    """G-F10: rewards.on_error."""
    words = (*FAILING, f"rewards.on_error={on_error}", "grpo.num_generations=2")
    trained = train_inline(profile(tmp_path, 4), tmp_path / "run", *words)
    assert trained.error is None and f"rewards.on_error={on_error}" in trained.console
    last = read_rollouts(trained.run.path)[-1]
    (why,), (value,) = last["why"].values(), last["rewards"].values()
    assert why.startswith("failed: reward") and value == given


def test_a_run_that_cannot_learn_says_so(tmp_path: Path) -> None:
    """G-F2: no spread of rewards, all completions cut; on the console, in events and summary."""
    words = ("rewards=[accuracy_extracted]", "train.max_steps=3")
    trained = train_inline(profile(tmp_path, 12, count=24), tmp_path / "run", *words)
    assert "step 3: this run may not learn: in the last 3 steps no group had a" in trained.console
    assert "all completions were cut at 6; raise grpo.max_completion_length" in trained.console
    assert "\n  may not learn" in trained.console
    told = trained.lines(trained.run.events)
    signs = [event["sign"] for event in told if event["event"] == "no signal"]
    assert signs == ["no spread", "all cut"]


def test_a_run_that_cannot_learn_stops_where_it_was_asked_to(tmp_path: Path) -> None:
    """G-F2: on_no_signal."""
    words = ("rewards=[accuracy_extracted]", "on_no_signal=stop")
    trained = train_inline(profile(tmp_path, 12, count=24), tmp_path / "run", *words)
    assert trained.error is not None and trained.error.exit_code == 3
    assert str(trained.error).startswith(
        "stopped at step 10 of 12; checkpoint-10 saved: in the last 3 steps no group"
    )


OBJECTIVES: dict[str, tuple[str, ...]] = {
    "r1v": ("grpo.objective=r1v", "adapter.method=lora"),
    "trl": (),
    "dapo": ("grpo.objective=dapo", "grpo.max_completion_length=24"),
    "dr_grpo": ("grpo.objective=dr_grpo",),
    "gspo": ("grpo.objective=gspo",),
    "cispo": (
        "grpo.loss_type=cispo",
        "grpo.epsilon_high=5.0",
        "grpo.entropy.entropy_coef=0.01",
        "grpo.entropy.top_entropy_quantile=0.8",
        "grpo.sampling.top_p=0.9",
        "grpo.sampling.top_k=50",
        "grpo.multi_objective_aggregation=normalize_then_sum",
        "grpo.disable_dropout=true",
    ),
    "sapo": ("grpo.loss_type=sapo",),
    "luspo": ("grpo.loss_type=luspo", "grpo.importance_sampling_level=sequence"),
    "vespo": (
        "grpo.loss_type=vespo",
        "grpo.mismatch.vllm_importance_sampling_mode=token_truncate",
    ),
    "two-sided, min_p, penalty": (
        "grpo.delta=1.5",
        "grpo.cast_lm_head_to_fp32=true",
        "grpo.sampling.min_p=0.05",
        "grpo.sampling.repetition_penalty=1.1",
        "grpo.mismatch.off_policy_mask_threshold=0.5",
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_three_steps(tmp_path: Path, name: str) -> None:
    """G-F11: the named ones, and the other losses of TRL."""
    trained = train_inline(profile(tmp_path, 3), tmp_path / "run", *OBJECTIVES[name])
    assert trained.error is None
    assert [step for step, _, _ in trained.course] == [1, 2, 3]
    assert any(norm > 0 for _, _, norm in trained.course)
    assert ("kl" in trained.rows[0]) == (name == "r1v")


READ_BACK: dict[str, dict[str, Any]] = {
    "r1v": {"beta": 0.04, "epsilon": 0.2, "loss_type": "grpo", "scale_rewards": "group"},
    "trl": {"beta": 0.0, "epsilon": 0.2, "loss_type": "dapo", "scale_rewards": "group"},
    "dapo": {"epsilon_high": 0.28, "loss_type": "dapo", "mask_truncated_completions": True},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0},
    "gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
}


@pytest.mark.parametrize("name", READ_BACK)
def test_a_named_objective_reaches_trl(tmp_path: Path, name: str) -> None:
    """G-F11: the arguments, read back from TRL's own config."""
    from workloads.grpo.train import arguments
    from workloads.run import Run
    from workloads.run.session import Session

    words = ["adapter.method=lora", f"grpo.objective={name}", "grpo.entropy.entropy_target=2.5"]
    config, _ = resolve(profile(tmp_path, 3), {}, [*words, "grpo.sampling.top_p=0.9"])
    found = arguments(config, Session(Run(tmp_path / "run")), [])
    expected = READ_BACK[name] | {"entropy_target": 2.5, "top_p": 0.9, "num_generations": 2}
    assert {key: getattr(found, key) for key in expected} == expected


def as_if_killed_after(step: int, trained: Trained) -> None:
    """The run as it was when it had saved this step: nothing later is left."""
    for folder in trained.run.checkpoints.glob("checkpoint-*"):
        if int(folder.name.rpartition("-")[2]) > step:
            shutil.rmtree(folder)
    kept = [row for row in trained.lines(trained.run.metrics) if row["step"] <= step]
    trained.run.metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))


RESUMED: dict[str, tuple[str, ...]] = {
    "one update a rollout": (),
    "num_iterations": ("grpo.num_iterations=2",),
    "steps_per_generation, adaptive entropy": (
        "grpo.steps_per_generation=4",
        "grpo.entropy.use_adaptive_entropy=true",
        "grpo.entropy.entropy_target=9",
        "grpo.entropy.entropy_coef=0.01",
    ),
    "moving reference": (
        "model.name={model}",
        "model.random_init=false",
        "grpo.beta=0.1",
        "grpo.reference.sync_ref_model=true",
        "grpo.reference.ref_model_sync_steps=2",
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_from_any_step_as_if_nothing_had_been(tmp_path: Path, name: str) -> None:
    """G-F11: several updates a rollout keep the resume contract: checkpoint-3 lies within one."""
    model = tmp_path / "model"
    if "model.random_init=false" in RESUMED[name]:
        write_weights(model)
    words = ("checkpoints.every_steps=3", *(word.format(model=model) for word in RESUMED[name]))
    path, run = profile(tmp_path, 6), tmp_path / "run"
    whole = train_inline(path, run, *words)
    as_if_killed_after(3, whole)
    assert [step for step, _, _ in whole.course] == [1, 2, 3]
    resumed = train_inline(path, run, *words)
    again = train_inline(path, tmp_path / "again", *words)
    assert resumed.course == again.course
    assert [step for step, _, _ in resumed.course] == [1, 2, 3, 4, 5, 6]


def write_weights(folder: Path) -> None:
    """The demo's tiny model with weights, so that a reference can be loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree("data/demo/tiny-llama", folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


def test_held_out_rewards_during_training_and_the_best_checkpoint(tmp_path: Path) -> None:
    """G-F12: asking leaves the training as it is; keep_best keeps what earned most."""
    path = profile(tmp_path, 6, count=30)
    every = ("evaluation.every_steps=2", "checkpoints.every_steps=2", "checkpoints.keep_best=true")
    plain = train_inline(path, tmp_path / "plain", "evaluation.rows=3")
    asked = train_inline(
        path, tmp_path / "asked", "evaluation.rows=3", *every, "checkpoints.keep_last=1"
    )
    assert asked.course == plain.course
    name = "held_out/tests.smoke.test_grpo_train:share_of_early_letters"
    earned = {row["step"]: row[name] for row in asked.lines(asked.run.evaluations) if name in row}
    assert set(earned) == {0, 2, 4}
    best = max((2, 4), key=lambda step: (earned[step], step))
    assert (asked.run.checkpoints / f"checkpoint-{best}").is_dir()


SEEING = """\
workload: grpo
summary: two images in a prompt, and a text row
model: {{name: {model}, random_init: true}}
data: {{source: {rows}}}
rewards: ["tests.smoke.test_grpo_train:share_of_early_letters"]
grpo: {{num_generations: 2, max_prompt_length: 500, max_completion_length: 12}}
optim: {{learning_rate: 1e-3}}
train: {{max_steps: 2, per_device_batch_size: 4, precision: fp32}}
parallel: {{ranks_per_node: 1}}
tracking: {{tensorboard: false}}
"""


FROZEN = ("model.freeze_vision=true", "adapter.method=lora", "train.gradient_checkpointing=true")


@pytest.mark.parametrize("words", [(), FROZEN, ("stage=sft",)], ids=str)
def test_two_images_in_a_prompt_and_a_row_of_text(tmp_path: Path, words: tuple[str]) -> None:
    """G-F7: mixed rows in one batch, for GRPO and the supervised stage."""
    for number in range(3):
        image = Image.new("RGB", (48 + number, 32), (40 * number, 90, 200))
        image.putpixel((1, 1), (0, 0, 0))
        image.save(tmp_path / f"{number}.png")
    lines = [
        {"images": ["0.png", "1.png"], "problem": "Is <image> in <image>?", "solution": "3"},
        {"problem": "2 + 5 = ?", "solution": "7"},
        {"images": ["2.png"], "problem": "How many?", "solution": "3"},
        {"problem": "1 + 1 = ?", "solution": "2"},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "seeing.yaml"
    path.write_text(SEEING.format(model=write_llava(tmp_path / "llava"), rows=data))
    trained = train_inline(path, tmp_path / "run", *words)
    assert trained.error is None and len(trained.course) == 2
    if "stage=sft" not in words:
        kept = read_rollouts(trained.run.path)
        assert {len(row.get("images", [])) for row in kept} == {0, 2}
