"""The doctor as people call it: the table, --brief, --json, exit codes, and nothing but Python."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.doctor_machine import H100, ROOT, RTX_4090, Machine, llm, service
from workloads.doctor import deep
from workloads.doctor.nvidia import Build
from workloads.findings import Finding, table
from workloads.host.programs import ProgramResult

pytestmark = pytest.mark.unit
# -S leaves site-packages out: a Python with its standard library alone.
BARE = ["-S", "-m", "workloads.doctor"]
FULL = ["-m", "workloads.doctor"]
PACKAGES = ("yaml", "pydantic", "pynvml", "dotenv", "rich", "torch", "psutil")


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.gpus(*[RTX_4090] * 4, p2p="CNS")
    machine.docker(llm(user=f"{os.getuid()}:{os.getgid()}"))
    return machine


def call(host: Machine, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    env = {**host.env, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=host.home, env=env, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_bare_python_says_what_it_cannot_know(host: Machine) -> None:
    done = call(host, [*BARE, "llm-4090", "--json"])
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"], told["runtime"]) == (0, True, "docker"), done.stdout
    found = {check["name"]: check for check in told["checks"]}
    assert found["profile"]["level"] == "skipped"
    assert "needs `make setup`" in found["profile"]["found"]
    assert found["GPUs"]["level"] == "ok"
    assert found["GPU memory"]["level"] == found["hub"]["level"] == "skipped"
    assert set(found["GPUs"]) == {"name", "level", "found", "fix", "needed"}


def test_a_bare_python_counts_gpus_by_the_services(host: Machine) -> None:
    host.gpus(RTX_4090)
    done = call(host, [*BARE, "llm-4090", "--brief"])
    assert done.returncode == 1
    assert "ERROR   GPUs: 1 (NVIDIA GeForce RTX 4090); needed: llm-master: 2" in done.stdout


def test_an_old_driver_ends_with_one_and_names_the_command(host: Machine) -> None:
    host.gpus(*[RTX_4090] * 4, driver="525.60.13", p2p="CNS")
    done = call(host, [*BARE, "llm-4090"])
    assert done.returncode == 1
    assert "  -> sudo apt-get install -y nvidia-driver-580 && sudo reboot" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1] == ("llm-4090 (docker) cannot start here: 1 error")


def test_brief_is_silent_where_all_is_well(host: Machine) -> None:
    host.docker({"demo-master": service("demo", 0, None, user=f"{os.getuid()}:{os.getgid()}")})
    done = call(host, [*FULL, "--brief", "demo"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_mistake_in_the_profile_is_an_error(host: Machine) -> None:
    (host.home / "profiles" / "demo.yaml").write_text("workload: llm\nmodle: {name: x}\n")
    host.env["TATARA_RUNTIME"] = "local"
    done = call(host, [*FULL, "--brief", "demo"])
    assert done.returncode == 1
    assert "demo.yaml:2:1: unknown setting 'modle'; did you mean 'model'?" in done.stdout


def test_words_of_train_are_understood(host: Machine) -> None:
    done = call(host, [*FULL, "llm-4090", "--resume", "latest", "--json", "train.workers=3"])
    found = {load["name"]: load for load in json.loads(done.stdout)["checks"]}
    assert found["GPU memory"]["level"] == "ok"
    wrong = call(host, [*FULL, "llm-4090", "--brief", "--resume", "train.wrokers=3"])
    assert wrong.returncode == 1 and "did you mean 'workers'?" in wrong.stdout
    refused = call(host, [*FULL, "--learning_rate=1"])
    assert refused.returncode == 2 and "expected a PROFILE before" in refused.stderr


def test_nothing_beyond_the_standard_library_at_import() -> None:
    imports = "import sys; from workloads.doctor import command"
    code = f"{imports}; print(*set({PACKAGES}) & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", sorted((ROOT / "workloads/doctor").glob("*.py")), ids=str)
def test_an_older_python_can_read_it(path: Path) -> None:
    """Ubuntu 22.04 brings 3.10, and the doctor comes before any other Python does."""
    ast.parse(path.read_text(), feature_version=(3, 10))


def test_a_table_keeps_its_columns_and_never_cuts_a_command() -> None:
    long = "x" * 150
    text = table([Finding("disk", "error", "much " * 30, needed="little", fix=long)], columns=90)
    head, rule, *rows = text.splitlines()
    assert head.split() == ["check", "found", "needed", "verdict"]
    assert len(rule) == 90
    assert rows[-1] == f"  -> {long}"
    assert all(len(row) <= 90 for row in rows[:-1])
    assert rows[0].index("little") == head.index("needed")
    assert rows[0].endswith("ERROR")


def test_deep_is_skipped_without_torch(host: Machine) -> None:
    done = call(host, [*BARE, "--deep", "--json", "llm-4090"])
    last = json.loads(done.stdout)["checks"][-1]
    assert last["name"] == "trials" and last["level"] == "skipped"
    assert "run --rm llm-master doctor llm-4090 --deep" in last["found"]


def test_a_gpu_that_torch_leaves_alone_is_no_good_trial(
    host: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would train on the CPU; where that is wanted, GPUs are hidden."""
    host.gpus(H100)
    said = '{"device": "CPU", "dtype": "float32", "error": "0.0e+00"}'
    monkeypatch.setattr(deep, "_run", lambda *words: ProgramResult(0, said))
    for env, level in (({}, "error"), ({"CUDA_VISIBLE_DEVICES": ""}, "ok")):
        facts = replace(
            host.look(None, TATARA_RUNTIME="local", **env), build=Build((13, 0), "torch")
        )
        found = deep.compute(facts)
        assert found.level == level, found
    assert (
        "leaves NVIDIA H100"
        in deep.compute(
            replace(host.look(None, TATARA_RUNTIME="local"), build=Build((13, 0), "torch"))
        ).found
    )


def test_deep_computes_and_speaks(host: Machine) -> None:
    """The forward and backward, and two real ranks; imports are tried with one small package."""
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    facts = host.look("demo", TATARA_RUNTIME="local", OMP_NUM_THREADS="1", **env)
    found = [deep.compute(facts), deep.collective(facts)]
    assert [item.level for item in found] == ["ok", "ok"], found
    assert found[1].found.split()[0] in ("gloo", "nccl")
    good = deep.packages(facts, ["safetensors"])
    assert good.level == "ok" and good.found.startswith("safetensors 0.")
    bad = deep.packages(facts, ["safetensors", "no_such_package"])
    assert bad.level == "error" and "no_such_package: ModuleNotFoundError" in bad.found
