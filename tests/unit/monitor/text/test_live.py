"""The monitor as a person drives it: pictures in text, the live view, the command."""

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import textual.app
import textual.pilot
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import DataTable

from tests.support.run_files import ID, Written
from workloads import cli
from workloads.monitor.reading.curve import Curve
from workloads.monitor.reading.hardware import GpuReading, MachineReading, gpus
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.text import frame
from workloads.monitor.text.answer_screen import AnswerScreen
from workloads.monitor.text.list_screen import ListScreen
from workloads.monitor.text.live import Monitor
from workloads.monitor.text.panel import Panel
from workloads.monitor.text.run_screen import RunScreen
from workloads.run import Run

pytestmark = pytest.mark.unit
CARD = GpuReading(0, "NVIDIA GeForce RTX 4090", 93, 20 << 30, 24 << 30, 71, 402.5, 450.0)
HERE = MachineReading(
    "box", (CARD, GpuReading(1, "NVIDIA H100 MIG 1g.10gb")), 42.0, 16, 5 << 30, 64 << 30
)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    found = Written(tmp_path).begun().losses([4.0 - 0.02 * step for step in range(60)])
    found.run.eval_metric({"step": 60, "eval_loss": 2.9})
    found.beat(0, step=60)
    found.beat(1, ago=30, step=59, host="node-1")
    return found


def text_of(written: Written, width: int, ascii: bool = False) -> str:
    return frame.whole(RunReader(written.run).read(), HERE, width, ascii).plain


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_picture_says_all_and_keeps_to_its_width(written: Written, width: int) -> None:
    text = text_of(written, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    together = " ".join(text.split())
    for part in ("demo/", ID, "training", "step 60/100", "60%", "loss 2.82", "held-out 2.9"):
        assert part in together
    for part in (
        "rank 1 (node 1",
        "GPU 0",
        "93 %",
        "71 °C",
        "last events",
    ):
        assert part in together
    assert re.search(r"no heartbeat for 3\d s", together)
    assert "402/450 W" in together or "402…" in together or width < 60


def test_what_a_gpu_does_not_tell_is_a_dash(written: Written) -> None:
    line = next(line for line in text_of(written, 100).splitlines() if line.startswith("GPU 1"))
    assert line.split() == ["GPU", "1", "H100", "MIG", "1g.10gb", "░" * 10, *("-" * 3), "-", "W"]


def test_a_picture_in_plain_characters(written: Written) -> None:
    lines = text_of(written, 80, ascii=True).splitlines()
    start = next(at for at, line in enumerate(lines) if "●" in line)
    assert all(line.isascii() for line in lines[start + 1 : start + 12])


def test_many_ranks_are_shown_by_node_and_those_in_trouble_by_name(written: Written) -> None:
    for rank in range(64):
        written.beat(rank, node=rank // 8, step=60, ago=30 if rank == 37 else 0, host="n")
    lines = frame.ranks(RunReader(written.run).read(), 80).plain.splitlines()
    assert len(lines) == 1 + 8 + 2
    assert lines[1].split()[0] == "0" and lines[1].endswith("ok")
    assert lines[5].endswith("1 stalled") and lines[-1].split()[0] == "37"


def test_what_files_say_cannot_steer_the_terminal(written: Written) -> None:
    written.run.event("failed", reason="\x1b]0;title\x07\x1b[2J boom", code=1)
    written.beat(0, host="\x1b[31mhost")
    text = text_of(written, 100)
    assert "\x1b" not in text and "\x07" not in text and "boom" in text


def test_gpus_of_a_driver_that_fails_here_and_there() -> None:
    class Lost(Exception):
        pass

    class Driver:
        """What pynvml does on a machine with one good GPU, one MIG slice, and one lost one."""

        NVMLError, NVML_TEMPERATURE_GPU = Lost, 0

        def __getattr__(self, name: str) -> Callable[..., object]:
            answers = {
                "nvmlDeviceGetName": b"NVIDIA A100",
                "nvmlDeviceGetTemperature": 55,
                "nvmlDeviceGetPowerUsage": 250_000,
                "nvmlDeviceGetMemoryInfo": type("Memory", (), {"used": 1, "total": 2}),
            }

            def call(handle: object, *words: object) -> object:
                if handle == 1 and name != "nvmlDeviceGetName":
                    raise Lost
                if name not in answers:
                    raise Lost
                return answers[name]

            return call

        def nvmlDeviceGetCount(self) -> int:
            return 3

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
            if index == 2:
                raise Lost
            return index

    found = gpus(Driver())
    assert [item.name for item in found] == ["NVIDIA A100", "NVIDIA A100"]
    assert (found[0].temperature, found[0].power, found[0].utilisation) == (55, 250.0, None)
    assert found[1] == GpuReading(1, "NVIDIA A100")


async def nothing_left_to_do(*_: float) -> None:
    """Return once no callback has been ready over two refreshes of the screen.

    textual's own function looks at the processor's time instead, of which a busy machine may give a
    program none while it has work.
    """
    loop: Any = asyncio.get_running_loop()
    quiet = 0
    while quiet < 2:
        await asyncio.sleep(0.02)
        quiet = 0 if loop._ready else quiet + 1


def drive(
    app: Monitor, size: tuple[int, int], steps: Callable[[Pilot[str]], Awaitable[None]]
) -> None:
    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(pilot)

    with pytest.MonkeyPatch.context() as patch:
        for module in (textual.app, textual.pilot):
            patch.setattr(module, "wait_for_idle", nothing_left_to_do)
        asyncio.run(go())


def shown(app: Monitor, name: str) -> str:
    panel = app.screen.query_one(f"#{name}", Panel)
    return panel.shown.plain if panel.shown else ""


@pytest.mark.parametrize("size", [(80, 24), (140, 44), (60, 20), (40, 30)])
def test_the_live_view_has_all_parts_in_any_terminal(
    written: Written, tmp_path: Path, size: tuple[int, int]
) -> None:
    app = Monitor(tmp_path, written.run)

    async def steps(pilot: Pilot[str]) -> None:
        assert "step 60/100" in shown(app, "top")
        assert "rank 1 (node 1" in shown(app, "warnings")
        for name in ("curve", "ranks", "machine", "events"):
            panel = app.screen.query_one(f"#{name}", Panel)
            assert panel.region.height > 0 and panel.region.right <= size[0], name
            lines = shown(app, name).splitlines()
            assert max(map(len, lines)) <= panel.region.width, name
        assert re.search("[\u2801-\u28ff]{3}", shown(app, "curve"))

    drive(app, size, steps)


def test_the_live_view_follows_the_run(written: Written, tmp_path: Path) -> None:
    app = Monitor(tmp_path, written.run)

    async def steps(pilot: Pilot[str]) -> None:
        written.losses([1.25], first=61)
        written.beat(0, step=61)
        written.beat(1, step=61)
        screen = app.screen
        assert isinstance(screen, RunScreen)
        screen.read()
        assert "step 61/100" in shown(app, "top") and "loss 1.25" in shown(app, "top")
        assert not screen.query_one("#warnings", Panel).display

        await pilot.press("ctrl+c")
        assert app.return_value == f"demo/{ID}"  # what the command says goes on

    drive(app, (100, 30), steps)


def test_keys_change_the_curve_and_open_the_list(written: Written, tmp_path: Path) -> None:
    other = Written(tmp_path, "20250101-000000-0000").begun(max_steps=7)
    other.run.event("finished", code=0)
    os.utime(other.run.path / "config.json", (1e9, 1e9))
    app = Monitor(tmp_path, written.run)

    async def steps(pilot: Pilot[str]) -> None:
        curve = app.screen.query_one("#curve", Panel)
        assert str(curve.border_title).startswith("loss 2.82")
        await pilot.press("m")
        assert str(curve.border_title).startswith("learning rate 0.001")
        await pilot.press("M")
        assert str(curve.border_title).startswith("loss")
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, ListScreen)
        assert "2 runs" in shown(app, "top") and "1 going on" in shown(app, "top")
        await pilot.press("down", "enter")
        await pilot.pause()
        await pilot.pause()
        assert isinstance(app.screen, RunScreen)
        assert "finished" in shown(app, "top") and other.run.id in shown(app, "top")
        await pilot.press("q")
        assert app.return_code == 0 and app.return_value is None

    drive(app, (100, 30), steps)


def test_a_run_that_disappears_ends_nothing(written: Written, tmp_path: Path) -> None:
    import shutil

    app = Monitor(tmp_path, written.run)

    async def steps(pilot: Pilot[str]) -> None:
        shutil.rmtree(written.run.path)
        screen = app.screen
        assert isinstance(screen, RunScreen)
        screen.read()
        assert "60" in shown(app, "top")

    drive(app, (80, 24), steps)


class Console:
    """`tatara monitor` in a pseudo terminal of 80 x 24 cells."""

    def __init__(self, outputs: Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {**os.environ, "TATARA_OUTPUTS": str(outputs), "TERM": "xterm-256color"}
        command = [sys.executable, "-m", "workloads.cli", "monitor"]
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **streams)
        os.close(slave)
        self.shown = ""

    def until(self, text: str) -> None:
        """Read what it draws until a text has come."""
        end = time.monotonic() + 60
        while text not in self.shown:
            ready, _, _ = select.select([self.master], [], [], end - time.monotonic())
            assert ready, f"no {text!r} in {self.shown[-2000:]!r}"
            self.shown += os.read(self.master, 1 << 16).decode(errors="replace")


def test_a_real_terminal_is_drawn_on_and_left(written: Written, tmp_path: Path) -> None:
    console = Console(tmp_path)
    console.until("rank 1 (node 1")
    written.losses([1.125], first=61)
    console.until("1.125")  # it follows by itself
    os.write(console.master, b"q")
    console.until(f"tatara monitor demo/{ID}")
    assert console.process.wait(30) == 0
    os.close(console.master)


def test_a_terminal_that_is_gone_ends_the_view(written: Written, tmp_path: Path) -> None:
    console = Console(tmp_path)
    console.until("rank 1 (node 1")
    os.close(console.master)
    assert console.process.wait(30) == 0


def run_cli(tmp_path: Path, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    full = {**os.environ, "TATARA_OUTPUTS": str(tmp_path), "COLUMNS": "80", **env}
    command = [sys.executable, "-m", "workloads.cli", "monitor", *words]
    return subprocess.run(command, env=full, capture_output=True, text=True)


def test_one_picture_where_there_is_no_terminal(written: Written, tmp_path: Path) -> None:
    done = run_cli(tmp_path)
    assert done.returncode == 0 and "\x1b" not in done.stdout, done.stderr
    assert f"demo/{ID}" in done.stdout and "step 60/100" in done.stdout
    assert re.search("[\u2801-\u28ff]{3}", done.stdout)


def test_one_picture_in_a_narrow_encoding(written: Written, tmp_path: Path) -> None:
    done = run_cli(tmp_path, "--once", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii() and "?" not in done.stdout, done.stderr


def test_json_is_one_object(written: Written, tmp_path: Path) -> None:
    written.run.event("nonfinite", step=3, grad_norm=float("nan"))
    done = run_cli(tmp_path, "latest", "--json")
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert (found["format"], found["id"], found["step"], found["active"]) == (1, ID, 60, True)
    assert [item["rank"] for item in found["ranks"]] == [0, 1]
    assert found["curves"]["loss"][0] == [1, 4.0, 4.0, 4.0]
    assert any("rank 1" in item["text"] for item in found["warnings"])
    every = json.loads(run_cli(tmp_path, "--all", "--json").stdout)
    assert [item["id"] for item in every["runs"]] == [ID]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "expected a run in .*, found none; start one with"),
        (["--port", "80"], "--port is the port of --web"),
        (["--all", "x"], "expected --all or one run, found both"),
        (["nothing"], "expected a run in .*, found none"),
        (["x", "y=1"], "unexpected 'y=1'"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "none"))
    assert cli.main(["monitor", *words]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_a_list_of_all_runs(written: Written, tmp_path: Path) -> None:
    failed = Written(tmp_path, "20250101-000000-0000", "vla").begun()
    failed.run.event("failed", code=1, reason="no such file")
    done = run_cli(tmp_path, "--all", "--once", COLUMNS="140")
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[0].split()[:3] == ["run", "phase", "step"]
    assert any("failed: no such file" in line for line in lines)


def test_the_run_class_is_the_one_of_the_run_format(written: Written) -> None:
    assert isinstance(written.run, Run)


def test_keys_show_values_zoom_and_scale(written: Written, tmp_path: Path) -> None:
    app = Monitor(tmp_path, written.run)

    async def steps(pilot: Pilot[str]) -> None:
        curve = app.screen.query_one("#curve", Panel)
        whole = shown(app, "curve").splitlines()[-1]
        await pilot.press("left", "left")
        assert str(curve.border_title).startswith("loss   step 59: 2.84")
        await pilot.press("plus")
        assert shown(app, "curve").splitlines()[-1] != whole
        await pilot.press("s")
        assert str(curve.border_title).startswith("loss, log scale")
        await pilot.press("s", "0")
        assert shown(app, "curve").splitlines()[-1] == whole
        assert str(curve.border_title).startswith("loss 2.82")

    drive(app, (100, 30), steps)


def test_the_end_of_the_log_stands_beside_the_error(written: Written, tmp_path: Path) -> None:
    log = written.run.path / "logs" / "1-1.log"
    log.write_text("step 1\rstep 2\n" * 50 + "RuntimeError: CUDA error\x1b[2J\n")
    written.beat(1, phase="failed", code=1, reason="RuntimeError")
    app = Monitor(tmp_path, written.run)

    async def steps(pilot: Pilot[str]) -> None:
        assert "RuntimeError: CUDA error\ufffd[2J" in shown(app, "error")
        await pilot.press("o")
        await pilot.pause()
        assert "log of rank 1" in shown(app, "top") and "1-1.log" in shown(app, "top")
        assert shown(app, "log").splitlines()[-1].startswith("RuntimeError")
        await pilot.press("n")
        await pilot.pause()
        assert "log of rank 0" in shown(app, "top") and shown(app, "log") == "nothing yet"
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, RunScreen)

    drive(app, (100, 40), steps)
    assert "end of " in text_of(written, 80) and "RuntimeError: CUDA error" in text_of(written, 80)


def test_held_out_answers_stand_in_the_frame_and_on_a_key(written: Written, tmp_path: Path) -> None:
    app = Monitor(tmp_path, written.run)
    path = written.run.evaluation / "samples.jsonl"

    def answered(step: int, output: str) -> None:
        row = {"step": step, "place": "rows:7", "asked": "県庁は\nどこ?\x1b[2J", "answer": "札幌市"}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "output": output}) + "\n")

    async def steps(pilot: Pilot[str]) -> None:
        assert "held-out answers" not in text_of(written, 80)
        await pilot.press("a")
        await pilot.pause()
        assert "evaluation.samples=4" in shown(app, "answers")
        for step, output in ((0, "?" * 200), (30, "青森市"), (60, "札幌市\n")):
            answered(step, output)
        assert isinstance(app.screen, AnswerScreen)
        app.screen.read()
        assert "held-out answers: 1 of 1 as in the rows" in shown(app, "top")
        lines = shown(app, "answers").splitlines()
        assert [line.split()[0] for line in lines[:2]] == ["question", "expected"]
        assert [line.split()[1] for line in lines[2:]] == ["0", "30", "60"]
        assert "\x1b" not in lines[0] and lines[-1].split()[2] == "札幌市"
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, RunScreen)

    drive(app, (80, 24), steps)
    text = text_of(written, 60)
    assert "held-out answers: 1 of 1" in text and "step 60     札幌市" in text
    assert "step 30" not in text, "before and now"
    assert max(cell_len(line) for line in text.splitlines()) <= 60


def test_the_list_is_searched_and_sorted_by_keys(written: Written, tmp_path: Path) -> None:
    for name, loss in (("20250101-000000-0001", 9.0), ("20250102-000000-0002", 5.0)):
        Written(tmp_path, name, "vla").begun().losses([loss]).run.event("finished", code=0)
    app = Monitor(tmp_path, None)

    def names() -> list[str]:
        table = app.screen.query_one(DataTable)
        return [str(table.get_row_at(at)[0]) for at in range(table.row_count)]

    async def steps(pilot: Pilot[str]) -> None:
        await pilot.press("s", "s", "s", "s")  # run, phase, step, loss
        assert [name[-4:] for name in names()] == [ID[-4:], "0002", "0001"]
        await pilot.press("r")
        assert [name[-4:] for name in names()] == ["0001", "0002", ID[-4:]]
        await pilot.press("slash", *"0002")
        assert len(names()) == 1 and "1 of 3 runs" in shown(app, "top")
        await pilot.press("escape")
        assert len(names()) == 3
        await pilot.press("slash", *"nothing", "enter", "escape")
        assert len(names()) == 3

    drive(app, (120, 30), steps)


def test_this_machine_is_drawn_over_time(written: Written, tmp_path: Path) -> None:
    app = Monitor(tmp_path, written.run)

    async def steps(pilot: Pilot[str]) -> None:
        screen = app.screen
        assert isinstance(screen, RunScreen)
        screen.hardware.history["CPU (%)"] = load = Curve(8)
        for second in range(5):
            load.add(second, 10.0 * second)
        screen.draw()
        assert "CPU (%)" in shown(app, "sparks")

    drive(app, (140, 44), steps)
