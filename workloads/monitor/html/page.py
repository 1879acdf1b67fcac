"""A snapshot as HTML: parts that the browser view and the report share.

Whatever comes from a file goes through `esc`: a prompt with a tag in it is shown, never obeyed.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from workloads.monitor.html.svg import Box, chart
from workloads.monitor.numbers import byte_text, clean, clock_text, number_text, span_text
from workloads.monitor.reading.hardware import GpuReading, Reading
from workloads.monitor.reading.ranks import TROUBLE, Rank
from workloads.monitor.reading.snapshot import Snapshot
from workloads.monitor.reading.trouble import troubles
from workloads.monitor.text.frame import metric_label, metric_names

_SMALL = Box(460, 190)
_SHOWN = 6  # small charts beside the loss in the live view


def esc(value: object) -> str:
    """Any value as text that is safe inside a tag and inside a quoted attribute."""
    return escape("".join(_visible(one) for one in str(value)), quote=True)


def _visible(one: str) -> str:
    return one if one == "\n" else clean(one)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Cells are HTML already; `right` are the columns of numbers. A row may begin with its class.

    Empty where there is no row.
    """
    body = "".join(_row("td", row, right) for row in rows)
    if not body:
        return ""
    top = _row("th", [esc(text) for text in head], right) if any(head) else ""
    return f'<div class="wide"><table>{top}{body}</table></div>'


class Row(list[str]):
    """Cells of a table's row that has a class of its own."""

    def __init__(self, cells: Iterable[str], kind: str) -> None:
        super().__init__(cells)
        self.kind = kind


def _row(tag: str, row: Sequence[str], right: Sequence[int]) -> str:
    kind = f' class="{row.kind}"' if isinstance(row, Row) and row.kind else ""
    cells = (
        f"<{tag}{' class=n' if at in right else ''}>{cell}</{tag}>" for at, cell in enumerate(row)
    )
    return f"<tr{kind}>{''.join(cells)}</tr>"


def tile(label: str, value: str) -> str:
    return f'<div class="tile"><span class="soft">{esc(label)}</span><b>{esc(value)}</b></div>'


def heading(now: Snapshot) -> str:
    """Name, phase, progress."""
    kind = now.phase if now.phase.isalpha() else ""
    world = f"{now.world_size} ranks" if now.world_size else ""
    aside = " · ".join(esc(text) for text in (now.workload, world, now.strategy) if text)
    left = f" · {esc(span_text(now.left))} left" if now.left is not None else ""
    steps = f" of {now.steps:,}" if now.steps else ""
    bar = ""
    if now.steps:
        share = min(now.step, now.steps)
        bar = f'<progress max="{now.steps}" value="{share}">{now.step}/{now.steps}</progress>'
    return (
        f'<h1>{esc(now.name)} <span class="phase {esc(kind)}">{esc(now.phase)}</span></h1>'
        f'<div class="aside">{aside}</div>{bar}<div>step <b>{now.step:,}</b>{steps}{left}</div>'
    )


def warnings(now: Snapshot) -> str:
    """Everything to warn of, a paragraph each."""
    return "".join(
        f'<div class="warning{" bad" if one.bad else ""}" role="alert">{esc(one.text)}</div>'
        for one in troubles(now)
    )


def tiles(now: Snapshot) -> str:
    """The newest values."""
    values: list[tuple[str, float | None]] = [
        ("loss", now.loss),
        ("held-out loss", now.held_out),
        ("learning rate", now.learning_rate),
        ("gradient norm", now.grad_norm),
        (now.unit, now.speed),
        ("seconds a step", now.seconds_per_step),
    ]
    found = [tile(label, number_text(value)) for label, value in values if value is not None]
    if now.mfu is not None:
        found.append(tile("MFU", f"{now.mfu:.1%}"))
    if now.epoch is not None:
        found.append(tile("epoch", f"{now.epoch:.2f}"))
    if now.elapsed is not None:
        found.append(tile("elapsed", span_text(now.elapsed)))
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def charts(now: Snapshot, most: int = _SHOWN) -> str:
    """The loss large, with the held-out losses; the other metrics small, at most so many."""
    names = metric_names(now)
    held_out = list(now.curves.get("eval_loss", ()))
    figures = []
    for name in names[: most + 1]:
        points = list(now.curves[name])
        is_loss = name == "loss"
        drawn = (
            chart("loss over steps", points, held_out)
            if is_loss
            else chart(metric_label(name), points, box=_SMALL, smoothed=name != "learning_rate")
        )
        key = _KEY if is_loss and held_out else ""
        title = f"<figcaption><h3>{esc(metric_label(name))}</h3>{key}</figcaption>"
        figures.append(f"<figure{' class=large' if is_loss else ''}>{title}{drawn}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


_KEY = '<span class="key one">training, smoothed</span><span class="key two">held-out</span>'


def ranks(now: Snapshot) -> str:
    """Every rank, those in trouble in red."""
    head = ("rank", "node", "host", "pid", "phase", "step", "memory", "heartbeat", "state")
    return table(head, (_rank(one, now) for one in now.ranks), right=(5, 6, 7))


def _rank(one: Rank, now: Snapshot) -> Row:
    live = now.active and one.code is None
    bad = one.state in TROUBLE and (live or one.state == "failed")
    heard = "" if one.code is not None else f"{'' if one.sure else 'about '}{span_text(one.age)}"
    state = f"{one.state}, exit {one.code}" if one.code else one.state
    cells = (one.rank, one.node, one.host, one.pid, one.phase, f"{one.step:,}")
    last = (byte_text(one.memory), heard, f"{state}: {one.reason}" if one.reason else state)
    return Row([esc(cell) for cell in (*cells, *last)], "bad" if bad else "" if live else "dim")


def machine(now: Snapshot, here: Reading) -> str:
    """This machine's GPUs, processors and memory, and the run's disk."""
    found = [] if here.cpu is None else [tile(f"CPU ({here.cpus})", f"{here.cpu:.0f} %")]
    used, total = byte_text(here.memory_used), byte_text(here.memory_total)
    found.append(tile("memory", f"{used} of {total}"))
    if now.disk_free is not None:
        found.append(tile("disk", f"{byte_text(now.disk_free)} free"))
    head = ("GPU", "", "busy", "memory", "temperature", "power")
    gpus = table(head, (_gpu(one) for one in here.gpus), right=(2, 3, 4, 5))
    return f'{gpus}<div class="tiles">{"".join(found)}</div>'


def _gpu(one: GpuReading) -> list[str]:
    memory = power = None
    if one.used is not None and one.total is not None:
        memory = f"{byte_text(one.used)} of {byte_text(one.total)}"
    if one.power is not None:
        power = f"{one.power:.0f} W" + (f" of {one.power_limit:.0f}" if one.power_limit else "")
    busy = None if one.utilisation is None else f"{one.utilisation} %"
    warm = None if one.temperature is None else f"{one.temperature} °C"
    cells = (one.index, one.name, busy, memory, warm, power)
    return [esc("-" if cell is None else cell) for cell in cells]


def events(now: Snapshot, most: int) -> str:
    """The newest events, the last one first."""
    newest = list(now.events)[-most:]
    rows = (
        [esc(clock_text(one.time)), esc(one.name), esc(one.text(" · "))] for one in reversed(newest)
    )
    return table(("time", "event", ""), rows)


def live(now: Snapshot, here: Reading) -> str:
    """The browser's view of a run."""
    titled: Mapping[str, str] = {
        "Ranks": ranks(now) or '<p class="soft">no rank has started yet</p>',
        f"This machine ({here.host})": machine(now, here),
        "Last events": events(now, 12),
    }
    first = heading(now) + warnings(now) + tiles(now) + charts(now)
    return first + "".join(f"<h2>{esc(title)}</h2>{body}" for title, body in titled.items())


def listing(runs: Sequence[Snapshot], links: Sequence[str]) -> str:
    """All runs; `links` are their pages' addresses."""
    head = ("run", "phase", "step", "loss", "held-out", "started", "")
    rows = [_listed(one, link) for one, link in zip(runs, links, strict=True)]
    return f"<h1>Runs</h1>{table(head, rows, right=(2, 3, 4)) or '<p>none yet</p>'}"


def _listed(one: Snapshot, link: str) -> list[str]:
    found = troubles(one) if one.active or one.phase in ("failed", "lost") else []
    started = next((event.time for event in one.events if event.name == "started"), None)
    kind = one.phase if one.phase.isalpha() else ""
    return [
        f'<a href="{esc(link)}">{esc(one.name)}</a>',
        f'<span class="phase {esc(kind)}">{esc(one.phase)}</span>',
        esc(f"{one.step:,}" + (f" of {one.steps:,}" if one.steps else "")),
        "" if one.loss is None else esc(number_text(one.loss)),
        "" if one.held_out is None else esc(number_text(one.held_out)),
        "" if started is None else esc(clock_text(started)),
        esc(found[0].text) if found else "",
    ]
