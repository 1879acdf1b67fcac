"""The supervisor of a run on one node: meets the other nodes, starts torchrun, restarts, ends.

Environment contract: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, NPROC_PER_NODE, RUN_ID. Without
NODE_RANK a job of several nodes runs here, each node as an own group of local processes.
"""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workloads import run as runs
from workloads import signals
from workloads.config.merge import Provenance, leaves
from workloads.config.sections import Profile
from workloads.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RETRY,
    EXIT_STOPPED,
    STOPS,
    Stopped,
    TataraError,
    UserError,
    file_problem,
)
from workloads.launch.attempt import Attempt
from workloads.launch.coordinator import Coordinator
from workloads.launch.member import Member
from workloads.launch.messages import Hello, Meeting, Outcome, Terms
from workloads.launch.network import free_ports, interface_to, listener
from workloads.launch.rendezvous import Alone, Rendezvous
from workloads.processes import PARENT, die_with_parent, make_output_lossy, own_command
from workloads.run import Owner, Run
from workloads.run.events import Event
from workloads.run.integrity import sealed
from workloads.run.manifest import CHOICE
from workloads.run.secret import rendezvous_secret
from workloads.run.session import NOTHING_LOST
from workloads.signals import Stop

# Set for the other nodes of a job whose nodes are all local: node 0 prints for them.
_LOCAL_CHILD = "TATARA_LOCAL_CHILD"


@dataclass(frozen=True)
class Job:
    """The job to run, by command line and environment."""

    config: Profile
    provenance: Provenance
    env: Mapping[str, str]
    words: Sequence[str]
    resume: str | None = None
    gpus: int = 0

    @property
    def is_spoken_for(self) -> bool:
        """Whether this is one of several local nodes, but not node 0."""
        return bool(self.env.get(_LOCAL_CHILD))

    @property
    def nodes(self) -> int:
        return self.config.parallel.nodes

    @property
    def is_local(self) -> bool:
        """Whether all nodes run here: several nodes without a NODE_RANK."""
        return self.nodes > 1 and not self.env.get("NODE_RANK")

    @property
    def node(self) -> int:
        """This node's number, 0 on the master; raises UserError for an invalid NODE_RANK."""
        text = self.env.get("NODE_RANK") or "0"
        if not text.isdecimal() or int(text) >= self.nodes:
            raise UserError(
                f"expected NODE_RANK from 0 to {self.nodes - 1}, found {text!r}; set it to this "
                "node's number, 0 on the master"
            )
        return int(text)

    @property
    def ranks(self) -> int:
        """Processes on this node."""
        gpus = self.gpus // self.nodes if self.is_local else self.gpus
        return self.config.ranks_per_node(gpus)

    @property
    def outputs(self) -> Path:
        return runs.outputs(dict(self.env))


def fewer_nodes(nodes: int, env: Mapping[str, str], gpus: int) -> int | None:
    """Number of local nodes that the GPUs here suffice for, if fewer than asked for.

    NCCL refuses two ranks on one GPU. None: enough GPUs, or none at all.
    """
    return gpus if not env.get("NODE_RANK") and 0 < gpus < nodes else None


def launch(job: Job) -> int:
    """Run this node's part of the job to its end and return the exit code."""
    if job.is_spoken_for:
        die_with_parent()
    make_output_lossy()
    stop = Stop()
    signals.listen(stop.on_signal)
    signals.listen_to_terminal(stop.on_signal)
    job.config.accumulation_steps(job.nodes * job.ranks)  # refuses a batch that cannot be split
    if job.is_local:
        port = job.env.get("MASTER_PORT") or str(free_ports())
        job = replace(job, env={**job.env, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    report = _reporter(job)
    if job.node != 0:
        code = _take_part(job, None, stop, report)
    else:
        target = _target(job)
        with Owner(target):
            if (target.path / "config.json").is_file():
                _same_run(job, target)
            code = _take_part(job, target, stop, report)
    signals.ignore()  # a third Ctrl-C does not change the exit code
    return code


def _take_part(job: Job, target: Run | None, stop: Stop, report: Callable[[str], None]) -> int:
    """Meet the other nodes and train; node 0 has the run and writes its events."""
    rendezvous = _open_rendezvous(job, target, stop, report)
    local: dict[int, subprocess.Popen[bytes]] = {}
    try:
        outcome = _supervise(job, rendezvous, stop, report, local)
    except (TataraError, OSError) as error:
        known = error if isinstance(error, TataraError) else file_problem(error)
        outcome = Outcome(known.exit_code if known else EXIT_FAILED, str(known or error))
        if target is not None and outcome.code in STOPS:
            outcome = replace(outcome, code=target.stop_code(stop() or signal.SIGTERM))
        rendezvous.end(outcome)
        if outcome.code not in (*STOPS, EXIT_RETRY):
            if target is not None:
                target.event(Event.FAILED, code=outcome.code, reason=outcome.reason)
            raise
    finally:
        rendezvous.close()
        _wait_for(local.values())
    return _report(job, outcome, target, report)


def _reporter(job: Job) -> Callable[[str], None]:
    """Function that prints messages; silent on further local nodes, which would repeat them."""
    name = "" if job.nodes == 1 else f" node {job.node}"

    def report(text: str) -> None:
        if not job.is_spoken_for:
            print(f"tatara{name}: {text}", file=sys.stderr, flush=True)

    return report


def _target(job: Job) -> Run:
    """The run that node 0 chooses or finds."""
    folder = job.outputs / job.config.name
    if job.resume:
        return _in_its_place(runs.find(job.outputs, job.config.name, job.resume), folder)
    return Run(folder / _run_id(job))


def _in_its_place(target: Run, folder: Path) -> Run:
    """Check that a run is in its profile's folder: elsewhere a copy would start again."""
    place = folder / target.path.resolve().name
    if place.resolve() != target.path.resolve():
        raise UserError(
            f"expected a run in {folder}, where the runs of this profile are, found {target.path}; "
            f"take the profile {target.config().name!r}, or set TATARA_OUTPUTS to the folder of "
            "its outputs"
        )
    return Run(place)


def _run_id(job: Job) -> str:
    """RUN_ID, which becomes a folder's name, or a new one."""
    wanted = job.env.get("RUN_ID") or runs.new_id()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", wanted):
        raise UserError(f"expected RUN_ID of letters, digits, '.', '_' and '-', found {wanted!r}")
    return wanted


# These must not change in a resumed run. Those of the optimizer are part of its saved state,
# which would override new values in silence.
_IDENTITY = ("workload", "model", "adapter", "data", "action_head")
_OF_OPTIMIZER = ("optimizer", "weight_decay", "beta1", "beta2", "epsilon")


def _same_run(job: Job, target: Run) -> None:
    before, now = _identity(target.config()), _identity(job.config)
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise UserError(
                f"{target.path}: expected {name} {before.get(name)}, which this run was started "
                f"with, found {now.get(name)}; give the same settings, or start a new run without "
                "--resume"
            )


def _identity(config: Profile) -> dict[str, Any]:
    of_optimizer = {f"optim.{name}" for name in _OF_OPTIMIZER}
    return {
        name: value
        for name, value in leaves(config).items()
        if name.partition(".")[0] in _IDENTITY or name in of_optimizer
    }


def _digest(config: Profile) -> str:
    """Digest of all settings that nodes must share: all but the port, which may differ."""
    dump = config.model_dump(mode="json", exclude={"parallel": {"master_port"}})
    text = json.dumps(dump, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _open_rendezvous(
    job: Job, target: Run | None, stop: Stop, report: Callable[[str], None]
) -> Rendezvous:
    host = socket.gethostname()
    parallel = job.config.parallel
    terms = Terms(parallel.node_timeout, parallel.peer_timeout, stop, report)
    if job.is_local:
        terms.cure = lambda node: "this process starts it: see whether memory runs out here"
    address, port = _master(job)
    if job.nodes == 1 and target is not None:
        if job.env.get("MASTER_PORT"):
            listener("127.0.0.1", port, terms.pause).close()
        return Alone(target.id, host)
    hello = Hello(job.node, host, job.ranks, _digest(job.config))
    secret = rendezvous_secret(job.env, job.outputs)
    if target is None:
        return Member(hello, address, port + 1, job.outputs, terms, secret)
    return Coordinator(hello, job.nodes, address, port + 1, target.id, job.outputs, terms, secret)


def _master(job: Job) -> tuple[str, int]:
    address = job.env.get("MASTER_ADDR")
    if not address and job.nodes > 1:
        raise UserError("MASTER_ADDR is missing; set it to the address or name of node 0")
    port = job.env.get("MASTER_PORT") if job.is_local else None
    return address or "127.0.0.1", int(port or job.config.parallel.master_port)


def _start_local_nodes(job: Job, local: dict[int, subprocess.Popen[bytes]]) -> None:
    """Start the other nodes as processes of the same command; they end with this one.

    local: by number, those that were started; one of them that has ended is started again.
    """
    for node in range(1, job.nodes):
        if node in local and local[node].poll() is None:
            continue
        env = {**os.environ, **job.env, "NODE_RANK": str(node), _LOCAL_CHILD: "1"}
        env[PARENT] = str(os.getpid())
        env.update(_gpu_share(job, node))
        command = [sys.executable, "-m", "workloads.cli", *job.words]
        with signals.held_back():
            local[node] = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)


def _gpu_share(job: Job, node: int) -> dict[str, str]:
    """A local node's share of this machine's GPUs."""
    if job.gpus == 0:
        return {}
    visible = job.env.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(job.gpus)))
    names = visible.split(",")[: job.gpus]  # behind an entry that names none, none counts
    share = max(1, len(names) // job.nodes)
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[node * share : (node + 1) * share])}


def _wait_for(local: Iterable[subprocess.Popen[bytes]]) -> None:
    """Wait for local nodes, which have the verdict; one that does not end by itself is killed."""
    for node in local:
        try:
            node.wait(10)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()


def _supervise(
    job: Job,
    rendezvous: Rendezvous,
    stop: Stop,
    report: Callable[[str], None],
    local: dict[int, subprocess.Popen[bytes]],
) -> Outcome:
    """Attempt after attempt, until the job is done, stopped, failed, or out of restarts."""
    budget = job.config.parallel.restarts
    delay = job.config.parallel.restart_delay
    restarts = 0
    # No bound here but node 0's: one that was itself started again counts from the beginning.
    while True:
        if number := stop():
            reason = "stopped before the next attempt" if restarts else NOTHING_LOST
            raise Stopped(reason, 128 + number)
        if job.is_local:
            _start_local_nodes(job, local)
        meeting = rendezvous.meet(restarts)
        run = _prepare(job, meeting)
        first = job.node * job.ranks
        ranks = range(first, first + job.ranks)
        attempt = Attempt(
            run, meeting.attempt, ranks, rendezvous, stop, job.config.parallel.hang_timeout
        )
        # The rendezvous, not this node, decides on a restart: all nodes start again, or none.
        mine = attempt.go(_agent_words(job), _rank_env(job, run, meeting))
        outcome = rendezvous.settle(mine, may_restart=restarts < budget and not stop())
        if not outcome.again:
            return outcome
        restarts += 1
        if job.node == 0:
            run.event(Event.RESTARTED, reason=outcome.reason, restart=restarts, budget=budget)
        report(f"{outcome.reason}; restart {restarts} of {budget} in {delay:.0f} s")
        _pause(delay, stop)
        delay *= 2  # a lost network or peer may need minutes to come back


def _pause(seconds: float, stop: Stop) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop():
        time.sleep(0.05)


def _prepare(job: Job, meeting: Meeting) -> Run:
    """Create the run directory on this node, with the config for the ranks."""
    run = Run(job.outputs / job.config.name / meeting.run_id)
    # Without a shared folder ranks of every node read the config of their own.
    if job.node == 0 or not meeting.shared:
        facts: dict[str, Any] = {"hosts": meeting.hosts, "shared_outputs": meeting.shared}
        if CHOICE in job.env:
            facts["chosen_by_the_planner"] = job.env[CHOICE]
        runs.start(run, job.config, job.provenance, facts)
    if job.node == 0:
        run.event(
            Event.STARTED, attempt=meeting.attempt, hosts=meeting.hosts, shared=meeting.shared
        )
    return run


def _agent_words(job: Job) -> list[str]:
    """torchrun's arguments: with a static rendezvous, so that rank 0 is on NODE_RANK 0."""
    address, port = _master(job)
    if job.nodes == 1 and not job.env.get("MASTER_PORT"):
        port = free_ports()
    return [
        f"--nnodes={job.nodes}",
        f"--node-rank={job.node}",
        f"--nproc-per-node={job.ranks}",
        f"--master-addr={address}",
        f"--master-port={port}",
        "--max-restarts=0",
    ]


def _rank_env(job: Job, run: Run, meeting: Meeting) -> dict[str, str]:
    env = {**os.environ, **job.env}
    if job.is_local:
        env.update(_gpu_share(job, job.node))
    threads = max(1, (os.cpu_count() or 1) // (job.ranks * (job.nodes if job.is_local else 1)))
    env.setdefault("OMP_NUM_THREADS", str(threads))
    if job.gpus == 0:
        # Without it accelerate cannot load a multi-process checkpoint on a CPU.
        env.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        env.setdefault("CUDA_VISIBLE_DEVICES", "")
    if job.nodes > 1 and (interface := interface_to(_master(job)[0])):
        # Looked up at each attempt: after an outage the interface may have another name.
        env.setdefault("NCCL_SOCKET_IFNAME", interface)
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    env["TATARA_RUN"] = str(run.path)
    env["TATARA_ATTEMPT"] = str(meeting.attempt)
    env["TATARA_SHARED"] = "1" if meeting.shared else "0"
    env["TOKENIZERS_PARALLELISM"] = "false"
    return env


def _report(job: Job, outcome: Outcome, target: Run | None, report: Callable[[str], None]) -> int:
    if target is not None:
        target.event(_ending(outcome.code), code=outcome.code, reason=outcome.reason)
    if outcome.code == EXIT_DONE:
        return EXIT_DONE
    if target is not None and outcome.code in (EXIT_STOPPED, EXIT_RETRY):
        saved = bool(sealed(target.checkpoints))
        arguments = [*job.words, *(["--resume", target.id] if saved else [])]
        again = "go on with" if saved else "start again with"
        report(f"{outcome.reason}; {again}: {own_command(*arguments)}")
    else:
        report(outcome.reason)
    return outcome.code


def _ending(code: int) -> Event:
    if code in STOPS:
        return Event.STOPPED
    return Event.FINISHED if code == EXIT_DONE else Event.FAILED
