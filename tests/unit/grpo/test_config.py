"""The grpo workload's settings, its profiles, and what is refused before anything is loaded."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workloads.config.merge import resolve
from workloads.errors import UserError
from workloads.findings import Finding
from workloads.grpo import check
from workloads.grpo.config import GrpoConfig
from workloads.grpo.rewards.scoring import Score
from workloads.grpo.rollouts.rollouts import Rollout, RolloutLog, prompt_text, read_rollouts
from workloads.plan.estimate import estimate
from workloads.run import Run

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
PROFILE = ROOT / "profiles" / "grpo-h100.yaml"
RECIPES = sorted((ROOT / "profiles" / "recipes").glob("grpo-*.yaml"))
GIB = 2**30


def config(**changes: Any) -> GrpoConfig:
    base: dict[str, Any] = {
        "workload": "grpo",
        "name": "x",
        "model": {"name": "data/demo/tiny-llama", "random_init": True},
        "data": {"source": "scenes"},
    }
    return GrpoConfig.model_validate({**base, **changes})


def test_the_profile_holds_the_documents_values() -> None:
    found, _ = resolve(PROFILE, {"MODEL_NAME": "Qwen/Qwen2.5-VL-3B-Instruct"})
    assert found.model.name == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (found.train.per_device_batch_size, found.accumulation_steps(1)) == (1, 8)
    assert (found.grpo.num_generations, found.grpo.max_pixels) == (4, 401408)
    assert found.grpo.settled() == {
        "beta": 0.04,
        "epsilon": 0.2,
        "loss_type": "grpo",
        "scale_rewards": "group",
    }
    assert [function.name for function in found.rewards.functions] == [
        "accuracy_extracted",
        "format",
    ]
    assert found.prompts_a_step(1) == 2


@pytest.mark.parametrize("path", [PROFILE, *RECIPES], ids=lambda path: path.stem)
def test_every_profile_fits_its_card_and_its_groups(path: Path) -> None:
    found, _ = resolve(path, {})
    wanted = found.parallel.ranks_per_node
    ranks = wanted if isinstance(wanted, int) else 1
    found.check_groups(ranks)
    breakdown = estimate(found, ranks, {})
    assert breakdown.total is not None, breakdown.unknown
    engine = found.generation
    beside = engine.gpu_memory_utilization if engine.engine == "vllm_colocate" else 0
    assert breakdown.total + beside * 79.6 * GIB < 79.6 * GIB


def test_objectives_are_named_choices_and_give_way_to_values() -> None:
    assert config().grpo.settled()["beta"] == 0.0 and not config().grpo.has_reference
    mixed = config(
        adapter={"method": "lora"}, grpo={"objective": "r1v", "beta": 0.1, "loss_type": "dr_grpo"}
    )
    assert mixed.grpo.settled() == {
        "beta": 0.1,
        "epsilon": 0.2,
        "loss_type": "dr_grpo",
        "scale_rewards": "group",
    }
    assert not config(grpo={"objective": "r1v", "beta": 0}).grpo.has_reference


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": []}, "at least one"),
        ({"rewards": ["format", {"name": "format", "weight": 2}]}, "is there twice"),
        ({"grpo": {"beta": 0.1}}, "holds the model to noise"),
        (
            {"grpo": {"beta": 0.1}, "adapter": {"method": "lora", "name": "mine"}},
            "called default",
        ),
        ({"sft": {"answer": "seven"}}, "{solution}"),
        ({"data": {"source": "scenes", "scenes": {"least": 5, "most": 4}}}, "more than most"),
        ({"grpo": {"num_generations": 1}}, "greater than or equal to 2"),
        ({"generation": {"sleep_level": 3}}, "less than or equal to 2"),
        ({"rewards": [{"name": "format", "weight": 0}]}, "every weight is 0"),
        ({"generation": {"vllm_structured_outputs_regex": "[0-9]+"}}, "only vLLM holds"),
        (
            {
                "generation": {
                    "engine": "vllm_colocate",
                    "use_transformers_continuous_batching": True,
                }
            },
            "does not use transformers",
        ),
        (
            {
                "generation": {"engine": "vllm_colocate"},
                "grpo": {"sampling": {"cache_implementation": "static"}},
            },
            "vLLM has a cache of its own",
        ),
        (
            {"grpo": {"entropy": {"entropy_coef_min": 0.5, "entropy_coef_max": 0.1}}},
            "entropy_coef_min is 0.5, more than",
        ),
        (
            {"grpo": {"sampling": {"generation_kwargs": {"temperature": 0.5}}}},
            "generation_kwargs.temperature: set grpo.temperature instead",
        ),
        (
            {"grpo": {"sampling": {"generation_kwargs": {"n": 2}}}},
            "generation_kwargs.n: set grpo.num_generations instead",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        config(**changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("size", "whole", "world", "group", "proposed"),
    [(1, 8, 1, 3, 9), (2, 4, 1, 8, 8), (1, 3, 3, 4, 12), (3, 6, 1, 4, 12)],
)
def test_a_batch_of_broken_groups_is_refused_with_one_that_works(
    size: int, whole: int, world: int, group: int, proposed: int
) -> None:
    train = {"per_device_batch_size": size, "global_batch_size": whole}
    with pytest.raises(UserError) as refused:
        config(train=train, grpo={"num_generations": group}).check_groups(world)
    assert f"grpo.num_generations={group}, found {whole}" in str(refused.value)
    assert f"train.global_batch_size={proposed}" in str(refused.value)
    fixed = {**train, "global_batch_size": proposed}
    config(train=fixed, grpo={"num_generations": group}).check_groups(world)
    config(stage="sft", train=train, grpo={"num_generations": group}).check_groups(world)


@pytest.mark.parametrize(
    ("size", "whole", "group", "proposed"), [(3, 8, 4, 12), (4, 10, 5, 20), (16, 8, 4, 16)]
)
def test_a_batch_that_ranks_cannot_share_is_named_once_with_one_that_groups_fit_too(
    size: int, whole: int, group: int, proposed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workloads.check import shallow

    monkeypatch.chdir(ROOT)
    train = {"per_device_batch_size": size, "global_batch_size": whole}
    grpo = {"num_generations": group}
    (found,) = [
        finding
        for finding in shallow(config(train=train, grpo=grpo), {})
        if finding.name == "batch"
    ]
    assert f"found {whole}; set it to {proposed}" in found.found
    train["global_batch_size"] = proposed
    (found,) = [
        finding
        for finding in shallow(config(train=train, grpo=grpo), {})
        if finding.name == "batch"
    ]
    assert found.level == "ok"


def test_nodes_that_share_a_machine_share_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.device.gpu_count", lambda env: 2)
    two = config(parallel={"nodes": 2}, train={"per_device_batch_size": 4})
    here, *_ = check.shallow(two, {})
    assert here.found.endswith("2 ranks")
    alone, *_ = check.shallow(two, {"NODE_RANK": "0"})
    assert alone.found.endswith("4 ranks")


def errors(findings: list[Finding]) -> list[str]:
    return [f"{finding.name}: {finding.found}" for finding in findings if finding.level == "error"]


def test_a_quick_look_finds_unknown_rewards_and_missing_data() -> None:
    train = {"global_batch_size": 8}
    assert not errors(check.shallow(config(train=train), {}))
    wrong = config(
        train=train, rewards=["acuracy", "my.module:f"], data={"source": "data/no.jsonl"}
    )
    assert errors(check.shallow(wrong, {})) == [
        "rewards: expected a reward among accuracy_extracted, accuracy, format, "
        'format_tolerant, a plug-in as "module:function", "model:NAME" or an address '
        '"http://…", found "acuracy"; did you mean "accuracy"?',
        "data.source: data/no.jsonl does not exist",
    ]


def rows(folder: Path, lengths: list[int]) -> Path:
    path = folder / "rows.jsonl"
    lines = [{"problem": "7 " * length, "solution": "<answer> 7 </answer>"} for length in lengths]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_deep_look_names_the_rows_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = rows(tmp_path, [3, 400, 5, 500])
    limits = {"max_prompt_length": 300, "max_completion_length": 8}
    wrong = check.deep(config(data={"source": str(path)}, grpo=limits), {})
    named = errors(wrong)
    assert len(named) == 2 and f"{path}:2" in named[0] and f"{path}:4" in named[1]
    assert "at most 300 prompt tokens" in named[0]
    dropped = config(data={"source": str(path), "too_long": "drop"}, grpo=limits)
    assert not errors(check.deep(dropped, {}))


def test_dropped_rows_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workloads.grpo.data.prepare import prepare

    monkeypatch.chdir(ROOT)
    data = {"source": str(rows(tmp_path, [3, 400, 5])), "too_long": "drop"}
    limits = {"max_prompt_length": 300, "max_completion_length": 8}
    base = Path(config().model.name)
    found = prepare(config(data=data, grpo=limits), base, tmp_path)
    assert [example.problem.count("7") for example in found.examples] == [3, 5]
    assert found.facts["left_out"] == 1
    with pytest.raises(UserError, match="1 of 3 rows"):
        prepare(config(data={**data, "too_long": "error"}, grpo=limits), base, tmp_path)


def test_drawn_scenes_need_a_model_that_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workloads.grpo.data.prepare import prepare, read_source

    monkeypatch.chdir(ROOT)
    scenes = {"count": 3, "width": 48, "height": 32, "least": 1, "most": 3}
    blind = config(data={"source": "scenes", "scenes": scenes})
    found = read_source(blind.data, tmp_path)
    assert len(found.rows) == 3 and found.rows[0].open_images()[0].size == (48, 32)
    with pytest.raises(UserError, match="takes no images"):
        prepare(blind, Path(blind.model.name), tmp_path)


def log(folder: Path, done_steps: int, every: int = 2, most: int = 3) -> RolloutLog:
    session: Any = SimpleNamespace(run=Run(folder), is_main=True)
    wanted = config(rollouts={"every_steps": every, "per_step": most}).rollouts
    return RolloutLog(session, wanted, done_steps)


def rollout(place: str, image: Any = None) -> Rollout:
    prompt = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}
    ]
    said = [{"role": "assistant", "content": "<answer>3</answer>"}]
    return Rollout(
        place, prompt, said, "3", {"format": Score(0.0, "tags none")}, 0.0, -1.0, [image]
    )


def test_rollouts_are_bounded_share_their_image_and_forget_repeated_steps(tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.new("RGB", (8, 6), (1, 2, 3))
    kept = log(tmp_path, 0)
    for step in range(1, 7):
        kept.write(step, [rollout(f"a:{step}", picture)] * 2 + [rollout(f"b:{step}")] * 4)
    found = read_rollouts(tmp_path)
    assert [row["step"] for row in found] == [1] * 3 + [2] * 3 + [4] * 3 + [6] * 3
    assert [row["image"] is None for row in found[:3]] == [False, False, True]
    assert found[0]["image"] == found[1]["image"] and found[0]["completion"] == "<answer>3</answer>"
    with Image.open(tmp_path / "rollouts" / found[0]["image"]) as again:
        assert again.size == (8, 6) and again.getpixel((0, 0)) == (1, 2, 3)
    with (tmp_path / "rollouts" / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 7, "cut')
    log(tmp_path, 4)
    assert [row["step"] for row in read_rollouts(tmp_path)] == [1] * 3 + [2] * 3 + [4] * 3
    assert prompt_text(rollout("a").prompt) == "user: [image] How many?"


def test_the_order_of_rows_follows_from_seed_and_epoch_alone() -> None:
    from workloads.grpo.trl_hooks import ByEpoch

    sampler = ByEpoch(rows=7, prompts=3, group=2, repeats=2, seed=5)
    first = list(sampler)
    assert len(first) == len(sampler) == 2 * 3 * 2 * 2
    assert first[:6] == first[6:12], "the chunk comes again for the second micro-batch"
    assert first[0] == first[1] and len(set(first[:6])) == 3
    sampler.set_epoch(1)
    second = list(sampler)
    resumed = ByEpoch(7, 3, 2, 2, 5)
    resumed.set_epoch(1)
    assert second == list(resumed) != first


def test_engines_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from workloads.grpo.rollouts import engine as generation

    trained = {"name": "data/demo/tiny-llama"}

    def asked(model: dict[str, Any] = trained, **settings: Any) -> GrpoConfig:
        return config(model=model, generation={"engine": "vllm_colocate", **settings})

    monkeypatch.setattr(generation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="expected the package vllm"):
        generation.check(asked(), sees_images=False)
    generation.check(config(), sees_images=True)
    monkeypatch.setattr(generation, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="sleep_level: expected 0 or 1.*found 2"):
        generation.check(asked(sleep_level=2), sees_images=True)
    generation.check(asked(sleep_level=2), sees_images=False)
    with pytest.raises(UserError, match="random_init"):
        generation.check(asked({**trained, "random_init": True}), sees_images=False)


def test_the_ladders_name_what_is_not_done_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    from workloads.grpo.rollouts.engine import memory_ladder, stability_ladder

    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    grpo = {"num_generations": 2, "max_pixels": 200704, "temperature": 0.8}
    assert memory_ladder(config(adapter={"method": "lora"}, grpo=grpo)) == []
    assert "for GRPO: grpo.max_pixels=200704" in memory_ladder(config())
    assert stability_ladder(config(grpo=grpo, optim={"learning_rate": 5e-7})) == []
    assert stability_ladder(config()) == ["optim.learning_rate=5e-7", "grpo.temperature=0.8"]
