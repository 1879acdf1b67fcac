"""How fast do windows of CALVIN reach a policy with a head, read as its published training reads?

    python -m bench.windows [--write]

Windows of 8 frames with chunks of 10 actions from both cameras, resized to 224², one process. The
published way loads the file of every frame of every window; ours reads and decodes a frame once for
all windows that hold it. Every window of both is compared before anything is timed.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from bench._pair import Side, facts, measure, table, write_page
from workloads.data.robot import open_dataset
from workloads.data.windows import WindowOptions, Windows
from workloads.vla.processing import ImageProcessor

WINDOW, CHUNK, SIDE = 8, 10, 224
SPAN = 64  # frames of an annotation, as CALVIN's are
PEER = "np.load of every frame of every window"
CAMERAS = ("static", "gripper")
_FIELDS = {
    "image_resize_strategy": "resize-naive",
    "input_sizes": [[3, SIDE, SIDE]],
    "interpolations": ["bicubic"],
    "means": [[0.5, 0.5, 0.5]],
    "stds": [[0.5, 0.5, 0.5]],
}
Sample = tuple[np.ndarray, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spans", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="docs/benchmarks/windows.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "training"
        written(folder, options.spans)
        windows = opened(folder)
        sides = [Side("ours", lambda: ours(folder)), Side(PEER, lambda: published(folder, windows))]
        timed = measure(sides, same, options.rounds)
    title = f"## {len(windows)} windows of {WINDOW} frames, both cameras, in a shuffled order"
    goal = f"The goal is 3x; ours is at {median(timed.ratios(PEER)):.1f}x."
    parts = [title, table(timed, len(windows), "windows/s"), goal]
    known = facts(
        ["pillow", "numpy"],
        ["workloads/data/windows.py", "workloads/data/robot/calvin", "bench/windows.py"],
        f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[1]:.1f} when it ran",
    )
    print("\n\n".join([*parts, known]))
    if options.write:
        print(f"wrote {write_page('windows', [*_introduction(), *parts, known])}")
    return 0


def _introduction() -> list[str]:
    return [
        "# Windows of CALVIN for policies that remember",
        "Overlapping windows share most of their frames. The published loader calls `np.load` for "
        f"every frame of a window and its chunk ({WINDOW + CHUNK} files a sample); ours shuffles "
        "windows so that a frame is read, decoded and resized once an epoch, with "
        "`data.frames_in_memory` frames held. Both resize with Pillow; one process each, no "
        "workers. The files are compressed, 200² and 84² pixels, as CALVIN's are; both find them "
        "in the page cache.",
        "Run it: `python -m bench.windows --write`.",
    ]


def written(folder: Path, spans: int) -> None:
    """A split with as many annotated spans, side by side."""
    (folder / "lang_annotations").mkdir(parents=True)
    random = np.random.default_rng(0)
    for frame in range(spans * SPAN):
        np.savez_compressed(
            folder / f"episode_{frame:07d}.npz",
            rgb_static=_image(random, 200),
            rgb_gripper=_image(random, 84),
            robot_obs=random.uniform(-1, 1, 15),
            rel_actions=random.uniform(-1, 1, 7),
            actions=np.zeros(7),
            scene_obs=np.zeros(24),
        )
    bounds = [(at * SPAN, (at + 1) * SPAN - 1) for at in range(spans)]
    np.save(folder / "ep_start_end_ids.npy", np.array([(0, spans * SPAN - 1)]))
    texts = ["push the block"] * spans
    content = {
        "language": {"ann": texts, "task": texts, "emb": np.zeros((spans, 1, 4), np.float32)},
        "info": {"episodes": [], "indx": bounds},
    }
    file = folder / "lang_annotations/auto_lang_ann.npy"
    np.save(file, np.array(content, dtype=object), allow_pickle=True)


def _image(random: np.random.Generator, side: int) -> np.ndarray:
    """Smooth, with some noise: it compresses about as a rendered scene does."""
    coarse = random.integers(0, 200, (5, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    return smooth // 4 * 4 + random.integers(0, 4, (side, side, 1), dtype=np.uint8)


def opened(folder: Path) -> Windows:
    return Windows(
        open_dataset(folder),
        WindowOptions(WINDOW, CHUNK, cameras=CAMERAS),
        ImageProcessor(_FIELDS).resize,
    )


def ours(folder: Path) -> dict[int, Sample]:
    """An epoch, the dataset opened anew: images uint8 [W, cameras, S, S, 3] and actions."""
    windows = opened(folder)
    return {
        number: (np.stack([window.images[name] for name in CAMERAS], 1), window.actions)
        for number in windows.order(seed=0)
        for window in (windows[number],)
    }


def published(folder: Path, windows: Windows) -> dict[int, Sample]:
    """The same windows in a shuffled order, every frame of each loaded from its file."""
    found: dict[int, Sample] = {}
    last = SPAN - 1
    each = len(windows) // len(windows.dataset)
    for number in np.random.default_rng(0).permutation(len(windows)).tolist():
        span, start = divmod(number, each)
        numbers = [min(start + step, last) + span * SPAN for step in range(WINDOW + CHUNK)]
        loaded = [np.load(folder / f"episode_{frame:07d}.npz") for frame in numbers]
        images = [[_resized(frame[f"rgb_{name}"]) for name in CAMERAS] for frame in loaded[:WINDOW]]
        actions = np.stack([frame["rel_actions"] for frame in loaded]).astype(np.float32)
        chunks = np.stack([actions[step : step + CHUNK] for step in range(WINDOW)])
        found[number] = np.array(images), chunks
    return found


def _resized(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def same(outputs: Sequence[dict[int, Sample]]) -> None:
    """SystemExit where a window differs."""
    mine, theirs = outputs
    for number, (images, actions) in mine.items():
        if not np.array_equal(images, theirs[number][0]) or not np.array_equal(
            actions, theirs[number][1]
        ):
            raise SystemExit(f"window {number}: expected the same images and actions")
    if mine.keys() != theirs.keys():
        raise SystemExit("expected the same windows on both sides")


if __name__ == "__main__":
    sys.exit(main())
