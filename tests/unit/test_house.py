"""The house style: size maxima, quick imports, locks that hold what is declared."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dotenv import dotenv_values
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workloads.config.merge import CONTRACT, SHORT_NAMES
from workloads.environment import ALIASES, SECRETS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "vllm", "trl", "peft", "accelerate", "datasets")
LIGHT = [
    "workloads.cli",
    "workloads.launch.supervisor",
    "workloads.run.directory",
    "workloads.data.packing",
    *(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "workloads").rglob("config.py"))
    ),
]
LOCKS = {
    "demo": {"llm", "grpo"},
    "llm-4090": {"llm", "cuda", "serve"},
    "vla": {"vla", "cuda", "array-record", "hdf5", "rosbag"},
    "grpo-h100": {"grpo", "cuda", "vllm"},
}


def check_sizes(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/check_house.py", *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_no_function_or_file_is_too_long() -> None:
    done = check_sizes()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ functions, median \d+, p90 \d+, longest \d+", done.stdout)


@pytest.mark.parametrize(
    ("lines", "code", "found"),
    [(80, 0, "longest 80"), (81, 1, "long.py:1 much: expected at most 80 lines, found 81")],
)
def test_a_function_over_eighty_lines_is_named(
    tmp_path: Path, lines: int, code: int, found: str
) -> None:
    (tmp_path / "long.py").write_text("def much():\n" + "    a = 1\n" * (lines - 1))
    done = check_sizes(tmp_path)
    assert (done.returncode, found in done.stdout) == (code, True), done.stdout


def test_a_file_over_five_hundred_lines_is_named(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("a = 1\n" * 501)
    done = check_sizes(tmp_path)
    assert done.returncode == 1
    assert "expected at most 500 lines, found 501" in done.stdout


@pytest.mark.parametrize("module", LIGHT)
def test_loads_no_training_library(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def pins(lock: Path) -> dict[str, str]:
    """Package → version; every pin must carry a hash."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", lock.read_text(), flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    names = (block.split(" ", 1)[0].split("==") for block in blocks)
    return {canonicalize_name(name): version for name, version in names}


def declared(extras: set[str]) -> list[Requirement]:
    """What pyproject.toml asks for with these extras, less torch and the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in extras | {"train"}:
        texts += project["optional-dependencies"][extra]
    return [item for text in texts if (item := Requirement(text)).name not in ("tatara", "torch")]


@pytest.mark.parametrize("target", [*LOCKS, "dev"])
def test_lock_holds_what_is_declared(target: str) -> None:
    dev = target == "dev"
    lock = pins(ROOT / ("requirements-dev.lock" if dev else f"images/{target}/requirements.lock"))
    for wanted in declared({"llm", "grpo", "vla", "dev"} if dev else LOCKS[target]):
        version = lock.get(canonicalize_name(wanted.name))
        assert version and wanted.specifier.contains(version, prereleases=True), (wanted, version)


@pytest.mark.parametrize("target", LOCKS)
def test_lock_leaves_torch_and_its_cuda_to_the_machine(target: str) -> None:
    lock = ROOT / f"images/{target}/requirements.lock"
    held = pins(lock)
    assert not {"torch", "triton", "cuda-toolkit"} & set(held)
    assert [name for name in held if name.startswith("nvidia-")] == ["nvidia-ml-py"]
    assert "://" not in lock.read_text()


def test_every_image_has_a_lock_with_hashes() -> None:
    text = (ROOT / "images/Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+-deps AS (\S+)$", text, re.MULTILINE))
    assert targets == {*LOCKS, "calvin"}
    simulator = pins(ROOT / "images/calvin/requirements.lock")
    assert simulator["numpy"].startswith("1.") and "torch" not in simulator
    wanted = (ROOT / "images/calvin/requirements.in").read_text().splitlines()[1:]
    assert {canonicalize_name(Requirement(line).name) for line in wanted} <= set(simulator)


def test_a_package_has_one_version_in_all_that_trains() -> None:
    versions: dict[str, set[str]] = {}
    locks = [lock for target in LOCKS for lock in ROOT.glob(f"images/{target}/*.lock")]
    for lock in [ROOT / "requirements-dev.lock", *locks]:
        for name, version in pins(lock).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_cpu_environments_stay_light() -> None:
    for lock in (ROOT / "images/demo/requirements.lock", ROOT / "requirements-dev.lock"):
        assert not {"bitsandbytes", "torchvision", "vllm"} & set(pins(lock))


def test_every_variable_stands_in_the_example_of_dotenv() -> None:
    example = set(re.findall(r"^(?:# )?([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M))
    compose = "".join(path.read_text() for path in ROOT.glob("compose*.yaml"))
    of_compose = re.findall(r"\$\{([A-Z0-9_]+)", compose)
    wanted = {*SHORT_NAMES, *CONTRACT, *SECRETS, *ALIASES, *of_compose}
    assert wanted - example == set()


def test_the_example_of_dotenv_holds_no_value_of_a_secret() -> None:
    values = dotenv_values(ROOT / ".env.example")
    assert values == {"TATARA_DOTENV": ".env"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/*/**/test_*.py")), ids=str)
def test_a_test_file_is_marked_with_its_group(path: Path) -> None:
    group = path.relative_to(ROOT / "tests").parts[0]
    assert f"pytest.mark.{group}" in path.read_text(), f"{path}: see CONTRIBUTING.md"
