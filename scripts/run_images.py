"""Draw docs/images/runs.svg, a run of each workload on the first page, from run directories.

    python scripts/run_images.py [OUTPUTS]        (default: outputs)

Takes the newest finished run of `make train`, `make demo-vla` and `make demo-grpo`. Where one of
them is missing, the image stays as it is.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.run.events import Event

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "runs.svg"
WIDTH, HEIGHT, PANEL, GAP = 760, 196, 224, 28
TOP, PLOT = 66, 92  # of the curve
LINE, GREY, INK = "#d9480f", "#868e96", "#212529"
POINTS = 120  # of a curve, each the mean of its part


@dataclass(frozen=True)
class Panel:
    """What is drawn of one workload: a curve of metrics.jsonl, and what came out."""

    profile: str
    title: str
    curve: str
    name: str
    came_out: Callable[[Path], str]


def _right_answers(run: Path) -> str:
    shares = [
        json.loads((run / "evaluation" / when / "gsm8k.json").read_text())["strict"]
        for when in ("before", "after")
    ]
    return "right answers {:.0%} → {:.0%}".format(*shares)


def _scenes(run: Path) -> str:
    scores = json.loads((run / "evaluation" / "reach.json").read_text())["scores"]
    shares = [scores[policy]["success"] for policy in ("untrained", "trained")]
    return "cubes reached {:.0%} → {:.0%}".format(*shares)


def _counted(run: Path) -> str:
    shares = [
        json.loads((run / "evaluation" / when / "rewards.json").read_text())["accuracy_extracted"]
        for when in ("before", "after")
    ]
    return "counted right {:.0%} → {:.0%}".format(*shares)


PANELS = (
    Panel("demo", "llm: a Llama learns arithmetic", "loss", "loss", _right_answers),
    Panel("demo-vla", "vla: an arm reaches a cube", "l1", "error", _scenes),
    Panel("demo-grpo", "grpo: counting by rewards alone", "reward", "reward", _counted),
)


def newest(outputs: Path, profile: str) -> Path | None:
    """The newest run of a profile that is done."""
    runs = sorted((outputs / profile).glob("*/"), reverse=True)
    return next((run for run in runs if is_done(run)), None)


def is_done(run: Path) -> bool:
    """Whether its last attempt ended with exit code 0."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    ends = [event["code"] for event in events if event["event"] == Event.FINISHED]
    return ends[-1:] == [0]


def thinned(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Step and value, each the mean of one of so many parts of the run."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    size = max(1, len(found) // POINTS)
    parts = [found[place : place + size] for place in range(0, len(found), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def drawn(panel: Panel, run: Path, left: int) -> list[str]:
    """The panel's part of the drawing."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = thinned(rows, panel.curve)
    steps = points[-1][0]
    low, high = min(value for _, value in points), max(value for _, value in points)
    scale = PLOT / ((high - low) or 1.0)
    path = " ".join(
        f"{left + step / steps * PANEL:.1f},{TOP + (high - value) * scale:.1f}"
        for step, value in points
    )
    bottom = TOP + PLOT
    return [
        f'<text x="{left}" y="26" font-weight="600" fill="{INK}">{panel.title}</text>',
        f'<text x="{left}" y="48" fill="{LINE}" font-weight="600">{panel.came_out(run)}</text>',
        f'<line x1="{left}" y1="{bottom + 4}" x2="{left + PANEL}" y2="{bottom + 4}" '
        f'stroke="{GREY}"/>',
        f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="2"/>',
        f'<text x="{left}" y="{bottom + 22}" fill="{GREY}">{panel.name} {points[0][1]:.2g} → '
        f"{points[-1][1]:.2g}</text>",
        f'<text x="{left + PANEL}" y="{bottom + 22}" fill="{GREY}" text-anchor="end">'
        f"{steps:,} steps</text>",
    ]


def image(runs: Sequence[Path]) -> str:
    """The whole drawing; `runs` in the order of PANELS."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        "<title>One run of each workload on two CPU cores</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
    ]
    for number, (panel, run) in enumerate(zip(PANELS, runs, strict=True)):
        lines += drawn(panel, run, 16 + number * (PANEL + GAP))
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(arguments: list[str]) -> int:
    """Draw the image, or say which run is missing; returns the exit code."""
    outputs = Path(arguments[0] if arguments else "outputs")
    runs = {panel.profile: newest(outputs, panel.profile) for panel in PANELS}
    missing = [profile for profile, run in runs.items() if run is None]
    if missing:
        print(f"images/runs.svg stays: no finished run of {', '.join(missing)} in {outputs}")
        return 0
    IMAGE.write_text(image([run for run in runs.values() if run]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
