"""When the environment counts as ready, and what is said where no Python fits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.shell

ROOT = Path(__file__).resolve().parents[2]
FILES = ("pyproject.toml", "requirements-dev.lock")
READER = ("__init__.py", "env_file.py", "environment.py", "errors.py", "signals.py")
SCRIPTS = ("local_setup.sh", "local_setup.py")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout whose .venv is finished, as far as the set-up can tell."""
    root = tmp_path / "project"
    (root / "scripts").mkdir(parents=True)
    for name in (*FILES, *(f"scripts/{script}" for script in SCRIPTS)):
        shutil.copy(ROOT / name, root / name)
    (root / "workloads").mkdir()
    shutil.copytree(ROOT / "workloads" / "host", root / "workloads" / "host")
    for name in READER:
        shutil.copy(ROOT / "workloads" / name, root / "workloads" / name)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    stamp(root)
    return root


def stamp(root: Path, **env: str) -> None:
    """Write the stamp that the set-up itself would write at its end."""
    code = "import json, local_setup as setup; print(json.dumps(setup.fingerprint()))"
    place = {"PYTHONPATH": str(root / "scripts")}
    done = call(root, sys.executable, "-c", code, **place, **env)
    (root / ".venv" / "tatara-setup.json").write_text(done.stdout)


def call(root: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("TORCH_INDEX_URL", "VENV", "PYTHON", "PYTHONPATH")
    }
    return subprocess.run(command, cwd=root, env=kept | env, capture_output=True, text=True)


def is_ready(root: Path, **env: str) -> bool:
    return (
        call(root, sys.executable, "-IS", "scripts/local_setup.py", "--is-ready", **env).returncode
        == 0
    )


def test_a_finished_environment_is_left_as_it_is(project: Path) -> None:
    done = call(project, "scripts/local_setup.sh")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_source_asks_for_a_set_up(project: Path, name: str) -> None:
    with (project / name).open("a") as file:
        file.write("# changed\n")
    assert not is_ready(project)


def test_an_interrupted_set_up_is_never_used(project: Path) -> None:
    (project / ".venv" / "tatara-unfinished").touch()
    assert not is_ready(project)


def test_an_environment_without_its_python_is_not_ready(project: Path) -> None:
    (project / ".venv" / "bin" / "python").unlink()
    assert not is_ready(project)


def test_a_folder_that_was_moved_asks_for_a_set_up(project: Path) -> None:
    assert not is_ready(project.rename(project.with_name("elsewhere")))


def test_a_torch_index_named_once_stays(project: Path) -> None:
    index = "https://index.example/whl/cpu"
    assert not is_ready(project, TORCH_INDEX_URL=index)
    stamp(project, TORCH_INDEX_URL=index)
    assert is_ready(project, TORCH_INDEX_URL=index)
    assert is_ready(project)
    (project / ".env").write_text('TORCH_INDEX_URL="https://index.example/whl/cu130"  # CUDA\n')
    assert not is_ready(project)
    content = json.loads((project / ".venv" / "tatara-setup.json").read_text())
    assert content["torch_index"] == index


def test_proxies_and_authorities_of_dotenv_are_there_for_pip(project: Path) -> None:
    """O-A11: without containers too; what the shell says wins."""
    (project / "ca.pem").write_text("x")
    (project / ".env").write_text("HTTPS_PROXY=http://p:1\nHTTP_PROXY=no\nSSL_CERT_FILE=ca.pem\n")
    code = "import json, os, local_setup; local_setup.take_network_settings();"
    code += "print(json.dumps({**os.environ}))"
    without = dict.fromkeys(
        ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), ""
    )
    said = call(
        project,
        sys.executable,
        "-c",
        code,
        PYTHONPATH="scripts",
        HTTP_PROXY="http://q:1",
        **without,
    )
    told = json.loads(said.stdout)
    assert (told["https_proxy"], told["HTTP_PROXY"]) == ("http://p:1", "http://q:1")
    assert told["PIP_CERT"] == told["REQUESTS_CA_BUNDLE"] == str(project / "ca.pem")
    (project / ".env").write_text("HTTPS_PROXY: x\n")
    refused = call(project, "scripts/local_setup.sh", PYTHON=sys.executable)
    assert refused.returncode == 2 and refused.stderr.startswith(
        f"{project}/.env:1: expected NAME="
    )


def test_no_python_that_fits_ends_with_one_sentence(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\ncase "$2" in *python_version*) echo 3.9.18 ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    shutil.rmtree(project / ".venv")
    done = call(project, "scripts/local_setup.sh", PYTHON=f"python-that-is-not-there {old}")
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"expected Python 3.11 or 3.12 with its venv module, found: {old} (3.9.18);"
    )
    assert not (project / ".venv").exists()
    assert "PYTHON=$(uv python find 3.12) make setup" in done.stderr


def test_the_python_that_fits_is_named_and_nothing_made(project: Path) -> None:
    shutil.rmtree(project / ".venv")
    done = call(project, "scripts/local_setup.sh", "--python", PYTHON=sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sys.executable}\n", "")
    assert not (project / ".venv").exists()


@pytest.mark.parametrize("script", ["local_setup.sh", "start_training.sh"])
def test_another_system_than_linux_ends_with_one_sentence(project: Path, script: str) -> None:
    programs = project / "programs"
    programs.mkdir()
    (programs / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (programs / "uname").chmod(0o755)
    shutil.rmtree(project / ".venv")
    for name in ("_common.sh", script):
        shutil.copy(ROOT / "scripts" / name, project / "scripts" / name)
    done = call(project, f"scripts/{script}", PATH=f"{programs}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("expected Linux, found Darwin; on Windows use WSL 2")
    assert not (project / ".venv").exists()
