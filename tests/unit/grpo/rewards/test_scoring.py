"""Rewards in TRL's form, as services and as models, and what happens where one fails."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from workloads.errors import Retry, UserError
from workloads.grpo.rewards import service
from workloads.grpo.rewards.scoring import (
    OVERDUE,
    Batch,
    RewardFailed,
    Scorer,
    for_trainer,
    load_reward,
)

pytestmark = pytest.mark.unit

PLUG_INS = """
import sys
calls = 0
seen = {}
def of_trl(completions, **kwargs): return [1.0 for _ in completions]
def of_columns(
    prompts, completions, completion_ids, image, level, trainer_state, log_metric, **more
):
    seen.update(locals())
    log_metric("longest", max(map(len, completion_ids)))
    return [float(one) for one in level]
def wants(completions, weight): return [weight for _ in completions]
async def later(completion, solution): return 1.0 if completion == solution else None
async def batch_later(completions, **kwargs): return [0.5] * len(completions)
def abstains(completion, solution): return None
def short(completions, **kwargs): return [1.0]
def on_seven(completion, solution):
    if completion == "7": raise ValueError("seven")
    return 0.5
def ends(completion, solution): sys.exit(3)
def empties(completions, **kwargs): completions.clear(); return []
def as_dict(completions, **kwargs): return {0.0: "a", 1.0: "b"}
def as_text(completions, **kwargs): return "10"
def as_set(completions, **kwargs): return {0.0, 1.0}
def as_nothing(completions, **kwargs): print(completions)
def as_number(completions, **kwargs): return 0.5
def as_array(completions, **kwargs):
    import numpy as np
    return np.linspace(0, 1, len(completions), dtype="float32")
def as_column(completions, **kwargs):
    import numpy as np
    return np.zeros((len(completions), 2))
def one_by_one(completions, **kwargs):
    yield from map(float, range(len(completions)))
def endless(completion, solution): return 10 ** 400
def imaginary(completion, solution): return 1j
def batch_on_seven(completions, **kwargs):
    if any("7" in str(one) for one in completions): raise ValueError("seven")
    return [0.5] * len(completions)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"rewards_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PLUG_INS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def turns(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def values(spec: str, batch: Batch) -> list[float | None]:
    return [score.value for score in load_reward(spec).scores(batch)]


def test_plug_ins_in_the_form_of_trl(module: str) -> None:
    """G-F9: lists in, prompts, token ids, images, other columns, the trainer's state, metrics."""
    import importlib

    metrics: dict[str, float] = {}
    batch = Batch(
        turns("a", "b"),
        ["1", "2"],
        prompts=["p", "q"],
        completion_ids=[[1], [1, 2]],
        columns={"image": [None, None], "level": [3, 4], "place": ["x", "y"]},
        trainer_state="state",
        log_metric=metrics.__setitem__,
    )
    assert values(f"{module}:of_trl", batch) == [1.0, 1.0]
    assert values(f"{module}:of_columns", batch) == [3.0, 4.0]
    seen = importlib.import_module(module).seen
    assert seen["trainer_state"] == "state" and seen["more"]["place"] == ["x", "y"]
    assert metrics == {"longest": 2}
    with pytest.raises(UserError, match="takes weight, found no column"):
        values(f"{module}:wants", batch)


def test_plug_ins_that_are_async_or_abstain(module: str) -> None:
    """G-F9: async functions, and None."""
    batch = Batch(["7", "8"], ["7", "7"])
    assert values(f"{module}:later", batch) == [1.0, None]
    assert values(f"{module}:batch_later", batch) == [0.5, 0.5]
    assert values(f"{module}:abstains", batch) == [None, None]
    with pytest.raises(RewardFailed, match="expected 2 numbers"):
        values(f"{module}:short", batch)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        ("ends", "failed with SystemExit: 3"),
        ("empties", "expected 2 numbers"),
        ("as_dict", "expected a list of 2 numbers from reward .*found {0.0: 'a'"),
        ("as_text", "expected a list of 2 numbers from reward .*found '10'"),
        ("as_set", "expected a list of 2 numbers"),
        ("as_nothing", "expected a list of 2 numbers from reward .*found None"),
        ("as_number", "expected a list of 2 numbers from reward .*found 0.5"),
        ("as_column", "expected a finite number or None"),
        ("endless", "failed with OverflowError"),
        ("imaginary", "expected a finite number or None"),
    ],
)
def test_what_is_no_list_of_numbers_is_named(module: str, function: str, found: str) -> None:
    """G-F9, G-F10: keys of a dict or digits of a text are no rewards."""
    with pytest.raises(RewardFailed, match=found):
        values(f"{module}:{function}", Batch(["6", "8"], ["1", "1"]))


def test_rewards_of_other_libraries_and_generators(module: str) -> None:
    batch = Batch(["6", "8"], ["1", "1"])
    assert values(f"{module}:as_array", batch) == [0.0, 1.0]
    assert values(f"{module}:one_by_one", batch) == [0.0, 1.0]


@pytest.mark.parametrize("function", ["on_seven", "batch_on_seven"])
@pytest.mark.parametrize(("on_error", "given"), [("abstain", None), ("zero", 0.0)])
def test_a_reward_that_fails_costs_its_own_completion_alone(
    module: str, function: str, on_error: Any, given: float | None
) -> None:
    """G-F10: `rewards.on_error`."""
    told: list[str] = []
    scorer = Scorer([load_reward(f"{module}:{function}")], on_error, told.append)
    for _ in range(2):
        found = scorer.score(scorer.rewards[0], Batch(["6", "7"], ["1", "1"]))
        assert [score.value for score in found] == [0.5, given]
        assert found[1].why.startswith("failed: reward")
    assert len(told) == 1 and f"rewards.on_error={on_error}" in told[0]
    assert scorer.failures == {f"{module}:{function}": 2}


def test_a_reward_that_fails_stops_all_ranks_after_the_batch(module: str) -> None:
    """G-F10: the trainer hears of it when every rank can."""
    scorer = Scorer([load_reward(f"{module}:on_seven")])
    ask = for_trainer(scorer.rewards[0], scorer)
    assert ask(completions=["7"], solution=["1"]) == [0.0]
    assert isinstance(scorer.problem, RewardFailed)
    with pytest.raises(RewardFailed, match="failed with ValueError: seven"):
        for_trainer(scorer.rewards[0])(completions=["7"], solution=["1"])


def test_a_step_has_a_limit_and_tells_its_progress() -> None:
    """G-F14: a limit for a step, and a sign of life for each completion."""
    told: list[str] = []
    steps: list[None] = []
    scorer = Scorer(
        [load_reward("format")], report=told.append, progress=lambda: steps.append(None)
    )
    batch = Batch(["<think></think><answer></answer>"] * 3, ["1"] * 3)
    assert [score.value for score in scorer.score(scorer.rewards[0], batch)] == [1.0] * 3
    assert len(steps) == 3 and not told
    late = Scorer([load_reward("format")], report=told.append, step_seconds=-1.0)
    found = late.score(late.rewards[0], batch)
    assert {(score.value, score.why) for score in found} == {(0.0, OVERDUE)}
    assert told == [
        "reward format: 3 of 3 completions count as 0, they would take longer than "
        "rewards.step_seconds=-1"
    ]


def test_any_of_several_solutions_is_right() -> None:
    reward = load_reward("accuracy_extracted")
    said = ["<answer>three</answer>", "<answer>4</answer>", "<answer>5</answer>"]
    found = reward.scores(Batch(said, [["3", "4"]] * 3))
    assert [score.value for score in found] == [1.0, 1.0, 0.0]


@pytest.fixture
def address() -> Iterator[str]:
    """A service that pays the length of a completion, and abstains from empty ones."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sizes.append(len(asked["completions"]))
            rewards = [len(text) or None for text in asked["completions"]]
            body = {"rewards": rewards, "why": asked["solutions"]}
            if self.path == "/short":
                body = {"rewards": [1]}
            if self.path == "/why":
                body["why"] = "because"
            busy = self.path == "/busy" and len(sizes) < 3
            self.send_response(503 if busy else 500 if self.path == "/broken" else 200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    sizes.clear()
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


sizes: list[int] = []


def test_a_reward_service_is_asked_in_batches(address: str) -> None:
    """G-F9: over HTTP."""
    batch = Batch(["", *(["abc"] * 99)], ["s"] * 100, prompts=["p"] * 100)
    found = load_reward(f"{address}/score").scores(batch)
    assert [score.value for score in found] == [None, *([3] * 99)]
    assert found[1].why == "s" and sizes == [64, 36]
    with pytest.raises(RewardFailed, match='found {"rewards": \\[1\\]}'):
        load_reward(f"{address}/short").scores(batch)
    with pytest.raises(RewardFailed, match="HTTP 500"):
        load_reward(f"{address}/broken").scores(batch)
    with pytest.raises(RewardFailed, match='expected "why" as a list of 64 texts, found "because"'):
        load_reward(f"{address}/why").scores(batch)


def test_a_busy_reward_service_is_asked_again(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G-F9: 429, 502, 503 and 504 are no verdict; a sign of life goes with each batch."""
    monkeypatch.setattr(service, "PAUSES", (0.0, 0.0))
    told: list[None] = []
    batch = Batch(["abc"] * 65, ["s"] * 65, progress=lambda: told.append(None))
    assert [score.value for score in load_reward(f"{address}/busy").scores(batch)] == [3] * 65
    assert sizes == [64, 64, 64, 1] and len(told) == 2
    monkeypatch.setattr(service, "PAUSES", ())
    sizes.clear()
    with pytest.raises(Retry, match="HTTP 503"):
        load_reward(f"{address}/busy").scores(batch)


def test_a_reward_service_that_is_gone_is_worth_another_attempt(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PAUSES", ())
    gone = address.rpartition(":")[0] + ":9"
    with pytest.raises(Retry, match="expected rewards from this service"):
        load_reward(gone).scores(Batch(["a"], ["s"]))
