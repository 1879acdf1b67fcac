"""Bring what bench/gpu/run.sh has measured into the documentation.

    python -m bench.gpu.record outputs/gpu-run/summary.json    # the folder of a run will do too
    python -m bench.gpu.record                                 # write the pages again
    python -m bench.gpu.record --check                         # 1 where a page is not as written

Of each card the newest summary is kept in docs/benchmarks/gpu-run/. From these follow the table of
docs/hardware.md (path, card, date, versions, passed or how it failed), docs/benchmarks/gpu-run.md,
and tests/golden/memory/own_peaks.csv with the planned and measured bytes of every setting. A run on
a CPU is kept as such and replaces no "never run".
"""

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench._pair import ROOT
from bench.gpu._parts import PARTS
from bench.gpu._summary import outcome, page

KEPT = ROOT / "docs" / "benchmarks" / "gpu-run"
HARDWARE = ROOT / "docs" / "hardware.md"
PAGE = ROOT / "docs" / "benchmarks" / "gpu-run.md"
PEAKS = ROOT / "tests" / "golden" / "memory" / "own_peaks.csv"
BEGIN, END = "<!-- gpu-run: written by bench.gpu.record -->", "<!-- gpu-run: end -->"
_WORTH = ("torch", "transformers", "trl", "peft")


def main() -> int:
    """Keep a summary and write the pages; 1 with --check where one would change."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("summary", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.summary is not None:
        file = options.summary
        file = file / "summary.json" if file.is_dir() else file
        if not file.is_file():
            print(f"expected the summary.json of a run, found none at {file}", file=sys.stderr)
            return 2
        keep(json.loads(file.read_text(encoding="utf-8")))
    wrong = []
    for path, text in pages(kept()).items():
        is_same = path.is_file() and path.read_text(encoding="utf-8") == text
        if is_same or (not text and not path.exists()):
            continue
        if options.check:
            wrong.append(str(path.relative_to(ROOT)))
            continue
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    for name in wrong:
        print(f"{name}: not as written; run python -m bench.gpu.record", file=sys.stderr)
    return 1 if wrong else 0


def keep(found: Mapping[str, Any], folder: Path = KEPT) -> None:
    """Keep a run beside those of other cards; its parts take the place of the same card's own."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^a-z0-9]+', '-', found['ran_on'].lower()).strip('-')}.json"
    parts = {name: {**part, "date": found["date"]} for name, part in found["parts"].items()}
    for part in parts.values():
        part.pop("log", None)
    # A path of the machine it ran on says nothing here.
    parts = json.loads(re.sub(r"(?:/[\w.+-]+){2,}/", "…/", json.dumps(parts, ensure_ascii=False)))
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        parts = {**before["parts"], **parts}
    whole = {
        **found,
        "parts": parts,
        "left": [item.name for item in PARTS if item.name not in parts],
    }
    whole["seconds"] = round(sum(part["seconds"] for part in parts.values()), 1)
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def kept(folder: Path = KEPT) -> list[dict[str, Any]]:
    """The runs that were kept, those of cards first."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(runs, key=lambda run: bool(run["device"] == "cpu"))


def pages(runs: Sequence[Mapping[str, Any]]) -> dict[Path, str]:
    """What each file has to hold; an empty text for one that is not there yet."""
    text = HARDWARE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return {
        HARDWARE: f"{before}{BEGIN}\n{table(runs)}\n{END}{after}",
        PAGE: _page(runs),
        PEAKS: peaks(runs),
    }


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Path, card, date, versions and outcome; what no card has run says so."""
    lines = ["| path | part | card | date | versions | result |", "|---|---|---|---|---|---|"]
    for part in PARTS:
        ran = [run for run in runs if part.name in run["parts"]]
        on_cards = [run for run in ran if run["device"] != "cpu"]
        for path in part.paths:
            for run in ran:
                found = run["parts"][part.name]
                packages = found.get("machine", run["machine"]).get("packages", {})
                named = ", ".join(f"{name} {packages[name]}" for name in _WORTH if name in packages)
                cells = [path, part.name, run["ran_on"], found["date"], named, outcome(found)]
                lines.append(f"| {' | '.join(cells)} |")
            if not on_cards:
                lines.append(f"| {path} | {part.name} | NVIDIA GPU | | | never run |")
    return "\n".join(lines)


def _page(runs: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "# What one run on a GPU has found",
        "`bench/gpu/run.sh` tries every path that needs a GPU and writes this page's figures; "
        "[what has run where](../hardware.md) lists the paths. Speeds beside peers are A-B-A: "
        "ours, each peer once, ours again; `python -m bench.gpu.sft --write`, `bench.gpu.vla` and "
        "`bench.gpu.grpo` take five turns a side and have pages of their own.",
    ]
    if not any(run["device"] != "cpu" for run in runs):
        head.append("**Never run on a GPU.**")
    bodies = [
        page(run).replace("\n#", "\n##").replace("# GPU run", "## GPU run", 1) for run in runs
    ]
    return "\n\n".join([*head, *(body.strip() for body in bodies)]) + "\n"


def peaks(runs: Sequence[Mapping[str, Any]]) -> str:
    """Rows with measured bytes as CSV; empty while no card has any."""
    rows = [
        {"row": f"{run['ran_on']}-{number}", "measured_on": part["date"], **row}
        for run in runs
        if run["device"] != "cpu"
        for part in [run["parts"].get("planned", {"memory": []})]
        for number, row in enumerate(part["memory"])
        if row["peak_allocated_mib"] is not None
    ]
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
