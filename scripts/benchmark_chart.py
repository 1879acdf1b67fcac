"""Draw docs/images/benchmarks.svg, the chart of the first page, from the pages in docs/benchmarks.

python scripts/benchmark_chart.py            # draw it
python scripts/benchmark_chart.py --check    # exit 1 where the pages say something else
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
CHART = DOCS / "images" / "benchmarks.svg"
# What is compared, the page, and the first match on it; a page says how often as fast ours is, or
# what share of the peer's time ours takes.
FIGURES = (
    ("Pack rows into sequences", "TRL", "packing", r"TRL, batches of 1000 .*?\*\*([\d.]+)x", False),
    ("Rows of chat to tokens", "TRL", "tokenise", r"\| TRL \| .*?\*\*([\d.]+)x", False),
    ("Read TFRecords in order", "tf.data", "tfrecord", r"([\d.]+) times as fast as tf.data", False),
    ("Command to first step", "accelerate", "launch", r"accelerate launch.*?\*\*([\d.]+)x", True),
    ("Recorded images to batches", "tf.data", "robot-frames", r"tf.data .*?\*\*([\d.]+)x", False),
)
WIDTH, LEFT, ROW, TOP = 760, 240, 52, 44
BAR, OURS, PEER = 14, "#d9480f", "#868e96"


@dataclass(frozen=True)
class Bar:
    """One comparison: `share` is the time that ours takes, the peer's being 1."""

    name: str
    peer: str
    share: float


def bars() -> list[Bar]:
    """The comparisons, as the pages have them."""
    found = []
    for name, peer, page, pattern, is_share in FIGURES:
        text = (DOCS / "benchmarks" / f"{page}.md").read_text(encoding="utf-8")
        match = re.search(pattern, text)
        if match is None:
            raise SystemExit(f"docs/benchmarks/{page}.md: found no figure for {name!r}")
        ratio = float(match[1])
        found.append(Bar(name, peer, ratio if is_share else 1 / ratio))
    return found


def chart(found: list[Bar]) -> str:
    """The drawing: two bars a comparison, shorter is better."""
    height = TOP + ROW * len(found) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14">',
        "<title>Time that Tatara takes, beside other tools on the same machine</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        '<text x="16" y="28" font-weight="600" fill="#212529">Time taken on the same two CPU '
        "cores (shorter is better)</text>",
    ]
    scale = WIDTH - LEFT - 150
    for number, bar in enumerate(found):
        y = TOP + ROW * number + 6
        ours = max(3.0, scale * bar.share)
        lines += [
            f'<text x="16" y="{y + 20}" fill="#212529">{bar.name}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{ours:.0f}" height="{BAR}" rx="2" fill="{OURS}"/>',
            f'<text x="{LEFT + ours + 8:.0f}" y="{y + 12}" fill="#212529" font-weight="600">'
            f"Tatara, {1 / bar.share:.1f} times as fast</text>",
            f'<rect x="{LEFT}" y="{y + BAR + 4}" width="{scale}" height="{BAR}" rx="2" '
            f'fill="{PEER}"/>',
            f'<text x="{LEFT + scale + 8}" y="{y + BAR + 16}" fill="#495057">{bar.peer}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(arguments: list[str]) -> int:
    """Draw the chart, or with `--check` only compare it; returns the exit code."""
    drawn = chart(bars())
    if CHART.is_file() and CHART.read_text(encoding="utf-8") == drawn:
        return 0
    if "--check" in arguments:
        print("images/benchmarks.svg: run `python scripts/benchmark_chart.py`")
        return 1
    CHART.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
