"""The memory of a step in a run's report."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.planning import GIB, of
from tests.support.run_files import Written
from workloads.monitor.html import memory, report
from workloads.monitor.reading.settings import read_facts
from workloads.run import write_manifest

pytestmark = pytest.mark.unit


def page(written: Written, **facts: Any) -> str:
    planned = {"allocated": 9 * GIB, "reserved": 10 * GIB, "process": 11 * GIB}
    write_manifest(written.run, {"memory": {"planned": planned, "measured": None, **facts}})
    return "".join(memory.section(read_facts(written.run)))


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path).begun().losses([3.0, 2.0])


def planned_moments(folder: Path) -> list[dict[str, Any]]:
    found = of(folder, "adapter.method=lora").moments
    return [{"name": moment.name, "parts": asdict(moment.memory)} for moment in found]


def test_a_step_is_drawn_as_it_was_planned(written: Written, tmp_path: Path) -> None:
    moments = planned_moments(tmp_path)
    text = page(written, moments=moments)
    used = {name for moment in moments for name, size in moment["parts"].items() if size}
    assert text.count("<polygon") == len(used) == text.count('class="swatch"')
    for moment in moments:
        assert moment["name"] in text
    assert "GiB allocated" in text and "measured: " not in text
    # Every area lies within the drawing, the highest moment reaches its top.
    heights = [float(y) for y in re.findall(r",(\d+\.\d+)[ \"]", text)]
    assert min(heights) == pytest.approx(memory._TOP) and max(heights) < memory._HEIGHT
    assert "planned memory of a step" in report.render(read_facts(written.run))


def test_what_was_measured_is_a_line_across(written: Written, tmp_path: Path) -> None:
    moments = planned_moments(tmp_path)
    assert "dashed: measured, 40.0 GiB" in page(
        written, moments=moments, measured={"allocated": 40 * GIB}
    )


@pytest.mark.parametrize(
    "moments",
    [None, "odd", [], [{"name": "one", "parts": {"weights": 5}}], [1, 2], [{"parts": {"x": "y"}}]],
)
def test_a_run_without_moments_has_the_table_alone(written: Written, moments: Any) -> None:
    text = page(written, moments=moments)
    assert "planned" in text and "<svg" not in text


def test_a_hostile_name_stays_text(written: Written) -> None:
    moments = [{"name": "<script>", "parts": {"weights": size}} for size in (1 << 20, 2 << 20)]
    text = page(written, moments=moments)
    assert "<script>" not in text and "&lt;script&gt;" in text
