"""Files with a run's rewards on held-out rows; read without torch."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from workloads.run import Run

BEFORE, AFTER, BLANK = "before", "after", "blank"
TASK, FILE, ANSWERS = "rewards", "rewards.json", "rewards.jsonl"


def logged_rewards(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rewards whose means the metrics hold, an environment's own among them."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [
        key.removeprefix("rewards/").removesuffix("/mean")
        for key in keys
        if key.startswith("rewards/") and key.endswith("/mean")
    ]


def scores_of(run: Run, when: str) -> dict[str, Any]:
    """The scores of a stage; empty where nothing was measured."""
    path = run.evaluation / when / FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
