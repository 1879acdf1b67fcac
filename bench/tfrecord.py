"""How fast TFRecord files are read with checksums on.

    python -m bench.tfrecord [--records 4000] [--repeats 5] [--out result.json]
        [--peer-python PYTHON] [--write]

The peer is tf.data, run in processes of its own by a Python that has TensorFlow; both sides must
give the same bytes before anything is timed. Rounds alternate between the two.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench._pair import facts, write_page  # noqa: E402
from workloads.data import tfrecord  # noqa: E402
from workloads.data.robot.images import encode_jpeg  # noqa: E402

SIDE = 256
PEER = """
import hashlib, json, sys, time
import tensorflow as tf
path, repeats = sys.argv[1], int(sys.argv[2])
for _ in range(repeats + 1):
    start, digest = time.perf_counter(), hashlib.sha256() if _ == 0 else None
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        if digest:
            digest.update(record)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "digest": digest.hexdigest() if digest else None,
        "version": tf.__version__}), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--peer-python", default=sys.executable, help="one with TensorFlow")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/tfrecord.md")
    options = parser.parse_args()
    peer = options.peer_python if has_tensorflow(options.peer_python) else None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pictures.tfrecord"
        tfrecord.write(file, jpegs(options.records))
        result = {
            "machine": machine(),
            "file": {"records": options.records, "megabytes": file.stat().st_size / 1e6},
            "reading": reading(file, options.repeats, peer),
        }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.write:
        print(f"wrote {write_page('tfrecord', page(result))}")


def page(result: dict[str, Any]) -> list[str]:
    """The paragraphs and tables of docs/benchmarks/tfrecord.md."""
    records, megabytes = result["file"]["records"], result["file"]["megabytes"]
    rates = [["how", "MB/s (range)"], ["---"] * 2]
    for name, row in result["reading"].items():
        if isinstance(row, dict):
            rates.append([name, f"{row['median']:,.0f} ({row['low']:,.0f}–{row['high']:,.0f})"])
    ratio = result["reading"].get("ratio of medians")
    faster = f"Reading in order is {ratio:.1f} times as fast as tf.data." if ratio else ""
    return [
        "# TFRecord files without TensorFlow",
        f"{records:,} JPEG of {SIDE}² in one file of {megabytes:,.0f} MB, read with all checksums "
        "on. tf.data runs in processes of its own; both sides must give the same bytes first, and "
        "take turns.",
        "Run it: `python -m bench.tfrecord --peer-python PYTHON_WITH_TENSORFLOW --write`.",
        "## Speed",
        rows(rates),
        *([faster] if faster else []),
        facts(
            ["numpy", "google-crc32c"],
            ["workloads/data/tfrecord.py", "bench/tfrecord.py"],
            f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[1]:.1f} when it "
            "ran",
        ),
    ]


def rows(cells: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def jpegs(count: int) -> list[bytes]:
    """Pictures of 256², smooth with some noise, each different."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 200, SIDE, dtype=np.float32)
    noise = generator.integers(0, 40, (SIDE, SIDE, 3), np.uint8)
    frames = []
    for number in range(count):
        pixels = np.stack([ramp[None, :] + 0 * ramp[:, None]] * 3, -1).astype(np.uint8)
        frames.append(encode_jpeg(np.roll(pixels + noise, number, axis=1)))
    return frames


def has_tensorflow(python: str) -> bool:
    """Whether that Python can import it; if not, says so where nobody overlooks it."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"
    found = subprocess.run([python, "-c", code], check=False).returncode == 0
    if not found:
        print(f"!!! PEER SKIPPED: {python} has no tensorflow; see --peer-python", file=sys.stderr)
    return found


def reading(file: Path, repeats: int, peer: str | None) -> dict[str, Any]:
    """MB/s of whole sequential passes, of building the index and of random reads."""
    size = file.stat().st_size / 1e6
    index = tfrecord.index(file)
    order = random.Random(0).sample(range(len(index)), len(index))
    ours = {
        "sequential, checksums on": lambda: sum(1 for _ in tfrecord.read(file)),
        "index, checksums on": lambda: len(tfrecord.index(file)),
        "random order, checksums on": lambda: sum(1 for number in order if index[number]),
    }
    digest = hashlib.sha256(b"".join(tfrecord.read(file))).hexdigest()
    times: dict[str, list[float]] = {name: [] for name in ours}
    rounds: list[dict[str, Any]] = []
    for _ in range(repeats):
        for name, work in ours.items():
            times[name].append(timed(work))
        if peer:
            rounds.extend(tensorflow_rounds(peer, file, digest))
    table: dict[str, Any] = {name: spread([size / t for t in row]) for name, row in times.items()}
    if rounds:
        rates = [size / line["seconds"] for line in rounds]
        sequential = table["sequential, checksums on"]["median"]
        table["tf.data sequential"] = spread(rates) | {"version": rounds[0]["version"]}
        table["ratio of medians"] = sequential / statistics.median(rates)
    return table


def tensorflow_rounds(python: str, file: Path, digest: str) -> list[dict[str, Any]]:
    """One round of the peer, after one to warm up."""
    command = [python, "-c", PEER, str(file), "1"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if lines[0]["digest"] != digest:
        raise SystemExit("the peer read other bytes than we did: nothing is compared")
    return lines[1:]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(rates: list[float]) -> dict[str, float]:
    """MB/s."""
    return {
        "median": round(statistics.median(rates), 1),
        "low": round(min(rates), 1),
        "high": round(max(rates), 1),
    }


def machine() -> dict[str, Any]:
    root = Path(__file__).parent.parent
    git = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
