"""Tatara's services as real containers: a project of its own for each test, gone at its end."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.processes import events, rows, steps
from workloads.host.checkout import mark, write_build_settings
from workloads.run import Run

ROOT = Path(__file__).resolve().parents[2]
LOCAL_BASE = "local/python:3.11-bookworm"
PATIENCE = 300.0
# Not the uid that runs the tests, where that may give files away: ownership must come from outside.
FOREIGN_UID, FOREIGN_GID = 4217, 4218
# What of the caller's environment would change the services.
_OURS = ("TATARA", "COMPOSE", "HF_", "HUGGING", "WANDB", "NNODES", "NODE_RANK", "MASTER_", "RUN_ID")


def base_image() -> str:
    """The image to build from: BASE_IMAGE, or the one that this machine has made for itself."""
    command = ["docker", "image", "inspect", LOCAL_BASE]
    has_local = subprocess.run(command, capture_output=True).returncode == 0
    return os.environ.get("BASE_IMAGE") or (LOCAL_BASE if has_local else "")


class Project:
    """One compose project with folders of its own; `settings` is what a user's .env would hold."""

    def __init__(self, name: str, folder: Path, files: Sequence[str] = (), **settings: str) -> None:
        self.name, self.folder, self.files = name, folder, files
        self.uid, self.gid = owner()
        for part in ("outputs", "cache", "other"):
            (folder / part).mkdir(parents=True)
            os.chown(folder / part, self.uid, self.gid)
        self.outputs = folder / "outputs"
        self.env_file = folder / "settings.env"
        self.write_settings(**settings)

    def write_settings(self, **settings: str) -> None:
        values = {
            "UID": self.uid,
            "GID": self.gid,
            "TATARA_OUTPUTS": self.outputs,
            "TATARA_CACHE": self.folder / "cache",
            "TATARA_DOTENV": self.env_file,
            "TATARA_CHECKOUT": ROOT,
            "TATARA_SHM_SIZE": "1gb",
            "BASE_IMAGE": base_image(),
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        lines = [f"{name}={value}\n" for name, value in values.items() if value != ""]
        self.env_file.touch(mode=0o600)
        self.env_file.write_text("".join(lines))
        os.chown(self.env_file, self.uid, self.gid)
        if not mark(ROOT).is_file():
            write_build_settings(ROOT, {})

    @property
    def env(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}

    def compose(
        self, *words: str, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """`docker compose …` on this project."""
        files = [part for name in self.files for part in ("-f", name)]
        # What is built first would stand in the output of `run`.
        head = [
            "docker",
            "compose",
            "--progress",
            "quiet",
            *files,
            "-p",
            self.name,
            "--env-file",
            str(self.env_file),
        ]
        done = subprocess.run(
            [*head, "--profile", "*", *words],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"compose {' '.join(words)}: {done.stdout}{done.stderr}")
        return done

    def up(self, *services: str) -> None:
        self.compose("up", "--detach", "--no-build", *services)

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def inspect(self, service: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(docker("inspect", self.container(service)))
        return found[0]

    def address(self, service: str) -> str:
        """Where every account of this machine reaches a service."""
        networks = self.inspect(service)["NetworkSettings"]["Networks"].values()
        (address,) = [network["IPAddress"] for network in networks]
        return str(address)

    def logs(self, *services: str) -> str:
        done = self.compose("logs", "--no-color", *services)
        return done.stdout + done.stderr

    def wait(self, service: str, seconds: float = PATIENCE) -> int:
        """The exit code of a service, once it has ended."""
        try:
            return int(docker("wait", self.container(service), timeout=seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{service} did not end\n{self.everything()}") from None

    def ends(self, **codes: int) -> None:
        """Check the exit codes of services, named with _ for -."""
        for name, code in codes.items():
            service = name.replace("_", "-")
            found = self.wait(service)
            assert found == code, f"{service}: {found}, not {code}\n{self.everything()}"

    def run(self, profile: str = "demo", outputs: Path | None = None) -> Run:
        """The newest run of a profile, once its folder is there."""
        folder = (outputs or self.outputs) / profile
        self.until(lambda: bool(list(folder.glob("*/config.json"))), "run directory")
        return newest(folder)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> float:
        """Wait until something shows; returns the seconds it took."""
        start = time.monotonic()
        while not condition():
            late = time.monotonic() - start > seconds
            if late or (not self.lives() and not condition()):
                raise AssertionError(f"no {what} within {seconds:.0f} s\n{self.everything()}")
            time.sleep(0.1)
        return time.monotonic() - start

    def lives(self) -> bool:
        """Whether any container of this project runs."""
        label = f"label=com.docker.compose.project={self.name}"
        return bool(docker("ps", "--quiet", "--filter", label).strip())

    def until_step(self, step: int, profile: str = "demo") -> Run:
        run = self.run(profile)
        self.until(lambda: any(reached >= step for reached in steps(run)), f"step {step}")
        return run

    def until_event(self, name: str, profile: str = "demo", seconds: float = PATIENCE) -> Any:
        run = self.run(profile)
        self.until(lambda: bool(events(run, name)), f"event {name!r}", seconds)
        return events(run, name)[-1]

    def kill_rank(self, service: str, rank: int, number: str = "KILL") -> None:
        """Send a signal to a rank's process inside its container."""
        status = json.loads((self.run().path / "status" / f"{rank}.json").read_text())
        docker("exec", self.container(service), "kill", f"-{number}", str(status["pid"]))

    def everything(self) -> str:
        parts = [self.logs()[-4000:]]
        for path in self.outputs.glob("*/*/logs/*.log"):
            parts.append(f"--- {path}\n{path.read_text()[-2000:]}")
        for path in self.outputs.glob("*/*/events.jsonl"):
            parts += [json.dumps(row) for row in rows(path)[-12:]]
        return "\n".join(parts)

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "1", check=False)


def newest(folder: Path) -> Run:
    """The run of a profile's folder that was started last."""
    return Run(max(folder.glob("*/config.json")).parent)


def owner() -> tuple[int, int]:
    """Whom the containers run as."""
    if os.getuid() == 0:
        return FOREIGN_UID, FOREIGN_GID
    return os.getuid(), os.getgid()


def docker(*words: str, timeout: float = 120) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise AssertionError(f"docker {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def arguments(*words: str, **more: str) -> Mapping[str, str]:
    """Settings of a training, as TATARA_ARGS takes them."""
    return {"TATARA_ARGS": " ".join(words), **more}


def copy_checkout(target: Path) -> Path:
    """What an image is built from, where a test may change it."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("workloads", "images", "profiles", "scripts", "data/demo"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for name in ("pyproject.toml", ".dockerignore", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target / name)
    return target


def build_there(context: Path) -> str:
    """Build the demo's image from a folder; its id."""
    words = ["docker", "build", "-q", "-f", "images/Dockerfile", "--target", "demo"]
    words += ["--build-arg", f"BASE_IMAGE={base_image()}"] if base_image() else []
    done = subprocess.run([*words, "."], cwd=context, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
