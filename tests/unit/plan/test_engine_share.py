"""vLLM on the card that trains: its share of the memory, and the weights in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.planning import GIB, OFFLINE, of, total
from workloads.config.merge import resolve
from workloads.plan.advice import advice
from workloads.plan.cards import find_card
from workloads.plan.estimate import estimate, fits, verdict
from workloads.plan.suggest import suggestions

pytestmark = pytest.mark.unit

PROFILE = Path(__file__).resolve().parents[3] / "profiles" / "grpo-h100.yaml"
SHARE = "generation.gpu_memory_utilization"
PARAMETERS = 8_292_166_656


def config_of(*settings: str) -> Any:
    return resolve(PROFILE, {}, list(settings))[0]


def test_an_engine_beside_the_states_counts(tmp_path: Path) -> None:
    found = of(tmp_path, "adapter.method=lora")
    shared = replace(found, engine_share=0.9)
    memory = total(found) * 2
    assert fits(found, memory) is True
    # Frozen weights and nine tenths of the GPU are more than it has.
    assert fits(shared, memory) is False
    assert shared.need(memory) == int(0.9 * memory) + found.states.total + found.gpu.framework
    assert verdict(shared, memory).endswith("too much while vLLM has its share")


def test_a_share_has_to_hold_the_engine_s_weights() -> None:
    config = config_of(f"{SHARE}=0.1")
    found = estimate(config, 1, OFFLINE)
    assert found.engine_weights == 2 * PARAMETERS
    assert fits(found, 80 * GIB) is False
    assert "share of it, 8.0 GiB, is less than its weights, 15.4 GiB" in verdict(found, 80 * GIB)
    lines = advice(found, config, 80 * GIB)
    assert lines and all(f"{SHARE}=0.2" in line for line in lines)
    assert fits(estimate(config_of(f"{SHARE}=0.2"), 1, OFFLINE), 80 * GIB) is True
    card = find_card("a100")
    assert card is not None and found.shape is not None
    assert not suggestions(config, found.shape, card, 80 * GIB, 1)


def test_engines_of_several_gpus_share_their_weights() -> None:
    config = config_of("generation.tensor_parallel=2")
    assert estimate(config, 2, OFFLINE).engine_weights == PARAMETERS
    assert estimate(config_of("generation.engine=transformers"), 1, OFFLINE).engine_weights == 0


def test_advice_counts_the_share() -> None:
    """A smaller optimizer helps a step, and hardly the time in which vLLM has its share."""
    settings = ("model.name=Qwen/Qwen2.5-VL-3B-Instruct", f"{SHARE}=0.75")
    config, memory = config_of(*settings), 24 * GIB
    found = estimate(config, 1, OFFLINE)
    assert total(found) < memory and fits(found, memory) is False
    lines = advice(found, config, memory)
    assert lines
    for line in lines:
        words, _, text = line.partition(": ")
        changed = estimate(config_of(*settings, *words.split()), 1, OFFLINE)
        assert ("still too much" in text) != fits(changed, memory)
