"""The benchmarks of one GPU, as far as they go without one."""

import runpy
import sys
from dataclasses import replace

import pytest
import torch

from bench.gpu import _grpo_cases, _grpo_sides, _vla_sides, grpo, vla
from bench.gpu._sft_cases import CASES, HAND, OURS, TRL, TRL_GROUPED
from bench.gpu._sft_sides import take_turn

pytestmark = pytest.mark.smoke

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 700,
    "tie_word_embeddings": True,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run for minutes")
@pytest.mark.parametrize("name", ["sft", "vla", "grpo"])
def test_says_that_it_needs_a_gpu(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.delitem(sys.modules, f"bench.gpu.{name}", raising=False)
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"bench.gpu.{name}", run_name="__main__")
    assert left.value.code == 2
    assert "expected a CUDA GPU" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "peers"), [("full", (TRL, HAND)), ("short", (TRL, TRL_GROUPED)), ("lora", (TRL,))]
)
def test_all_sides_have_the_same_loss(name: str, peers: tuple[str, ...]) -> None:
    case = replace(CASES[name], shape=TINY, length=64, batch=4)
    case = replace(case, mean=16) if case.mean else case
    ours = take_turn(case, OURS, 12)
    assert ours.rate > 0
    for peer in peers:
        assert take_turn(case, peer, 12).loss == pytest.approx(ours.loss, rel=2e-3)


@pytest.mark.slow
def test_both_sides_of_the_robot_policy_have_the_same_loss() -> None:
    case = replace(_vla_sides.CASES["batch16"], tiny=True, batch=4)
    turns = {side: _vla_sides.take_turn(case, side, 6) for side in _vla_sides.SIDES}
    vla.assert_same(turns)
    assert all(turn.rate > 0 for turn in turns.values())
    # The real shape, as the plan sees it: nothing of it is made.
    planned = _vla_sides.CASES["batch16"].plan().total
    assert planned is not None and 40 * vla.GIB < planned < 80 * vla.GIB


@pytest.mark.slow
def test_all_sides_of_grpo_have_the_same_loss_and_gradients() -> None:
    case = replace(
        _grpo_cases.CASES["lora7b"], tiny=True, rows=16, micro=4, length=120, picture=(72, 36)
    )
    turns = {side: _grpo_sides.take_turn(case, side, 6) for side in _grpo_cases.SIDES}
    grpo.assert_same(turns)
    ours = turns[_grpo_cases.OURS]
    assert ours.grad_norm > 0 and all(turn.rate > 0 for turn in turns.values())
    for turn in turns.values():  # in fp32 they agree far better than on a GPU in bf16
        assert turn.loss == pytest.approx(ours.loss, abs=1e-5)
        assert turn.grad_norm == pytest.approx(ours.grad_norm, rel=1e-3)


def test_the_real_shape_of_grpo_is_planned() -> None:
    """As the plan sees it: nothing of it is made."""
    planned = _grpo_cases.CASES["lora7b"].plan()
    assert planned.shape is not None and planned.shape.parameters == 8_292_166_656
    assert planned.total is not None and 17 * grpo.GIB < planned.total < 80 * grpo.GIB
