"""`tatara rent` before anything is rented: what is shown, and what is refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_lambda import KEY, FakeLambda
from workloads.cli import main
from workloads.rent import ledger as ledgers
from workloads.rent.ledger import Ledger, State

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The command makes the environment its own: it is put back."""
    before = dict(os.environ)
    monkeypatch.chdir(ROOT)
    for name in ("LAMBDA_API_KEY", "LAMBDA_API_URL"):
        os.environ.pop(name, None)
    os.environ["TATARA_OUTPUTS"] = str(tmp_path / "outputs")
    yield
    os.environ.clear()
    os.environ.update(before)


def account(url: str) -> None:
    os.environ.update(LAMBDA_API_KEY=KEY, LAMBDA_API_URL=url)


def test_a_dry_run_shows_steps_price_and_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake = FakeLambda()
    with fake.serve() as url:
        account(url)
        words = ["demo", "--hours", "3", "--type", "gpu_1x_h100_pcie", "--dry-run"]
        assert main(["rent", "lambda", *words, "train.max_steps=20"]) == 0
    shown = capsys.readouterr().out
    assert "3 h cost $9.87, at most $10.69" in shown and "see it gone" in shown
    assert "memory of one GPU" in shown and "20 steps" in shown
    assert fake.requests == [("GET", "/instance-types")]
    assert not (tmp_path / "outputs").exists() and KEY not in shown


def test_a_dry_run_without_a_key_shows_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rent", "lambda", "demo", "--hours", "1", "--dry-run"]) == 0
    assert "without LAMBDA_API_KEY" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lambda", "demo"], "the following arguments are required: --hours"),
        (["lambda", "demo", "--hours", "1"], "expected LAMBDA_API_KEY, or LAMBDA_API_KEY_FILE"),
        (["lambda", "demo", "--hours", "-1"], "--hours: expected 0 or more, found -1"),
        (["lambda", "demo", "--hours", "0.05"], "expected more than the 300 s of --save-seconds"),
        (["lambda", "dmo", "--hours", "1"], "did you mean 'demo'?"),
        (["lambda", "demo", "--hours", "1", "optim.lr=1"], "did you mean optim.learning_rate"),
        (["lambda", "demo", "--hours", "1", "--resume", "none"], "expected a run in"),
        (["ssh", "-x", "demo"], "unexpected '-x'"),
        (["ssh", "demo", "--dry-run"], "expected MACHINE and a PROFILE with --dry-run"),
        (["end", "nothing@"], "expected MACHINE as a name or [user@]host"),
        (["watch", "nothing"], "expected a lease of this checkout, found 'nothing'"),
        (["reap"], "expected LAMBDA_API_KEY"),
        (["rnt"], "unknown action 'rnt'"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_costs(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["rent", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_wrong_key_leaves_no_lease(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fake = FakeLambda()
    with fake.serve() as url:
        os.environ.update(LAMBDA_API_KEY="wrong-key-of-mine", LAMBDA_API_URL=url)
        assert main(["rent", "lambda", "demo", "--hours", "1"]) == 2
    shown = capsys.readouterr().err
    assert "Lambda refuses it" in shown and "wrong-key-of-mine" not in shown
    assert fake.launched == 0 and not (tmp_path / "outputs").exists()


def test_a_list_names_what_nobody_watches(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "outputs" / ledgers.FOLDER / "tatara-demo-1"
    ledger = Ledger("tatara-demo-1", "lambda", "demo", "1", str(root), "", "", State.RUNNING)
    ledger.save()
    assert main(["rent", "list"]) == 1
    assert "tatara rent watch tatara-demo-1" in capsys.readouterr().out
    with ledger.held():
        assert main(["rent", "list", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["unwatched"] is False
    ledger.state = State.GONE
    ledger.save()
    assert main(["rent", "list"]) == 0 and "no lease is open" in capsys.readouterr().out


def test_a_damaged_ledger_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = tmp_path / "outputs" / ledgers.FOLDER / "tatara-demo-1"
    root.mkdir(parents=True)
    (root / "lease.json").write_text('{"name": "tatara-demo-1"')
    assert main(["rent", "list"]) == 2
    assert "lease.json: expected a lease" in capsys.readouterr().err


def test_a_run_has_one_open_lease(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "demo" / "20260101-1"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    root = tmp_path / "outputs" / ledgers.FOLDER / ledgers.lease_name("demo", run.name)
    Ledger(root.name, "ssh", "demo", run.name, str(root), "", "", State.RUNNING).save()
    assert main(["rent", "ssh", "me@box", "demo", "--resume", run.name]) == 2
    assert f"tatara rent watch {root.name}" in capsys.readouterr().err
    assert ledgers.load(root).state is State.RUNNING
