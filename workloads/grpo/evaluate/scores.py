"""Where a run keeps what its model earned on held-out rows; read without torch."""

import json
from typing import Any

from workloads.run import Run

BEFORE, AFTER, BLANK = "before", "after", "blank"
TASK, FILE, ANSWERS = "rewards", "rewards.json", "rewards.jsonl"


def scores_of(run: Run, when: str) -> dict[str, Any]:
    """What was measured then; empty where nothing was."""
    path = run.evaluation / when / FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
