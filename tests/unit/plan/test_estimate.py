"""Predicted bytes against figures worked out by hand, and against real steps."""

from pathlib import Path

import pytest
import torch
import transformers

from bench.plan_memory import (
    AnyCase,
    Case,
    PolicyCase,
    SeeingCase,
    measure,
    predicted_states,
)
from tests.support.planning import GIB, OFFLINE, TABLE, N, highest, of, profile, total
from workloads.config.merge import resolve
from workloads.plan import activations
from workloads.plan.estimate import Breakdown, estimate
from workloads.plan.gpu_memory import job_of
from workloads.plan.known_shapes import shape_of
from workloads.vla.openvla.config import OftSpec
from workloads.vla.openvla.oft import L1ActionHead, ProprioProjector

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]

# Bytes by hand: Llama-3.2-1B


def test_full_fsdp2_on_four_gpus(tmp_path: Path) -> None:
    found = of(tmp_path, "parallel.nodes=2", gpus=2)
    assert (found.strategy, found.world_size) == ("fsdp2", 4)
    assert found.gpu.master_weights == N  # 4 bytes / 4 GPUs
    assert found.gpu.optimizer_states == 2 * N
    # Gathered whole in bf16, because the fused head is kept whole.
    assert found.gpu.weights == 2 * N
    # A quarter in fp32, but for the tied table: three times in bf16 until it is reduced.
    assert highest(found, "gradients") == N - TABLE + 3 * 2 * TABLE
    assert total(found) == sum(found.parts.values())


def test_full_on_one_gpu_is_16_bytes_a_parameter(tmp_path: Path) -> None:
    found = of(tmp_path)
    own = found.gpu.master_weights + found.gpu.optimizer_states
    assert own == 12 * N
    # When the backward pass ends: all gradients, and two more of the tied table.
    assert highest(found, "gradients") == 4 * N + 2 * 4 * TABLE
    assert total(found) >= 16 * N


def test_types_of_weights(tmp_path: Path) -> None:
    low = of(tmp_path, "train.master_weights=compute")
    assert (low.states.weights, low.states.master_weights) == (2 * N, 0)
    assert low.states.optimizer_states == 4 * N
    single = of(tmp_path, "train.precision=fp32")
    assert (
        single.states.weights,
        single.states.master_weights,
        single.states.optimizer_states,
    ) == (4 * N, 0, 8 * N)
    # accelerate widens trained weights under FSDP2 whatever they are loaded in.
    assert of(tmp_path, "train.master_weights=compute", gpus=2).states.master_weights == 2 * N


def test_8bit_optimizer_keeps_the_embedding_wide(tmp_path: Path) -> None:
    found = of(tmp_path, "optim.optimizer=adamw_8bit")
    assert found.gpu.optimizer_states == pytest.approx(2 * 1.015625 * (N - TABLE) + 8 * TABLE)


# q, k, v and o of 16 layers at rank 16.
LORA = 16 * 16 * ((2048 + 2048) + 2 * (2048 + 512) + (2048 + 2048))


def test_lora(tmp_path: Path) -> None:
    found = of(tmp_path, "adapter.method=lora")
    assert LORA == 3_407_872
    assert found.states.adapter_states == 16 * LORA
    assert (found.states.weights, found.states.master_weights, found.states.gradients) == (
        2 * N,
        0,
        0,
    )
    assert found.checkpoint_disk == 12 * LORA
    two = of(tmp_path, "adapter.method=lora", gpus=2)
    assert (two.strategy, two.states.communication) == ("ddp", 4 * LORA)


def test_qlora(tmp_path: Path) -> None:
    linear = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    nf4 = of(tmp_path, "adapter.method=qlora")
    assert nf4.states.quantised_base == int(linear * (0.5 + 1 / 64 + 1 / 4096))
    assert nf4.states.quantised_base == pytest.approx(0.52 * linear, rel=0.01)
    assert nf4.states.weights == 2 * (N - linear)
    assert nf4.states.adapter_states == 16 * LORA
    plain = of(tmp_path, "adapter.method=qlora", "adapter.double_quantisation=false")
    assert plain.states.quantised_base == linear * 9 // 16
    rows = 16 * (2 * 2048 + 2 * 512 + 2 * 8192 + 2048)
    int8 = of(tmp_path, "adapter.method=qlora", "adapter.quantisation=int8")
    assert int8.states.quantised_base == linear + 4 * rows


def test_int8_holds_the_inputs_of_its_matrices_through_checkpointing(tmp_path: Path) -> None:
    """A layer's: both norms' results, the attention's and the MLP's, in bf16."""
    words = ("adapter.method=qlora", "train.gradient_checkpointing=true", "adapter.dropout=0")
    nf4, int8 = of(tmp_path, *words), of(tmp_path, *words, "adapter.quantisation=int8")
    held = 16 * 1024 * 2 * (2 * 2048 + 2048 + 8192)
    for mine, other in zip(int8.moments, nf4.moments, strict=True):
        assert mine.memory.activations - other.memory.activations == held
    # Without it adapters read the same inputs, so that three of four are there anyway.
    both = [total(of(tmp_path, words[0], words[2], word))
            for word in ("adapter.quantisation=nf4", "adapter.quantisation=int8")]  # fmt: skip
    assert both[1] > both[0]


def test_modules_trained_whole_beside_an_adapter(tmp_path: Path) -> None:
    """A copy in bf16, its gradient and two moments: 8 bytes a number; tied tables are one."""
    lora = of(tmp_path, "adapter.method=lora").states.adapter_states
    for names in ("[embed_tokens]", "[lm_head]", "[lm_head,embed_tokens]"):
        found = of(tmp_path, "adapter.method=lora", f"adapter.modules_to_save={names}")
        assert found.states.adapter_states - lora == 8 * TABLE
    untied, table = "elyza/Llama-3-ELYZA-JP-8B", 128_256 * 4096
    words = ("adapter.method=qlora", "adapter.modules_to_save=[embed_tokens,lm_head]")
    plain = of(tmp_path, words[0], model=untied).states.adapter_states
    found = of(tmp_path, *words, model=untied)
    assert found.states.adapter_states - plain == 16 * table
    # The head's gradient is summed in fp32 beside a bf16 copy.
    assert highest(found, "logits") > 6 * table
    unknown = of(tmp_path, words[0], "adapter.modules_to_save=[norm]")
    assert "adapter.modules_to_save: norm not counted" in unknown.notes


def test_activations_of_a_layer(tmp_path: Path) -> None:
    """bf16 stream (FSDP2): two norms of 4 h + 2 h, their results 2 x 2 h, q k v and output, four
    intermediate values; and 24 bytes of statistics besides 4 for each head."""
    h, a, k, m = 2048, 2048, 512, 8192
    config = profile(tmp_path)
    shape, _ = shape_of(config.model, OFFLINE)
    sharded = activations.layer(job_of(config, shape, 2).work)
    assert sharded == 12 * h + 4 * h + 2 * (2 * a + 2 * k) + 8 * m + 4 * 32 + 16
    # fp32 stream (one GPU): norms of 4 h + 4 h, and a bf16 copy for each of five matrices.
    alone = activations.layer(job_of(config, shape, 1).work)
    assert alone == 16 * h + 10 * h + 2 * (2 * a + 2 * k) + 8 * m + 4 * 32 + 16


def test_checkpointing_keeps_the_stream_and_one_layer(tmp_path: Path) -> None:
    settings = ("train.gradient_checkpointing=true", "train.per_device_batch_size=4")
    config = profile(tmp_path, *settings)
    shape, _ = shape_of(config.model, OFFLINE)
    work = job_of(config, shape, 4).work
    tokens = 4 * 1024
    assert activations.stack(work) == 2 * 2048 * tokens * 16
    # The layer, two gradients of the MLP's width, the stream's, and one weight's in two types.
    gradients = tokens * (2 * 2 * 8192 + 2 * 2048) + (2 + 4) * 2048 * 8192
    assert activations.layer_backward(work) == tokens * activations.layer(work) + gradients
    off = of(tmp_path, "train.per_device_batch_size=4", gpus=4)
    assert total(estimate(config, 4, OFFLINE)) < 0.7 * total(off)


def test_logits(tmp_path: Path) -> None:
    rows = ("train.per_device_batch_size=2", "data.max_length=2048")
    whole = of(tmp_path, *rows, "train.fused_cross_entropy=false")
    # The log-softmax and two gradients of its size.
    assert highest(whole, "logits") == 12 * 4096 * 128_256
    fused = of(tmp_path, *rows)
    # A tile and the weights under it, the head's input and its gradient, the weight's gradient.
    tile, weight = 4096 * 32_768 * 2, 32_768 * 2048 * 2
    assert highest(fused, "logits") == tile + weight + 4096 * 2048 * 8 + 4 * TABLE


def test_eager_attention_grows_with_the_square(tmp_path: Path) -> None:
    def of_length(length: int) -> int:
        settings = ("model.attention=eager", f"data.max_length={length}")
        eager, fused = of(tmp_path, *settings), of(tmp_path, settings[1])
        return highest(eager, "activations") - highest(fused, "activations")

    assert of_length(2048) > 3.5 * of_length(1024)


def test_packing_fills_every_row(tmp_path: Path) -> None:
    settings = ("train.per_device_batch_size=3", "data.max_length=700")
    packed = of(tmp_path, *settings, "data.packing=true")
    assert packed.tokens == 3 * 700
    assert packed.total == of(tmp_path, *settings).total


def test_ddp_and_zero(tmp_path: Path) -> None:
    ddp = of(tmp_path, "parallel.strategy=ddp", gpus=2)
    assert ddp.states.master_weights == 4 * N and ddp.states.communication == 4 * N
    zero2 = of(tmp_path, "parallel.strategy=zero2", gpus=2)
    assert (zero2.states.weights, zero2.states.master_weights, zero2.states.optimizer_states) == (
        2 * N,
        0,
        0,
    )
    zero3 = of(tmp_path, "parallel.strategy=zero3", gpus=2)
    assert zero3.gpu.weights == N + 2 * 1_000_000_000  # its part, and what it keeps gathered
    # The optimizer is on the host: 16 bytes a parameter, beside two processes.
    assert zero2.host_memory == zero3.host_memory == 16 * N + 2 * 3 * GIB


def test_accumulation_under_fsdp2_keeps_whole_gradients(tmp_path: Path) -> None:
    settings = ("train.per_device_batch_size=2", "parallel.ranks_per_node=4")
    once = of(tmp_path, *settings)
    many = of(tmp_path, *settings, "train.global_batch_size=32")
    assert highest(many, "gradients") >= 2 * N
    assert total(many) > total(once)
    assert any("accumulates" in note for note in many.notes)
    assert not any("accumulates" in note for note in once.notes)


def test_disk_and_host(tmp_path: Path) -> None:
    found = of(tmp_path, "checkpoints.keep_last=3", "checkpoints.keep_best=false", gpus=2)
    assert found.checkpoint_disk == 12 * N
    assert found.final_disk == 2 * N
    assert found.disk == 4 * 12 * N + 2 * N  # three and the one being written
    assert found.host_memory == 2 * (3 * GIB + 4 * N)


def test_missing_targets_are_noted(tmp_path: Path) -> None:
    settings = ("adapter.method=lora", "adapter.targets=[c_attn]")
    found = of(tmp_path, *settings)
    assert found.states.adapter_states == 0
    assert any("q_proj, k_proj" in note for note in found.notes)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("train.per_device_batch_size=8", "train.per_device_batch_size=4"),
        ("data.max_length=2048", "data.max_length=1024"),
        ("adapter.method=full", "adapter.method=lora"),
        ("adapter.method=lora", "adapter.method=qlora"),
        ("train.fused_cross_entropy=false", "train.fused_cross_entropy=true"),
        ("optim.optimizer=adamw", "optim.optimizer=adamw_8bit"),
        ("train.gradient_checkpointing=false", "train.gradient_checkpointing=true"),
        ("parallel.ranks_per_node=2", "parallel.ranks_per_node=4"),
    ],
)
def test_less_is_less(more: str, less: str, tmp_path: Path) -> None:
    usual = ("parallel.ranks_per_node=2", "train.per_device_batch_size=4")
    assert total(of(tmp_path, *usual, less)) < total(of(tmp_path, *usual, more))


def test_a_policy_that_sees(tmp_path: Path) -> None:
    settings = ("adapter.method=lora", "adapter.r=32", "adapter.targets=[all-linear]")
    found = of(tmp_path, *settings, "data.max_length=320", model="openvla/openvla-7b")
    assert found.states.adapter_states == 16 * (110_828_288 - 32 * (36_160 + 3_352 + 53_184))
    frozen = of(tmp_path, "adapter.method=lora", "data.max_length=320", model="openvla/openvla-7b")
    assert (
        found.gpu.activations > frozen.gpu.activations
    )  # the towers keep theirs only where trained


def policy(*overrides: str) -> Breakdown:
    config, _ = resolve(ROOT / "profiles/vla.yaml", {}, list(overrides))
    return estimate(config, 1, OFFLINE)


def test_a_policy_that_sees_more_needs_more() -> None:
    one, two = policy(), policy("data.cameras=[primary,wrist]")
    rows, patches = 8, 256
    assert two.tokens - one.tokens == rows * patches
    assert highest(two, "activations") > 1.6 * highest(one, "activations")
    assert policy("data.cameras=[primary]") == one


def test_a_policy_that_plans_ahead_has_slots_and_a_head() -> None:
    plain = policy()
    chunks = policy("action_head.kind=oft", "action_head.chunk=8")
    assert chunks.tokens - plain.tokens == 8 * (8 * 8 + 1)
    with torch.device("meta"):
        head, state = L1ActionHead(OftSpec(8, 8, 8), 4096), ProprioProjector(8, 4096)
    counts = [
        sum(parameter.numel() for parameter in module.parameters()) for module in (head, state)
    ]
    # fp32 with gradients and two moments, whatever the base is.
    assert chunks.states.adapter_states - plain.states.adapter_states == 16 * sum(counts)
    discrete = policy("action_head.kind=oft", "action_head.decode=discrete")
    assert discrete.states.adapter_states - plain.states.adapter_states == 16 * counts[1]


def seeing(*overrides: str) -> Breakdown:
    settings = ["optim.optimizer=adamw", *overrides]
    config, _ = resolve(ROOT / "profiles/recipes/grpo-3b.yaml", {}, settings)
    return estimate(config, 1, OFFLINE)


def test_a_frozen_tower_gets_neither_gradients_nor_moments() -> None:
    """Its 0.6 billion weights stay, in the type that all have."""
    whole, frozen = seeing(), seeing("model.freeze_vision=true")
    size = whole.states.gradients // (whole.shape.parameters if whole.shape else 1)
    count = (whole.states.gradients - frozen.states.gradients) // size
    assert 0.60e9 < count < 0.67e9
    assert whole.states.optimizer_states - frozen.states.optimizer_states == 2 * size * count
    assert whole.states.weights == frozen.states.weights


def test_larger_images_keep_more_where_the_tower_learns() -> None:
    """Adapters on the text alone: no backward pass goes through the tower."""
    patches, layers, hidden = (401408 - 200704) // 14**2, 32, 1280
    images = 4 * patches * 2 * 3 * 14**2
    # The stream before each layer and before the last norm.
    stream = 2 * patches * (layers + 1) * hidden
    usual = ("adapter.method=lora", "train.gradient_checkpointing=true", "adapter.dropout=0")
    for targets, kept in (("q_proj,v_proj", images), ("all-linear", images + stream)):
        words = (*usual, f"adapter.targets=[{targets}]")
        small, large = (seeing(*words, f"grpo.max_pixels={pixels}") for pixels in (200704, 401408))
        grown = highest(large, "activations") - highest(small, "activations")
        assert grown == pytest.approx(kept, rel=0.1)


def test_the_supervised_stage_makes_all_logits() -> None:
    """Its loss is the model's own; GRPO's is made of tiles."""
    rewarded, taught = seeing(), seeing("stage=sft")
    tokens, vocabulary = 1024 + 512, 151_936
    assert highest(taught, "logits") >= 12 * tokens * vocabulary > highest(rewarded, "logits")


# Against real steps


SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "vocab_size": 1000,
}
LLAMA = transformers.LlamaConfig(**SMALL)


@pytest.mark.parametrize(
    "case",
    [
        Case("fp32", LLAMA, ("train.precision=fp32",)),
        Case("bf16", LLAMA),
        Case("tied", transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)),
        Case("checkpointing", LLAMA, ("train.gradient_checkpointing=true",)),
        Case("lora", LLAMA, ("adapter.method=lora", "adapter.dropout=0")),
        Case("qwen2", transformers.Qwen2Config(**SMALL)),
        Case("qlora", LLAMA, ("adapter.method=qlora", "adapter.dropout=0")),
        SeeingCase("qwen2.5-vl", ("adapter.method=lora", "adapter.dropout=0")),
        PolicyCase("openvla", ("adapter.method=full",)),
    ],
    ids=lambda case: case.name,
)
def test_a_real_step_allocates_what_is_predicted(case: AnyCase) -> None:
    config, found = case.predict()
    measured = measure(case, config)
    assert predicted_states(found) == pytest.approx(measured.states, rel=0.005)
    assert found.allocated == pytest.approx(measured.peak, rel=0.05)
