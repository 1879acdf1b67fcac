"""A snapshot as HTML: parts that the browser view and the report share.

All text of files goes through `esc`: a prompt with a tag in it is shown, never interpreted.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from workloads.monitor.html.svg import Line, Size, chart
from workloads.monitor.numbers import (
    byte_text,
    clean,
    clock_text,
    counted,
    number_text,
    span_text,
)
from workloads.monitor.reading import nodes
from workloads.monitor.reading.alerts import alerts
from workloads.monitor.reading.hardware import GpuReading, MachineReading
from workloads.monitor.reading.logs import LogTail, error_log, log_of
from workloads.monitor.reading.metric_names import metric_label, metric_names, metric_points
from workloads.monitor.reading.nodes import NodeStatus
from workloads.monitor.reading.ranks import TROUBLE, RankStatus
from workloads.monitor.reading.snapshot import Snapshot

_SMALL = Size(460, 190)
SHOWN = 7  # charts in the live view
_LOG = 40  # lines of a log beside its error


def esc(value: object) -> str:
    """Any value as text that is safe inside a tag and inside a quoted attribute."""
    lines = [clean(line) for line in str(value).split("\n")]
    return escape("\n".join(lines), quote=True)


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[int] = (),
    minor: Sequence[int] = (),
) -> str:
    """Cells are HTML already. A row may have its own class. Empty where there is no row.

    right: columns of numbers; minor: columns that are left out on a phone.
    """
    kinds = {at: "n" for at in right}
    kinds |= {at: f"{kinds.get(at, '')} minor".strip() for at in minor}
    body = "".join(_row("td", row, kinds) for row in rows)
    if not body:
        return ""
    top = _row("th", [esc(text) for text in head], kinds) if any(head) else ""
    return f'<div class="wide"><table>{top}{body}</table></div>'


class TableRow(list[str]):
    """Cells of a row with a class of its own."""

    def __init__(self, cells: Iterable[str], kind: str) -> None:
        super().__init__(cells)
        self.kind = kind


def _row(tag: str, row: Sequence[str], kinds: Mapping[int, str]) -> str:
    kind = f' class="{row.kind}"' if isinstance(row, TableRow) and row.kind else ""
    cells = (
        f'<{tag} class="{kinds[at]}">{cell}</{tag}>' if at in kinds else f"<{tag}>{cell}</{tag}>"
        for at, cell in enumerate(row)
    )
    return f"<tr{kind}>{''.join(cells)}</tr>"


def tile(label: str, value: str) -> str:
    return f'<div class="tile"><span class="soft">{esc(label)}</span><b>{esc(value)}</b></div>'


def phase(snapshot: Snapshot) -> str:
    """The run's phase, coloured."""
    kind = snapshot.phase if snapshot.phase.isalpha() else ""
    return f'<span class="phase {esc(kind)}">{esc(snapshot.phase)}</span>'


def heading(snapshot: Snapshot) -> str:
    """Name, phase, progress."""
    world = counted(snapshot.world_size, "rank") if snapshot.world_size else ""
    facts = (snapshot.workload, snapshot.model, world, snapshot.strategy)
    aside = " · ".join(esc(text) for text in facts if text)
    left = f" · {esc(span_text(snapshot.left))} left" if snapshot.left is not None else ""
    steps = f" of {snapshot.steps:,}" if snapshot.steps else ""
    bar = ""
    if snapshot.steps:
        share = min(snapshot.step, snapshot.steps)
        text = f"{snapshot.step}/{snapshot.steps}"
        bar = f'<progress max="{snapshot.steps}" value="{share}">{text}</progress>'
    return (
        f"<h1><bdi>{esc(snapshot.name)}</bdi> {phase(snapshot)}</h1>"
        f'<div class="aside">{aside}</div>{bar}'
        f"<div>step <b>{snapshot.step:,}</b>{steps}{left}</div>"
    )


def warnings(snapshot: Snapshot) -> str:
    """All warnings, a paragraph each; first, that a long run is still being read."""
    reading = ""
    if snapshot.reading is not None:
        reading = (
            f'<div class="reading" role="status">Reading {snapshot.reading:.0%}: the values are '
            "the newest, the curves are not whole yet.</div>"
        )
    return reading + "".join(
        f'<div class="warning{" bad" if alert.bad else ""}" role="alert">{esc(alert.text)}</div>'
        for alert in alerts(snapshot)
    )


def tiles(snapshot: Snapshot) -> str:
    """The newest values."""
    values: list[tuple[str, float | None]] = [
        ("loss", snapshot.loss),
        ("held-out loss", snapshot.held_out),
        ("learning rate", snapshot.learning_rate),
        ("gradient norm", snapshot.grad_norm),
        (snapshot.unit, snapshot.speed),
        ("seconds a step", snapshot.seconds_per_step),
    ]
    found = [tile(label, number_text(value)) for label, value in values if value is not None]
    if snapshot.mfu is not None:
        found.append(tile("MFU", f"{snapshot.mfu:.1%}"))
    if snapshot.epoch is not None:
        found.append(tile("epoch", f"{snapshot.epoch:.2f}"))
    if snapshot.elapsed is not None:
        found.append(tile("elapsed", span_text(snapshot.elapsed)))
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def charts(snapshot: Snapshot, most: int = SHOWN, values: bool = False) -> str:
    """The loss large, with the held-out losses; the other metrics small, at most so many.

    values: show exact values as tooltips, without a script.
    """
    held_out = metric_points(snapshot.curves, "eval_loss")
    figures = []
    for name in metric_names(snapshot.curves)[:most]:
        line = Line(metric_points(snapshot.curves, name))
        is_loss = name == "loss"
        drawn = chart(
            f"{metric_label(name)} over steps",
            [line],
            marks=held_out if is_loss else (),
            size=Size() if is_loss else _SMALL,
            smoothed=name not in ("learning_rate", "memory"),
            values=values,
        )
        key = _KEY if is_loss and held_out else ""
        title = f"<figcaption><h3>{esc(metric_label(name))}</h3>{key}</figcaption>"
        figures.append(f"<figure{' class=large' if is_loss else ''}>{title}{drawn}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


_KEY = '<span class="key one">training, smoothed</span><span class="key two">held-out</span>'
_RANK_HEAD = ("rank", "node", "host", "pid", "phase", "step", "memory", "heartbeat", "state")
_NODE_HEAD = ("node", "host", "ranks", "phase", "step", "memory", "heartbeat", "state")


def ranks(snapshot: Snapshot, logs: str = "") -> str:
    """Every rank, or every node and the ranks in trouble, in red.

    logs: the address of a rank's log up to its number; empty where there is none.
    """
    if not snapshot.ranks:
        words = "no rank has started yet" if snapshot.active else "no heartbeats in this run"
        return f'<p class="soft">{words}</p>'
    hosts = nodes.short_hosts(snapshot.ranks)
    every = _rank_table(snapshot.ranks, hosts, snapshot, logs)
    if not nodes.are_shown(snapshot.ranks):
        return every
    rows = (_node(node, hosts, snapshot) for node in nodes.nodes_of(snapshot.ranks))
    found = table(_NODE_HEAD, rows, right=(2, 4, 5, 6), minor=(1, 2, 5))
    in_trouble = [rank for rank in snapshot.ranks if rank.state in TROUBLE]
    if in_trouble:
        found += _rank_table(in_trouble, hosts, snapshot, logs)
    title = f"all {counted(len(snapshot.ranks), 'rank')}"
    return f"{found}<details><summary>{title}</summary>{every}</details>"


def _rank_table(
    shown: Iterable[RankStatus], hosts: Mapping[str, str], snapshot: Snapshot, logs: str
) -> str:
    rows = (_rank(rank, hosts[rank.host], snapshot, logs) for rank in shown)
    head = (*_RANK_HEAD, "") if logs else _RANK_HEAD
    return table(head, rows, right=(5, 6, 7), minor=(2, 3, 6))


def _rank(rank: RankStatus, host: str, snapshot: Snapshot, logs: str) -> TableRow:
    live = snapshot.active and rank.code is None
    bad = rank.state in TROUBLE and (live or rank.state == "failed")
    state = f"{rank.state}, exit {rank.code}" if rank.code else rank.state
    cells = [
        esc(rank.rank),
        esc(rank.node),
        _host(host, rank.host),
        esc(rank.pid),
        esc(rank.phase),
        f"{rank.step:,}",
        esc(byte_text(rank.memory)),
        esc(_heard(rank)),
        esc(f"{state}: {rank.reason}" if rank.reason else state),
    ]
    if logs:
        has_log = log_of(snapshot, rank).is_file()
        cells.append(f'<a href="{esc(logs)}{rank.rank}">log</a>' if has_log else "")
    return TableRow(cells, "bad" if bad else "" if live else "dim")


def _node(node: NodeStatus, hosts: Mapping[str, str], snapshot: Snapshot) -> TableRow:
    kind = "" if snapshot.active else "dim"
    (first, _), *others = node.phases
    cells = (
        esc(node.number),
        _host(hosts[node.host], node.host),
        esc(len(node.ranks)),
        esc(", ".join([first, *(f"{count} {phase}" for phase, count in others)])),
        esc(node.steps),
        esc(byte_text(node.memory)),
        esc(_heard(node.most_silent)),
        esc(node.state),
    )
    return TableRow(cells, "bad" if node.trouble and snapshot.active else kind)


def _host(short: str, host: str) -> str:
    return f'<span class="name" title="{esc(host)}">{esc(short)}</span>'


def _heard(rank: RankStatus) -> str:
    if rank.code is not None:
        return ""
    return f"{'' if rank.sure else 'about '}{span_text(rank.age)}"


def error(snapshot: Snapshot) -> str:
    """The end of the log with the failure of the run or a rank."""
    tail = error_log(snapshot, _LOG)
    return log(tail) if tail else ""


def log(tail: LogTail) -> str:
    """A log's last lines."""
    lines = "\n".join(tail.lines)
    return f"<h3>end of {esc(tail.path.name)}</h3><pre>{esc(lines)}</pre>"


def machine(snapshot: Snapshot, here: MachineReading) -> str:
    """This machine's GPUs, processors and memory, and the run's disk."""
    found = [] if here.cpu is None else [tile(f"CPU ({here.cpus})", f"{here.cpu:.0f} %")]
    used, total = byte_text(here.memory_used), byte_text(here.memory_total)
    found.append(tile("memory", f"{used} of {total}"))
    if snapshot.disk_free is not None:
        found.append(tile("disk", f"{byte_text(snapshot.disk_free)} free"))
    head = ("GPU", "", "busy", "memory", "temperature", "power")
    gpus = table(head, (_gpu(gpu) for gpu in here.gpus), right=(2, 3, 4, 5))
    return f'{gpus}<div class="tiles loose">{"".join(found)}</div>'


def _gpu(gpu: GpuReading) -> list[str]:
    memory = power = None
    if gpu.used is not None and gpu.total is not None:
        memory = f"{byte_text(gpu.used)} of {byte_text(gpu.total)}"
    if gpu.power is not None:
        power = f"{gpu.power:.0f} W" + (f" of {gpu.power_limit:.0f}" if gpu.power_limit else "")
    busy = None if gpu.utilisation is None else f"{gpu.utilisation} %"
    warm = None if gpu.temperature is None else f"{gpu.temperature} °C"
    cells = (gpu.index, gpu.name, busy, memory, warm, power)
    return [esc("-" if cell is None else cell) for cell in cells]


def events(snapshot: Snapshot, most: int) -> str:
    """The newest events, the last one first."""
    newest = list(snapshot.events)[-most:]
    rows = (
        [esc(clock_text(event.time)), esc(event.name), esc(event.text(" · "))]
        for event in reversed(newest)
    )
    return table(("time", "event", ""), rows)


def parts(snapshot: Snapshot, here: MachineReading, logs: str) -> dict[str, str]:
    """The browser's view of a run, except charts."""
    return {
        "heading": heading(snapshot),
        "warnings": warnings(snapshot),
        "error": error(snapshot),
        "values": tiles(snapshot),
        "ranks": f"<h2>Ranks</h2>{ranks(snapshot, logs)}",
        "machine": f"<h2>This machine ({esc(here.host)})</h2>{machine(snapshot, here)}",
        "events": f"<h2>Last events</h2>{events(snapshot, 12)}",
    }
