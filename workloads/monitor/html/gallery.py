"""Images of an evaluation, and rollouts of a GRPO run, as HTML.

Formats: `<run>/evaluation/**/*.png`, and `<run>/rollouts/rollouts.jsonl` as in
docs/run-directory.md. Images are embedded, so that the page is self-contained.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workloads.monitor.html.page import esc, table
from workloads.monitor.numbers import number_text
from workloads.monitor.reading.follow import Follower, Row, number, whole
from workloads.run import Run

_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST = 8 << 20  # bytes of one image
_IMAGES = 12
_STEPS = 5
_A_STEP = 16  # completions of one step that are shown
_READ = 64 << 20
_LONGEST = 1500  # characters of a text that are shown


def images(run: Run) -> Iterator[str]:
    """The images that evaluations have drawn, under their names."""
    for path in sorted(run.evaluation.rglob("*.png"))[:_IMAGES]:
        if shown := _embedded(path, run.evaluation):
            name = path.relative_to(run.evaluation).with_suffix("").as_posix()
            yield f"<h3>{esc(name.replace('_', ' '))}</h3>{shown}"


def rollouts(run: Run) -> Iterator[str]:
    """Completions of a few steps, from the first to the last, with their rewards."""
    folder = run.path / "rollouts"
    by_step: dict[int, list[Row]] = {}
    for row in Follower(folder / "rollouts.jsonl", forget=by_step.clear).rows(limit=_READ):
        step = whole(row.get("step"))
        if step is not None and len(by_step.setdefault(step, [])) < _A_STEP:
            by_step[step].append(row)
    for step in _spread(sorted(by_step)):
        last = step == max(by_step)
        groups = "".join(_group(rows, folder) for rows in _by_place(by_step[step]))
        title = f"step {step:,}, {len(by_step[step])} completions"
        yield f"<details{' open' if last else ''}><summary>{title}</summary>{groups}</details>"


def _spread(steps: Sequence[int]) -> list[int]:
    """The first, the last, and some between."""
    if len(steps) <= _STEPS:
        return list(steps)
    return [steps[round(at * (len(steps) - 1) / (_STEPS - 1))] for at in range(_STEPS)]


def _by_place(rows: Sequence[Row]) -> list[list[Row]]:
    """Completions of one prompt together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row.get("place")), []).append(row)
    return list(found.values())


def _group(rows: Sequence[Row], folder: Path) -> str:
    """One prompt with its image, and a line for each completion."""
    first = rows[0]
    image = _embedded(folder / str(first.get("image") or ""), folder)
    asked = f"{_text(first.get('prompt'))}<div>expected: <b>{esc(first.get('solution'))}</b></div>"
    lines = [
        [
            _text(row.get("completion")),
            *(esc(_number(value)) for value in (row.get("reward"), row.get("advantage"))),
            esc(_each(row.get("rewards"))),
        ]
        for row in rows
    ]
    head = ("completion", "reward", "advantage", "rewards")
    place = f"<h3>{esc(first.get('place'))}</h3>"
    return f'{place}<div class="asked">{image}<div>{asked}</div></div>' + table(
        head, lines, right=(1, 2)
    )


def _embedded(path: Path, folder: Path) -> str:
    """A PNG of that folder as embedded image; empty if it is no PNG, too large or elsewhere."""
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        if not inside or not path.is_file() or path.stat().st_size > _LARGEST:
            return ""
        content = path.read_bytes()
    except OSError:
        return ""
    if not content.startswith(_PNG):
        return ""
    data = base64.b64encode(content).decode()
    return f'<img class="image" alt="{esc(path.name)}" src="data:image/png;base64,{data}">'


def _number(value: Any) -> str:
    found = number(value)
    return "-" if found is None else number_text(found)


def _each(rewards: Any) -> str:
    if not isinstance(rewards, Mapping):
        return "-"
    return ", ".join(f"{name} {_number(value)}" for name, value in rewards.items())


def _text(value: object) -> str:
    text = str(value)
    return f"<pre>{esc(text[:_LONGEST])}{' …' if len(text) > _LONGEST else ''}</pre>"
