"""How fast do recorded pictures reach a model, what does shuffling them hold, and what does one
flipped byte cost (A1, A2, A3)?

    python -m bench.robot_frames [--peer-python PYTHON] [--write]

A1: 4000 JPEG of 256² in CRANE-X7's records, checksums on, to shuffled batches of 32 of uint8 224²,
2 workers, Lanczos on all sides. Ours is a dataset of `workloads.data.robot` behind torch's
DataLoader; beside it the plainest way there is (every record in memory, Pillow in a DataLoader) and
tf.data. A2: a shuffle over 100,000 frames of 96²: the most memory that a process of its own held.
A3: the records of A1 with one byte of a payload flipped: how many of the others each side keeps.

tf.data runs in processes of another Python that has TensorFlow, never beside torch. Pictures are
compared before anything is timed.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from bench._pair import Timed, facts, table, write_page
from workloads.data import tf_example, tfrecord
from workloads.data.robot import Episode, images, open_dataset
from workloads.data.robot.frame_cache import FrameCache

SIDE, MODEL, BATCH, WORKERS = 256, 224, 32, 2
SMALL = 96
_EPISODE = 200
_FIELDS = {
    "image_resize_strategy": "resize-naive",
    "input_sizes": [[3, MODEL, MODEL]],
    "interpolations": ["lanczos"],
    "means": [[0.5, 0.5, 0.5]],
    "stds": [[0.5, 0.5, 0.5]],
}
FIRST = "ours, the epoch that keeps frames (`data.cache_frames`)"
LATER = "ours, the epochs after it"
PLAIN, TF = "DataLoader, Pillow, records in memory", "tf.data"
KEY = "observation/image_primary"
# One pass after one that is not timed, or the first so many samples of a shuffle; JSON lines.
PEER = """
import json, sys, time
import tensorflow as tf
what, folder = sys.argv[1:3]
limit, side, buffer = map(int, sys.argv[3:6])
tf.config.threading.set_intra_op_parallelism_threads(2)
tf.config.threading.set_inter_op_parallelism_threads(2)
key = "observation/image_primary"

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def picture(record):
    found = tf.io.parse_single_example(record, {key: tf.io.FixedLenFeature([], tf.string)})
    return tf.io.decode_jpeg(found[key], channels=3, dct_method="INTEGER_ACCURATE")

def resized(pixels):
    small = tf.image.resize(pixels, [side, side], method="lanczos3", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(small), 0, 255), tf.uint8)

files = sorted(tf.io.gfile.glob(folder + "/*/episode_data.tfrecord"))
records = tf.data.TFRecordDataset(files)
if what == "show":
    for pixels in records.take(limit).map(picture).map(resized):
        sys.stdout.buffer.write(pixels.numpy().tobytes())
elif what == "pass":
    batches = records.shuffle(buffer).map(lambda r: resized(picture(r)), num_parallel_calls=2)
    batches = batches.batch(32).prefetch(2)
    for _ in range(2):
        start, count = time.perf_counter(), 0
        for batch in batches:
            count += int(batch.shape[0])
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "count": count, "version": tf.__version__}))
elif what == "count":
    count, said = 0, None
    try:
        for record in records:
            count += 1
    except tf.errors.DataLossError as error:
        said = str(error)
    print(json.dumps({"count": count, "said": said}))
else:
    before = peak()
    frames = records.map(picture, num_parallel_calls=2).shuffle(buffer)
    count = sum(1 for _ in frames.take(limit))
    print(json.dumps({"peak": peak(), "before": before, "count": count}))
"""


def main() -> int:
    options = _options()
    peer = options.peer_python if _has_tensorflow(options.peer_python) else None
    with recordings(options.frames, SIDE, min(options.frames, 1000)) as folder:
        parts = [_speed(options, folder, peer), _memory(options, peer), _damage(folder, peer)]
    known = facts(
        ["torch", "pillow", "numpy"],
        ["workloads/data", "workloads/vla/processing.py", "bench/robot_frames.py"],
        f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[1]:.1f} when it ran",
    )
    print("\n\n".join([*parts, known]))
    if options.write:
        print(f"wrote {write_page('robot-frames', [*_introduction(), *parts, known])}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", default=sys.executable, help="one with TensorFlow")
    parser.add_argument("--frames", type=int, default=4000, help="of A1")
    parser.add_argument("--shuffled", type=int, default=100_000, help="frames of A2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="docs/benchmarks/robot-frames.md")
    return parser.parse_args()


def _introduction() -> list[str]:
    return [
        "# From recorded pictures to batches",
        "Ours reads CRANE-X7 records by an index of offsets, checks the checksum of each, decodes "
        "and resizes with Pillow inside torch's DataLoader. The plain way holds every record in "
        "memory, unchecked, and does the same with Pillow. tf.data checks, decodes and resizes in "
        "its own threads (`shuffle`, `map`, `batch`, `prefetch`), in a process of its own. Sides "
        "take turns after a comparison of their pictures (at least 40 dB).",
        "Run it: `python -m bench.robot_frames --peer-python PYTHON_WITH_TENSORFLOW --write`.",
    ]


def _has_tensorflow(python: str) -> bool:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"
    found = subprocess.run([python, "-c", code], check=False).returncode == 0
    if not found:
        print(f"!!! PEER SKIPPED: {python} has no tensorflow; see --peer-python", file=sys.stderr)
    return found


@contextlib.contextmanager
def recordings(count: int, side: int, different: int) -> Iterator[Path]:
    """CRANE-X7 episodes with `count` JPEG pictures, `different` of them different."""
    chance = np.random.default_rng(0)
    ramp = np.linspace(0, 200, side, dtype=np.float32)
    noise = chance.integers(0, 40, (side, side, 3), np.uint8)
    base = np.stack([ramp[None, :] + 0 * ramp[:, None]] * 3, -1).astype(np.uint8) + noise
    frames = [images.encode_jpeg(np.roll(base, at, axis=1)) for at in range(different)]
    states = chance.uniform(-1, 1, (_EPISODE, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for start in range(0, count, _EPISODE):
            folder = root / f"episode_{start // _EPISODE:05d}_20260101_000000"
            folder.mkdir()
            records = (
                tf_example.build(
                    {
                        "observation/proprio": states[at % _EPISODE],
                        "action": states[(at + 1) % _EPISODE],
                        "observation/timestep": np.array([at - start]),
                        KEY: frames[at % different],
                    }
                )
                for at in range(start, min(start + _EPISODE, count))
            )
            tfrecord.write(folder / "episode_data.tfrecord", records)
            meta = {"schema": "v2", "image_color_order": "rgb"}
            (folder / "meta.json").write_text(json.dumps(meta))
        yield root


class Ours:
    """A map-style dataset over recorded episodes, resized as a policy's processor does it."""

    def __init__(self, folder: Path, side: int = MODEL) -> None:
        from workloads.vla.processing import ImageProcessor

        self.data = open_dataset(folder, drop_last_placeholder=False)
        self.processor = ImageProcessor(_FIELDS | {"input_sizes": [[3, side, side]]})
        self.ends = np.cumsum(self.data.lengths)
        self.episodes = list(self.data)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> np.ndarray:
        at = int(np.searchsorted(self.ends, number, side="right"))
        episode = self.episodes[at]
        step = number - int(self.ends[at]) + len(episode)
        return self.processor.resize(episode.pillow("primary", step))


class Kept:
    """The same with frames in a memory map, as `data.cache_frames` has them after one epoch."""

    def __init__(self, ours: Ours, folder: Path) -> None:
        self.ours = ours
        self.cache = FrameCache(folder, len(ours), (MODEL, MODEL, 3))

    def __len__(self) -> int:
        return len(self.ours)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.cache.get(number, lambda: self.ours[number])


class Plain:
    """Every JPEG in memory; decoded and resized by Pillow, nothing else."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*/episode_data.tfrecord"))
        records = (record for file in files for record in tfrecord.read(file))
        self.encoded = [tf_example.parse(record)[KEY].values[0] for record in records]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, number: int) -> np.ndarray:
        with Image.open(io.BytesIO(self.encoded[number])) as picture:
            small = picture.convert("RGB").resize((MODEL, MODEL), Image.Resampling.LANCZOS)
        return np.asarray(small)


def _stacked(rows: list[np.ndarray]) -> Any:
    import torch

    return torch.from_numpy(np.stack(rows))


def _batches(data: Any) -> tuple[int, float]:
    """One shuffled pass: the number of pictures that came, and the seconds since the first batch
    was asked for."""
    import torch
    from torch.utils.data import DataLoader

    torch.manual_seed(0)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, collate_fn=_stacked)
    start = time.perf_counter()
    count = sum(len(batch) for batch in loader)
    return count, time.perf_counter() - start


def _speed(options: argparse.Namespace, folder: Path, peer: str | None) -> str:
    ours, plain = Ours(folder), Plain(folder)
    _compare(ours, plain, folder, peer)
    with tempfile.TemporaryDirectory() as name:
        frames = Path(name)
        kept, filling = Kept(ours, frames / "kept"), iter(range(options.rounds + 1))
        sides: dict[str, Callable[[], tuple[int, float]]] = {
            "ours": lambda: _batches(ours),
            FIRST: lambda: _batches(Kept(ours, frames / f"first-{next(filling)}")),
            LATER: lambda: _batches(kept),
            PLAIN: lambda: _batches(plain),
        }
        if peer:
            sides[TF] = lambda: _pass(peer, folder)
        timed = Timed({name: [] for name in sides})
        for turn in range(options.rounds + 1):
            for name, run in sides.items():
                count, seconds = run()
                if count != options.frames:
                    raise SystemExit(f"{name}: expected {options.frames} pictures, found {count}")
                if turn:  # the first warms up
                    timed.seconds[name].append(seconds)
    size = f"{options.frames:,} JPEG of {SIDE}² to {MODEL}²"
    title = f"## A1: {size}, batches of {BATCH}, {WORKERS} workers"
    return "\n\n".join([title, table(timed, options.frames, "pictures/s"), _goal(timed)])


def _goal(timed: Timed) -> str:
    seconds = {name: median(rounds) for name, rounds in timed.seconds.items()}
    found = [
        f"{seconds[name] / seconds['ours']:.2f}x of {name}"
        for name in (PLAIN, TF)
        if name in seconds
    ]
    return (
        f"The goal is 1.5x; ours is at {' and '.join(found)}. Epochs with frames kept are at "
        f"{seconds[PLAIN] / seconds[LATER]:.1f}x of {PLAIN} (goal 5x), the one that keeps them at "
        f"{seconds[FIRST] / seconds['ours']:.2f} of the time without."
    )


def _compare(ours: Ours, plain: Plain, folder: Path, peer: str | None) -> None:
    """The first pictures of all sides; SystemExit where they differ by more than 40 dB allows."""
    first = np.stack([ours[at] for at in range(8)])
    others = {"Pillow": np.stack([plain[at] for at in range(8)])}
    if peer:
        raw = _peer(peer, "show", folder, 8, MODEL, 1)
        others["tf.data"] = np.frombuffer(raw, np.uint8).reshape(first.shape)
    for name, found in others.items():
        error = float(((first.astype(float) - found) ** 2).mean())
        decibels = math.inf if error == 0 else 10 * math.log10(255**2 / error)
        print(f"{name}: {decibels:.1f} dB", file=sys.stderr)
        if decibels < 40:
            raise SystemExit(f"{name}: expected the same pictures, found {decibels:.1f} dB")


def _peer(python: str, what: str, folder: Path, limit: int, side: int, buffer: int) -> bytes:
    words = [str(folder), str(limit), str(side), str(buffer)]
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([python, "-c", PEER, what, *words], capture_output=True, env=env)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr.decode()[-2000:]}")
    return done.stdout


def _pass(python: str, folder: Path) -> tuple[int, float]:
    """The second pass of tf.data by its own clock: starting Python is not its work."""
    found = json.loads(_peer(python, "pass", folder, 0, MODEL, 4000))
    return int(found["count"]), float(found["seconds"])


def _memory(options: argparse.Namespace, peer: str | None) -> str:
    count, limit = options.shuffled, 2000
    with recordings(count, SMALL, 500) as folder:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_shuffled, args=(theirs, folder, limit))
        process.start()
        ours: dict[str, int] = mine.recv()
        process.join()
        found = json.loads(_peer(peer, "shuffle", folder, limit, SMALL, count)) if peer else None
    rows = [["side", "peak RSS", "of it before the data"], ["---"] * 3]
    rows.append(["ours", *(_mib(ours[name]) for name in ("peak", "before"))])
    title = f"## A2: a shuffle over {count:,} frames of {SMALL}²"
    note = f"Both drew {limit:,} frames. A frame is {3 * SMALL**2 / 1024:.0f} KiB once decoded."
    if found:
        rows.append(["tf.data, decoded", *(_mib(found[name]) for name in ("peak", "before"))])
        whole = ours["peak"] / found["peak"]
        own = (ours["peak"] - ours["before"]) / (found["peak"] - found["before"])
        note += f" Ours holds {whole:.3f} of it in all, {own:.3f} beyond its libraries (goal 0.05)."
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return "\n\n".join([title, lines, note])


def _damage(folder: Path, peer: str | None) -> str:
    """Flip a byte of an early record, and count what either side still reads."""
    before = [episode.encoded("primary", t) for episode, t in _steps(folder)]
    file = min(folder.glob("*/episode_data.tfrecord"))
    index = tfrecord.index(file)
    record = min(20, len(index) - 1)
    content = bytearray(file.read_bytes())
    content[int(index.offsets[record]) + tfrecord.HEADER_BYTES + 100] ^= 0xFF
    file.write_bytes(content)
    data = open_dataset(folder, drop_last_placeholder=False)
    kept = [episode.encoded("primary", t) for episode, t in _steps(folder)]
    if kept != before[:record] + before[record + 1 :] or len(data.damage) != 1:
        raise SystemExit("A3 failed: the records kept are not all but the damaged one")
    (damage,) = data.damage
    place = f"{file.parent.name}/{file.name}: record {damage.record} at byte {damage.offset}"
    rows = [["side", "records kept", "what is said"], ["---"] * 3]
    rows.append(["ours", f"{len(kept):,}", f"{place}: {damage.cause}"])
    if peer:
        found = json.loads(_peer(peer, "count", folder, 0, MODEL, 1))
        said = re.search(r"corrupted record at \d+", str(found["said"]))
        rows.append([TF, f"{found['count']:,}", said.group() if said else "nothing"])
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"## A3: one flipped byte in {len(before):,} records\n\n{lines}"


def _steps(folder: Path) -> Iterator[tuple[Episode, int]]:
    for episode in open_dataset(folder, drop_last_placeholder=False):
        for t in range(len(episode)):
            yield episode, t


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def peak() -> int:
    """The most bytes that this process held; rusage would count its parent's before the start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _shuffled(line: Any, folder: Path, limit: int) -> None:
    """In a process of its own: open, shuffle all, read some; the most memory that it held."""
    before = peak()
    data = Ours(folder, SMALL)
    order = np.random.default_rng(0).permutation(len(data))
    for number in order[:limit]:
        data[int(number)]
    line.send({"peak": peak(), "before": before})


if __name__ == "__main__":
    sys.exit(main())
