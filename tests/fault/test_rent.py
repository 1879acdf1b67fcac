"""Whole leases over a real sshd and rsync, with a Lambda API on loopback and the real demo.

The machine is this one, in a folder of its own; `tests/unit/rent` has every fault in fake time.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_lambda import JUPYTER, FakeLambda
from tests.support.processes import ONE_RANK, ROOT, SHORT, descendants
from tests.support.ssh_server import SshServer, ssh_server
from workloads.rent.ledger import Ledger, State, label, ledgers
from workloads.run.integrity import SEAL
from workloads.run.verify import all_whole, verify

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(900)]

# Another one in each process: two of these tests may look at the same machine.
KEY = f"secret_tatara_{secrets.token_hex(8)}"
HF_TOKEN, WANDB_KEY = "hf_" + "canary9b1d44", "canary" + "77aa" * 8
SECRETS = (KEY, JUPYTER, HF_TOKEN, WANDB_KEY)
# The demo cut to 20 steps, with its export.
DEMO = tuple(
    {**dict(word.split("=") for word in (*SHORT, *ONE_RANK)), "train.max_steps": "20"}.items()
)
WORDS = tuple(f"{name}={value}" for name, value in DEMO if name != "export.enabled")
ENDLESS = (*WORDS, "train.max_steps=100000", "train.epochs=100000")
PATIENCE = 400.0  # a bound for the worst machine, not an expectation


class Renting:
    """`tatara rent` from a terminal, against one account and one machine."""

    def __init__(self, folder: Path, server: SshServer, url: str) -> None:
        self.folder, self.server = folder, server
        self.outputs, self.there = folder / "outputs", folder / "there"
        inherited = {name: value for name, value in os.environ.items() if "WANDB" not in name}
        self.env = {**inherited, "TATARA_OUTPUTS": str(self.outputs), "OMP_NUM_THREADS": "1"}
        self.env |= {"HF_TOKEN": HF_TOKEN, "WANDB_API_KEY": WANDB_KEY}
        self.env |= {"LAMBDA_API_KEY": KEY, "LAMBDA_API_URL": url}
        self.process: subprocess.Popen[str] | None = None
        self.console = folder / "console.log"

    def access(self) -> list[str]:
        return [f"--identity={self.server.identity}", f"--ssh-option=Port={self.server.port}"]

    def begin(self, *words: str, settings: Sequence[str] = WORDS) -> None:
        place = [f"--folder={self.there}", f"--python={sys.executable}", *self.access()]
        command = [sys.executable, "-m", "workloads.cli", "rent", *words, *settings, *place]
        with self.console.open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.env,
                stdout=log,
                stderr=log,
                text=True,
            )

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "workloads.cli", "rent", *words]
        return subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True)

    @property
    def ledger(self) -> Ledger:
        (ledger,) = ledgers(self.outputs)
        return ledger

    @property
    def copy(self) -> Path:
        return Path(self.ledger.copy)

    def said(self) -> str:
        return self.console.read_text()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        assert self.process is not None
        end = time.monotonic() + PATIENCE
        while not condition():
            ended = self.process.poll() is not None
            assert not (ended and not condition()) and time.monotonic() < end, (
                f"no {what}: {self.said()}"
            )
            time.sleep(0.1)

    def signal_training(self, number: int) -> None:
        """To everything that the job over there has started."""
        for path in self.there.glob(".cache/rent/*/runner.process"):
            for pid in descendants(int(path.read_text())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def end(self, code: int) -> None:
        assert self.process is not None
        assert self.process.wait(PATIENCE) == code, self.said()


@pytest.fixture
def account() -> FakeLambda:
    return FakeLambda(key=KEY, address="127.0.0.1", address_after=1, active_after=3)


@pytest.fixture
def renting(tmp_path: Path, account: FakeLambda) -> Iterator[Renting]:
    with ssh_server(tmp_path / "sshd") as server, account.serve() as url:
        renting = Renting(tmp_path, server, url)
        try:
            yield renting
        finally:
            if renting.process is not None and renting.process.poll() is None:
                renting.process.kill()
            renting.signal_training(signal.SIGKILL)


LEASE = ("lambda", "demo", "--type=cpu_4x_general", "--user=root")


class Eyes(threading.Thread):
    """What every process of this machine shows of the secrets, while it runs."""

    def __init__(self, may_hold_key: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.may_hold_key, self.seen, self.over = may_hold_key, set[str](), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.3):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    self._look(folder)

    def _look(self, folder: Path) -> None:
        words = (folder / "cmdline").read_bytes()
        self.seen |= {f"argv: {words!r}" for secret in SECRETS if secret.encode() in words}
        pid = int(folder.name)
        if pid not in (os.getpid(), self.may_hold_key()):
            environ = (folder / "environ").read_bytes()
            if KEY.encode() in environ:
                self.seen.add(f"environment: {words!r}")


def test_a_lease_from_the_launch_to_a_machine_seen_gone(
    renting: Renting, account: FakeLambda
) -> None:
    """With a byte of the copy flipped on the way, and every secret looked for everywhere."""
    account.deaf = 1
    renting.begin(*LEASE, "--hours=1")
    assert renting.process is not None
    eyes = Eyes(lambda: renting.process.pid if renting.process else 0)
    eyes.start()
    # A quick machine would have trained to the end before anybody looks: it waits here.
    saved = "outputs/demo/*/checkpoints/checkpoint-16/" + SEAL
    renting.until(lambda: list(renting.there.glob(saved)), "second checkpoint")
    renting.signal_training(signal.SIGSTOP)
    renting.until(lambda: "verified: checkpoint-16" in renting.said(), "second copy")
    weights = renting.copy / "checkpoints" / "checkpoint-16" / "model.safetensors"
    facts, content = weights.stat(), bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    renting.signal_training(signal.SIGCONT)
    renting.end(0)
    eyes.over.set()
    eyes.join()
    said = renting.said()
    assert account.running == [] and account.launched == 1
    assert "the copy is damaged" in said and "copied again" in said
    assert said.index("the copy is damaged") < said.index("ended, and seen gone")
    found = verify(renting.copy)
    assert all_whole(found) and "final" in {item.name for item in found}
    assert renting.ledger.state is State.GONE and renting.ledger.verified == "final"
    assert eyes.seen == set()
    assert not list(Path("/dev/shm").glob(f"tatara-{renting.ledger.run_id}*"))
    for path in [*renting.there.rglob("*"), *renting.outputs.rglob("*"), renting.console]:
        if path.is_file() and not path.is_symlink():
            content = bytearray(path.read_bytes())
            assert not [path for secret in SECRETS if secret.encode() in content]
    manifest = json.loads((renting.copy / "manifest.json").read_text())
    assert manifest


def test_a_killed_watcher_and_reap(renting: Renting, account: FakeLambda) -> None:
    """Nobody watches: at the deadline `reap` stops the training, saves it and ends the machine."""
    renting.begin(*LEASE, "--hours=1", settings=ENDLESS)
    renting.until(lambda: "copied and verified" in renting.said(), "first copy")
    assert renting.process is not None
    renting.process.kill()
    renting.process.wait()
    ledger = renting.ledger
    assert account.running == [ledger.label] and ledger.state is State.RUNNING
    listed = renting.call("list")
    assert listed.returncode == 1 and f"tatara rent watch {ledger.name}" in listed.stdout
    status = renting.call("status", ledger.run_id)
    assert "unwatched" in status.stdout and "saved here: checkpoint-" in status.stdout
    too_early = renting.call("reap")
    assert too_early.returncode == 0 and account.running == [ledger.label]
    ledger.deadline = time.time() - 1
    ledger.label = label(ledger.name, ledger.deadline)
    account.instances[ledger.machine]["name"] = ledger.label
    ledger.save()
    reaped = renting.call("reap")
    assert reaped.returncode == 0, reaped.stdout + reaped.stderr
    assert account.running == [] and renting.ledger.code == 3
    assert all_whole(verify(renting.copy))


def test_a_machine_of_ones_own_and_ctrl_c(renting: Renting) -> None:
    address = f"{renting.server.user}@127.0.0.1"
    known = f"--ssh-option=UserKnownHostsFile={renting.folder}/known_hosts"
    renting.env["LAMBDA_API_KEY"] = ""
    renting.begin("ssh", address, "demo", known, settings=ENDLESS)
    renting.until(lambda: "copied and verified" in renting.said(), "first copy")
    assert renting.process is not None
    renting.process.send_signal(signal.SIGINT)
    renting.end(3)
    assert all_whole(verify(renting.copy)) and renting.ledger.state is State.GONE
    # Rented in a console, as it were: another folder, by its address.
    other = renting.folder / "elsewhere"
    renting.env["TATARA_OUTPUTS"] = str(other)
    words = [f"--from={renting.there}/outputs", *renting.access(), known]
    done = renting.call("backup", address, *words)
    assert done.returncode == 0, done.stderr
    assert all_whole(verify(next(iter(other.glob("demo/*")))))
