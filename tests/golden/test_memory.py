"""Peaks of GPU memory that other people measured, against the plan's formulas."""

import csv
from pathlib import Path

import pytest

from workloads.errors import UserError
from workloads.plan import predict_row

pytestmark = pytest.mark.golden

FOLDER = Path(__file__).with_name("memory")


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


T4 = rows("t4_peaks.csv")


@pytest.mark.parametrize(
    "row", T4, ids=lambda row: f"{row['method']}-{row['attention']}-{row['row']}"
)
def test_a_step_on_a_t4_is_predicted_within_two_percent(row: dict[str, str]) -> None:
    assert predict_row(row) == pytest.approx(float(row["peak_allocated_mib"]), rel=0.02)


def test_the_rows_are_of_every_kind() -> None:
    kinds = [(row["method"], row["attention"]) for row in T4]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {
        ("lora", "sdpa"): 7,
        ("lora", "eager"): 7,
        ("qlora_nf4", "sdpa"): 21,
        ("qlora_nf4", "eager"): 20,
    }


def test_a_row_that_lacks_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="'lora_rank'"):
        predict_row({**T4[0], "lora_rank": ""})
