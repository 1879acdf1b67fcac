"""One rank of a job: torchrun starts `python -m workloads.launch.rank` with the run in TATARA_RUN.

Its exit code is 0 when it is done or has stopped in order; the heartbeat shows which.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path

from workloads.environment import without_secrets
from workloads.errors import EXIT_DONE, EXIT_FAILED, EXIT_RETRY, Stopped, TataraError
from workloads.processes import die_with_parent, quick_imports
from workloads.run import Run
from workloads.run.events import Phase
from workloads.run.session import Session
from workloads.signals import Interrupted


def main() -> None:
    """Train, then exit without the interpreter's shutdown, in which gloo sometimes aborts."""
    die_with_parent()
    env = os.environ
    session = Session(
        run=Run(Path(env["TATARA_RUN"])),
        rank=int(env["RANK"]),
        local_rank=int(env["LOCAL_RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        node=int(env["GROUP_RANK"]),
        attempt=int(env["TATARA_ATTEMPT"]),
        shared=env["TATARA_SHARED"] == "1",
    )
    code = _live(session)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _live(session: Session) -> int:
    try:
        session.begin()
        config = session.run.config()
        if config.tracking.wandb == "off" or not session.is_main:
            leave_out("wandb")
        with quick_imports():
            workload = importlib.import_module(f"workloads.{config.workload}.train")
        workload.train(config, session)
    except Interrupted:
        session.finish_stopped()
        return EXIT_DONE
    except Stopped as stop:
        session.finish_stopped(str(stop))
        return EXIT_DONE
    except Exception as error:
        if session.stopping and session.may_be_cut_short:
            # Errors that a stop causes in imports and in waiting ranks are no failure.
            session.finish_stopped()
            return EXIT_DONE
        return _failed(session, error)
    session.finish(Phase.DONE, EXIT_DONE)
    return EXIT_DONE


def _failed(session: Session, error: Exception) -> int:
    if isinstance(error, TataraError):
        print(without_secrets(f"error: {error}", os.environ), file=sys.stderr)
        code, reason = error.exit_code, sentence(error)
    else:
        print(without_secrets(traceback.format_exc(), os.environ), file=sys.stderr)
        code, reason = explain(error)
        if code == EXIT_FAILED:
            reason = f"{reason} (rank {session.rank}; full log: {session.log})"
    session.finish(Phase.FAILED, code, reason)
    return code


def leave_out(package: str) -> None:
    """Hide a package from libraries: TRL imports wandb, which takes seconds, if it is installed."""
    sys.modules[package] = None  # type: ignore[assignment]


# Texts of torch's back ends when a peer of a collective is lost; they have no exception type.
_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "no route to host",
    "timed out waiting",
    "timed out after",
    "socket closed",
    "nccl error: remote process exited",
    "nccl communicator was aborted",
    "connectfullmesh failed",
    "read timeout",
    "application timeout caused pair closure",
    "failed to recv",
    "broken connection",
)


def sentence(error: Exception) -> str:
    """The sentence of an error; torch wraps a traceback around those of a data loader's process."""
    text, mark = str(error), f"{type(error).__name__}: "
    if not text.startswith("Caught ") or mark not in text:
        return text
    # The last line of the traceback: the error's name, with its module if it has one.
    return text.rpartition(mark)[2].strip()


def explain(error: Exception) -> tuple[int, str]:
    """Exit code and sentence for an exception that no layer below has handled."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    text = f"{type(error).__name__}: {sentence(error)}"
    lost = any(sign in text.lower() for sign in _LOST_PEER)
    if "DistError" in kinds or (lost and ("RuntimeError" in kinds or "OSError" in kinds)):
        return EXIT_RETRY, f"lost contact with another rank ({str(error).splitlines()[0][:160]})"
    return EXIT_FAILED, text.splitlines()[0][:400]


if __name__ == "__main__":
    main()
