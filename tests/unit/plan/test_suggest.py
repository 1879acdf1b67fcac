"""What fits a card, fastest first, as settings that can be typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.planning import GIB, OFFLINE, profile
from workloads import device
from workloads.cli import main
from workloads.commands.common import resolved_to_fit
from workloads.device import Gpu
from workloads.errors import UserError
from workloads.launch.supervisor import Job
from workloads.plan.cards import Card, find_card
from workloads.plan.estimate import SAFE, estimate
from workloads.plan.known_shapes import shape_of
from workloads.plan.row_lengths import RowLengths
from workloads.plan.suggest import (
    Suggestion,
    automatic,
    fastest_by_method,
    suggestion_lines,
    suggestions,
)
from workloads.run.manifest import CHOICE

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


def test_packing_is_weighed_by_the_lengths_of_rows(tmp_path: Path) -> None:
    config = profile(tmp_path, "train.global_batch_size=16", model=ELYZA)
    shape, _ = shape_of(config.model, OFFLINE)

    def packs(lengths: RowLengths | None) -> list[Suggestion]:
        found = suggestions(config, shape, card(), 24 * GIB, 1, lengths=lengths)
        return [suggestion for suggestion in found if suggestion.config.packs]

    assert not packs(None)  # nothing tells what it would save
    short = suggestions(config, shape, card(), 24 * GIB, 1, lengths=RowLengths(128, 1024))
    assert "data.packing=true" in short[0].settings
    # A sequence of 1,024 tokens holds eight rows of 128: two sequences are the 16 rows of a step.
    assert "train.global_batch_size=2" in short[0].settings
    full = suggestions(config, shape, card(), 24 * GIB, 1, lengths=RowLengths(1024, 1024))
    assert not full[0].config.packs  # nothing to win, so the profile stays


@pytest.mark.parametrize(("rows", "tokens"), [(1, 100), (3, 200), (10**6, 300)])
def test_a_row_is_padded_to_the_longest_of_its_micro_batch(rows: int, tokens: int) -> None:
    assert RowLengths(100, 300).padded(rows, 512) == pytest.approx(tokens, rel=1e-4)
    assert RowLengths(100, 300).padded(rows, 100) == 100


def test_eager_attention_is_left_where_a_profile_has_it(tmp_path: Path) -> None:
    found = found_for(tmp_path, "model.attention=eager", "train.global_batch_size=16")
    assert "model.attention=auto" in found[0].settings
    assert any(suggestion.config.model.attention == "eager" for suggestion in found)
    others = found_for(tmp_path, "model.attention=sdpa")
    assert all(suggestion.config.model.attention == "sdpa" for suggestion in others)


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


def test_the_ranks_of_a_profile_win_over_its_gpus(tmp_path: Path) -> None:
    """A step of llm-4090 has 4 rows on each of 2 x 2 ranks, however many GPUs a node has."""
    from workloads.config.merge import resolve

    config, _ = resolve(ROOT / "profiles/llm-4090.yaml", {}, [])
    shape, _ = shape_of(config.model, OFFLINE)
    for gpus in (1, 2, 4):
        for suggestion in suggestions(config, shape, card(), 24 * GIB, gpus):
            made = suggestion.config
            assert made.accumulation_steps(4) * made.train.per_device_batch_size == 4


def test_fp16_that_a_card_needs_comes_with_the_masters_that_it_needs(tmp_path: Path) -> None:
    config = profile(tmp_path, "train.master_weights=compute")
    shape, _ = shape_of(config.model, OFFLINE)
    old = find_card("t4")
    assert old is not None
    for suggestion in suggestions(config, shape, old, 15 * GIB, 1):
        assert "train.precision=fp16" in suggestion.settings
        assert suggestion.method != "full" or "train.master_weights=fp32" in suggestion.settings


def test_suggestions_as_json_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(ROOT / "profiles/llm-4090.yaml"), "--suggest", "--gpu", "rtx-4090"]
    assert main([*words, "--gpus", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["suggestions"][0]["method"] == "lora"
    assert "add parallel.ranks_per_node=4" in printed["notes"][0]
    assert main([*words, "--gpus", "2", "--price", "0.4"]) == 0
    out = capsys.readouterr().out
    assert " and $0.0" in out and "ranks_per_node" not in out
    assert main([*words, "--png", "memory.png"]) == 2
    assert "--png: it is of one plan" in capsys.readouterr().err


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
        "start = time.process_time()\n"
        "from workloads.cli import main\n"
        "words = 'tatara plan llm-4090 --suggest --gpu rtx-4090 --gpus 2'\n"
        "sys.argv = words.split()\n"
        "code = main()\n"
        "assert 'torch' not in sys.modules\n"
        "assert time.process_time() - start < 2\n"
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


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile that says auto and does not fit the card that is here."""
    monkeypatch.setattr(device, "gpus", lambda env=None: (gpu(24 * GIB),))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"workload: llm\nprofile: auto\nmodel: {{name: {ELYZA}}}\ndata: {{source: rows.jsonl}}\n"
        "train: {global_batch_size: 8}\n"
    )
    return path


def test_a_profile_may_say_auto_itself(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = dict(OFFLINE)
    config, _, words = resolved_to_fit(mine, env, [])
    assert config.adapter.method == "lora" and "adapter.method=lora" in words
    assert estimate(config, 1, OFFLINE).need(24 * GIB) < 0.92 * 24 * GIB  # type: ignore[operator]
    assert "adapter.method=full fits in none" in env[CHOICE]
    assert env[CHOICE] in capsys.readouterr().err
    # The words make the same again, as the ranks and other nodes of the job do.
    assert resolved_to_fit(mine, dict(OFFLINE), words)[0] == config


def test_auto_leaves_what_was_set_outside_the_profile(mine: Path) -> None:
    words = ["adapter.method=qlora", "train.per_device_batch_size=8", "data.max_length=2048"]
    config, _, _ = resolved_to_fit(mine, dict(OFFLINE), words)
    assert config.adapter.method == "qlora" and config.train.per_device_batch_size == 8
    assert config.train.gradient_checkpointing  # what was left to choose
    with pytest.raises(UserError, match="expected settings that fit"):
        resolved_to_fit(mine, dict(OFFLINE), ["adapter.method=full"])


def test_train_takes_what_auto_chose(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mine.with_name("rows.jsonl")
    rows.write_text('{"question": "1+1?", "answer": "2"}\n')
    jobs: list[Job] = []
    monkeypatch.setattr("workloads.launch.supervisor.launch", lambda job: jobs.append(job) or 0)
    monkeypatch.setattr("workloads.check.before_start", lambda job: None)
    assert main(["train", str(mine), f"data.source={rows}"]) == 0
    assert jobs[0].config.adapter.method == "lora"
    assert "to spare" in jobs[0].env[CHOICE]
