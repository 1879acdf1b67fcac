"""A snapshot as text: each part is a function of the snapshot and its width and height."""

import re
from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from workloads.monitor.numbers import (
    byte_text,
    clean,
    clock_text,
    counted,
    number_text,
    span_text,
)
from workloads.monitor.reading import nodes
from workloads.monitor.reading.alerts import Alert, alerts
from workloads.monitor.reading.curve_view import LOSS, CurveView, point_text
from workloads.monitor.reading.hardware import GpuReading, Hardware, MachineReading
from workloads.monitor.reading.logs import LogTail, error_log
from workloads.monitor.reading.metric_names import metric_label, metric_value
from workloads.monitor.reading.nodes import NodeStatus
from workloads.monitor.reading.ranks import TROUBLE, RankStatus
from workloads.monitor.reading.samples import Sample, samples
from workloads.monitor.reading.snapshot import LOST, Snapshot
from workloads.monitor.text.plot import plot, spark
from workloads.monitor.text.table import Cell, least_width, table
from workloads.run.events import Event, Phase

_JOIN = "\ue000"  # stands for a blank at which no line may end
_ASKED = 4  # held-out questions in one frame
PHASES: dict[str, str] = {
    Event.FINISHED: "green",
    Phase.TRAINING: "green",
    Event.FAILED: "red bold",
    LOST: "red bold",
    Event.STOPPED: "yellow",
}


def flow(parts: Iterable[tuple[str, str]], width: int) -> Text:
    """`label value` pairs, three spaces apart, on as many lines as they need."""
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


def header(snapshot: Snapshot, width: int) -> Text:
    """Name, phase and progress of the run."""
    facts = [snapshot.workload, _ranks_word(snapshot), snapshot.strategy]
    aside = " · ".join(clean(fact) for fact in facts if fact)
    name = clean(snapshot.name)
    first = Text(name, "bold")
    if cell_len(name) + cell_len(aside) + 2 <= width:
        first.append("  ").append(aside, "dim")
    return Text("\n").join([first, _progress(snapshot, width)])


def _ranks_word(snapshot: Snapshot) -> str:
    count = snapshot.world_size or len(snapshot.ranks)
    return counted(count, "rank") if count else ""


def _progress(snapshot: Snapshot, width: int) -> Text:
    line = Text(clean(snapshot.phase), PHASES.get(snapshot.phase, "cyan"))
    of = f"/{snapshot.steps:,}" if snapshot.steps else ""
    line.append("  step ", "dim").append(f"{snapshot.step:,}{of}", "bold")
    tail = Text()
    if snapshot.steps:
        share = min(1.0, snapshot.step / snapshot.steps)
        tail.append(f" {share:4.0%}", "bold")
        if snapshot.left is not None and snapshot.phase != Phase.EXPORTING:
            tail.append(f"  {span_text(snapshot.left)}", "bold").append(" left", "dim")
        room = min(60, width - line.cell_len - tail.cell_len - 2)
        if room >= 8:
            done = round(share * room)
            line.append("  ").append("━" * done, "green").append("─" * (room - done), "dim")
    return line.append("\n" if line.cell_len + tail.cell_len > width else "").append_text(tail)


def numbers(snapshot: Snapshot, width: int) -> Text:
    """The newest values in a line or two."""
    found: list[tuple[str, str]] = []
    plain = (
        ("loss", snapshot.loss),
        ("held-out", snapshot.held_out),
        ("lr", snapshot.learning_rate),
        ("grad norm", snapshot.grad_norm),
    )
    for label, value in plain:
        if value is not None:
            found.append((label, number_text(value)))
    if snapshot.speed is not None:
        found.append((snapshot.unit, number_text(snapshot.speed)))
    if snapshot.seconds_per_step is not None:
        found.append(("s/step", number_text(snapshot.seconds_per_step)))
    if snapshot.mfu is not None:
        found.append(("MFU", f"{snapshot.mfu:.1%}"))
    if snapshot.epoch is not None:
        found.append(("epoch", f"{snapshot.epoch:.2f}"))
    if snapshot.elapsed is not None:
        found.append(("elapsed", span_text(snapshot.elapsed)))
    if snapshot.reading is not None:
        found.append(("reading", f"{snapshot.reading:.0%}"))
    return flow(found, width)


def warnings(snapshot: Snapshot, width: int, found: Sequence[Alert] | None = None) -> Text:
    """One paragraph a warning; empty where there is none."""
    lines = Text()
    for alert in alerts(snapshot) if found is None else found:
        style = "bold red" if alert.bad else "yellow"
        mark = "!!" if alert.bad else "! "
        for at, part in enumerate(_wrapped(clean(alert.text), width - 3)):
            lines.append("\n" if lines else "")
            lines.append(f"{mark if not at else '  '} {part}", style)
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Wrap a text by its cells; text in backticks is to be copied and stays in one line."""
    joined = re.sub("`[^`]*`", lambda found: found[0].replace(" ", _JOIN), text)
    lines = Text(joined).wrap(Console(), max(10, width))
    return [line.plain.rstrip().replace(_JOIN, " ") for line in lines]


def curve(
    snapshot: Snapshot, width: int, height: int, view: CurveView = LOSS, ascii: bool = False
) -> Text:
    """A metric over the steps; on the loss, the held-out losses as marks."""
    points = [(point.step, point.mean) for point in view.points(snapshot)]
    others = [(point.step, point.mean) for point in view.marks(snapshot)]
    drawn = plot(points, others, width, height, ascii, view.log)
    if not drawn.lines:
        return Text(f"no {metric_label(view.metric)} yet", "dim")
    selected = view.selected(snapshot)
    cursor = drawn.column(selected.step) if selected else None
    text = Text(no_wrap=True, overflow="crop")
    for row, line in enumerate(drawn.lines):
        is_axis = row == len(drawn.lines) - 1
        text.append("\n" if row else "").append(line[: drawn.gutter], "dim")
        cells = {
            column: ("o" if ascii else "●", "bold yellow")
            for at, column in drawn.marks
            if at == row
        }
        if cursor is not None and not is_axis and cursor not in cells:
            under = line[cursor : cursor + 1]
            cells[cursor] = (under if under.strip(" \u2800") else "|" if ascii else "┊", "bold")
        _append_cells(text, line.ljust(width), drawn.gutter, cells, "dim" if is_axis else "cyan")
    return text


def _append_cells(
    text: Text, line: str, start: int, cells: Mapping[int, tuple[str, str]], style: str
) -> None:
    """The line from `start` on, with other characters in some of its columns."""
    for column, (mark, marked) in sorted(cells.items()):
        text.append(line[start:column], style).append(mark, marked)
        start = column + 1
    text.append(line[start:].rstrip(), style)


def curve_title(snapshot: Snapshot, view: CurveView = LOSS) -> str:
    """Title of the plot, with the newest value or the one under the cursor."""
    title = metric_label(view.metric)
    scale = f"{title}, log scale" if view.log else title
    selected = view.selected(snapshot)
    if selected is not None:
        return clean(f"{scale}   {point_text(selected)}")
    curve = snapshot.curves.get(view.metric)
    if curve is not None and curve.last is not None:
        scale += f" {number_text(metric_value(view.metric, curve.last))}"
    if view.metric == "loss" and snapshot.held_out is not None:
        scale += f"   ● held-out {number_text(snapshot.held_out)}"
    if snapshot.reading is not None:
        scale += f"   reading {snapshot.reading:.0%}"
    return clean(scale)


_SPARKS = {
    "learning_rate": "lr",
    "tokens_per_second": "tokens/s",
    "samples_per_second": "samples/s",
    "grad_norm": "grad norm",
}


def sparks(snapshot: Snapshot, here: Hardware, width: int) -> Text:
    """Learning rate, throughput and this machine's load, a sparkline each."""
    shown = [(label, snapshot.curves.get(name)) for name, label in _SPARKS.items()]
    rows = []
    for label, curve in [*shown, *here.history.items()]:
        values = [point.mean for point in curve or ()]
        # A load is seen against its whole: one that does not change may be all or nothing.
        full = 100.0 if label.endswith("(%)") else max(values, default=0.0)
        scale = (0.0, full) if label in here.history else None
        drawn = spark(values, max(0, width - 30), scale)
        if curve and drawn and curve.last is not None:
            value = Cell(number_text(curve.last), "bold", True)
            rows.append([Cell(label, "dim", least=10), value, Cell(drawn, "cyan")])
    return table(rows, width)


def ranks(snapshot: Snapshot, width: int) -> Text:
    """Every rank, or every node and the ranks in trouble; heartbeat ages."""
    if not snapshot.ranks:
        words = "no rank has started yet" if snapshot.active else "no heartbeats in this run"
        return Text(words, "dim")
    if not nodes.are_shown(snapshot.ranks):
        return _rank_table(snapshot.ranks, snapshot, width)
    hosts = nodes.short_hosts(snapshot.ranks)
    rows = [_node(node, hosts[node.host], snapshot) for node in nodes.nodes_of(snapshot.ranks)]
    found = _fitted([_NODE_HEAD, *rows], width)
    in_trouble = [rank for rank in snapshot.ranks if rank.state in TROUBLE]
    if in_trouble:
        found.append("\n").append_text(_rank_table(in_trouble, snapshot, width))
    return found


_NODE_HEAD = [
    Cell("node", "dim"),
    Cell("host", "dim"),
    Cell("ranks", "dim", True),
    Cell("phase", "dim"),
    Cell("step", "dim", True),
    Cell("memory", "dim", True),
    Cell("heard", "dim", True),
    Cell("state", "dim"),
]
_RANK_HEAD = [Cell("rank", "dim", True), *(cell for cell in _NODE_HEAD if cell.text != "ranks")]


def _rank_table(ranks: Sequence[RankStatus], snapshot: Snapshot, width: int) -> Text:
    hosts = nodes.short_hosts(snapshot.ranks)
    rows = [_rank(rank, hosts[rank.host], snapshot) for rank in ranks]
    return _fitted([_RANK_HEAD, *rows], width)


def _fitted(rows: Sequence[Sequence[Cell]], width: int) -> Text:
    """A table that leaves out its least important columns rather than the states at its end."""
    for title in ("ranks", "memory", "heard"):
        if least_width(rows) <= width:
            break
        at = next((at for at, cell in enumerate(rows[0]) if cell.text == title), None)
        if at is not None:
            rows = [[*row[:at], *row[at + 1 :]] for row in rows]
    return table(rows, width)


def _rank(rank: RankStatus, host: str, snapshot: Snapshot) -> list[Cell]:
    live = snapshot.active and rank.code is None
    bad = rank.state in TROUBLE and (live or rank.state == "failed")
    style = "bold red" if bad else "" if live else "dim"
    return [
        Cell(str(rank.rank), style, True),
        Cell(str(rank.node), style),
        Cell(clean(host), style, least=0),
        Cell(clean(rank.phase), style, least=8),
        Cell(f"{rank.step:,}", style, True),
        Cell(byte_text(rank.memory) if rank.memory else "", style, True),
        Cell(_heard(rank), style, True),
        Cell(rank.state, style or _state_style(rank.state)),
    ]


def _heard(rank: RankStatus) -> str:
    if rank.code is not None:
        return ""
    return f"{'' if rank.sure else '~'}{span_text(rank.age)}"


def _state_style(state: str) -> str:
    return {"ok": "green", "done": "green", "late": "yellow"}.get(state, "")


def _node(node: NodeStatus, host: str, snapshot: Snapshot) -> list[Cell]:
    style = "bold red" if node.trouble and snapshot.active else "" if snapshot.active else "dim"
    (first, _), *others = node.phases
    return [
        Cell(str(node.number), style),
        Cell(clean(host), style, least=0),
        Cell(str(len(node.ranks)), style, True),
        Cell(
            clean(first) + (f" +{sum(count for _, count in others)}" if others else ""),
            style,
            least=8,
        ),
        Cell(node.steps, style, True),
        Cell(byte_text(node.memory), style, True),
        Cell(_heard(node.most_silent), style, True),
        Cell(node.state, style or _state_style(node.state)),
    ]


def hardware(snapshot: Snapshot, here: MachineReading, width: int) -> Text:
    """This machine: GPUs where there are some, processors, memory, the run's disk."""
    parts = [] if here.cpu is None else [(f"CPU ({here.cpus})", f"{here.cpu:.0f} %")]
    parts.append(("memory", f"{byte_text(here.memory_used)} of {byte_text(here.memory_total)}"))
    if snapshot.disk_free is not None:
        parts.append(("disk", f"{byte_text(snapshot.disk_free)} free"))
    line = flow(parts, width)
    if not here.gpus:
        return line
    gpus = table([_gpu(gpu, width) for gpu in here.gpus], width)
    return gpus.append("\n").append_text(line)


def _gpu(gpu: GpuReading, width: int) -> list[Cell]:
    unknown = Cell("-", "dim", True)
    name = gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
    bar = round((gpu.utilisation or 0) / 10)
    watts = "-" if gpu.power is None else f"{gpu.power:.0f}"
    limit = f"/{gpu.power_limit:.0f}" if gpu.power_limit else ""
    memory = gpu.used is not None and gpu.total is not None
    gibibytes = f"{(gpu.used or 0) / 2**30:.1f}/{(gpu.total or 0) / 2**30:.1f} GiB"
    return [
        Cell(f"GPU {gpu.index}", "bold"),
        Cell(clean(name), "dim", least=0),
        *([Cell("█" * bar + "░" * (10 - bar), "green")] if width >= 72 else []),
        unknown if gpu.utilisation is None else Cell(f"{gpu.utilisation} %", "bold", True),
        Cell(gibibytes, "", True) if memory else unknown,
        unknown if gpu.temperature is None else Cell(f"{gpu.temperature} °C", "", True),
        Cell(f"{watts}{limit} W", "", True),
    ]


def events(snapshot: Snapshot, width: int, most: int) -> Text:
    """The newest events, the last one at the bottom."""
    shown = snapshot.events[-most:] if most > 0 else ()
    if not shown:
        return Text("no events yet", "dim")
    rows = [
        [
            Cell(clock_text(event.time), "dim"),
            Cell(clean(event.name), "bold"),
            Cell(clean(event.text())),
        ]
        for event in shown
    ]
    return table(rows, width)


def answers(asked: Sequence[Sample], most: int) -> Text:
    """Held-out questions, each with its row's answer and the model's, at so many steps each."""
    lines = Text()
    for sample in asked:
        said = [("question", sample.asked, "bold"), ("expected", sample.answer, "")]
        for step, output in sample.some(most):
            said.append((f"step {step:,}", output, "green" if sample.is_right(step) else ""))
        for label, text, style in said:
            lines.append("\n" if lines else "").append(f"{label:<12}", "dim")
            lines.append(clean(text), style)
    return lines


def answers_title(asked: Sequence[Sample]) -> str:
    """How many of the newest answers are the rows' own, to the letter."""
    right = sum(sample.is_right(max(sample.outputs)) for sample in asked)
    return f"held-out answers: {right} of {len(asked)} as in the rows"


def whole(snapshot: Snapshot, here: MachineReading, width: int, ascii: bool = False) -> Text:
    """One frame: all parts below each other, as `--once` prints it."""
    width = max(40, width)
    tail = error_log(snapshot, 10)
    titled = [
        (curve_title(snapshot), curve(snapshot, width, 12, ascii=ascii)),
        ("ranks", ranks(snapshot, width)),
        (clean(f"this machine ({here.host})"), hardware(snapshot, here, width)),
        ("last events", events(snapshot, width, 6)),
    ]
    asked = samples(snapshot.run)
    if asked:
        short = answers(asked[:_ASKED], 2).split("\n")
        for line in short:
            line.truncate(width, overflow="ellipsis")
        titled.append((answers_title(asked), Text("\n").join(short)))
    if tail is not None:
        titled.insert(0, (f"end of {tail.path}", log_lines(tail, width)))
    parts = [header(snapshot, width), numbers(snapshot, width), warnings(snapshot, width)]
    for title, body in titled:
        parts.append(
            Text(f"\n{set_cell_size(title, min(width, cell_len(title)))}\n", "dim bold") + body
        )
    return Text("\n").join(part for part in parts if part)


def log_lines(tail: LogTail, width: int) -> Text:
    """The lines of a log, each cut at the width."""
    return table([[Cell(line)] for line in tail.lines], width)
