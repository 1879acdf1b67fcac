"""Shards of ZeRO in forms that the golden set does not have: each becomes its weights, or is
refused by name."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.zero_shards import fake_class, flip, write_zero
from workloads.cli import main
from workloads.engine.zero import load_shard, to_fp32
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def _weights(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two groups, of sizes that few numbers of ranks divide, one of them empty of values."""
    random = torch.Generator().manual_seed(seed)
    sizes = {"emb": (7, 3), "norm": (5,), "one": ()}
    first = {name: torch.randn(size, generator=random) for name, size in sizes.items()}
    return first, {"bias": torch.randn(11, generator=random), "none": torch.empty(0, 4)}


FROZEN = {"tower.a": torch.arange(6.0).bfloat16().reshape(2, 3), "tower.b": torch.ones(1).half()}
BUFFERS = {"ids": torch.tensor([2**24 + 1, 5]), "scale": torch.tensor([0.5]).bfloat16()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_any_number_of_ranks_and_any_type(
    stage: int, ranks: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    groups, shared = _weights(), {"head": "emb", "copy": "tower.a"}
    write_zero(
        tmp_path / "run", stage, ranks, groups, dtype, frozen=FROZEN, buffers=BUFFERS, shared=shared
    )
    found = to_fp32(tmp_path / "run")
    wanted = {**groups[0], **groups[1], **FROZEN, **BUFFERS}
    assert found.keys() == wanted.keys() | shared.keys()
    for name, value in wanted.items():
        own = value.float() if value.is_floating_point() else value
        assert torch.equal(found[name], own) and found[name].dtype == own.dtype, name
    assert found["head"] is found["emb"] and torch.equal(found["copy"], found["tower.a"])


@pytest.mark.parametrize(
    "name",
    [
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",  # of every training in fp16
        "deepspeed.runtime.bf16_optimizer.fragment_address",  # of versions before 0.7.3
        "deepspeed.runtime.later.AnyName",
    ],
)
def test_objects_of_any_version_are_passed_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = fake_class(monkeypatch, name)()
    scaler.cur_scale, scaler.dtype = 65536.0, torch.float16  # type: ignore[attr-defined]
    write_zero(tmp_path / "run", 2, 2, _weights(), torch.float16, loss_scaler=scaler)
    monkeypatch.undo()
    assert torch.equal(to_fp32(tmp_path / "run")["emb"], _weights()[0]["emb"])


def test_other_code_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = fake_class(monkeypatch, "deepspeedy.runtime.Thing")()
    write_zero(tmp_path / "run", 2, 2, _weights(), loss_scaler=other)
    with pytest.raises(UserError, match=r"rank_0.*found deepspeedy\.runtime\.Thing in it, which"):
        to_fp32(tmp_path / "run")


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["optim", "model"])
def test_a_flipped_bit_is_named(stage: int, kind: str, tmp_path: Path) -> None:
    tag = write_zero(tmp_path / "run", stage, 2, _weights())
    shard = sorted(tag.glob(f"*{kind}_states.pt"))[-1]
    record = flip(shard)
    with pytest.raises(UserError, match=f"{shard.name}: expected record {record} as it was"):
        to_fp32(tag)


def test_the_command_tells_what_has_no_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write_zero(tmp_path / "run", 2, 2, _weights())
    finally:
        torch.serialization.set_crc32_options(before)
    assert main(["convert", "zero", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.count("without checksums") == 3


def test_files_of_two_steps_are_not_joined(tmp_path: Path) -> None:
    first = write_zero(tmp_path / "a", 2, 2, _weights(), step=3)
    second = write_zero(tmp_path / "b", 2, 2, _weights(1), step=4)
    shard = sorted(first.glob("*optim*"))[1].name
    shutil.copy(second / shard, first / shard)
    with pytest.raises(UserError, match=f"{shard}: expected the optimizer at step 3.*found step 4"):
        to_fp32(first)
    shutil.rmtree(tmp_path / "b")
    same = write_zero(tmp_path / "b", 2, 2, _weights(1), step=3)
    shutil.copy(same / shard, first / shard)  # an equal count tells nothing, the values do
    with pytest.raises(UserError, match="expected shards of the step of mp_rank_00.*other values"):
        to_fp32(first)
    third = write_zero(tmp_path / "c", 3, 2, _weights(), step=3)
    later = write_zero(tmp_path / "d", 3, 2, _weights(), step=5)
    name = "zero_pp_rank_1_mp_rank_00_model_states.pt"
    shutil.copy(later / name, third / name)
    with pytest.raises(UserError, match=f"model states of one step, found those of 3 .* 5 .{name}"):
        to_fp32(third)


def test_exchanged_ranks_are_noticed(tmp_path: Path) -> None:
    """By ZeRO-2's whole module: nothing in a shard says whose it is."""
    group = {"a": torch.randn(8), "b": torch.randn(8)}
    tag = write_zero(tmp_path / "run", 2, 2, [group])
    one, two = sorted(tag.glob("*optim*"))
    held = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(held)
    with pytest.raises(UserError, match="other values of a in them .*or ranks are exchanged"):
        to_fp32(tag)


def test_shards_of_another_model_have_another_size(tmp_path: Path) -> None:
    for stage in (2, 3):
        own = write_zero(tmp_path / f"own{stage}", stage, 2, [{"a": torch.ones(9)}])
        other = write_zero(tmp_path / f"other{stage}", stage, 2, [{"a": torch.ones(30)}])
        for shard in own.glob("*optim*"):
            shutil.copy(other / shard.name, shard)
        with pytest.raises(UserError, match="values, as its model states have, found"):
            to_fp32(own)


def test_weights_with_padding_of_their_own(tmp_path: Path) -> None:
    """As recent versions align each weight, and list by how much."""
    group = {"a": torch.randn(3), "b": torch.randn(5)}
    spaced = {"a": torch.cat([group["a"], torch.zeros(1)]), "b": group["b"]}
    tag = write_zero(tmp_path / "run", 2, 2, [spaced], param_alignment_paddings=[[1, 0]])
    file = tag / "mp_rank_00_model_states.pt"
    state = load_shard(file)
    state["param_shapes"][0]["a"] = group["a"].shape
    state["module"]["a"] = group["a"].bfloat16()
    file.unlink()  # its tensors are mapped
    torch.save(state, file)
    found = to_fp32(tag)
    assert all(torch.equal(found[name], value) for name, value in group.items())


def test_stale_model_states_of_stage_three_beside_stage_two(tmp_path: Path) -> None:
    tag = write_zero(tmp_path / "run", 2, 2, _weights())
    (tag / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"stale")
    assert torch.equal(to_fp32(tag)["emb"], _weights()[0]["emb"])


@pytest.mark.parametrize("latest", ["\ufeffglobal_step3\r\n", " global_step3 \n\n"])
def test_a_tag_as_an_editor_leaves_it(latest: str, tmp_path: Path) -> None:
    write_zero(tmp_path, 2, 2, _weights())
    (tmp_path / "latest").write_bytes(latest.encode())
    assert "emb" in to_fp32(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "experts"),
        ("expp_rank_0_mp_rank_00_optim_states.pt", "experts"),
        ("layer_03-model_00-model_states.pt", "a pipeline"),
        ("mp_rank_01_model_states.pt", "tensor parallelism"),
    ],
)
def test_what_else_split_a_model_is_named(name: str, split: str, tmp_path: Path) -> None:
    tag = write_zero(tmp_path, 2, 2, _weights())
    (tag / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name}: .* found one of {split}, which is not joined"):
        to_fp32(tmp_path)


def test_groups_over_other_ranks_are_of_experts(tmp_path: Path) -> None:
    write_zero(tmp_path, 2, 2, _weights(), partition_count=[2, 1])
    with pytest.raises(UserError, match=r"over the same ranks, found \[1, 2\], as with experts"):
        to_fp32(tmp_path)


def test_other_kinds_of_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "uni/zero/emb").mkdir(parents=True)
    (tmp_path / "uni/zero/emb/fp32.pt").write_bytes(b"")
    with pytest.raises(UserError, match="found a universal checkpoint"):
        to_fp32(tmp_path / "uni")
    tag = write_zero(tmp_path / "plain", 2, 2, _weights())
    for shard in tag.glob("*optim*"):
        shard.unlink()
    with pytest.raises(UserError, match="found mp_rank_00.* alone, as a training without ZeRO"):
        to_fp32(tmp_path / "plain")
