"""Rewards and evaluation scores against recorded results of the functions they follow."""

import json
from pathlib import Path
from typing import Any

import pytest

from workloads.grpo.evaluate import tasks as evaluate
from workloads.grpo.rewards import functions as rewards
from workloads.grpo.rewards.math_checker import shared_checker

pytestmark = pytest.mark.golden
FOLDER = Path(__file__).parent / "rewards"


def read(name: str) -> list[dict[str, Any]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_accuracy_and_format() -> None:
    rows = read("r1v_rewards.jsonl")
    for row in rows:
        accuracy = rewards.accuracy(row["completion"], row["solution"])
        assert (accuracy, rewards.format(row["completion"])) == (row["accuracy"], row["format"]), (
            row["id"],
            row["category"],
        )
    assert len(rows) == 183


def test_what_math_verify_alone_says() -> None:
    for row in read("r1v_rewards.jsonl"):
        verdict = shared_checker().compare(row["completion"], row["solution"])
        assert verdict.match == row["symbolic_match"], row["id"]
        assert verdict.first == next(iter(row["parsed_completion"]), None), row["id"]


def test_superclevr() -> None:
    rows = read("superclevr_extraction.jsonl")
    for row in rows:
        assert evaluate.extract_superclevr(row["output"]) == row["extracted"], row["id"]
        correct = evaluate.score_superclevr(row["output"], row["ground_truth"])
        assert correct is row["correct"], row["id"]
    assert len(rows) == 54


def test_geoqa() -> None:
    rows = read("geoqa_scoring.jsonl")
    for row in rows:
        assert evaluate.score_geoqa(row["output"], row["ground_truth"]) is row["correct"], row["id"]
        assert evaluate.extract_geoqa(row["output"]) == row["extracted"], row["id"]
    assert len(rows) == 82
