"""CALVIN's protocol against a recorded environment in a process of its own."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.support import recorded_calvin
from tests.support.golden_kosmos import GoldenKosmos
from tests.support.waiting import until
from workloads.cli import main
from workloads.errors import UserError
from workloads.vla.calvin import sequences, simulator
from workloads.vla.calvin.client import Simulator, SimulatorEnded, SimulatorFrame, SimulatorPlace
from workloads.vla.calvin.evaluate import RESULTS, VideoOptions, evaluate
from workloads.vla.calvin.report import summary, table
from workloads.vla.calvin.rollout import PolicyPilot, SequenceRollout, check_policy, drive
from workloads.vla.calvin.scripted import Script
from workloads.vla.calvin.video import write_video

pytestmark = pytest.mark.unit


def recorded(*flags: object) -> SimulatorPlace:
    return SimulatorPlace((sys.executable, recorded_calvin.__file__, *map(str, flags)))


class Player:
    """Sends actions one after another, and keeps what it saw."""

    def __init__(self, actions: np.ndarray) -> None:
        self.actions = actions
        self.seen: list[SimulatorFrame] = []
        self.tasks: list[str] = []

    def begin(self, task: str) -> None:
        self.tasks.append(task)

    def act(self, frame: SimulatorFrame) -> np.ndarray:
        self.seen.append(frame)
        return np.asarray(self.actions[(len(self.seen) - 1) % len(self.actions)])


def test_the_rollout_comes_through_as_it_was_recorded(tmp_path: Path) -> None:
    with np.load(recorded_calvin.RECORDING) as stored:
        golden = {name: stored[name] for name in stored.files}
    with Simulator(recorded("--strict"), tmp_path / "log") as env:
        frames = [env.reset(sequences(1)[0].scene_obs)]
        env.begin("open_drawer")
        frames += [env.step(action) for action in golden["actions"]]
        with pytest.raises(UserError, match="refused 'step': expected the recorded action"):
            env.step(golden["actions"][3])
    for name in ("robot_obs", "scene_obs"):
        assert np.array_equal([getattr(frame, name) for frame in frames], golden[name])
    for camera in ("static", "gripper"):
        for at, frame in ((0, frames[0]), (1, frames[-1])):
            assert np.array_equal(frame.images[camera], golden[f"rgb_{camera}"][at])
    assert (tmp_path / "log").read_text() == "what a library prints\n"


def test_a_sequence_ends_with_its_first_failure(tmp_path: Path) -> None:
    wanted = sequences(1)[0]
    assert "block" in wanted.sequence[0] and "block" not in wanted.sequence[1]
    player = Player(np.array([[0.0] * 6 + [1.0]]))
    with Simulator(recorded(), tmp_path / "log") as env:
        rollout = drive(env, wanted, player, keep_images=True)
    assert (rollout.solved, rollout.steps) == (1, [3, 360])
    assert player.tasks == list(wanted.sequence[:2])
    assert len(rollout.images) == 3 + 1 + 360 + 1


def run(folder: Path, count: int, place: SimulatorPlace | None = None, **settings: Any) -> Any:
    facts = {"policy": "player"}
    return evaluate(count, place or recorded(), lambda: Script(), folder, facts, **settings)


def test_several_simulators_give_what_one_gives_and_a_killed_one_goes_on(tmp_path: Path) -> None:
    results, facts = run(tmp_path / "one", 4, videos=VideoOptions(1))
    assert [result.number for result in results] == [0, 1, 2, 3]
    assert facts["simulator"]["renderer"] == "recording"
    assert run(tmp_path / "three", 4, processes=3)[0] == results
    assert not (tmp_path / "three/sequence-0000.gif").exists()

    file = tmp_path / "one" / RESULTS
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1] + lines[2][:20])  # killed while it wrote the third
    done: list[int] = []
    again, _ = run(tmp_path / "one", 4, progress=lambda now, total: done.append(now))
    assert again == results and done == [2, 3, 4]
    assert run(tmp_path / "one", 2)[0] == results[:2]

    with Image.open(tmp_path / "one/sequence-0000.gif") as film:
        assert film.format == "GIF" and film.size == (200, 224)
        # A third of the steps and the end of each task; alike ones are held longer.
        assert film.n_frames > 2  # type: ignore[attr-defined]

    with pytest.raises(UserError, match="found those of another .policy: player, now other"):
        evaluate(1, recorded(), lambda: Script(), tmp_path / "one", {"policy": "other"})

    found = summary(results, facts)
    solved = [result.solved for result in results]
    assert found["average_length"] == np.mean(solved) and found["sequences"] == 4
    assert found["success_in_a_row"][0] == np.mean([count > 0 for count in solved])
    begun = sum(each["begun"] for each in found["tasks"].values())
    assert begun == sum(len(result.steps) for result in results)
    text = table(found, "mine")
    assert "4 of 1,000 sequences, drawn by recording" in text and "4.49" in text


def test_a_simulator_that_ends_is_started_once_more(tmp_path: Path) -> None:
    results, _ = run(tmp_path / "out", 1, recorded("--ends-at", tmp_path / "once"))
    assert results == run(tmp_path / "other", 1)[0]
    with pytest.raises(SimulatorEnded, match="it said last: a pointer of nobody"):
        run(tmp_path / "dies", 1, recorded("--ends-at", "always"))


def test_a_sequence_as_mp4_and_gif(tmp_path: Path) -> None:
    """Each frame of the simulator in MP4, every third in GIF; the ends of tasks in both."""
    steps = [4, 9]
    images = [
        np.full((200, 200, 3), 10 * number, np.uint8) for number in range(sum(steps) + len(steps))
    ]
    rollout = SequenceRollout(solved=1, steps=steps, images=images)
    film = write_video(rollout, sequences(1)[0], tmp_path / "film", "mp4")
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 30
    assert [frame.shape for frame in frames] == [(224, 200, 3)] * len(images)
    told = [int(np.median(frame[:200])) for frame in frames]
    assert np.allclose(told, [10 * number for number in range(len(images))], atol=4)
    with Image.open(write_video(rollout, sequences(1)[0], tmp_path / "film", "gif")) as moving:
        # Frames 0, 3, 4 (the first task's end), 6, 9, 12 and 14 (the second's).
        assert moving.n_frames == 7  # type: ignore[attr-defined]
        moving.seek(2)
        colours = np.asarray(moving.convert("RGB"))[200:].reshape(-1, 3).astype(int)
    assert (colours[:, 1] > colours[:, 0] + 50).any()  # green: it was solved


def test_what_starts_no_simulator(tmp_path: Path) -> None:
    with pytest.raises(SimulatorEnded, match="No module named"):
        Simulator(SimulatorPlace((sys.executable, "-c", "import absent")), tmp_path / "log")
    with pytest.raises(UserError, match=r"expected simulators at 127\.0\.0\.1:1"):
        Simulator(SimulatorPlace(address=("127.0.0.1", 1)), tmp_path / "log")


@pytest.fixture
def listening() -> Iterator[str]:
    """HOST:PORT of recorded simulators."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(simulator.__file__).parent)!r}); "
        "import simulator; simulator.listen('127.0.0.1:0', sys.argv[1:])"
    )
    words = [sys.executable, "-c", code, sys.executable, recorded_calvin.__file__]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[-1]
        finally:
            server.kill()


def test_simulators_that_listen(listening: str, tmp_path: Path) -> None:
    host, port = listening.split(":")
    place = SimulatorPlace(address=(host, int(port)))
    socket.create_connection((host, int(port))).close()  # a health check, which asks for nothing
    with (
        Simulator(place, tmp_path / "log") as one,
        Simulator(place, tmp_path / "log") as two,
    ):
        for env in (one, two):
            env.reset(sequences(1)[0].scene_obs)
            env.begin("rotate_blue_block_right")
        still = np.array([0.0] * 6 + [1.0])
        # Each connection has a simulator of its own.
        assert [one.step(still).solved for _ in range(3)] == [False, False, True]
        assert [two.step(still).solved for _ in range(3)] == [False, False, True]


def test_an_evaluation_that_was_killed_ends_as_one_that_was_not(
    listening: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(folder: Path) -> list[str]:
        words = ["eval", "calvin", "--scripted", "--env", listening, "--sequences", "12"]
        return [*words, "--videos", "1", "--processes", "2", "--output", str(folder)]

    killed = tmp_path / "killed"
    with subprocess.Popen([sys.executable, "-m", "workloads.cli", *command(killed)]) as first:
        file = killed / RESULTS
        until(lambda: file.is_file() and b"\n" in file.read_bytes())
        first.kill()
    assert 0 < len(file.read_bytes().splitlines()) < 12
    assert main(command(killed)) == 0
    assert main(command(tmp_path / "whole")) == 0
    once, again = capsys.readouterr().out.split("results:")[:2]
    assert once.strip() == again.partition("\n")[2].strip()
    for name in ("calvin.json", "sequence-0000.gif"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_policy_drives_and_one_of_another_robot_is_refused(tmp_path: Path) -> None:
    class Small(GoldenKosmos):
        """Sees the images as they are, answers at once."""

        def __init__(self) -> None:
            self.asked: list[tuple[str, tuple[int, ...], int]] = []

        def new_memory(self) -> Any:
            return []

        def act(self, observations: Any, unnorm_key: Any = None, memories: Any = None) -> Any:
            (seen,), (memory,) = observations, memories
            memory.append(seen)
            self.asked.append((seen.instruction, seen.images["gripper"].shape, len(memory)))
            return np.full((1, 10, 7), 0.1)

    policy = Small()
    wanted = sequences(1)[0]
    with Simulator(recorded(), tmp_path / "log") as env:
        rollout = drive(env, wanted, PolicyPilot(policy, check_policy(policy, None)))  # type: ignore[arg-type]
    assert rollout.solved == 1
    first, second = wanted.instructions[:2]
    assert policy.asked[0] == (first, (84, 84, 3), 1)
    # Nothing of the first task is remembered in the second.
    assert policy.asked[3] == (second, (84, 84, 3), 1)
    for changes, match in (
        ({"cameras": ("front",)}, "cameras static and gripper, found front"),
        ({"action_shape": (8,)}, "actions of 7 numbers"),
        ({"unnorm_keys": ("a", "b")}, "--unnorm-key: expected one of a, b, found none"),
    ):
        other = Small()
        other.__dict__ |= changes
        with pytest.raises(UserError, match=match):
            check_policy(other, None)  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(simulator, "__file__", recorded_calvin.__file__)
    words = ["eval", "calvin", "--scripted", "--env-python", sys.executable, "--videos", "0"]
    assert main([*words, "--sequences", "1", "--output", str(tmp_path)]) == 0
    assert "Avg. Len." in capsys.readouterr().out
    found = json.loads((tmp_path / "calvin.json").read_text())
    assert found["policy"] == "script" and found["sequences"] == 1
    assert main([*words, "--sequences", "0"]) == 2
    assert "--sequences: expected at least 1, found 0" in capsys.readouterr().err


def test_messages_that_are_none() -> None:
    import io

    for body in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2[]"):
        with pytest.raises(ValueError):
            simulator.read_message(io.BytesIO(body))
    for kind, shape in (("|O", [1]), ("<f8", [-1]), ("<f8", [1 << 40])):
        header = json.dumps({"arrays": {"a": [kind, shape]}}).encode()
        with pytest.raises(ValueError, match="a: expected"):
            simulator.read_message(io.BytesIO(len(header).to_bytes(4, "big") + header))
    out = io.BytesIO()
    simulator.write_message(out, {"do": "x"}, {"a": np.arange(6.0).reshape(2, 3)})
    fields, arrays = simulator.read_message(io.BytesIO(out.getvalue()))
    assert fields == {"do": "x"} and np.array_equal(arrays["a"], np.arange(6.0).reshape(2, 3))
