"""Notices when a run ends, fails or stalls: who is told, how often, and what is never printed."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.run_files import ID, Written
from tests.support.waiting import has_ended, until
from workloads.errors import UserError
from workloads.monitor import notify
from workloads.monitor.notify import Changes, Command, Notice, Notifier, Webhook, target_of
from workloads.monitor.reading.find import RunList

pytestmark = pytest.mark.unit
SECRET = "T000-B000-very-secret"
NOTICE = Notice("demo/x", "failed", 7, "out of memory", "demo/x failed at step 7: out of memory")


@pytest.fixture
def written(tmp_path: Path) -> Written:
    found = Written(tmp_path).begun().losses([4.0, 3.0])
    found.beat(0)
    found.beat(1)
    return found


class Told:
    """A target that remembers."""

    name = "the test"

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def send(self, notice: Notice) -> str | None:
        self.notices.append(notice)
        return None


@pytest.mark.parametrize("end", ["finished", "stopped", "failed"])
def test_the_end_of_a_run_is_told_once(written: Written, tmp_path: Path, end: str) -> None:
    notifier = Notifier(tmp_path, written.run, Told(), print)
    assert notifier.read() == []
    written.run.event(end, code=1, reason="because of it")
    (notice,) = notifier.read()
    assert (notice.event, notice.run, notice.reason) == (end, f"demo/{ID}", "because of it")
    assert f"demo/{ID} {end} at step" in notice.text and "because of it" in notice.text
    assert notifier.read() == []


def test_what_had_ended_before_is_not_told(written: Written, tmp_path: Path) -> None:
    written.run.event("finished", code=0)
    assert Notifier(tmp_path, None, Told(), print).read() == []


def test_a_run_that_begins_and_fails_between_two_readings_is_told(
    written: Written, tmp_path: Path
) -> None:
    notifier = Notifier(tmp_path, None, Told(), print)
    assert notifier.read() == []
    time.sleep(0.002)  # its start must lie after the notifier's
    quick = Written(tmp_path, "20260102-000000-0000").begun()
    quick.run.event("failed", code=2, reason="no such file")
    assert [notice.event for notice in notifier.read()] == ["failed"]


def test_a_standstill_must_last_and_is_told_once(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, changes = RunList(), Changes()
    assert list(changes.find(runs.read([written.run]))) == []
    written.beat(1, ago=20)
    assert list(changes.find(runs.read([written.run]))) == []  # it may be the disk
    monkeypatch.setattr(notify, "_STALLED", 0.0)
    (notice,) = changes.find(runs.read([written.run]))
    assert notice.event == "stalled" and "rank 1 (node 1" in notice.reason
    assert list(changes.find(runs.read([written.run]))) == []
    written.beat(1)
    assert list(changes.find(runs.read([written.run]))) == []  # it goes on
    written.beat(1, ago=20)
    assert [change.event for change in changes.find(runs.read([written.run]))] == ["stalled"]


def test_a_command_gets_the_sentence_and_its_parts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os, sys; open(sys.argv[1], 'w').write("
        "sys.argv[2] + '|' + os.environ['TATARA_NOTICE_EVENT'])"
    )
    command = Command((sys.executable, "-c", code, str(out)))
    assert command.send(NOTICE) is None
    assert out.read_text() == f"{NOTICE.text}|failed"


@pytest.mark.parametrize("odd", ["a\0b", "\ud800", "\x1b[31m", "x" * 200_000])
def test_an_odd_reason_reaches_a_command(written: Written, tmp_path: Path, odd: str) -> None:
    """No program takes a NUL, a lone surrogate or a text of any length as an argument."""
    lines: list[str] = []
    notifier = Notifier(tmp_path, written.run, Command(("true",)), lines.append)
    notifier.read()
    written.run.event("failed", code=1, reason=odd)
    (notice,) = notifier.read()
    notifier.send(notice)
    assert "was told" in lines[0] and len(notice.text) < 2000  # the most that Discord takes
    assert notice.text.isprintable()


def test_what_a_hanging_command_has_started_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, wait = tmp_path / "pid", subprocess.Popen.wait

    def out_of_time(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        if timeout is None:
            return wait(process)
        until(lambda: note.is_file() and note.read_text().endswith("\n"))
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", out_of_time)
    trouble = Command(("sh", "-c", f"sleep 60 & echo $! > {note}; wait")).send(NOTICE)
    assert trouble and "did not end within" in trouble
    until(lambda: has_ended(int(note.read_text())))


def test_a_command_that_a_signal_ended_is_told_of() -> None:
    assert Command(("sh", "-c", "kill -9 $$")).send(NOTICE) == "was ended by signal 9"


def test_a_command_that_fails_or_hangs_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Command(("false",)).send(NOTICE) == "ended with exit code 1"
    monkeypatch.setattr(notify, "_SECONDS", 0.3)
    hanging = Command((sys.executable, "-c", "input_ = __import__('threading').Event().wait()"))
    assert "did not end within" in str(hanging.send(NOTICE))


class Receiver(http.server.BaseHTTPRequestHandler):
    got: list[dict[str, object]]
    answers: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append(json.loads(body))
        self.send_response(self.answers.pop(0))
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    monkeypatch.setattr(notify, "_PAUSES", (0.0, 0.0))
    Receiver.got, Receiver.answers = [], []
    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def hook(server: http.server.HTTPServer) -> Webhook:
    return Webhook(f"http://127.0.0.1:{server.server_port}/{SECRET}")


def test_a_webhook_gets_json_that_chats_understand(receiver: http.server.HTTPServer) -> None:
    Receiver.answers = [200]
    assert hook(receiver).send(NOTICE) is None
    (got,) = Receiver.got
    assert got["text"] == got["content"] == NOTICE.text
    assert (got["run"], got["event"], got["step"]) == ("demo/x", "failed", 7)


def test_a_webhook_is_tried_three_times_and_no_more(receiver: http.server.HTTPServer) -> None:
    Receiver.answers = [500, 503, 200]
    assert hook(receiver).send(NOTICE) is None
    Receiver.answers = [500] * 3
    assert hook(receiver).send(NOTICE) == "answered with status 500"
    assert len(Receiver.got) == 6


def test_a_redirect_is_not_followed(receiver: http.server.HTTPServer) -> None:
    Receiver.answers = [302] * 3
    assert hook(receiver).send(NOTICE) == "answered with status 302"


def test_a_webhook_that_never_answers_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(notify, "_SECONDS", 0.2)
    monkeypatch.setattr(notify, "_PAUSES", ())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{SECRET}"
        trouble = Webhook(url).send(NOTICE)
    assert trouble and SECRET not in trouble


def test_the_address_of_a_webhook_is_never_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_PAUSES", ())
    lines: list[str] = []
    for url in (f"http://127.0.0.1:1/{SECRET}", f"https://user:{SECRET}@no-such-host.invalid/x"):
        Notifier(tmp_path, None, Webhook(url), lines.append).send(NOTICE)
    assert len(lines) == 2 and all(NOTICE.text in line for line in lines)
    assert all("was not told: it cannot be reached" in line for line in lines)
    assert SECRET not in "".join(lines)


@pytest.mark.parametrize(
    "wanted",
    [
        f"https:///{SECRET}",
        f"ftp://example.org/{SECRET}",
        f"https://example.org:port/{SECRET}",
        f"https://example.org/{SECRET} x",
    ],
)
def test_an_address_that_is_none_is_refused_without_being_printed(wanted: str) -> None:
    with pytest.raises(UserError, match="expected the address of a webhook") as found:
        target_of(wanted)
    assert SECRET not in str(found.value)


@pytest.mark.parametrize("wanted", ["", "no-such-program-here x", "'unfinished", "@/no/such/file"])
def test_a_command_that_is_none_is_refused(wanted: str) -> None:
    with pytest.raises(UserError, match="--notify"):
        target_of(wanted)


def test_the_address_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "hook").write_text(f"https://hooks.example.org/{SECRET}\n")
    target = target_of(f"@{tmp_path / 'hook'}")
    assert target.name == "the webhook at hooks.example.org"


def run_cli(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "TATARA_OUTPUTS": str(tmp_path)}
    command = [sys.executable, "-m", "workloads.cli", "monitor", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_without_a_terminal_it_waits_for_the_end_of_the_run(
    written: Written, tmp_path: Path
) -> None:
    written.run.event("finished", code=0)
    done = run_cli(tmp_path, ID, "--notify", "true")
    assert done.returncode == 0 and "watching" in done.stderr, done.stderr


def test_notices_and_one_frame_exclude_each_other(written: Written, tmp_path: Path) -> None:
    done = run_cli(tmp_path, "--once", "--notify", "true")
    assert done.returncode == 2 and "leave out one of them" in done.stderr
