"""Looks at a profile that need no library and no GPU."""

from pathlib import Path

import pytest

from workloads.check import shallow
from workloads.cli import main
from workloads.config.merge import resolve

pytestmark = pytest.mark.unit

DEMO = Path(__file__).resolve().parents[2] / "profiles" / "demo.yaml"


@pytest.mark.parametrize(("size", "mistakes"), [(16, []), (48, []), (7, ["batch"]), (8, ["batch"])])
def test_a_global_batch_that_the_ranks_cannot_share_is_found_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, mistakes: list[str]
) -> None:
    """Two ranks of 8 rows each."""
    monkeypatch.chdir(DEMO.parents[1])
    env = {"TATARA_OUTPUTS": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    words = ["train.per_device_batch_size=8", f"train.global_batch_size={size}"]
    config, _ = resolve(DEMO, env, words)
    found = [finding for finding in shallow(config, env) if finding.level == "error"]
    assert [item.name for item in found] == mistakes
    assert all("multiple of 16" in item.found for item in found)


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        ([], []),
        (["adapter.r=64"], ["warning"]),
        (["adapter.method=lora", "adapter.r=64"], []),
        (["adapter.resume_from=outputs/demo/one/final"], ["error"]),
    ],
)
def test_settings_of_an_adapter_that_is_not_trained_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], levels: list[str]
) -> None:
    monkeypatch.chdir(DEMO.parents[1])
    env = {"TATARA_OUTPUTS": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    config, _ = resolve(DEMO, env, words)
    assert [
        finding.level for finding in shallow(config, env) if finding.name == "adapter"
    ] == levels


@pytest.mark.parametrize(
    ("profile", "more", "words", "told"),
    [
        ("recipes/grpo-3b", {}, [], []),
        ("recipes/grpo-math", {}, [], []),
        ("grpo-h100", {}, ["adapter.method=full"], []),
        ("recipes/grpo-3b", {"LORA_RANK": "8"}, [], ["adapter.r"]),
        ("grpo-h100", {}, ["adapter.method=full", "adapter.alpha=3"], ["adapter.alpha"]),
    ],
)
def test_settings_of_a_profile_whose_adapter_was_replaced_are_no_mistake(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    more: dict[str, str],
    words: list[str],
    told: list[str],
) -> None:
    monkeypatch.chdir(DEMO.parents[1])
    env = {"TATARA_OUTPUTS": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", **more}
    config, provenance = resolve(f"profiles/{profile}.yaml", env, words)
    found = [
        finding.found for finding in shallow(config, env, provenance) if finding.name == "adapter"
    ]
    assert [text.split(" set")[0] for text in found] == told


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["data.eval_rows=0"], ["evaluation.task"]),
        (["data.eval_rows=0", "evaluation.task=null"], ["evaluation.every_steps"]),
        (["data.format=text"], ["evaluation.task"]),
        (["data.eval_rows=0", "evaluation.task=null", "evaluation.every_steps=null"], []),
    ],
)
def test_an_evaluation_without_rows_to_ask_is_found_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], names: list[str]
) -> None:
    monkeypatch.chdir(DEMO.parents[1])
    env = {"TATARA_OUTPUTS": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    config, _ = resolve(DEMO, env, words)
    found = [finding.name for finding in shallow(config, env) if finding.level != "ok"]
    assert [name for name in found if name.startswith("evaluation")] == names


@pytest.mark.parametrize("profile", ["demo", "demo-grpo"])
def test_a_model_folder_that_training_would_refuse_is_named(
    profile: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """O-A14b: pickled weights, or none, before anything is started."""
    monkeypatch.chdir(DEMO.parents[1])
    folder = tmp_path / "model"
    folder.mkdir()
    settings = [f"model.name={folder}", "model.random_init=false"]

    def found() -> str:
        config, _ = resolve(f"profiles/{profile}.yaml", {}, settings)
        return "\n".join(
            finding.found for finding in shallow(config, {}) if finding.level == "error"
        )

    assert "expected model.safetensors, found no safetensors weights" in found()
    (folder / "pytorch_model.bin").touch()
    assert "expected safetensors weights, found pickled ones" in found()
    (folder / "model.safetensors").touch()
    assert "expected a model's config.json, found none" in found()
    (folder / "config.json").write_text("{}")
    assert str(folder) not in found()


def test_int8_with_fsdp2_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DEMO.parents[1])
    words = ["adapter.method=qlora", "parallel.strategy=fsdp2", "adapter.quantisation=int8"]
    for verb in ("check", "plan", "train"):
        assert main([verb, "profiles/demo.yaml", *words]) == 2
        told = capsys.readouterr().err
        assert "fsdp2 cannot shard a base in int8" in told and "adapter.quantisation=nf4" in told
    assert resolve(DEMO, {}, words[:2])[0].adapter.quantisation == "nf4"
    full = ["parallel.strategy=fsdp2", "adapter.quantisation=int8"]
    assert resolve(DEMO, {}, full)[0].adapter.method == "full"


def test_whole_modules_beside_an_adapter_are_not_trained_in_fp16(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's loss scaler refuses fp16 gradients, and these modules have the base's type."""
    monkeypatch.chdir(DEMO.parents[1])
    words = ["adapter.method=lora", "adapter.modules_to_save=[lm_head]", "train.precision=fp16"]
    for verb in ("check", "train"):
        assert main([verb, "profiles/demo.yaml", *words]) == 2
        assert "adapter.modules_to_save are trained in the base's" in capsys.readouterr().err
    resolve(DEMO, {}, words[:2])
    resolve(DEMO, {}, [words[0], words[2]])


@pytest.mark.parametrize("profile", ["demo", "profiles/demo.yaml"])
def test_settings_of_the_profile_itself_are_not_repeated(
    profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name as by its path: what is in the file its reader knows."""
    monkeypatch.chdir(DEMO.parents[1])
    assert main(["check", profile, "optim.beta2=0.9"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if " = " in line]
    assert told == ["optim.beta2 = 0.9   (command line optim.beta2)"]
