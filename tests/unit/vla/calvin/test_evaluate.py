"""CALVIN's protocol against a recorded environment in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import recorded_calvin
from tests.support.golden_kosmos import GoldenKosmos
from workloads.cli import main
from workloads.errors import UserError
from workloads.vla.calvin import sequences, simulator
from workloads.vla.calvin.client import Frame, Place, Simulator, SimulatorEnded
from workloads.vla.calvin.evaluate import RESULTS, Videos, evaluate
from workloads.vla.calvin.report import summary, table
from workloads.vla.calvin.rollout import PolicyPilot, check_policy, drive
from workloads.vla.calvin.scripted import Script

pytestmark = pytest.mark.unit


def recorded(*flags: object) -> Place:
    return Place((sys.executable, recorded_calvin.__file__, *map(str, flags)))


class Player:
    """Sends actions one after another, and keeps what it saw."""

    def __init__(self, actions: np.ndarray) -> None:
        self.actions = actions
        self.seen: list[Frame] = []
        self.tasks: list[str] = []

    def begin(self, task: str) -> None:
        self.tasks.append(task)

    def act(self, frame: Frame) -> np.ndarray:
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


def run(folder: Path, count: int, place: Place | None = None, **settings: Any) -> Any:
    facts = {"policy": "player"}
    return evaluate(count, place or recorded(), lambda: Script(), folder, facts, **settings)


def test_several_simulators_give_what_one_gives_and_a_killed_one_goes_on(tmp_path: Path) -> None:
    results, facts = run(tmp_path / "one", 4, videos=Videos(1))
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


def test_what_starts_no_simulator(tmp_path: Path) -> None:
    with pytest.raises(SimulatorEnded, match="No module named"):
        Simulator(Place((sys.executable, "-c", "import absent")), tmp_path / "log")
    with pytest.raises(UserError, match="expected one of --env-python, --env-image and --env"):
        Place.of(None, None, None, None)
    with pytest.raises(UserError, match="--env: expected HOST:PORT"):
        Place.of(None, None, "nowhere", None)
    with pytest.raises(UserError, match="expected a clone of calvin_env, found none at"):
        Place.of(Path(sys.executable), None, None, tmp_path)
    with pytest.raises(UserError, match="--env-python: expected a Python"):
        Place.of(tmp_path / "python", None, None, None)
    with pytest.raises(UserError, match=r"expected simulators at 127\.0\.0\.1:1"):
        Simulator(Place(address=("127.0.0.1", 1)), tmp_path / "log")


def test_simulators_that_listen(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(simulator.__file__).parent)!r}); "
        "import simulator; simulator.listen('127.0.0.1:0', sys.argv[1:])"
    )
    words = [sys.executable, "-c", code, sys.executable, recorded_calvin.__file__]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            place = Place.of(None, None, address, None)
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
        finally:
            server.kill()


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
    assert main(["eval", "calvin", "--scripted"]) == 2
    assert "expected one of --env-python" in capsys.readouterr().err


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
