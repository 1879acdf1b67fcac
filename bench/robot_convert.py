"""How long do conversions of recorded demonstrations take, and how large do they get?

    python -m bench.robot_convert [--write]

780 JPEG of 640x480 in CRANE-X7's records, colours in order (as `tatara data generate` and our own
converter write them), through `tatara data convert` in a process of its own: wall time, CPU time of
all its processes, size of what is written. The way of before (one process, every image as PNG) is
the first row: the same command with the colours said to be exchanged, and on one core.
"""

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench._pair import facts, write_page
from tests.support.crane_cases import large

ROWS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("PNG of every image, one core", (), True),
    ("LeRobot, JPEG kept", (), False),
    ("LeRobot, `--size 224`", ("--size", "224"), False),
    ("LeRobot, `--video h264`", ("--video", "h264"), False),
    ("LeRobot, `--video av1`", ("--video", "av1"), False),
    ("CRANE-X7, JPEG kept", ("--to", "crane-x7"), False),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="docs/benchmarks/robot-convert.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        large(source)
        exchanged = Path(name) / "exchanged"
        shutil.copytree(source, exchanged)
        for file in exchanged.rglob("meta.json"):  # without it, red and blue are exchanged
            file.unlink()
        lines = [
            f"Source: 780 JPEG of 640x480, {_megabytes(source):.0f} MB.",
            "",
            "| what | wall | CPU | size |",
            "| --- | --- | --- | --- |",
        ]
        for what, words, is_before in ROWS:
            lines.append(_row(what, exchanged if is_before else source, words, is_before))
    known = facts(
        ["pillow", "numpy", "pyarrow", "av"],
        ["workloads/data", "bench/robot_convert.py"],
        f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[1]:.1f} when it ran",
    )
    text = "\n".join(lines)
    print(f"{text}\n\n{known}")
    if options.write:
        title = ["# Converting demonstrations", (__doc__ or "").partition("\n\n    ")[0]]
        about = "Run it: `python -m bench.robot_convert --write`."
        print(f"wrote {write_page('robot-convert', [*title, about, text, known])}")
    return 0


def _row(what: str, source: Path, words: tuple[str, ...], one_core: bool) -> str:
    out = source.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "workloads.cli", "data", "convert", str(source), str(out)]
    cores = os.sched_getaffinity(0)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    try:
        if one_core:
            os.sched_setaffinity(0, {min(cores)})
        subprocess.run([*command, *words], check=True, capture_output=True)
    finally:
        os.sched_setaffinity(0, cores)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"| {what} | {wall:.1f} s | {cpu:.1f} s | {_megabytes(out):.0f} MB |"


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
