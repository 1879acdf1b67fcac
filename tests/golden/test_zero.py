"""DeepSpeed checkpoints become the float32 weights that DeepSpeed's own conversion gives."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workloads.cli import main
from workloads.engine.zero import to_fp32, without_prefix
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


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = tmp_path / "zero2"
    shutil.copytree(HERE / "zero2", folder)
    torch.save(
        {"optimizer_state_dict": Trap()}, next((folder / "checkpoint").glob("*rank_0*optim*"))
    )
    with pytest.raises(UserError, match="expected a shard that can be read"):
        to_fp32(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tag", ["../elsewhere", "", "none"])
def test_a_tag_that_is_no_folder_is_refused(tag: str, tmp_path: Path) -> None:
    (tmp_path / "latest").write_text(tag)
    with pytest.raises(UserError, match="expected the name of a folder beside it"):
        to_fp32(tmp_path)


@pytest.mark.runs("tatara convert zero DIR")
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
