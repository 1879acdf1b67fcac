"""Several robots at one server over real HTTP: each has its own episode."""

import json
from collections.abc import Iterator
from http import HTTPStatus

import numpy as np
import pytest

from tests.support.golden_kosmos import SIZE, GoldenKosmos, golden_policy
from tests.unit.vla.serve.test_server import Served
from workloads.errors import UserError
from workloads.vla.episodes import Execution
from workloads.vla.policy import Observation
from workloads.vla.serve.client import PolicyClient, ServerError, decode
from workloads.vla.serve.episodes import Episodes
from workloads.vla.serve.messages import ActRequest
from workloads.vla.serve.refusal import Refused

pytestmark = pytest.mark.unit
FRAMES = 11  # longer than the window of 8
TASK = "pull the handle to open the drawer"


@pytest.fixture(scope="module")
def policy() -> GoldenKosmos:
    return golden_policy()


@pytest.fixture
def served(policy: GoldenKosmos) -> Iterator[Served]:
    one = Served(policy)  # type: ignore[arg-type]
    yield one
    one.end()


def seen(robot: int, frame: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng([robot, frame])
    return {
        name: random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        for name in GoldenKosmos.cameras
    }


def alone(policy: GoldenKosmos, robot: int, first: int, frames: int) -> list[np.ndarray]:
    """What a server answers a robot that has it for itself, from a frame on."""
    served = Served(policy)  # type: ignore[arg-type]
    try:
        client = PolicyClient(served.url, send="png")
        return [
            client.act(TASK, seen(robot, frame), episode="mine")
            for frame in range(first, first + frames)
        ]
    finally:
        served.end()


def test_two_robots_at_one_server_are_answered_as_by_two(
    served: Served, policy: GoldenKosmos
) -> None:
    left, right = PolicyClient(served.url, send="png"), PolicyClient(served.url, send="json-numpy")
    found: dict[str, list[np.ndarray]] = {"left": [], "right": []}
    for frame in range(FRAMES):
        found["left"].append(left.act(TASK, seen(0, frame), episode="left"))
        # The right one begins anew at its frame 4.
        found["right"].append(right.act(TASK, seen(1, frame), episode="right", reset=frame == 4))
        assert (left.frame, right.frame) == (frame + 1, frame + 1 if frame < 4 else frame - 3)
    expected = alone(policy, 0, 0, FRAMES)
    assert np.array_equal(found["left"], expected)
    assert np.array_equal(found["right"], alone(policy, 1, 0, 4) + alone(policy, 1, 4, FRAMES - 4))
    # Able to fail: what is remembered, and a reset, change the answers.
    assert not np.array_equal(found["right"], alone(policy, 1, 0, FRAMES))
    stateless = [policy.act([Observation(seen(0, frame), TASK)])[0, 0] for frame in range(FRAMES)]
    assert np.array_equal(stateless[0], expected[0])
    assert not any(np.array_equal(stateless[n], expected[n]) for n in range(1, FRAMES))


def test_a_client_that_knows_no_episodes_is_answered_as_before(
    served: Served, policy: GoldenKosmos, capfd: pytest.CaptureFixture[str]
) -> None:
    client, whole = (
        PolicyClient(served.url, send="png"),
        policy.act([Observation(seen(0, 0), TASK)]),
    )
    for _ in range(2):
        assert np.array_equal(client.act(TASK, seen(0, 0)), whole[0]) and client.frame is None
    payload = {**seen(0, 0), "instruction": TASK}
    assert np.array_equal([decode(row) for row in served.post(payload)[1]], whole[0])
    assert capfd.readouterr().err.count('send "episode" with every frame') == 1
    assert client.health()["remembers"] is True and client.health()["episodes"] == 0


def test_a_new_instruction_and_an_end_begin_anew(served: Served) -> None:
    client = PolicyClient(served.url)
    for task, frame in ((TASK, 1), (TASK, 2), ("close the drawer", 1), ("close the drawer", 2)):
        client.act(task, seen(0, 0), episode="7")
        assert client.frame == frame
    client.reset("7")
    assert client.health()["episodes"] == 0
    client.act("close the drawer", seen(0, 0), episode="7")
    assert client.frame == 1


def test_a_chunk_is_carried_out_k_at_a_time(policy: GoldenKosmos) -> None:
    served = Served(policy)  # type: ignore[arg-type]
    served.service.execution = Execution(3)
    try:
        client = PolicyClient(served.url, send="png")
        found = [client.act(TASK, seen(0, frame), episode="a") for frame in range(4)]
    finally:
        served.end()
    memory = policy.new_memory()
    chunks = [policy.act([Observation(seen(0, n), TASK)], None, [memory])[0] for n in range(4)]
    assert np.array_equal(found, [*chunks[0][:3], chunks[3][0]])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"episode": ""}, "a name of 1 to 200 characters"),
        ({"episode": "x" * 201}, "a name of 1 to 200 characters"),
        ({"episode": ["a"]}, "episode: expected a text"),
        ({"reset": True}, "reset: expected an episode"),
        ({"episode": "a", "reset": "perhaps"}, "reset: expected true or false"),
        ({"episode": "a", "reset": 2}, "reset: expected true or false"),
    ],
)
def test_what_is_no_episode_is_refused(served: Served, changes: dict, match: str) -> None:  # type: ignore[type-arg]
    status, found = served.post({**seen(0, 0), "instruction": TASK, **changes})
    assert status == HTTPStatus.BAD_REQUEST and match in found["error"]


def test_a_refused_frame_leaves_the_episode_as_it_was(served: Served) -> None:
    client = PolicyClient(served.url)
    client.act(TASK, seen(0, 0), episode="a")
    with pytest.raises(ServerError):
        client.act("x" * 3000, seen(0, 0), episode="a", reset=True)
    client.act(TASK, seen(0, 0), episode="a")
    assert client.frame == 2


def test_an_end_without_a_name_and_of_nobody(served: Served) -> None:
    kind = {"Content_Type": "application/json"}
    assert served.ask("POST", "/reset", b"{}", **kind)[0] == HTTPStatus.BAD_REQUEST
    body = json.dumps({"episode": "nobody"}).encode()
    assert served.ask("POST", "/reset", body, **kind)[:2] == (
        200,
        {"episode": "nobody", "frames": None},
    )
    assert served.ask("GET", "/reset")[0] == HTTPStatus.METHOD_NOT_ALLOWED


def asked(name: str, reset: bool = False) -> ActRequest:
    return ActRequest(Observation({}, TASK), None, lambda *_: "", (), name, reset)


def test_room_is_bounded_and_a_robot_whose_episode_went_is_told(policy: GoldenKosmos) -> None:
    now = 0.0
    held = Episodes(2, lambda: now)

    def frame(name: str, reset: bool = False) -> int:
        with held.of(asked(name, reset), policy) as episode:
            episode.frames += 1
        return episode.frames

    assert [frame("a"), frame("b"), frame("a")] == [1, 1, 2]
    with pytest.raises(Refused, match="2 episodes are going on already") as refusal:
        frame("c")
    assert refusal.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    now = 40.0
    assert frame("a") == 3
    assert frame("c") == 1 and len(held) == 2  # in the place of b
    with pytest.raises(Refused, match="send reset to begin anew") as refusal:
        frame("b")
    assert refusal.value.status == HTTPStatus.CONFLICT
    now = 80.0
    assert frame("b", reset=True) == 1 and frame("b") == 2
    with pytest.raises(UserError, match="room for at least 1"):
        Episodes(0)
