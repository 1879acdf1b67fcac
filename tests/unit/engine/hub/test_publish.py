"""Pushing to a hub of our own: beside a training, at its end, and with the ways it can fail."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load

from tests.support.fake_hub import GOOD_TOKEN, OTHER_TOKEN, FakeHub
from tests.support.processes import events
from tests.support.tiny_llama import make_model
from tests.unit.engine.export.test_export import checkpoint, make_run, whole
from workloads.cli import main
from workloads.engine.hub import publish
from workloads.engine.hub.publish import Publisher, may_push, push_final
from workloads.llm.export import export
from workloads.run.integrity import SEAL
from workloads.run.session import Session

pytestmark = pytest.mark.unit
TARGET = {"push": "saves", "hub_model_id": "me/model"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    # A push leaves the processors to others: beside other tests it would take minutes.
    monkeypatch.setattr(publish, "_BESIDE", ())
    with FakeHub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(make_run(tmp_path, export=TARGET), _status={"phase": "training", "progress": 0})


def ended(publisher: Publisher) -> None:
    assert publisher._process is not None
    publisher._process.wait(120)


def test_a_checkpoint_is_pushed_beside_the_training(hub: FakeHub, session: Session) -> None:
    publisher = Publisher(session.run.config(), session)
    first = checkpoint(session.run, 5, whole(make_model(seed=1)))
    second = checkpoint(session.run, 9, whole(make_model(seed=2)))
    publisher.offer(first)
    publisher.offer(second)  # the first is on its way, so this one is left out
    ended(publisher)
    publisher.close()
    assert [event["step"] for event in events(session.run, "pushed")] == [5]
    files = hub.pushed["me/model"]
    pushed, expected = load(files["model.safetensors"]), make_model(seed=1).state_dict()
    assert all((value == expected[name].to(value.dtype)).all() for name, value in pushed.items())
    assert "README.md" in files and not (session.run.path / ".pushed").exists()


def test_trouble_beside_the_training_is_told_and_costs_nothing(
    hub: FakeHub, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.mood = "too many requests"
    publisher = Publisher(session.run.config(), session)
    publisher.offer(checkpoint(session.run, 5, whole(make_model(seed=1))))
    ended(publisher)
    publisher.close()
    (event,) = events(session.run, "push failed")
    assert event["step"] == 5 and "429" in event["reason"]
    assert GOOD_TOKEN not in (session.run.path / "logs" / "push.log").read_text()


@pytest.mark.parametrize("change", [{"push": "end"}, {"push": "never"}])
def test_only_who_asks_for_it_pushes_at_saves(
    hub: FakeHub, tmp_path: Path, change: dict[str, str]
) -> None:
    run = make_run(tmp_path, export={**TARGET, **change})
    publisher = Publisher(run.config(), Session(run))
    publisher.offer(checkpoint(run, 5, whole(make_model(seed=1))))
    assert publisher._process is None


def test_the_end_pushes_what_was_exported(hub: FakeHub, session: Session) -> None:
    checkpoint(session.run, 5, whole(make_model(seed=1)))
    export(session.run)
    assert push_final(session.run.config(), session) is None
    assert events(session.run, "pushed")[0]["address"].startswith(hub.url)
    files = {path.name for path in session.run.final.iterdir()}
    assert set(hub.pushed["me/model"]) == files - {SEAL}


def test_the_end_tries_again_and_then_says_where_the_model_is(
    hub: FakeHub, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(session.run, 5, whole(make_model(seed=1)))
    export(session.run)
    monkeypatch.setattr(publish, "_WAITS", (0.0, 0.0))
    hub.mood = "broken"
    error = push_final(session.run.config(), session)
    assert error is not None and error.exit_code == 1
    assert re.search("not on the hub: .*503.*--push-to-hub", str(error))
    assert str(session.run.final) in str(error)
    assert len([request for request in hub.requests if request[1] == "api/whoami-v2"]) == 3


def test_a_token_that_cannot_push_is_found_before_anything_is_trained(
    hub: FakeHub, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = session.run.config()
    assert [finding.line() for finding in may_push(config)] == ["ok      push: as me to me/model"]
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    (finding,) = may_push(config)
    assert finding.level == "error" and "401" in finding.found
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    assert may_push(config)[0].level == "error"


def test_a_token_that_cannot_push_is_found_before_anything_is_exported(
    hub: FakeHub,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint(session.run, 5, whole(make_model(seed=1)))
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    assert main(["export", str(session.run.path), "--push-to-hub"]) == 2
    assert "may only read there" in capsys.readouterr().err
    assert not session.run.final.exists()
