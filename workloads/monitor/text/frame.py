"""A snapshot as text: each part is a function of the snapshot and the room it has."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from workloads.monitor.numbers import byte_text, clean, clock_text, number_text, span_text
from workloads.monitor.reading.hardware import GpuReading, Reading
from workloads.monitor.reading.ranks import TROUBLE, Rank
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.reading.trouble import Trouble, troubles
from workloads.monitor.text.plot import plot, spark

_JOIN = "\ue000"  # stands for a blank at which no line may end
_SMALL = 16  # ranks that are shown one by one; of more, a line a node and those in trouble
PHASES = {
    **{"finished": "green", "training": "green", "failed": "red bold", "lost": "red bold"},
    "stopped": "yellow",
}
_FIRST = (
    *("loss", "reward", "learning_rate", "tokens_per_second", "samples_per_second"),
    *("grad_norm", "seconds_per_step", "memory"),
)
# What is drawn with the loss, or says nothing as a curve.
_DULL = {
    *("eval_loss", "epoch", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
}
_METRICS = {
    "memory": "memory (bytes)",
    "eval_loss": "held-out loss",
    "learning_rate": "learning rate",
}


@dataclass(frozen=True)
class Cell:
    text: str
    style: str = ""
    right: bool = False


def table(rows: Sequence[Sequence[Cell]], width: int) -> Text:
    """Rows of cells in columns two blanks apart, cut at the width."""
    sizes: list[int] = []
    for row in rows:
        for at, cell in enumerate(row):
            size = cell_len(cell.text)
            sizes[at : at + 1] = [max(size, sizes[at]) if at < len(sizes) else size]
    found = Text(no_wrap=True, overflow="ellipsis")
    for number, row in enumerate(rows):
        line = Text()
        for at, cell in enumerate(row):
            room = " " * (sizes[at] - cell_len(cell.text))
            body = room + cell.text if cell.right else cell.text + room
            line.append("  " if at else "").append(body, cell.style)
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        found.append("\n" if number else "").append_text(line)
    return found


def flow(parts: Iterable[tuple[str, str]], width: int) -> Text:
    """`label value` pairs, three blanks apart, on as many lines as they need."""
    found, column = Text(), 0
    for label, value in parts:
        size = cell_len(label) + 1 + cell_len(value)
        if column and column + 3 + size > width:
            found.append("\n")
            column = 0
        elif column:
            found.append("   ")
            column += 3
        found.append(f"{label} ", "dim").append(value, "bold")
        column += size
    return found


def header(now: Snapshot, width: int) -> Text:
    """Which run, what it does, how far it is."""
    facts = [now.workload, _ranks_word(now), now.strategy]
    aside = " · ".join(clean(fact) for fact in facts if fact)
    name = clean(now.name)
    first = Text(name, "bold")
    if cell_len(name) + cell_len(aside) + 2 <= width:
        first.append("  ").append(aside, "dim")
    return Text("\n").join([first, _progress(now, width)])


def _ranks_word(now: Snapshot) -> str:
    count = now.world_size or len(now.ranks)
    return f"{count} rank{'' if count == 1 else 's'}" if count else ""


def _progress(now: Snapshot, width: int) -> Text:
    line = Text(clean(now.phase), PHASES.get(now.phase, "cyan"))
    of = f"/{now.steps:,}" if now.steps else ""
    line.append("  step ", "dim").append(f"{now.step:,}{of}", "bold")
    tail = Text()
    if now.steps:
        share = min(1.0, now.step / now.steps)
        tail.append(f" {share:4.0%}", "bold")
        if now.left is not None and now.phase not in ("exporting",):
            tail.append(f"  {span_text(now.left)}", "bold").append(" left", "dim")
        room = min(60, width - line.cell_len - tail.cell_len - 2)
        if room >= 8:
            done = round(share * room)
            line.append("  ").append("━" * done, "green").append("─" * (room - done), "dim")
    return line.append_text(tail)


def numbers(now: Snapshot, width: int) -> Text:
    """The newest values in a line or two."""
    found: list[tuple[str, str]] = []
    plain = (("loss", now.loss), ("held-out", now.held_out), ("lr", now.learning_rate))
    for label, value in (*plain, ("grad norm", now.grad_norm)):
        if value is not None:
            found.append((label, number_text(value)))
    if now.speed is not None:
        found.append((now.unit, number_text(now.speed)))
    if now.seconds_per_step is not None:
        found.append(("s/step", number_text(now.seconds_per_step)))
    if now.mfu is not None:
        found.append(("MFU", f"{now.mfu:.1%}"))
    if now.epoch is not None:
        found.append(("epoch", f"{now.epoch:.2f}"))
    if now.elapsed is not None:
        found.append(("elapsed", span_text(now.elapsed)))
    if now.reading is not None:
        found.append(("reading metrics", f"{now.reading:.0%}"))
    return flow(found, width)


def warnings(now: Snapshot, width: int, found: Sequence[Trouble] | None = None) -> Text:
    """One paragraph a warning; empty where there is none."""
    lines = Text()
    for one in troubles(now) if found is None else found:
        style = "bold red" if one.bad else "yellow"
        mark = "!!" if one.bad else "! "
        for at, part in enumerate(_wrapped(clean(one.text), width - 3)):
            lines.append("\n" if lines else "")
            lines.append(f"{mark if not at else '  '} {part}", style)
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a text; what stands in backticks is to be copied and stays in one line."""
    joined = re.sub("`[^`]*`", lambda found: found[0].replace(" ", _JOIN), text)
    return [line.replace(_JOIN, " ") for line in textwrap.wrap(joined, max(10, width))]


def metric_names(now: Snapshot) -> list[str]:
    """The metrics that can be drawn, the telling ones first."""
    drawable = [name for name, curve in now.curves.items() if len(curve) > 1]
    known = [name for name in _FIRST if name in drawable]
    rest = sorted(set(drawable) - set(known) - _DULL)
    return [*known, *rest]


def metric_label(name: str) -> str:
    return _METRICS.get(name, name.replace("_", " "))


def curve(
    now: Snapshot, width: int, height: int, metric: str = "loss", ascii: bool = False
) -> Text:
    """A metric over the steps; on the loss, the held-out losses as marks."""
    points = [(point.step, point.mean) for point in now.curves.get(metric, ())]
    others = [(point.step, point.mean) for point in now.curves.get("eval_loss", ())]
    drawn = plot(points, others if metric == "loss" else [], width, height, ascii)
    if not drawn.lines:
        return Text(f"no {metric_label(metric)} yet", "dim")
    text = Text(no_wrap=True, overflow="crop")
    for row, line in enumerate(drawn.lines):
        style = "dim" if row == len(drawn.lines) - 1 else "cyan"
        text.append("\n" if row else "").append(line[: drawn.gutter], "dim")
        columns = sorted({column for at, column in drawn.marks if at == row})
        _append_marked(text, line.ljust(width), drawn.gutter, columns, style, "o" if ascii else "●")
    return text


def _append_marked(
    text: Text, line: str, start: int, columns: Sequence[int], style: str, mark: str
) -> None:
    """The line from `start` on, with a mark in each of the columns."""
    for column in columns:
        text.append(line[start:column], style).append(mark, "bold yellow")
        start = column + 1
    text.append(line[start:].rstrip(), style)


def curve_title(now: Snapshot, metric: str) -> str:
    """What the plot shows, with the newest value."""
    title = metric_label(metric)
    curve = now.curves.get(metric)
    if curve is not None and curve.last is not None:
        title += f" {number_text(curve.last)}"
    if metric == "loss" and now.held_out is not None:
        title += f"   ● held-out {number_text(now.held_out)}"
    return clean(title)


def sparks(now: Snapshot, width: int) -> Text:
    """Learning rate and throughput in a line each."""
    names = [
        one for one in ("learning_rate", "tokens_per_second", "samples_per_second", "grad_norm")
    ]
    rows = []
    for name in names:
        points = now.curves.get(name)
        drawn = spark([point.mean for point in points], max(0, width - 26)) if points else ""
        if drawn and points and points.last is not None:
            label = (
                "lr" if name == "learning_rate" else metric_label(name).replace(" per second", "/s")
            )
            rows.append(
                [
                    Cell(label, "dim"),
                    Cell(number_text(points.last), "bold", True),
                    Cell(drawn, "cyan"),
                ]
            )
    return table(rows, width)


def ranks(now: Snapshot, width: int) -> Text:
    """Every rank, or every node and the ranks in trouble; heartbeat ages."""
    if not now.ranks:
        return Text("no rank has started yet" if now.active else "no heartbeats in this run", "dim")
    if len(now.ranks) <= _SMALL:
        return table([_rank_head(width), *(_rank(one, now, width) for one in now.ranks)], width)
    nodes: dict[int, list[Rank]] = {}
    for one in now.ranks:
        nodes.setdefault(one.node, []).append(one)
    found = table(
        [_NODE_HEAD, *(_node(node, of, now) for node, of in sorted(nodes.items()))], width
    )
    bad = [one for one in now.ranks if one.state in TROUBLE]
    if bad:
        rows = [_rank_head(width), *(_rank(one, now, width) for one in bad[:_SMALL])]
        found.append("\n").append_text(table(rows, width))
    return found


_NODE_HEAD = [
    *(Cell(text, "dim") for text in ("node", "host", "ranks", "phase")),
    *(Cell(text, "dim", True) for text in ("step", "memory", "heard")),
    Cell("state", "dim"),
]


def _rank_head(width: int) -> list[Cell]:
    words = ["rank", "node", "host"] if width >= 56 else ["rank", "node"]
    right = [Cell(text, "dim", True) for text in ("step", "memory", "heard")]
    return [*(Cell(text, "dim") for text in (*words, "phase")), *right, Cell("state", "dim")]


def _rank(one: Rank, now: Snapshot, width: int) -> list[Cell]:
    live = now.active and one.code is None
    bad = one.state in TROUBLE and (live or one.state == "failed")
    style = "bold red" if bad else "" if live else "dim"
    host = [Cell(clean(one.host), style)] if width >= 56 else []
    return [
        Cell(str(one.rank), style),
        Cell(str(one.node), style),
        *host,
        Cell(clean(one.phase), style),
        Cell(f"{one.step:,}", style, True),
        Cell(byte_text(one.memory) if one.memory else "", style, True),
        Cell(_heard(one), style, True),
        Cell(one.state, style or _state_style(one.state)),
    ]


def _heard(one: Rank) -> str:
    if one.code is not None:
        return ""
    return f"{'' if one.sure else '~'}{span_text(one.age)}"


def _state_style(state: str) -> str:
    return {"ok": "green", "done": "green", "late": "yellow"}.get(state, "")


def _node(node: int, of: Sequence[Rank], now: Snapshot) -> list[Cell]:
    bad = [one for one in of if one.state in TROUBLE]
    style = "bold red" if bad and now.active else "" if now.active else "dim"
    steps = sorted(one.step for one in of)
    span = f"{steps[0]:,}" if steps[0] == steps[-1] else f"{steps[0]:,}-{steps[-1]:,}"
    phases = " ".join(dict.fromkeys(clean(one.phase) for one in of))
    states = " ".join(dict.fromkeys(one.state for one in bad)) if bad else of[0].state
    return [
        Cell(str(node), style),
        Cell(clean(of[0].host), style),
        Cell(str(len(of)), style),
        Cell(phases, style),
        Cell(span, style, True),
        Cell(byte_text(sum(one.memory for one in of)), style, True),
        Cell(_heard(max(of, key=lambda one: one.age)), style, True),
        Cell(f"{len(bad)} {states}" if bad else states, style or _state_style(states)),
    ]


def hardware(now: Snapshot, here: Reading, width: int) -> Text:
    """This machine: GPUs where there are some, processors, memory, the run's disk."""
    parts = [] if here.cpu is None else [(f"CPU ({here.cpus})", f"{here.cpu:.0f} %")]
    parts.append(("memory", f"{byte_text(here.memory_used)} of {byte_text(here.memory_total)}"))
    if now.disk_free is not None:
        parts.append(("disk", f"{byte_text(now.disk_free)} free"))
    line = flow(parts, width)
    if not here.gpus:
        return line
    gpus = table([_gpu(one, width) for one in here.gpus], width)
    return gpus.append("\n").append_text(line)


def _gpu(one: GpuReading, width: int) -> list[Cell]:
    unknown = Cell("-", "dim", True)
    name = one.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
    bar = round((one.utilisation or 0) / 10)
    watts = "-" if one.power is None else f"{one.power:.0f}"
    limit = f"/{one.power_limit:.0f}" if one.power_limit else ""
    memory = one.used is not None and one.total is not None
    gibibytes = f"{(one.used or 0) / 2**30:.1f}/{(one.total or 0) / 2**30:.1f} GiB"
    return [
        Cell(f"GPU {one.index}", "bold"),
        *([Cell(clean(name), "dim")] if width >= 64 else []),
        *([Cell("█" * bar + "░" * (10 - bar), "green")] if width >= 72 else []),
        unknown if one.utilisation is None else Cell(f"{one.utilisation} %", "bold", True),
        Cell(gibibytes, "", True) if memory else unknown,
        unknown if one.temperature is None else Cell(f"{one.temperature} °C", "", True),
        Cell(f"{watts}{limit} W", "", True),
    ]


def events(now: Snapshot, width: int, most: int) -> Text:
    """The newest events, the last one at the bottom."""
    shown = now.events[-most:] if most > 0 else ()
    if not shown:
        return Text("no events yet", "dim")
    rows = [
        [Cell(clock_text(one.time), "dim"), Cell(clean(one.name), "bold"), Cell(clean(one.text()))]
        for one in shown
    ]
    return table(rows, width)


def whole(now: Snapshot, here: Reading, width: int, ascii: bool = False) -> Text:
    """One frame: all parts below each other, as `--once` prints it."""
    width = max(40, width)
    titled = [
        (curve_title(now, "loss"), curve(now, width, 12, ascii=ascii)),
        ("ranks", ranks(now, width)),
        (clean(f"this machine ({here.host})"), hardware(now, here, width)),
        ("last events", events(now, width, 6)),
    ]
    parts = [header(now, width), numbers(now, width), warnings(now, width)]
    for title, body in titled:
        parts.append(
            Text(f"\n{set_cell_size(title, min(width, cell_len(title)))}\n", "dim bold") + body
        )
    return Text("\n").join(part for part in parts if part)
