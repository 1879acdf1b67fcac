"""GPU memory in a run's report: planned and measured, and by moment of a step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workloads.monitor.html.page import esc, table
from workloads.monitor.html.svg import COLOURS
from workloads.monitor.numbers import byte_text, ticks
from workloads.monitor.reading.settings import RunFacts, mapping
from workloads.run.memory_parts import LABELS

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1130, 300, 60, 12, 10, 26
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def section(facts: RunFacts) -> Iterator[str]:
    """GPU memory by `tatara plan`, beside the measured one."""
    memory = mapping(facts.manifest.get("memory"))
    planned, measured = mapping(memory.get("planned")), mapping(memory.get("measured"))
    rows = []
    for name, size in planned.items():
        found = measured.get(name)
        if not isinstance(size, int):
            continue
        share = f"{size / found - 1:+.1%}" if isinstance(found, int) and found else ""
        shown = byte_text(found) if isinstance(found, int) else "no GPU"
        rows.append([esc(name), esc(byte_text(size)), esc(shown), esc(share)])
    if rows:
        yield table(("", "planned", "measured", "off by"), rows, right=(1, 2, 3))
        yield from _by_moment(memory.get("moments"), measured.get("allocated"))


def _by_moment(moments: Any, measured: Any) -> Iterator[str]:
    """The planned parts of a step as a stacked chart; empty for a run without a plan."""
    steps = [mapping(moment) for moment in moments] if isinstance(moments, list) else []
    parts = [mapping(step.get("parts")) for step in steps]
    drawn = [name for name in LABELS if any(_size(part, name) for part in parts)]
    if len(steps) < 2 or not drawn:
        return
    highest = max(sum(_size(part, name) for name in drawn) for part in parts)
    if isinstance(measured, int):
        highest = max(highest, measured)
    unit, bytes_of_unit = next((each for each in _UNITS if highest >= each[1]), _UNITS[-1])
    keys = "".join(
        f'<span class="c{at % COLOURS}"><span class="swatch"></span>{esc(LABELS[name])}</span>'
        for at, name in enumerate(drawn)
    )
    names = [str(step.get("name", "")) for step in steps]
    body = "".join([
        *_scale(highest, bytes_of_unit, names),
        *_areas(parts, drawn, highest),
        *_measured(measured, highest),
    ])  # fmt: skip
    title = f"planned memory of a step by moment, {unit} allocated on one GPU"
    if isinstance(measured, int):
        title += f"; dashed: measured, {byte_text(measured)}"
    yield (
        f'<h3>{esc(title)}</h3><div class="legend">{keys}</div>'
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{esc(title)}">{body}</svg>'
    )


def _size(part: Mapping[str, Any], name: str) -> int:
    size = part.get(name)
    return size if isinstance(size, int) else 0


def _across(at: int, count: int) -> float:
    return round(_LEFT + at / (count - 1) * (_WIDTH - _LEFT - _RIGHT), 1)


def _down(size: float, highest: float) -> float:
    return round(_HEIGHT - _BOTTOM - size / highest * (_HEIGHT - _TOP - _BOTTOM), 1)


def _scale(highest: int, bytes_of_unit: int, names: Sequence[str]) -> Iterator[str]:
    for value in ticks(0, highest / bytes_of_unit, 6):
        y = _down(value * bytes_of_unit, highest)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="axis" x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{value:g}</text>'
    for at, name in enumerate(names):
        anchor = "start" if at == 0 else "end" if at == len(names) - 1 else "middle"
        yield f'<text class="axis" x="{_across(at, len(names))}" y="{_HEIGHT - _BOTTOM + 17}" '
        yield f'text-anchor="{anchor}">{esc(name)}</text>'


def _areas(parts: Sequence[Mapping[str, Any]], drawn: Sequence[str], highest: int) -> Iterator[str]:
    """One stacked area a part, with its size as a tooltip."""
    below = [0] * len(parts)
    for at, name in enumerate(drawn):
        above = [low + _size(part, name) for low, part in zip(below, parts, strict=True)]
        edge = [*enumerate(above), *reversed(list(enumerate(below)))]
        points = " ".join(
            f"{_across(place, len(parts))},{_down(size, highest)}" for place, size in edge
        )
        most = byte_text(max(_size(part, name) for part in parts))
        yield f'<polygon class="part c{at % COLOURS}" points="{points}">'
        yield f"<title>{esc(LABELS[name])}: at most {esc(most)}</title></polygon>"
        below = above


def _measured(measured: Any, highest: int) -> Iterator[str]:
    if not isinstance(measured, int):
        return
    y = _down(measured, highest)
    yield f'<line class="crosshair" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}">'
    yield f"<title>measured: {esc(byte_text(measured))}</title></line>"
