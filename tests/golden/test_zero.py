"""DeepSpeed checkpoints become the float32 weights that DeepSpeed's own conversion gives."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workloads.cli import main
from workloads.engine.zero import load_shard, to_fp32, without_prefix
from workloads.errors import UserError

pytestmark = pytest.mark.golden
HERE = Path(__file__).parent / "deepspeed"


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("place", ["", "checkpoint"])
def test_weights_are_exact(stage: str, place: str) -> None:
    found, expected = (
        to_fp32(HERE / stage / place),
        load_file(HERE / f"{stage}_expected.safetensors"),
    )
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], weight), name
    assert found["_forward_module.model.head.weight"] is found["_forward_module.model.emb.weight"]
    assert set(without_prefix(found)) == {name.removeprefix("_forward_module.") for name in found}


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("kind", ["optim", "model"])
def test_a_missing_or_damaged_shard_is_named(stage: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / stage
    shutil.copytree(HERE / stage, folder)
    shard = sorted((folder / "checkpoint").glob(f"*{kind}_states.pt"))[-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=shard.name):
        to_fp32(folder)
    shard.unlink()
    with pytest.raises(UserError, match=f"rank 1|{shard.name}"):
        to_fp32(folder)


def _copied(stage: str, folder: Path) -> Path:
    """The tag's folder of a copy."""
    shutil.copytree(HERE / stage, folder)
    return folder / "checkpoint"


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_shards_of_two_trainings_are_not_joined(stage: str, tmp_path: Path) -> None:
    """Of more ranks, of fewer, of another stage, twice the same rank, of another size."""
    tag = _copied(stage, tmp_path / stage)
    first, second = sorted(tag.glob("*optim_states.pt"))

    def refused(sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            to_fp32(tag.parent)

    third = second.with_name(second.name.replace("rank_1", "rank_2"))
    shutil.copy(second, third)
    refused(f"optim states of 2 ranks, found {third.name} too")
    third.unlink()
    again = first.with_name(first.name.removeprefix("bf16_"))
    shutil.copy(first, again)
    refused(f"one file of each rank, found {first.name} and {again.name}")
    again.unlink()
    part = tag / "zero_pp_rank_0_mp_rank_01_optim_states.pt"
    shutil.copy(first, part)
    refused(f"{part.name}: .* found one of tensor parallelism")
    part.unlink()
    whole = second.read_bytes()
    content = load_shard(second)
    second.rename(second.with_suffix(".whole"))  # its tensors are mapped
    key = "single_partition_of_fp32_groups" if stage == "zero2" else "fp32_flat_groups"
    stored = content["optimizer_state_dict"]
    states = {name: stored[name] for name in ("partition_count", key)}
    states["zero_stage"] = int(stored["zero_stage"])
    for name, value in (("partition_count", 4), ("zero_stage", 1)):
        torch.save({"optimizer_state_dict": states | {name: value}}, second)
        refused(f"{second.name}: expected {name} .*, as rank 0 has, found {value}")
    longer = [torch.cat([group, group]) for group in states[key]]
    torch.save({"optimizer_state_dict": states | {key: longer}}, second)
    refused(f"{second.name}: expected groups of")
    states.pop(key)
    torch.save({"optimizer_state_dict": states}, second)
    refused(f"expected shards as DeepSpeed writes them, found some that are not .*{key}")
    second.write_bytes(whole)
    assert len(to_fp32(tag.parent)) > 3


def test_a_folder_without_its_tag_says_where_shards_are(tmp_path: Path) -> None:
    tag = _copied("zero3", tmp_path / "run")
    (tag.parent / "latest").unlink()
    with pytest.raises(UserError, match="shards in its folders checkpoint; name the folder"):
        to_fp32(tag.parent)
    (tag.parent / "latest").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="expected the name of a folder beside it"):
        to_fp32(tag.parent)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = tmp_path / "zero2"
    shutil.copytree(HERE / "zero2", folder)
    torch.save(
        {"optimizer_state_dict": Trap()}, next((folder / "checkpoint").glob("*rank_0*optim*"))
    )
    with pytest.raises(UserError, match="which could run code; nothing was run"):
        to_fp32(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tag", ["../elsewhere", "", "none"])
def test_a_tag_that_is_no_folder_is_refused(tag: str, tmp_path: Path) -> None:
    (tmp_path / "latest").write_text(tag)
    with pytest.raises(UserError, match="expected the name of a folder beside it"):
        to_fp32(tmp_path)


@pytest.mark.runs("tatara convert zero DIR --output FILE")
def test_the_command_writes_whole_weights_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out" / "model.safetensors"
    words = ["convert", "zero", str(HERE / "zero3"), "--output", str(target)]
    assert main(words) == 0
    assert "tied: model.head.weight = model.emb.weight" in capsys.readouterr().out
    found, expected = load_file(target), load_file(HERE / "zero3_expected.safetensors")
    assert {f"_forward_module.{name}" for name in found} == set(expected)
    assert all(
        torch.equal(found[name.removeprefix("_forward_module.")], expected[name])
        for name in expected
    )
    assert main(words) == 2 and "expected a name that is free" in capsys.readouterr().err
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a DeepSpeed checkpoint"):
        to_fp32(tmp_path)
    with pytest.raises(UserError, match="found none at"):
        to_fp32(tmp_path / "none")
