"""Make the project's environment from the lock; started by local_setup.sh, standard library only.

An environment is used only when its stamp stands, and the stamp is written last: one that was
interrupted is made afresh, one whose lock has changed is brought up to date.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# This runs isolated, before anything is installed.
from workloads import env_file  # noqa: E402
from workloads.errors import TataraError  # noqa: E402
from workloads.signals import Interrupted, interruptible  # noqa: E402

VENV = ROOT / os.environ.get("VENV", ".venv")
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements-dev.lock"
STAMP = VENV / "tatara-setup.json"
UNFINISHED = VENV / "tatara-unfinished"
PIP = (str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check")


def main() -> int:
    """Bring the environment up to date and say each step; exit code 0, or 2 with the reason."""
    if sys.argv[1:] == ["--is-ready"]:
        return 0 if is_ready(fingerprint()) else 1
    for name in ("data", "outputs", ".cache"):
        (ROOT / name).mkdir(exist_ok=True)
    with (ROOT / ".cache" / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second caller waits and then finds it done
        wanted = fingerprint()
        if is_ready(wanted):
            return 0
        take_network_settings()
        try:
            install(wanted)
        except subprocess.CalledProcessError as error:
            print(
                f"expected the step above to end well, found exit code {error.returncode}; "
                "fix the cause above and run 'make setup' again",
                file=sys.stderr,
            )
            return 2
        except Interrupted:
            print("'make setup' starts afresh", file=sys.stderr)
            raise
    return 0


def fingerprint() -> dict[str, str]:
    """What the environment is made from; a torch index named once stays until another is named."""
    digest = hashlib.sha256()
    for path in (LOCK, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    index = os.environ.get("TORCH_INDEX_URL") or env_file.read(ROOT / ".env").get("TORCH_INDEX_URL")
    return {
        "sources": digest.hexdigest(),
        "place": str(VENV),
        "torch_index": index or stamp().get("torch_index", ""),
    }


def take_network_settings() -> None:
    """Give pip and uv the proxies, indices and authorities of `.env` too, under their names."""
    from workloads.host import checkout  # not before it is needed: most calls find all done

    os.environ.update(checkout.download_settings(ROOT, os.environ))
    if bundle := checkout.authorities(checkout.with_dotenv(ROOT, os.environ)):
        for name in (*checkout.CA_NAMES, "PIP_CERT"):
            os.environ[name] = os.environ.get(name) or bundle


def stamp() -> dict[str, str]:
    """What the environment was made from, empty where it is not finished."""
    if not STAMP.is_file():
        return {}
    try:
        content: dict[str, str] = json.loads(STAMP.read_text())
    except ValueError:
        return {}  # cut, as on a full disk
    return content


def is_ready(wanted: dict[str, str]) -> bool:
    """Whether the environment is finished and was made from the same sources in the same place."""
    return stamp() == wanted and PYTHON.exists() and not UNFINISHED.exists()


def install(wanted: dict[str, str]) -> None:
    """Install everything in order and write the stamp."""
    index, torch = wanted["torch_index"], torch_requirement()
    say(f"1/4 {VENV.name} with Python {sys.version.split()[0]}")
    make_venv()
    say(f"2/4 {torch} from {index or os.environ.get('PIP_FIND_LINKS') or 'the package index'}")
    installer = Installer()
    install_torch(installer, torch, index)
    pins = LOCK.read_text().count("==")
    say(f"3/4 {pins} packages of {LOCK.name}, each checked against its hash")
    installer.run("--require-hashes", "--no-deps", "-r", str(LOCK))
    say("4/4 the tatara command")
    subprocess.run([*PIP, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    report = "import torch; print('torch', torch.__version__, torch.cuda.device_count(), 'GPU(s)')"
    subprocess.run([PYTHON, "-c", report], check=True)
    partial = STAMP.with_suffix(".new")
    partial.write_text(json.dumps(wanted))
    partial.replace(STAMP)
    UNFINISHED.unlink()


def torch_requirement() -> str:
    """torch with its exact version, as pyproject.toml names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return next(
        name for name in project["optional-dependencies"]["train"] if name.startswith("torch==")
    )


def make_venv() -> None:
    """Leave a sound, unfinished environment; one that was interrupted or moved here is dropped."""
    if UNFINISHED.exists():
        say("    an earlier set-up did not finish: starting afresh")
    if UNFINISHED.exists() or not is_usable():
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    UNFINISHED.touch()
    STAMP.unlink(missing_ok=True)


def is_usable() -> bool:
    """Whether the environment stands where it was made and runs a Python that fits, with pip."""
    activate = VENV / "bin" / "activate"
    if not activate.is_file() or str(VENV) not in activate.read_text():
        return False
    ask = "import sys, pip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))"
    return subprocess.run([PYTHON, "-c", ask], stderr=subprocess.DEVNULL).returncode == 0


class Installer:
    """uv, itself of the lock and three times as fast as pip; pip where uv cannot do it.

    pip is also what reaches an index that only pip's own configuration names.
    """

    def __init__(self) -> None:
        own = VENV / "installer.lock"
        own.write_text(block_of("uv"))
        done = subprocess.run([*PIP, "--require-hashes", "--no-deps", "-r", str(own)], check=False)
        self.uses_uv = done.returncode == 0

    def run(self, *words: str) -> None:
        """Install what the words name, compiled to bytecode; CalledProcessError where pip fails."""
        if self.uses_uv:
            uv = VENV / "bin" / "uv"
            command = [str(uv), "pip", "install", "--quiet", "--compile-bytecode", *words]
            command += ["--python", str(PYTHON)]
            if subprocess.run(command, env=uv_environment(), check=False).returncode == 0:
                return
            say("    once more, with pip")
            self.uses_uv = False
        subprocess.run([*PIP, "--compile", *words], check=True)


def block_of(package: str) -> str:
    """The lines of the lock that belong to one package."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK.read_text(), flags=re.MULTILINE)
    return next(block for block in blocks if block.startswith(f"{package}=="))


def uv_environment() -> dict[str, str]:
    """The environment with pip's settings under the names uv reads."""
    settings = {
        "UV_FIND_LINKS": ",".join(os.environ.get("PIP_FIND_LINKS", "").split()),
        "UV_DEFAULT_INDEX": os.environ.get("PIP_INDEX_URL", ""),
        "SSL_CERT_FILE": os.environ.get("PIP_CERT", ""),
    }
    return {name: value for name, value in settings.items() if value} | os.environ


def install_torch(installer: Installer, torch: str, index: str) -> None:
    """Install torch with what it needs, from the index where one is named."""
    if index:
        # Such an index need not hold the locked versions of what torch needs: the lock fixes them.
        if not suits(index):
            subprocess.run([PYTHON, "-m", "pip", "uninstall", "-q", "-y", "torch"], check=True)
        installer.run("--index-url", index, torch)
        return
    constraints = VENV / "constraints.txt"
    pins = re.findall(r"^([\w.-]+==[^ ]+)", LOCK.read_text(), flags=re.MULTILINE)
    constraints.write_text("\n".join(pins) + "\n")
    installer.run("--constraint", str(constraints), torch)


def suits(index: str) -> bool:
    """Whether the torch installed, if any, is of the variant the index ends in (cpu, cu130)."""
    ask = "import importlib.metadata as m; print(m.version('torch'))"
    done = subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=False)
    return done.returncode != 0 or done.stdout.strip().endswith(
        "+" + index.rstrip("/").rsplit("/")[-1]
    )


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(interruptible(main))  # what it has started ends with it
    except TataraError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
