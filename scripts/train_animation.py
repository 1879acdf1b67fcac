"""Draw docs/images/train.gif: a real `make train` in local processes, and the monitor beside it.

    python scripts/train_animation.py [FILE]        (default: docs/images/train.gif)

Needs Chromium (`chromium` in the PATH) and Pillow, and takes as long as the training does. The run
is removed from outputs/ at the end.
"""

import asyncio
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from browser import Browser
from PIL import Image
from rich.console import Console
from rich.text import Text

from workloads.monitor.text.live import Monitor
from workloads.run import Run

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, ROWS = 92, 32
WIDTH, HEIGHT = 1400, 520
EVERY = 3.5  # seconds between two images; shown ten times as fast
MOST = 16  # images: of a longer run on a busy machine every second one, or fewer
SHOWN, LAST = 350, 4000  # milliseconds of an image, and of the last one
COLOURS = 48  # of all images together: a palette for each would change a colour between two
OUTPUTS = ROOT / "outputs"
_PAGE = """<!doctype html><style>body{{margin:0;background:#fff;display:flex;gap:12px}}
svg{{width:694px;height:520px;display:block}}</style>{left}{right}"""


class Training:
    """`make train` in a process of its own, and what it has printed so far."""

    def __init__(self) -> None:
        env = os.environ | {
            "TATARA_RUNTIME": "local",
            "TATARA_OUTPUTS": "outputs",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": str(COLUMNS),
        }
        self.lines = ["$ make train"]
        self.process = subprocess.Popen(
            ["make", "--silent", "train"],
            cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def drawn(self) -> str:
        """The terminal as it is now, as SVG."""
        console = Console(width=COLUMNS, height=ROWS, record=True, file=io.StringIO())
        rows: list[str] = []
        for line in self.lines:
            rows += [line[at : at + COLUMNS] for at in range(0, max(1, len(line)), COLUMNS)]
        shown = [*rows[-ROWS:], *[""] * (ROWS - len(rows))]
        console.print(Text.from_ansi("\n".join(shown)))
        return console.export_svg(title="make train")


async def new_run(training: Training, before: set[Path]) -> Run:
    """The run of the training, once its folder is there."""
    while not (found := set(OUTPUTS.glob("demo/*/config.json")) - before):
        if training.process.poll() is not None:
            raise SystemExit("\n".join(training.lines[-20:]))
        await asyncio.sleep(0.1)
    return Run(found.pop().parent)


async def pairs(training: Training, run: Run) -> list[tuple[str, str]]:
    """The terminal and the monitor beside it, every few seconds until the training has ended."""
    found = []
    app = Monitor(OUTPUTS, run)
    async with app.run_test(size=(100, ROWS + 4)) as pilot:
        while training.process.poll() is None:
            await asyncio.sleep(EVERY)
            await pilot.pause()
            found.append((training.drawn(), app.export_screenshot(title="tatara monitor")))
        await asyncio.sleep(EVERY)
        found.append((training.drawn(), app.export_screenshot(title="tatara monitor")))
    return found


def images(found: Sequence[tuple[str, str]]) -> list[Image.Image]:
    """The pairs as a browser shows them."""
    apart = -(-len(found) // MOST)
    found = [*found[:-1:apart], found[-1]]
    browser = Browser(WIDTH, HEIGHT)
    shown = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "page.html"
            for left, right in found:
                page.write_text(_PAGE.format(left=left, right=right), encoding="utf-8")
                browser.open(page.as_uri(), "document.querySelectorAll('svg').length == 2")
                time.sleep(0.1)  # fonts
                shown.append(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))
    finally:
        browser.close()
    palette = Image.new("RGB", (WIDTH, HEIGHT * len(shown)))
    for at, image in enumerate(shown):
        palette.paste(image, (0, HEIGHT * at))
    palette = palette.quantize(COLOURS)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in shown]


def main(arguments: list[str]) -> int:
    path = Path(arguments[0] if arguments else ROOT / "docs" / "images" / "train.gif")
    before = set(OUTPUTS.glob("demo/*/config.json"))
    training = Training()
    run = asyncio.run(new_run(training, before))
    try:
        first, *others = images(asyncio.run(pairs(training, run)))
    finally:
        training.process.wait()
        shutil.rmtree(run.path)
    if training.process.returncode:
        print("\n".join(training.lines[-20:]))
        return 1
    times = [SHOWN] * len(others) + [LAST]
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, optimize=True)
    print(f"{path}  {path.stat().st_size // 1024} KiB, {len(times)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
