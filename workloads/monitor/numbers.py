"""Numbers, times and sizes as text for people."""

import math
import time


def span_text(seconds: float) -> str:
    """`0.6 s`, `12 s`, `3:05 min`, `2:10:00 h`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}:{minutes:02d}:{rest:02d} h"
    return f"{hours // 24} d {hours % 24} h"


def byte_text(size: float) -> str:
    """Bytes in binary units: `592 MiB`, `1.4 GiB`."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            value = size / factor
            digits = ".1f" if value < 99.95 else ".0f" if value < 1e6 else ".1e"
            return f"{value:{digits}} {unit}"
    return f"{size:.0f} B"


def number_text(value: float) -> str:
    """Four figures, with thousands set apart: `2,135`, `0.001799`, `1.8e-05`."""
    if value and abs(value) >= 999.5:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.4g}"


def count_text(value: float) -> str:
    """Short, for an axis: `0.5`, `40`, `1.5k`, `2M`, `1e-05`."""
    if value == 0:
        return "0"
    for suffix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{suffix}"
    if abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """`1 rank`, `64 ranks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def date_text(when: float | None) -> str:
    """A wall time here, with year and zone: `2026-11-25 10:00 CET`; empty where it is not known."""
    if when is None or not math.isfinite(when):
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(when)).strip()
    except (OverflowError, OSError, ValueError):
        return ""


def clock_text(when: float | None) -> str:
    """A wall time here: the hour today, else with its day."""
    if when is None or not math.isfinite(when):
        return "--:--:--"
    try:
        local = time.localtime(when)
    except (OverflowError, OSError, ValueError):
        return "--:--:--"
    today = time.localtime()[:3] == local[:3]
    return time.strftime("%H:%M:%S" if today else "%d %b %H:%M", local)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between `low` and `high`, at most so many."""
    span = high - low
    if span <= 0 or most < 1:
        return [low]
    raw = span / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(item * power for item in (1, 2, 2.5, 5, 10) if item * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 12) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def clean(text: str) -> str:
    """A text of a file without control characters; line ends become spaces."""
    return "".join(
        character if character.isprintable() else " " if character in "\n\t" else "\ufffd"
        for character in text
    )
