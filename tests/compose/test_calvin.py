"""CALVIN's simulator in its own image, and as the service beside a policy."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.compose.project import Project, docker
from tests.support.recorded_calvin import RECORDING
from workloads.errors import UserError
from workloads.vla.calvin import sequences
from workloads.vla.calvin.client import COMMIT, Simulator, SimulatorEnded, SimulatorPlace
from workloads.vla.calvin.places import container, downloaded

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]
IMAGE = "tatara/calvin:local"


@pytest.fixture(scope="module")
def clone(images: Callable[[str], None]) -> Path:
    """A clone of calvin_env: TATARA_CALVIN, .cache/calvin_env, or downloaded."""
    images("calvin")
    try:
        return downloaded(os.environ)
    except UserError as error:
        pytest.skip(f"NOT TESTED, the real simulator: {error}")


def test_the_service_listens_as_nobody_and_reaches_nothing(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    (tmp_path / "clone").mkdir(mode=0o755)
    calvin = project("calvin", TATARA_CALVIN=str(tmp_path / "clone"))
    calvin.up("calvin")
    name = calvin.container("calvin")
    health = ["inspect", "-f", "{{.State.Health.Status}}", name]
    calvin.until(lambda: docker(*health).strip() == "healthy", "health")
    assert docker("exec", name, "id", "-u").strip() == str(calvin.uid)
    # Docker's init and what listens: the health checks leave no simulator behind.
    processes = ["top", name, "-eo", "pid,args"]
    calvin.until(lambda: docker(*processes).count("simulator.py") == 2, "end of a health check")
    out = 'import socket; socket.create_connection(("1.1.1.1", 53), timeout=5)'
    with pytest.raises(AssertionError, match="timed out|Network is unreachable"):
        docker("exec", name, "python", "-c", out)
    with pytest.raises(AssertionError, match="Read-only file system"):
        docker("exec", name, "touch", "/opt/tatara/new")
    address = calvin.inspect("calvin")["NetworkSettings"]["Networks"]
    (network,) = address.values()
    with pytest.raises(SimulatorEnded, match="expected an answer of the simulator to 'hello'"):
        Simulator(SimulatorPlace(address=(network["IPAddress"], 37180)), tmp_path / "log")
    assert "expected calvin_env, found none" in calvin.logs("calvin")


def test_the_real_simulator_repeats_the_recorded_rollout(clone: Path, tmp_path: Path) -> None:
    with np.load(RECORDING) as stored:
        golden = {name: stored[name] for name in stored.files}
    with Simulator(SimulatorPlace((*container(clone, egl=False), IMAGE)), tmp_path / "log") as env:
        assert (env.facts["renderer"], env.facts["calvin_env"]) == ("TinyRenderer", COMMIT)
        frames = [env.reset(sequences(1)[0].scene_obs)]
        env.begin("open_drawer")
        frames += [env.step(action) for action in golden["actions"]]
    for name in ("robot_obs", "scene_obs"):
        found = [getattr(frame, name) for frame in frames]
        assert np.abs(np.array(found) - golden[name]).max() < 1e-3
    for at, frame in ((0, frames[0]), (1, frames[-1])):
        for camera in ("static", "gripper"):
            far = np.abs(frame.images[camera].astype(int) - golden[f"rgb_{camera}"][at])
            assert far.mean() < 2
