"""What Compose makes of the files, for every profile and without a .env: no engine is needed."""

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.compose.project import ROOT

pytestmark = pytest.mark.compose

PROFILES = {
    "demo": {"demo-master", "demo-worker"},
    "llm-4090": {"llm-master", "llm-worker"},
    "vla": {"vla"},
    "vla_finetune": {"vla_finetune"},
    "vla-serve": {"vla-serve"},
    "calvin": {"calvin", "vla-calvin"},
    "llm-serve": {"llm-serve"},
    "grpo-h100": {"grpo-h100"},
    "grpo-vllm": {"grpo-vllm"},
    "board": {"board"},
    "monitor": {"monitor"},
}
GPU = {"llm-master", "llm-worker", "llm-serve", "grpo-h100", "grpo-vllm"}
GPU |= {"vla", "vla_finetune", "vla-serve", "vla-calvin"}
TRAINING = {name for names in PROFILES.values() for name in names} - {"board", "monitor", "calvin"}
SECRETS = {"checkout", "dotenv", "shell", "ca", "hf_token", "wandb_api_key", "tatara_serve_token"}
SECRETS |= {"tatara_rendezvous_secret"}
FILES = ("compose.yaml", "compose.cpu.yaml", "compose.multihost.yaml")
SECOND = 1_000_000_000


def rendered(profile: str, *overrides: str, **env: str) -> dict[str, Any]:
    """The services of a profile, as Compose starts them; nothing but `env` is set."""
    if shutil.which("docker") is None:
        pytest.skip("NOT TESTED, the compose files: docker is not on PATH")
    files = [part for name in ("compose.yaml", *overrides) for part in ("-f", name)]
    words = ["docker", "compose", "--env-file", "/dev/null", *files, "--profile", profile]
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [*words, "config", "--format", "json"],
        cwd=ROOT,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


@pytest.mark.parametrize("override", [(), ("compose.cpu.yaml",), ("compose.multihost.yaml",)])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_renders_without_an_env_file(profile: str, override: tuple[str, ...]) -> None:
    assert set(rendered(profile, *override)) == PROFILES[profile]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_container_keeps_to_its_bounds(profile: str) -> None:
    for name, service in rendered(profile, UID="1234", GID="4321").items():
        assert service["user"] == "1234:4321", name
        assert service["init"] is True
        assert service["restart"] == "no"
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service and "pid" not in service and "devices" not in service
        if name == "monitor":  # it shows files, and listens to nobody
            assert service["healthcheck"] == {"disable": True}
            assert service["network_mode"] == "none"
        else:
            assert service["healthcheck"]["test"][0] == "CMD"
        published = [port.get("host_ip") for port in service.get("ports", [])]
        assert set(published) <= {"127.0.0.1"}, name
        assert (name == "board") == bool(published)
        writable = {mount["target"] for mount in service["volumes"] if not mount.get("read_only")}
        assert writable <= {"/workspace/outputs", "/workspace/.cache"}
        assert not any("docker.sock" in mount["source"] for mount in service["volumes"])


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_what_trains_has_memory_time_and_secrets_as_files(name: str) -> None:
    profile = next(profile_name for profile_name, names in PROFILES.items() if name in names)
    service = rendered(profile)[name]
    assert int(service["shm_size"]) == 16 * 1024**3
    assert service["ulimits"]["stack"] == 64 * 1024**2
    assert {secret["source"] for secret in service["secrets"]} == SECRETS
    environment = service["environment"]
    assert service["stop_grace_period"] == "10m0s"
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < 600
    assert not {"HF_TOKEN", "WANDB_API_KEY", "TATARA_SERVE_TOKEN"} & set(environment)
    assert service["pull_policy"] == "build" and "env_file" not in service
    # A service that only waits for somebody is no training; the shell is there to be run by hand.
    assert (
        name == "vla_finetune"
        or service["command"][:3] == ["python", "-m", "workloads.grpo.rollouts.server"]
        or service["command"][0] in ("train", "serve", "eval")
    )


@pytest.mark.parametrize("name", sorted(GPU))
def test_gpus_are_reserved_by_count(name: str) -> None:
    profile = next(profile_name for profile_name, names in PROFILES.items() if name in names)
    service = rendered(profile)[name]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}
    assert service["ulimits"]["memlock"] == -1
    two = rendered(profile, TATARA_GPU_COUNT="2")[name]["deploy"]["resources"]["reservations"]
    assert two["devices"][0]["count"] == 2


def test_two_nodes_on_one_host_share_memory_and_split_the_gpus() -> None:
    services = rendered("llm-4090")
    master, worker = services["llm-master"], services["llm-worker"]
    assert (master["ipc"], worker["ipc"]) == ("shareable", "service:llm-master")
    assert master["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert worker["environment"]["CUDA_VISIBLE_DEVICES"] == "2,3"
    for node, service in enumerate((master, worker)):
        environment = service["environment"]
        assert environment["NODE_RANK"] == str(node)
        assert environment["MASTER_ADDR"] == "llm-master"
        assert environment["NCCL_P2P_DISABLE"] == environment["NCCL_IB_DISABLE"] == "1"
        assert environment["NCCL_HOSTID"] == "tatara"
        assert service["networks"] == {"training": None}


@pytest.mark.parametrize(
    ("workload", "variable"), [("vla", "TATARA_SERVE_PORT"), ("llm", "TATARA_CHAT_PORT")]
)
def test_a_model_is_served_to_this_machine_alone(workload: str, variable: str) -> None:
    name = f"{workload}-serve"
    service = rendered(name, **{variable: "8123"})[name]
    assert service["network_mode"] == "host"
    assert not {"ports", "networks", "ipc"} & set(service)
    words = ["serve", "latest", "--workload", workload]
    assert service["command"] == [*words, "--host", "127.0.0.1", "--port", "8123"]
    assert ":8123/health" in service["healthcheck"]["test"][-1]


def test_the_simulator_reaches_nothing_and_reads_its_clone() -> None:
    services = rendered("calvin", TATARA_CACHE="/cache", TATARA_SERVE_MODEL="outputs/vla/one")
    simulator, policy = services["calvin"], services["vla-calvin"]
    assert simulator["networks"] == policy["networks"] == {"simulator": None}
    assert simulator["read_only"] is True and simulator["tmpfs"] == ["/tmp:mode=1777"]
    (clone,) = simulator["volumes"]
    assert (clone["source"], clone["read_only"]) == ("/cache/calvin_env", True)
    assert not {"secrets", "environment"} & set(simulator)
    words = ["eval", "calvin", "outputs/vla/one", "--env", "calvin:37180"]
    assert policy["command"] == words
    assert simulator["command"] == ["--listen", "0.0.0.0:37180"]
    assert policy["depends_on"]["calvin"]["condition"] == "service_healthy"
    own = rendered("calvin", TATARA_CALVIN="/clone", TATARA_CACHE="/cache")["calvin"]
    assert own["volumes"][0]["source"] == "/clone"


def test_several_hosts_take_their_own_network_and_all_their_gpus() -> None:
    env = {"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "3"}
    for name, service in rendered("llm-4090", "compose.multihost.yaml", **env).items():
        environment = service["environment"]
        assert service["network_mode"] == "host"
        assert not {"networks", "hostname", "ipc", "depends_on", "ports"} & set(service)
        assert not {"NCCL_HOSTID", "CUDA_VISIBLE_DEVICES"} & set(environment)
        assert environment["MASTER_ADDR"] == "10.0.0.1"
        assert environment["NODE_RANK"] == ("0" if name == "llm-master" else "3")


# What compose.cpu.yaml has services train; llm-4090 stays itself, on a tiny model.
TINY = {"vla": "profiles/recipes/vla-tiny.yaml", "grpo-h100": "profiles/demo-grpo-sft.yaml"}


@pytest.mark.parametrize(
    "profile",
    [
        "llm-4090",
        "llm-serve",
        "vla",
        "vla_finetune",
        "vla-serve",
        "calvin",
        "grpo-h100",
        "grpo-vllm",
    ],
)
def test_without_a_gpu_nothing_is_reserved(profile: str) -> None:
    real = rendered(profile)
    for name, service in rendered(profile, "compose.cpu.yaml").items():
        assert "deploy" not in service and "ulimits" not in service
        same = ("image", "build", "healthcheck", "volumes", "user", "init")
        assert all(service.get(key) == real[name].get(key) for key in same)
        task = {f"profiles/{name}.yaml": TINY[name]} if name in TINY else {}
        assert service["command"] == [task.get(word, word) for word in real[name]["command"]]


def test_every_variable_has_a_default_and_is_documented() -> None:
    text = "".join((ROOT / name).read_text() for name in FILES)
    used = re.findall(r"\$\{([A-Z0-9_]+)(:[-+]|[^:])", text)
    assert all(operator in (":-", ":+") for _, operator in used), used
    documented = re.findall(r"^(?:# )?([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M)
    assert {name for name, _ in used} - set(documented) == set()


def test_no_setting_of_a_training_is_named() -> None:
    text = (ROOT / "compose.yaml").read_text() + (ROOT / "compose.multihost.yaml").read_text()
    assert not re.search(r"TATARA__|BATCH_SIZE|LEARNING_RATE|EPOCHS|MODEL_NAME|LORA", text)


def test_the_linter_of_compose_files_finds_nothing() -> None:
    if shutil.which("npx") is None:
        pytest.skip("NOT TESTED, dclint: npx is not on PATH")
    linter = ["npx", "--yes", "dclint@3.1.0"]
    there = subprocess.run([*linter, "--version"], capture_output=True, text=True, timeout=120)
    if there.returncode:
        pytest.skip(f"NOT TESTED, dclint cannot be fetched: {there.stderr[-200:]}")
    words = ["--config", ".dclintrc.yaml", "--max-warnings", "0", *FILES]
    done = subprocess.run([*linter, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
