"""Pushes to the hub during a training and at its end.

At a save, `tatara export --push-to-hub` runs beside the training, on the host's processors, one at
a time: a save that comes meanwhile is skipped. A failure there is reported and ends nothing. At the
end the model is not safe before it is on the hub, so a failed push fails the run.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from workloads.config.sections import Profile
from workloads.engine.hub import upload
from workloads.errors import Retry, TataraError
from workloads.findings import Finding
from workloads.run.events import Event, Phase
from workloads.run.integrity import step_of
from workloads.run.session import Session

# Ends with this process, and leaves the processors to it.
_BESIDE = (sys.executable, "-m", "workloads.processes")
_WAITS = (5.0, 30.0)  # seconds between attempts at the end


def may_push(config: Profile) -> list[Finding]:
    """Check before training that the token may push, if the profile wants it."""
    if config.export.push == "never":
        return []
    try:
        name = upload.writer(str(config.export.hub_model_id))
    except TataraError as error:
        return [Finding("push", "error", str(error))]
    return [Finding("push", "ok", f"as {name} to {config.export.hub_model_id}")]


class Publisher:
    """Pushes checkpoints of a run as exported models; only on rank 0, only on demand."""

    def __init__(self, profile: Profile, session: Session) -> None:
        self._wanted = session.is_main and profile.export.push == "saves"
        self._target = profile.export.hub_model_id
        self._session = session
        self._process: subprocess.Popen[bytes] | None = None
        self._step = -1

    def offer(self, checkpoint: Path) -> None:
        """Push this checkpoint beside the training, unless an earlier push is still running."""
        if not self._wanted or self._is_busy():
            return
        run = self._session.run
        words = [*_BESIDE, sys.executable, "-m", "workloads.cli", "export", str(run.path)]
        words += ["--checkpoint", str(checkpoint), "--out", str(self._folder)]
        words += ["--hub-model-id", str(self._target)]
        self._step = step_of(checkpoint)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )

    def close(self) -> None:
        """End a running push; the end of the run pushes a newer model."""
        if self._is_busy() and self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._wanted:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _is_busy(self) -> bool:
        """Whether an earlier push is running; reports one that has ended, once."""
        if self._process is None:
            return False
        code = self._process.poll()
        if code is None:
            return True
        self._process = None
        if code == 0:
            self._session.event(Event.PUSHED, step=self._step, repository=self._target)
        else:
            reason = _last_line(self._log)
            self._session.event(Event.PUSH_FAILED, step=self._step, reason=reason)
            self._session.report(f"step {self._step}: not pushed to the hub: {reason}")
        return False

    @property
    def _log(self) -> Path:
        return self._session.run.path / "logs" / "push.log"

    @property
    def _folder(self) -> Path:
        return self._session.run.path / ".pushed"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("tatara: ") if lines else "no reason given"


def push_final(config: Profile, session: Session) -> TataraError | None:
    """Push `final/` from rank 0 if the profile wants it; returns the error if it fails for good."""
    target, private, revision = (
        config.export.hub_model_id,
        config.export.private,
        config.export.revision,
    )
    if config.export.push == "never" or target is None or not session.is_main:
        return None
    with session.phase(Phase.PUSHING):
        for pause in (*_WAITS, None):
            try:
                address = _beside_progress(
                    session,
                    lambda: upload.push(
                        session.run.final, target, private, revision, session.report
                    ),
                )
                break
            except TataraError as error:
                if pause is None or not isinstance(error, Retry):
                    session.event(Event.PUSH_FAILED, reason=str(error))
                    return TataraError(
                        f"the model is whole in {session.run.final}/, but it is not on the hub: "
                        f"{error}; then: tatara export {session.run.path} --push-to-hub"
                    )
                session.report(f"not pushed yet: {error}; again in {pause:.0f} s")
                time.sleep(pause)
    session.event(Event.PUSHED, repository=target, address=address)
    session.report(f"pushed to {address}")
    return None


def push_card(config: Profile, session: Session) -> None:
    """Push a model card with new evaluations to the hub; a failure is only reported."""
    target = config.export.hub_model_id
    if config.export.push == "never" or target is None:
        return
    with session.phase(Phase.PUSHING):
        try:
            final, revision = session.run.final, config.export.revision
            _beside_progress(session, lambda: upload.push_card(final, target, revision))
        except TataraError as error:
            session.report(f"the card on the hub is the one from before the evaluation: {error}")


def _beside_progress(session: Session, upload: Callable[[], str]) -> str:
    """Upload on a thread while the rank shows that it does not hang."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        done = pool.submit(upload)
        while not done.done():
            session.progress()
            wait([done], timeout=1.0)
    return done.result()
