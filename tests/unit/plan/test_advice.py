"""What is said about a prediction: advice, tables, floating-point operations."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.planning import GIB, LLAMA_1B, OFFLINE, N, of, profile, total
from workloads.config.sections import Adapter, Model
from workloads.plan.advice import advice
from workloads.plan.cards import peak_flops
from workloads.plan.estimate import Breakdown, estimate, fits
from workloads.plan.known_shapes import shape_of
from workloads.plan.speed import mfu_flops_per_token
from workloads.plan.table import table
from workloads.run.memory_parts import LABELS

pytestmark = pytest.mark.unit

# Advice


def test_advice_can_be_typed_and_gives_what_it_says(tmp_path: Path) -> None:
    usual = ("train.per_device_batch_size=8", "train.fused_cross_entropy=false")
    config = profile(tmp_path, *usual, model="elyza/Llama-3-ELYZA-JP-8B")
    found = estimate(config, 4, OFFLINE)
    lines = advice(found, config, 24 * GIB)
    assert len(lines) in (3, 4)
    sizes = []
    for line in lines:
        words, _, text = line.partition(": ")
        changed = profile(tmp_path, *usual, *words.split(), model="elyza/Llama-3-ELYZA-JP-8B")
        again = total(estimate(changed, 4, OFFLINE))
        assert text.startswith(f"{again / GIB:.1f} GiB instead of {total(found) / GIB:.1f} GiB")
        assert ("still too much" in text) == (again > 24 * GIB)
        sizes.append(again)
    assert sizes[:3] == sorted(sizes[:3])


def test_where_one_change_is_not_enough_several_are_named(tmp_path: Path) -> None:
    config = profile(tmp_path, "train.per_device_batch_size=8", model="Qwen/Qwen2.5-32B")
    found = estimate(config, 1, OFFLINE)
    lines = advice(found, config, 32 * GIB)
    assert len(lines) == 4
    assert lines[3].count("=") >= 2 and ", fits in 32.0 GiB" in lines[3]


def test_advice_names_targets_that_the_model_has(tmp_path: Path) -> None:
    model = "rinna/japanese-gpt-neox-3.6b"
    config = profile(tmp_path, model=model)
    lines = advice(estimate(config, 1, OFFLINE), config, 24 * GIB)
    assert lines[0].startswith("adapter.method=lora adapter.targets=[all-linear]: ")


def test_a_smaller_batch_keeps_the_global_one(tmp_path: Path) -> None:
    settings = ("adapter.method=qlora", "train.per_device_batch_size=6")
    config = profile(tmp_path, *settings, "train.gradient_checkpointing=true")
    lines = advice(estimate(config, 2, OFFLINE), config, GIB)
    wanted = "train.per_device_batch_size=1 train.global_batch_size=12"
    assert any(line.startswith(wanted) for line in lines)


def test_fits(tmp_path: Path) -> None:
    found = of(tmp_path)
    assert fits(found, total(found)) is True
    assert fits(found, total(found) - 1) is False


def test_unknown_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = profile(tmp_path, model="owner/secret")
    found = estimate(config, env=OFFLINE)
    assert (found.total, found.allocated, fits(found, GIB)) == (None, None, None)
    assert advice(found, config, GIB) == [found.unknown]
    table(found)
    assert "owner/secret" in capsys.readouterr().out


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = of(tmp_path, "adapter.method=qlora")
    table(found, memory_of_gpu=24 * GIB)
    shown = capsys.readouterr().out
    assert "1,235,814,400 parameters" in shown
    assert f"{found.gpu.quantised_base / 2**20:.0f} MiB" in shown
    assert f"{total(found) / GIB:.2f}" in shown and "24.00" in shown
    assert "master weights" not in shown  # a part of no bytes has no row


# Speed


def test_flops_of_a_token() -> None:
    shape, _ = shape_of(Model(name=LLAMA_1B), OFFLINE)
    attention = 6 * 16 * 32 * (64 + 64) * 2048
    assert mfu_flops_per_token(shape, 2048, Adapter()) == 6 * N + attention
    assert mfu_flops_per_token(shape, 2048, Adapter(method="lora")) == 4 * N + attention
    untied, _ = shape_of(Model(name="elyza/Llama-3-ELYZA-JP-8B"), OFFLINE)
    looked_up = 128_256 * 4096
    expected = 6 * (untied.parameters - looked_up) + 6 * 32 * 32 * 256 * 10
    assert mfu_flops_per_token(untied, 10, Adapter()) == expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("Tesla T4", None),
    ],
)
def test_peak_of_a_card(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_quick_and_without_torch(tmp_path: Path) -> None:
    profile(tmp_path)
    code = (
        "import sys, time; from workloads.config import resolve\n"
        "from workloads.plan.advice import advice\n"
        "from workloads.plan.estimate import estimate\n"
        f"config, _ = resolve({str(tmp_path / 'one.yaml')!r}, {{}})\n"
        "start = time.process_time(); found = estimate(config, 4, {})\n"
        "advised = advice(found, config, 1 << 30)\n"
        "assert time.process_time() - start < 0.1\n"
        "assert advised and found.total\n"
        "print([name for name in ('torch', 'rich', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_part_has_a_label() -> None:
    assert list(Breakdown().parts) == list(LABELS)
