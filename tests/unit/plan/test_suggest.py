"""What fits a card, fastest first, as settings that can be typed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.planning import GIB, OFFLINE, profile
from workloads import device
from workloads.device import Gpu
from workloads.errors import UserError
from workloads.plan.cards import Card, find_card
from workloads.plan.estimate import SAFE, estimate
from workloads.plan.known_shapes import shape_of
from workloads.plan.suggest import (
    Suggestion,
    automatic,
    fastest_by_method,
    suggestion_lines,
    suggestions,
)

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
ELYZA = "elyza/Llama-3-ELYZA-JP-8B"


def card() -> Card:
    found = find_card("rtx 4090")
    assert found is not None
    return found


def found_for(folder: Path, *overrides: str, gpus: int = 1) -> list[Suggestion]:
    config = profile(folder, *overrides, model=ELYZA)
    shape, _ = shape_of(config.model, OFFLINE)
    return suggestions(config, shape, card(), 24 * GIB, gpus)


def test_all_fit_with_a_margin_and_the_fastest_comes_first(tmp_path: Path) -> None:
    found = found_for(tmp_path, "train.global_batch_size=16")
    assert found
    assert {suggestion.method for suggestion in found} == {"lora", "qlora"}  # 8B in 24 GB
    assert all(suggestion.total <= (1 - SAFE) * 24 * GIB for suggestion in found)
    times = [round(suggestion.seconds, 3) for suggestion in found]
    assert times == sorted(times)


def test_its_words_make_what_it_says(tmp_path: Path) -> None:
    for suggestion in found_for(tmp_path, "train.global_batch_size=16", gpus=2)[:8]:
        words = ("train.global_batch_size=16", *suggestion.settings)
        again = profile(tmp_path, *words, model=ELYZA)
        assert estimate(again, 2, OFFLINE).total == suggestion.total
        assert again.accumulation_steps(2) * again.train.per_device_batch_size * 2 == 16


def test_the_global_batch_of_the_profile_stays(tmp_path: Path) -> None:
    for suggestion in found_for(tmp_path, "train.per_device_batch_size=4"):
        config = suggestion.config
        steps = config.accumulation_steps(1)
        assert steps * config.train.per_device_batch_size == 4


def test_lines_mark_the_fastest(tmp_path: Path) -> None:
    kept = fastest_by_method(found_for(tmp_path, "train.global_batch_size=16"))
    shown = suggestion_lines(kept, 24 * GIB)
    assert shown[0].startswith("fastest") and "adapter.method=lora" in shown[0]
    assert suggestion_lines([], 24 * GIB) == ["nothing fits in a GPU of 24.0 GiB with 8% to spare"]


def test_a_workload_that_refuses_a_pair_is_not_offered_it() -> None:
    from workloads.config.merge import resolve

    config, _ = resolve(ROOT / "profiles/vla.yaml", {}, [])
    shape, _ = shape_of(config.model, OFFLINE)
    big = find_card("h100")
    assert big is not None
    for suggestion in suggestions(config, shape, big, 80 * GIB, 2):
        config = suggestion.config
        assert config.adapter.method == "full" or config.strategy(2) == "ddp"


def test_the_command_answers_at_once_without_torch() -> None:
    code = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "from workloads.cli import main\n"
        "words = 'tatara plan llm-4090 --suggest --gpu rtx-4090 --gpus 2'\n"
        "sys.argv = words.split()\n"
        "code = main()\n"
        "assert 'torch' not in sys.modules\n"
        "assert time.perf_counter() - start < 2\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fastest")


def gpu(size: int) -> Gpu:
    return Gpu(0, "GPU-0", "NVIDIA GeForce RTX 4090", size, size, (8, 9))


def test_auto_changes_what_does_not_fit_and_keeps_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "gpus", lambda env: (gpu(24 * GIB),))
    fits_already = profile(tmp_path, "adapter.method=qlora", model=ELYZA)
    assert automatic(fits_already, OFFLINE) is None
    settings = ("adapter.method=lora", "train.per_device_batch_size=8")
    chosen = automatic(profile(tmp_path, *settings, model=ELYZA), OFFLINE)
    assert chosen is not None and chosen.method == "lora"
    again = profile(tmp_path, *settings, *chosen.settings, model=ELYZA)
    assert again.accumulation_steps(1) * again.train.per_device_batch_size == 8
    whole = automatic(profile(tmp_path, model=ELYZA), OFFLINE)
    assert whole is not None and whole.method != "full"  # 8B does not train whole in 24 GB


def test_auto_says_where_nothing_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpus", lambda env: (gpu(2 * GIB),))
    with pytest.raises(UserError, match="RECIPE=auto: expected settings that fit a GPU of 2.0 GiB"):
        automatic(profile(tmp_path, model=ELYZA), OFFLINE)
    monkeypatch.setattr(device, "gpus", lambda env: ())
    assert automatic(profile(tmp_path, model=ELYZA), OFFLINE) is None
