"""What bench/gpu/run.sh is expected to take on an H100: by the planner, and 25 minutes in all."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import _part_planned, run
from bench.gpu._grpo_cases import CASES as GRPO_CASES
from bench.gpu._parts import BEFORE, PARTS, SPEED, find
from bench.gpu._sft_cases import CASES as SFT_CASES
from bench.gpu._vla_sides import CASES as VLA_CASES
from bench.gpu.part import Report
from workloads.config.sections import Profile
from workloads.plan.cards import find_card
from workloads.plan.estimate import Breakdown
from workloads.plan.speed import speed_of

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]


def speed(config: Profile, plan: Breakdown) -> float:
    """Tokens a second on an H100, as `tatara plan` says."""
    card = find_card("NVIDIA H100 80GB HBM3")
    assert card is not None and plan.shape is not None
    return speed_of(config, plan.shape, card, 1).tokens_per_second


def test_the_parts_are_there_and_fit_into_25_minutes() -> None:
    """Every part names a function; what matters most comes first."""
    for part in PARTS:
        module, _, name = part.function.partition(":")
        text = (ROOT / "bench" / "gpu" / f"{module}.py").read_text(encoding="utf-8")
        assert f"def {name}(report: Report)" in text and part.paths
        assert 10 < part.expected < 150 and 60 + 2 * part.expected < part.limit < 540
    assert BEFORE + sum(part.expected for part in PARTS) <= 25 * 60


def test_speeds_are_the_planners(tmp_path: Path) -> None:
    """None is rosier than what `tatara plan` expects of an H100, and none far below."""
    sft = {"1B": SFT_CASES["full"], "8B": SFT_CASES["lora"]}
    found = {name: speed(case.config(model="."), case.plan()) for name, case in sft.items()}
    vla = VLA_CASES["batch16"]
    found["OpenVLA"] = speed(vla.config(tmp_path, 5), vla.plan())
    grpo = GRPO_CASES["lora7b"]
    found["7B"] = speed(grpo.config(tmp_path, 5), grpo.plan())
    assert found.keys() == SPEED.keys()
    for name, rate in found.items():
        assert 0.85 * rate < SPEED[name] <= rate, (name, rate)


def test_a_cost_counts_what_its_part_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_part_planned._machine, "version", lambda name: "1")
    settings = _part_planned.settings(Report("cuda", tmp_path, "a card"))
    small = [setting for setting in settings if setting.name.startswith("1B")]
    read = [setting for setting in small if setting.own["adapter.method"] == "qlora"]
    times = {cost.what: cost.times for cost in find("planned").costs}
    assert times["1B drawn on the GPU, and its trainer"] == len(small) - len(read)
    assert times["1B read from disk, to the GPU"] == len(read)
    for setting in small:
        accumulated = setting.own.get("train.global_batch_size", setting.batch) // setting.batch
        assert setting.batch * setting.length * 3 * accumulated <= 4 * 16_384


@pytest.mark.runs("bench/gpu/run.sh --list")
def test_the_list_names_every_part_and_begins_none(tmp_path: Path) -> None:
    """Without torch, and without writing anything."""
    work = tmp_path / "work"

    def lines(*words: str) -> list[str]:
        command = ["bash", str(ROOT / "bench/gpu/run.sh"), "--list", "--work", str(work), *words]
        env = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    *parts, last = lines()
    assert [line.split()[0] for line in parts] == [part.name for part in PARTS]
    assert "its process 10" in parts[0] and not work.exists()
    seconds = BEFORE + sum(part.expected for part in PARTS)
    assert f"{seconds} s  {seconds / 60:.0f} minutes" in last
    assert len(lines("--parts", "card", "nan")) == 3


def test_a_budget_begins_what_is_expected_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long part is left out, and a shorter one after it is run."""
    place = run.Place(tmp_path, "cuda")
    place.results.mkdir(parents=True)
    clock, ran = [0.0], []
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])

    def note(part: Any, place: run.Place, env: Mapping[str, str], limit: float) -> dict[str, Any]:
        ran.append((part.name, limit))
        clock[0] += part.expected
        found = {"status": "passed", "checks": [], "seconds": part.expected}
        place.result(part.name).write_text(json.dumps(found))
        return found

    monkeypatch.setattr(run, "run_part", note)
    card, train, head = find("card"), find("train"), find("head")
    budget = card.expected + head.expected + 10
    assert run.run_parts([card, train, head], place, {}, budget) == ["train"]
    assert [name for name, _ in ran] == ["card", "head"]
    assert ran[1][1] == head.expected + 10  # what is left, where its own limit is later
    with pytest.raises(run.Refused, match=f"at least {train.expected} seconds"):
        run.run_parts([card, train, head], place, {}, clock[0] + 20)
