"""A whole lease in fake time, and each fault: what is left running, and what was saved."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fake_lambda import JUPYTER, KEY, FakeLambda
from tests.support.fake_machine import RUN_ID, FakeClock, FakeRemote, Over
from workloads.errors import EXIT_DONE, EXIT_RETRY, EXIT_STOPPED, Retry, TataraError, UserError
from workloads.rent import ledger as ledgers
from workloads.rent.lambda_api import LambdaApi
from workloads.rent.lambda_cloud import LambdaCloud
from workloads.rent.lease import Lease, LeftRunning
from workloads.rent.ledger import Ledger, State
from workloads.rent.machines import discard, reap
from workloads.rent.own_machine import OwnMachine
from workloads.rent.payload import Payload
from workloads.rent.preparing import Preparation
from workloads.rent.provider import Request
from workloads.run.integrity import SEAL
from workloads.run.verify import all_whole, verify
from workloads.signals import Interrupted, Stop

pytestmark = pytest.mark.unit
HF_TOKEN = "hf_" + "canary-of-a-token"
H100 = "gpu_1x_h100_pcie"


@dataclass
class Stage:
    """One account, one machine, one lease, and what was said."""

    folder: Path
    clock: FakeClock
    account: FakeLambda
    over: Over
    ledger: Ledger
    stop: Stop
    said: list[str]
    key: str = KEY

    @property
    def provider(self) -> LambdaCloud:
        def send(
            method: str, url: str, headers: dict[str, str], body: bytes | None
        ) -> tuple[int, str]:
            path = url.removeprefix("https://cloud.lambda.ai/api/v1")
            return self.account.answer(method, path, headers, body, self.clock.now)

        return LambdaCloud(LambdaApi(self.key, "", self.clock, send), key="mine")

    def lease(self) -> Lease:
        remote = FakeRemote(
            address=self.ledger.address,
            user="ubuntu",
            known_hosts=self.ledger.path / "known_hosts",
            over=self.over,
        )
        sent = Preparation(Payload(self.folder, (), (), 0), "", {"HF_TOKEN": HF_TOKEN})
        return Lease(
            self.ledger, self.provider, remote, sent, self.said.append, self.stop, self.clock
        )

    def reload(self) -> "Stage":
        """Another process: nothing is known but the ledger."""
        self.ledger, self.stop = ledgers.load(self.ledger.path), Stop()
        return self

    @property
    def saved(self) -> list[str]:
        copy = Path(self.ledger.copy)
        return (
            [checked.name for checked in verify(copy) if checked.state == "whole"]
            if copy.is_dir()
            else []
        )

    def told(self, text: str) -> bool:
        return any(text in line for line in self.said)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    clock = FakeClock()
    ledger = Ledger(
        name=ledgers.lease_name("demo", RUN_ID),
        provider="lambda",
        profile="demo",
        run_id=RUN_ID,
        root=str(tmp_path / "lease"),
        copy=str(tmp_path / "outputs" / "demo" / RUN_ID),
        checkout=str(tmp_path),
        request=Request(types=(H100,), hours=1.0, tries=3, wait_seconds=60),
        user="ubuntu",
        key="mine",
        hang_seconds=1200.0,
    )
    (tmp_path / "over").mkdir()
    over = Over(tmp_path / "over", clock)
    account = FakeLambda(keys=[{"id": "1", "name": "mine", "public_key": "ssh-ed25519 AAAA"}])
    return Stage(tmp_path, clock, account, over, ledger, Stop(), [])


def test_a_whole_lease(stage: Stage) -> None:
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.account.running == [] and stage.account.launched == 1
    assert stage.saved == ["checkpoints/checkpoint-1", "checkpoints/checkpoint-2",
                           "checkpoints/checkpoint-3", "final"]  # fmt: skip
    assert stage.ledger.state is State.GONE and stage.ledger.verified == "final"
    assert stage.account.refused == 0  # the pace was kept
    # From the launch until it was seen gone, by the begun minute.
    minutes = -(-(stage.ledger.ended - stage.ledger.rented) // 60)
    assert stage.ledger.cost(0) == pytest.approx(minutes * 3.29 / 60)
    assert stage.told("CUDA computes") and stage.told("seen gone") and stage.told("$")
    assert stage.over.calls.index("cuda") < stage.over.calls.index("push")
    copied = [line for line in stage.said if "copied and verified" in line]
    assert len(copied) >= 2  # while it trained


def test_ssh_is_tried_as_soon_as_there_is_an_address(stage: Stage) -> None:
    begin = stage.clock.now
    stage.over.on_call = lambda name: seen.setdefault(name, stage.clock.now - begin)
    seen: dict[str, float] = {}
    stage.lease().carry_on()
    assert 25 <= seen["prepare"] < 40 < stage.account.active_after


def test_capacity_that_somebody_else_took_is_asked_for_again(stage: Stage) -> None:
    stage.account.races = 2
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.account.running == [] and stage.account.launched == 1
    assert stage.told("gone before it was ours")


def test_without_capacity_nothing_is_rented(stage: Stage) -> None:
    stage.account.regions = {}
    with pytest.raises(Retry, match="no capacity for gpu_1x_h100_pcie") as error:
        stage.lease().carry_on()
    assert error.value.exit_code == EXIT_RETRY
    assert stage.account.launched == 0 and stage.ledger.state is State.GONE


def test_too_many_requests_are_waited_for(stage: Stage) -> None:
    stage.account._last = stage.clock.now + 1.5  # of another program with the same key
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.account.refused >= 1 and stage.account.running == []


def test_a_wrong_key_ends_before_anything_is_rented(stage: Stage) -> None:
    stage.key = "wrong"
    with pytest.raises(UserError, match="LAMBDA_API_KEY: Lambda refuses it"):
        stage.lease().carry_on()
    assert stage.account.launched == 0


@pytest.mark.parametrize("fault", ["no address", "unhealthy", "no ssh"])
def test_a_machine_that_never_gets_ready_is_given_back(stage: Stage, fault: str) -> None:
    stage.account.no_address = 3 if fault == "no address" else 0
    stage.account.states = ["unhealthy"] * 3 if fault == "unhealthy" else []
    stage.over.dark = fault == "no ssh"
    with pytest.raises(Retry, match="no machine of 3 could train"):
        stage.lease().carry_on()
    assert stage.account.running == [] and stage.account.launched == 3
    assert len(stage.ledger.returned) == 3


def test_broken_gpus_are_returned_and_the_next_is_tried(stage: Stage) -> None:
    stage.over.gpu_faults = ["CUDA error 802", "GPU 0: CUDA error 719"]
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.account.launched == 3 and stage.account.running == []
    assert "final" in stage.saved
    assert [text.partition(": ")[2] for text in stage.ledger.returned] == [
        "its GPUs do not compute: CUDA error 802",
        "its GPUs do not compute: GPU 0: CUDA error 719",
    ]
    # What the broken ones cost is counted.
    assert stage.ledger.spent_before > 0.05


def test_what_the_doctor_finds_ends_the_machine_with_the_users_code(stage: Stage) -> None:
    stage.over.doctor = "ERROR   model: gated and no token"
    with pytest.raises(UserError, match="gated and no token"):
        stage.lease().carry_on()
    assert stage.account.running == [] and stage.account.launched == 1


def test_another_host_key_is_refused(stage: Stage) -> None:
    """While it trains: nothing is sent to it, and the machine is not ended with what is on it."""
    stage.clock.after(400, lambda: setattr(stage.over, "other_key", True))
    with pytest.raises(LeftRunning, match="STILL RUNNING, at \\$3.29 an hour") as error:
        stage.lease().carry_on()
    assert "tatara rent end" in str(error.value) and "checkpoint-1" in str(error.value)
    assert stage.account.running == [stage.ledger.label]
    assert stage.saved == ["checkpoints/checkpoint-1"] and stage.ledger.state is State.KEPT


def test_a_damaged_copy_is_made_again_before_the_machine_ends(stage: Stage) -> None:
    stage.over.damaged = 2
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.told("the copy is damaged") and all_whole(verify(Path(stage.ledger.copy)))
    assert stage.account.running == []


def test_a_copy_that_stays_damaged_keeps_the_machine(stage: Stage) -> None:
    stage.over.damaged = 10**6
    with pytest.raises(LeftRunning, match="STILL RUNNING.*only copy"):
        stage.lease().carry_on()
    assert stage.account.running == [stage.ledger.label]
    # The disk here was put right: another process goes on.
    stage.over.damaged = 0
    assert stage.reload().lease().carry_on() == EXIT_DONE
    assert stage.account.running == [] and "final" in stage.saved


def test_terminate_is_asked_until_the_machine_is_seen_gone(stage: Stage) -> None:
    stage.account.broken, stage.account.deaf = 3, 1
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.account.running == [] and stage.told("global/unknown")
    asked = [path for _, path in stage.account.requests if path.endswith("terminate")]
    assert len(asked) == 5


def test_a_machine_that_cannot_be_ended_is_told_with_what_ends_it(stage: Stage) -> None:
    stage.account.broken = 10**6
    with pytest.raises(LeftRunning, match="COSTS UNTIL IT IS GONE") as error:
        stage.lease().carry_on()
    assert error.value.exit_code == 1
    assert f'"instance_ids": ["{stage.ledger.machine}"]' in str(error.value)
    assert "https://cloud.lambda.ai/api/v1/instance-operations/terminate" in str(error.value)
    assert KEY not in str(error.value) and "final" in stage.saved
    assert stage.account.running == [stage.ledger.label]
    stage.account.broken = 0
    assert stage.reload().lease().carry_on() == EXIT_DONE
    assert stage.account.running == []


# What is called → how far the lease is at that moment.
MOMENTS = {"prepare": State.RENTED, "push": State.RENTED, "doctor": State.RENTED}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_before_the_training_ends_the_machine(stage: Stage, moment: str) -> None:
    def interrupt(name: str) -> None:
        if name == moment and not stage.stop():
            stage.stop.on_signal(2, None)

    stage.over.on_call = interrupt
    with pytest.raises(Interrupted):
        stage.lease().carry_on()
    assert stage.account.running == [] and stage.account.launched == 1
    assert stage.ledger.state is State.GONE


def test_ctrl_c_while_it_trains_saves_and_ends(stage: Stage) -> None:
    stage.clock.after(500, lambda: stage.stop.on_signal(2, None))
    assert stage.lease().carry_on() == EXIT_STOPPED
    assert stage.account.running == []
    assert stage.saved[-1] == "checkpoints/checkpoint-3" and stage.told("asked to stop")


def test_a_second_ctrl_c_leaves_at_once_and_says_what_runs(stage: Stage) -> None:
    stage.over.ignores_term = True
    stage.clock.after(500, lambda: stage.stop.on_signal(2, None))
    stage.clock.after(530, lambda: stage.stop.on_signal(2, None))
    with pytest.raises(LeftRunning, match="left at once.*STILL RUNNING.*tatara rent watch"):
        stage.lease().carry_on()
    assert stage.account.running == [stage.ledger.label]
    stage.over.ignores_term = False
    assert stage.reload().lease().carry_on() == EXIT_DONE
    assert stage.account.running == [] and "final" in stage.saved


class Killed(BaseException):
    """kill -9: no handler, no cleaning up."""


KILLED_AT = ["launch", "prepare", "push", "doctor", "look", "pull", "terminate"]


@pytest.mark.parametrize("moment", KILLED_AT)
def test_kill_9_is_taken_up_from_the_ledger(
    stage: Stage, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each state: the successor ends with the same run, on one machine, and it ends that."""
    kill_once(stage, moment, monkeypatch)
    with pytest.raises(Killed):
        stage.lease().carry_on()
    monkeypatch.undo()
    stage.over.on_call = lambda name: None
    assert stage.reload().lease().carry_on() == EXIT_DONE
    assert stage.account.running == [] and stage.account.launched == 1
    assert "final" in stage.saved


def test_kill_9_before_the_start_was_heard_ends_the_machine(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_once(stage, "start", monkeypatch)
    with pytest.raises(Killed):
        stage.lease().carry_on()
    monkeypatch.undo()
    stage.over.on_call = lambda name: None
    assert stage.reload().lease().carry_on() == EXIT_RETRY
    assert stage.account.running == [] and stage.told("there is no run to save")


def kill_once(stage: Stage, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise Killed

    # What a killed process does not do any more.
    monkeypatch.setattr(Lease, "_give_back", die)
    if moment in ("launch", "terminate"):
        real = getattr(LambdaCloud, moment)

        def call_and_die(self: LambdaCloud, *arguments: object) -> None:
            real(self, *arguments)
            raise Killed

        monkeypatch.setattr(LambdaCloud, moment, call_and_die)
    else:
        stage.over.on_call = lambda name: die() if name == moment else None


def test_a_launch_whose_answer_was_lost_is_found_by_its_name(stage: Stage) -> None:
    stage.account.lost = 1
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.account.launched == 1 and stage.account.running == []


def test_a_hung_job_is_stopped_saved_and_ended(stage: Stage) -> None:
    stage.over.hangs_at, stage.over.train_seconds, stage.over.ignores_term = 450, 9e9, True
    assert stage.lease().carry_on() == EXIT_RETRY
    assert stage.told("no progress for 20 minutes") and stage.told("killed")
    assert stage.saved == ["checkpoints/checkpoint-1", "checkpoints/checkpoint-2"]
    assert stage.account.running == []
    assert stage.clock.now < stage.ledger.deadline  # no hour was paid for waiting


def test_a_job_that_hangs_before_its_first_step_is_ended(stage: Stage) -> None:
    stage.over.hangs_at, stage.over.train_seconds = 0, 9e9
    assert stage.lease().carry_on() == EXIT_RETRY
    assert stage.account.running == []


def test_ssh_that_stays_away_names_what_was_saved(stage: Stage) -> None:
    stage.clock.after(500, lambda: setattr(stage.over, "dark", True))
    assert stage.lease().carry_on() == EXIT_RETRY
    assert stage.told("LOST: ssh did not get through for 15 minutes")
    assert stage.told("checkpoint-2 in") and stage.account.running == []
    assert stage.saved == ["checkpoints/checkpoint-1", "checkpoints/checkpoint-2"]


def test_ssh_that_comes_back_costs_nothing(stage: Stage) -> None:
    stage.clock.after(300, lambda: setattr(stage.over, "dark", True))
    stage.clock.after(900, lambda: setattr(stage.over, "dark", False))
    assert stage.lease().carry_on() == EXIT_DONE
    assert "final" in stage.saved and stage.account.running == []


@pytest.mark.parametrize("state", ["preempted", "terminated"])
def test_a_machine_that_was_taken_away_is_told(stage: Stage, state: str) -> None:
    def take() -> None:
        stage.over.dark = True
        stage.account.instances[stage.ledger.machine]["state"] = state

    stage.clock.after(500, take)
    assert stage.lease().carry_on() == EXIT_RETRY
    assert stage.told("LOST") and stage.account.running == []
    assert stage.saved[-1] == "checkpoints/checkpoint-2"


def test_the_deadline_stops_saves_and_ends(stage: Stage) -> None:
    stage.over.train_seconds = 9e9
    assert stage.lease().carry_on() == EXIT_STOPPED
    ledger = stage.ledger
    assert stage.told("the lease ends: the training saves")
    assert ledger.ended <= ledger.deadline and stage.account.running == []
    assert stage.saved[-1] == f"checkpoints/{ledger.verified}"


def test_a_deadline_in_a_copy_ends_within_the_salvage(stage: Stage) -> None:
    stage.over.train_seconds, stage.over.slow = 9e9, 9e9
    stage.clock.after(3000, lambda: None)
    assert stage.lease().carry_on() == EXIT_RETRY
    ledger = stage.ledger
    assert ledger.deadline <= ledger.ended <= ledger.deadline + ledger.salvage_seconds + 60
    assert stage.told("LOST: the time to save it is over") and stage.told("NOTHING")
    assert stage.account.running == []


def test_processes_that_went_without_a_word_are_saved_and_told(stage: Stage) -> None:
    """The machine restarted, or its kernel killed the job."""
    stage.clock.after(500, lambda: stage.over.stop("KILL"))
    stage.over.code = 137
    real = stage.over.facts
    stage.over.facts = lambda: {**real(), "code": None}  # type: ignore[method-assign]
    assert stage.lease().carry_on() == EXIT_RETRY
    assert stage.told("gone without a word") and stage.account.running == []
    assert "forget" in stage.over.calls
    assert stage.saved[-1] == "checkpoints/checkpoint-2"


@pytest.mark.parametrize("code", [1, 2, 3, 75])
def test_the_trainings_own_code_comes_back(stage: Stage, code: int) -> None:
    stage.over.code = code
    assert stage.lease().carry_on() == code
    assert stage.account.running == [] and stage.saved


def test_a_name_fits_and_carries_the_deadline(stage: Stage) -> None:
    stage.ledger.name = ledgers.lease_name("a-profile-with-a-name-" + "x" * 90, RUN_ID)
    stage.lease().carry_on()
    assert len(stage.ledger.label) <= 64 and RUN_ID in stage.ledger.label
    assert ledgers.deadline_in(stage.ledger.label) == round(stage.ledger.deadline)


def test_nothing_secret_is_said_or_kept(stage: Stage) -> None:
    """The token of JupyterLab stands in every listing, the key in every request."""
    stage.lease().carry_on()
    assert stage.over.kept == {"hf_token": HF_TOKEN}  # by stdin, into memory
    texts = [path.read_bytes().decode(errors="replace") for path in stage.folder.rglob("*")
             if path.is_file()]  # fmt: skip
    for text in [*texts, *stage.said, json.dumps(stage.over.calls), repr(stage.ledger)]:
        for secret in (KEY, JUPYTER, HF_TOKEN):
            assert secret not in text


# --- reap, end, one's own machine ----------------------------------------------------------------


def reaped(stage: Stage, known: bool = True) -> list[str]:
    def carried(ledger: Ledger) -> Lease:
        stage.ledger, stage.stop = ledger, Stop()
        stage.stop.on_signal(15, None)
        return stage.lease()

    leases = [ledgers.load(stage.ledger.path)] if known else []
    return reap(stage.provider, leases, carried, stage.said.append, stage.clock)


def killed_watcher(stage: Stage) -> None:
    def die(name: str) -> None:
        if name == "look" and stage.clock.now > stage.ledger.rented + 450:
            raise Killed

    stage.over.train_seconds, stage.over.on_call = 9e9, die
    with pytest.raises(Killed):
        stage.lease().carry_on()
    stage.over.on_call = lambda name: None


def test_reap_leaves_alone_what_has_time(stage: Stage) -> None:
    killed_watcher(stage)
    assert reaped(stage) == [] and stage.account.running == [stage.ledger.label]


def test_reap_saves_and_ends_what_nobody_watches(stage: Stage) -> None:
    killed_watcher(stage)
    stage.clock.now = stage.ledger.deadline + 1
    assert reaped(stage) == []
    assert stage.account.running == [] and stage.told("carried on")
    assert len(stage.saved) > 2 and stage.ledger.code == 3


def test_reap_ends_a_machine_whose_training_never_began(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_once(stage, "push", monkeypatch)
    with pytest.raises(Killed):
        stage.lease().carry_on()
    monkeypatch.undo()
    stage.clock.now = stage.ledger.deadline + 1
    assert reaped(stage) == [] and stage.account.running == []
    assert ledgers.load(stage.ledger.path).state is State.GONE


def test_a_disk_here_that_is_full_leaves_the_machine_and_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    stage.clock.after(500, lambda: monkeypatch.setattr(FakeRemote, "pull", full))
    with pytest.raises(LeftRunning, match="No space left.*STILL RUNNING"):
        stage.lease().carry_on()
    assert stage.account.running == [stage.ledger.label]


def test_what_no_signal_ends_is_saved_all_the_same(stage: Stage) -> None:
    stage.over.ignores_term, stage.over.train_seconds = True, 9e9
    stage.over.stop = lambda signal: None  # type: ignore[method-assign]
    assert stage.lease().carry_on() == EXIT_RETRY
    assert stage.account.running == [] and stage.told("killed") and stage.saved
    assert stage.ledger.ended <= stage.ledger.deadline + stage.ledger.salvage_seconds


def test_reap_ends_what_it_does_not_know_after_the_salvage(stage: Stage) -> None:
    """In a scheduled workflow there is no ledger: names alone."""
    killed_watcher(stage)
    stage.clock.now = stage.ledger.deadline + 1
    assert reaped(stage, known=False) == [] and stage.account.running
    stage.clock.now = stage.ledger.deadline + 901
    assert reaped(stage, known=False) == [] and stage.account.running == []
    assert stage.told("REAPED") and stage.told("NOTHING that is known here")


def test_reap_leaves_machines_that_are_not_ours(stage: Stage) -> None:
    killed_watcher(stage)
    for name in ("my-own", "tatara-of-somebody", ""):
        stage.account.instances[name or "x"] = {
            **stage.account.instances[stage.ledger.machine], "name": name
        }  # fmt: skip
    stage.clock.now = stage.ledger.deadline + 5000
    reaped(stage, known=False)
    assert sorted(stage.account.running) == ["", "my-own", "tatara-of-somebody"]


def test_reap_ends_a_machine_kept_for_its_only_copy_once_the_salvage_is_over(stage: Stage) -> None:
    stage.over.damaged = 10**6
    with pytest.raises(LeftRunning):
        stage.lease().carry_on()
    stage.clock.now = stage.ledger.deadline + 1
    (failed,) = reaped(stage)
    assert "only copy" in failed and stage.account.running
    stage.clock.now = stage.ledger.deadline + 901
    assert reaped(stage) == [] and stage.account.running == [] and stage.told("REAPED")


def test_discard_is_said_loudly(stage: Stage) -> None:
    killed_watcher(stage)
    ledger = ledgers.load(stage.ledger.path)
    discard(ledger, stage.provider, stage.said.append, stage.clock)
    assert stage.account.running == [] and stage.told("DISCARDED")
    assert stage.told("checkpoint-2")


def test_two_do_not_work_on_one_lease(stage: Stage) -> None:
    with stage.ledger.held(), pytest.raises(UserError, match="found process"):
        stage.lease().carry_on()
    assert stage.ledger.watcher() == 0


def own(stage: Stage) -> Lease:
    stage.ledger.provider, stage.ledger.request = "ssh", Request(types=("gpu-box",))
    lease = stage.lease()
    lease.provider = OwnMachine("gpu-box")
    return lease


def test_a_machine_of_ones_own_trains_and_stays(stage: Stage) -> None:
    assert own(stage).carry_on() == EXIT_DONE
    assert "final" in stage.saved and not stage.told("$") and stage.account.requests == []


def test_a_machine_of_ones_own_is_waited_for_and_never_given_up(stage: Stage) -> None:
    stage.clock.after(100, lambda: setattr(stage.over, "dark", True))
    stage.clock.after(9000, lambda: setattr(stage.over, "dark", False))
    assert own(stage).carry_on() == EXIT_DONE
    assert "final" in stage.saved


def test_a_copy_of_ones_own_machine_that_fails_leaves_it_all_there(stage: Stage) -> None:
    stage.clock.after(450, lambda: setattr(stage.over, "slow", 9e9))
    with pytest.raises(LeftRunning, match="tatara rent watch"):
        own(stage).carry_on()
    assert stage.over.run.final.is_dir()


def test_a_broken_machine_of_ones_own_forgets_its_secrets(stage: Stage) -> None:
    lease = own(stage)
    stage.over.doctor = "ERROR   disk: full"
    with pytest.raises(TataraError, match="disk: full"):
        lease.carry_on()
    assert stage.over.calls[-1] == "forget"


def test_checkpoints_that_the_run_deleted_go_here_too(stage: Stage) -> None:
    stage.over.train_seconds = 1000

    def rotate(name: str) -> None:
        old = stage.over.run.checkpoints / "checkpoint-1"
        if (
            name == "look"
            and (stage.over.run.checkpoints / "checkpoint-3").is_dir()
            and old.is_dir()
        ):
            shutil.rmtree(old)

    stage.over.on_call = rotate
    assert stage.lease().carry_on() == EXIT_DONE
    assert "checkpoints/checkpoint-1" not in stage.saved
    assert "checkpoints/checkpoint-5" in stage.saved


def test_a_damaged_copy_of_what_the_run_deleted_is_no_loss(stage: Stage) -> None:
    first = Path(stage.ledger.copy) / "checkpoints" / "checkpoint-1" / "model.safetensors"

    def damage_and_delete(name: str) -> None:
        old = stage.over.run.checkpoints / "checkpoint-1"
        if (stage.over.run.checkpoints / "checkpoint-3").is_dir() and old.is_dir():
            first.write_bytes(b"other" * 200)
            shutil.rmtree(old)

    stage.over.on_call = damage_and_delete
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.account.running == [] and "checkpoints/checkpoint-1" not in stage.saved


def test_a_copy_of_what_the_run_deleted_meanwhile_leaves_no_half_checkpoint(stage: Stage) -> None:
    """Without its seal, which is copied last."""
    old = Path(stage.ledger.copy) / "checkpoints" / "checkpoint-1"

    def delete_between_two_copies(name: str) -> None:
        source = stage.over.run.checkpoints / "checkpoint-1"
        if (stage.over.run.checkpoints / "checkpoint-3").is_dir() and source.is_dir():
            shutil.rmtree(source)
            (old / SEAL).unlink(missing_ok=True)

    stage.over.on_call = delete_between_two_copies
    assert stage.lease().carry_on() == EXIT_DONE
    assert stage.account.running == [] and not old.exists()


def test_every_state_can_be_read_back(stage: Stage) -> None:
    for state in State:
        stage.ledger.state = state
        stage.ledger.save()
        assert ledgers.load(stage.ledger.path) == stage.ledger
    assert re.fullmatch(r"tatara-demo-[\d-]+-abcd", stage.ledger.name)
