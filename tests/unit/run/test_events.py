"""The names in a run's files are those that docs/run-directory.md lists."""

import re
from pathlib import Path

import pytest

from workloads.run.events import Event, Phase

pytestmark = pytest.mark.unit
PAGE = Path("docs/run-directory.md")


def listed(label: str) -> list[str]:
    """The names in back quotes of the row that begins with a label."""
    (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| {label} |"))
    return re.findall(r"`([^`]+)`", row.split("|")[2])


def test_events_are_those_of_the_page() -> None:
    assert sorted(listed("`event` in `events.jsonl`")) == sorted(Event)


def test_phases_are_those_of_the_page() -> None:
    assert sorted(listed("`phase` in `status/<rank>.json`")) == sorted(Phase)
