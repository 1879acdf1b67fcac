"""Driver and cards, told by a stand-in nvidia-smi, against torch's build and the profile."""

import sys
from pathlib import Path

import pytest

from tests.support.doctor_machine import H100, RTX_4090, V100, Machine, llm, matrix, say, service
from workloads.doctor import nvidia
from workloads.doctor.nvidia import Build, InstalledCard
from workloads.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    """Four RTX 4090 under an engine that knows them, with the services of llm-4090."""
    machine = Machine(tmp_path)
    machine.gpus(*[RTX_4090] * 4, p2p="CNS")
    machine.docker(llm())
    return machine


def test_what_is_good_is_called_good(host: Machine) -> None:
    found = host.examine("llm-4090")
    for name in ("NVIDIA driver", "compute capability", "GPUs", "GPU memory", "P2P between GPUs"):
        assert found[name].level == "ok", found[name]
    assert found["NVIDIA driver"].found == "580.95.05"
    assert found["GPUs"].needed == "llm-master: 2, numbers 0,1; llm-worker: 2, numbers 2,3"
    assert found["P2P between GPUs"].found == "no, for 6 of 6 pairs; NCCL has been told"


@pytest.mark.parametrize("tells", [True, False], ids=["new questions", "old questions"])
def test_an_old_driver(host: Machine, tells: bool) -> None:
    host.gpus(*[RTX_4090] * 4, driver="525.105.17", tells_capability=tells)
    found = host.examine("llm-4090")["NVIDIA driver"]
    assert (found.level, found.found) == ("error", "525.105.17")
    assert found.needed == "580 or newer for CUDA 13.0 (the usual build)"
    assert "apt-get install -y nvidia-driver-580" in found.fix
    assert "or the older build: TORCH_INDEX_URL=…/whl/cu126" in found.fix


def test_an_older_build_of_torch_is_what_an_old_driver_can_run(host: Machine) -> None:
    host.gpus(*[RTX_4090] * 4, driver="525.105.17")
    found = host.examine("llm-4090", TORCH_INDEX_URL="https://example.org/whl/cu126")
    assert found["NVIDIA driver"].level == "warning"
    assert "525.60.13 or newer for CUDA 12.6 (TORCH_INDEX_URL ends in cu126)" in (
        found["NVIDIA driver"].needed
    )
    assert "560.28.03" in found["NVIDIA driver"].found


def test_a_driver_too_old_for_any_build_is_told_to_be_renewed(host: Machine) -> None:
    host.gpus(*[RTX_4090] * 4, driver="470.256.02", tells_capability=False)
    fix = host.examine("llm-4090")["NVIDIA driver"].fix
    assert "nvidia-driver-580" in fix and "TORCH_INDEX_URL" not in fix


@pytest.mark.parametrize("tells", [True, False], ids=["by the driver", "by its name"])
def test_a_v100(host: Machine, tells: bool) -> None:
    host.gpus(*[V100] * 4, tells_capability=tells)
    found = host.examine("llm-4090")
    assert found["compute capability"].level == "error"
    assert found["compute capability"].found == "Tesla V100-SXM2-32GB 7.0"
    assert found["compute capability"].needed.startswith("one of 7.5, 8.0")
    assert "whl/cu126" in found["compute capability"].fix
    assert "train.precision=fp16" in found["compute capability"].fix
    assert found["precision"].level == "warning"
    older = host.examine("llm-4090", "train.precision=fp16", TORCH_INDEX_URL="x/whl/cu126/")
    assert older["compute capability"].level == "ok"
    assert "precision" not in older


def test_one_gpu_for_a_profile_of_four(host: Machine) -> None:
    host.gpus(RTX_4090)
    found = host.examine("llm-4090")["GPUs"]
    assert (found.level, found.found) == ("error", "1 (NVIDIA GeForce RTX 4090)")
    assert found.fix == (
        "NODES=1 NPROC_PER_NODE=1 LLM_MASTER_GPUS=0 scripts/start_training.sh llm-4090"
    )


def test_one_gpu_is_enough_for_one_rank(host: Machine) -> None:
    host.gpus(RTX_4090)
    host.docker(llm("0", "", environment={"NNODES": "1", "NPROC_PER_NODE": "1"}))
    found = host.examine("llm-4090", NNODES="1", NPROC_PER_NODE="1")
    assert (found["GPUs"].level, found["GPUs"].needed) == ("ok", "llm-master: 1, numbers 0")
    assert "P2P between GPUs" not in found


def test_one_host_of_two_starts_one_node(host: Machine) -> None:
    services = llm("", "", network_mode="host")
    host.docker(services)
    facts = host.look("llm-4090", NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert [service.name for service in facts.services] == ["llm-worker"]
    assert [(node.name, len(node.cards), node.ranks) for node in facts.nodes] == [
        ("llm-worker", 4, 2)
    ]


def test_a_gpu_given_to_two_nodes(host: Machine) -> None:
    host.docker(llm("0,1", "1,2"))
    found = host.examine("llm-4090")["GPUs"]
    assert (found.level, found.found) == ("error", "GPU 1 given to two nodes")


def test_no_gpu_where_a_service_reserves_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.docker(llm())
    found = machine.examine("llm-4090")
    assert found["NVIDIA driver"].level == "error"
    assert "nvidia-smi is not on PATH" in found["NVIDIA driver"].found
    assert "GPUs" not in found


def test_no_gpu_where_none_is_needed(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.docker({"demo-master": service("demo", 0, None)})
    assert machine.examine("demo")["GPU"].level == "skipped"
    assert machine.examine()["GPU"].level == "warning"
    local = machine.examine("demo", TATARA_RUNTIME="local")["GPU"]
    assert (local.level, local.found) == ("ok", "none: trains on the CPU")
    assert machine.examine("llm-4090", TATARA_RUNTIME="local")["GPU"].level == "warning"


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", "sudo reboot"),
        ("No devices were found", "on a machine with an NVIDIA GPU"),
    ],
)
def test_a_driver_that_does_not_answer(host: Machine, said: str, fix: str) -> None:
    host.broken_driver(said)
    found = host.examine("llm-4090")["NVIDIA driver"]
    assert found.level == "error" and said in found.found and fix in found.fix


def test_the_cpu_build_beside_a_gpu(host: Machine) -> None:
    found = host.examine("llm-4090", TORCH_INDEX_URL="https://example.org/whl/cpu")
    assert found["NVIDIA driver"].level == "error"
    assert "torch is built for CPUs" in found["NVIDIA driver"].found
    assert "compute capability" not in found


def test_a_plan_that_does_not_fit(host: Machine) -> None:
    small = ("NVIDIA GeForce RTX 3060 Laptop GPU", 6144, "8.6")
    host.gpus(*[small] * 4)
    found = host.examine("llm-4090")["GPU memory"]
    assert (found.level, found.found) == ("error", "6.0 GiB")
    assert "adapter.method=lora" in found.fix


def test_p2p_that_is_there_is_to_be_used(host: Machine) -> None:
    host.gpus(*[H100] * 4, p2p="OK")
    found = host.examine("llm-4090")["P2P between GPUs"]
    assert found.level == "warning" and "NCCL_P2P_DISABLE=0" in found.fix


@pytest.mark.parametrize(("card", "verdict"), [(RTX_4090, "error"), (H100, "warning")])
def test_p2p_that_is_not_there_and_nccl_not_told(
    host: Machine, card: tuple[str, int, str], verdict: str
) -> None:
    host.gpus(*[card] * 4, p2p="NS")
    found = host.examine("llm-4090", TATARA_RUNTIME="local")["P2P between GPUs"]
    assert found.level == verdict
    assert "NCCL_P2P_DISABLE=1" in found.fix and "NCCL_IB_DISABLE=1" in found.fix


def test_a_local_job_shares_this_machines_gpus(host: Machine) -> None:
    found = host.examine("llm-4090", TATARA_RUNTIME="local", CUDA_VISIBLE_DEVICES="0,3")["GPUs"]
    assert (found.level, found.needed) == ("error", "node 0: 2; node 1: 2")
    assert found.fix.startswith("NNODES=1 NPROC_PER_NODE=2")
    fits = host.examine("llm-4090", TATARA_RUNTIME="local", CUDA_VISIBLE_DEVICES="0,3", NNODES="1")
    assert fits["GPUs"].level == "ok"


def test_one_gpu_trains_the_demo_as_one_node(host: Machine) -> None:
    """`make train` with one GPU and no engine: two nodes are one more than it has a GPU for."""
    host.gpus(H100)
    found = host.examine("demo", TATARA_RUNTIME="local")["GPUs"]
    assert (found.level, found.needed) == ("ok", "node 0: 1")
    two_ranks = host.examine("llm-4090", TATARA_RUNTIME="local")["GPUs"]
    assert (two_ranks.level, two_ranks.fix) == ("error", "NPROC_PER_NODE=1")


def test_gpus_hidden_from_a_local_job(host: Machine) -> None:
    env = {"TATARA_RUNTIME": "local", "CUDA_VISIBLE_DEVICES": "7"}
    found = host.examine("llm-4090", **env)["GPUs"]
    assert found.level == "warning" and "7 names no GPU" in found.fix


def test_cards_of_a_table_alone(host: Machine) -> None:
    """One that knows no queries, such as a wrapper, still prints its table."""
    text = (host.bin / "nvidia-smi").read_text()
    table = text[text.index("'') ") + 4 : text.index("*) exit 127")].rstrip().removesuffix(";;")
    host.program("nvidia-smi", otherwise=table)
    cards = host.look("llm-4090").smi.cards
    assert [(card.index, card.name, card.memory, card.capability) for card in cards] == [
        (at, "NVIDIA GeForce RTX 4090", 24564 << 20, (8, 9)) for at in range(4)
    ]


def test_a_question_without_an_end(host: Machine) -> None:
    from workloads.host.programs import run_program

    (host.bin / "sleep").symlink_to("/bin/sleep")
    host.program("nvidia-smi", otherwise="sleep 600 & wait")
    answer = run_program(["nvidia-smi"], host.env, seconds=0.2)
    assert answer.code is None and "gave no answer within 0.2 s" in answer.problem


def test_p2p_by_pairs(host: Machine) -> None:
    cards = tuple(InstalledCard(at, "", "x", None, None) for at in (0, 2))
    host.program("nvidia-smi", otherwise=say(matrix(3, "CNS")))
    assert nvidia.no_p2p(host.env, cards) == [(0, 2)]
    host.program("nvidia-smi", otherwise=say(matrix(3, "OK")))
    assert nvidia.no_p2p(host.env, cards) == []
    host.program("nvidia-smi", otherwise="exit 1")
    assert nvidia.no_p2p(host.env, cards) is None


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(None, [0, 1, 2]), ("", []), ("2,0", [2, 0]), ("0,9,1", [0]), ("GPU-1", [1]), ("GPU-", [])],
)
def test_visible_devices_follow_cudas_rule(wanted: str | None, expected: list[int]) -> None:
    cards = tuple(InstalledCard(at, f"GPU-{at}a", "x", None, None) for at in range(3))
    assert [card.index for card in nvidia.visible(cards, wanted)] == expected


def test_a_slice_of_mig_is_found_by_its_uuid(host: Machine) -> None:
    """`nvidia-smi -L` alone lists them; a process sees one of them, and nothing beside it."""
    host.gpus(H100, p2p="OK")
    listed = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0a-77)"
    for place, uuid in enumerate(("MIG-aa", "MIG-bb")):
        listed += f"\n  MIG 1g.10gb     Device  {place}: (UUID: {uuid})"
    query = (host.bin / "nvidia-smi").read_text()
    (host.bin / "nvidia-smi").write_text(query.replace("in\n", f"in\n-L) {say(listed)} ;;\n", 1))
    facts = host.look(None, TATARA_RUNTIME="local", CUDA_VISIBLE_DEVICES="MIG-bb,MIG-aa")
    (card,) = facts.cards
    assert card == InstalledCard(0, "MIG-bb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, (9, 0))
    assert host.look(None, TATARA_RUNTIME="local", CUDA_VISIBLE_DEVICES="MIG-cc").cards == ()
    assert host.look(None, TATARA_RUNTIME="local").smi.slices == ()


@pytest.mark.parametrize(
    ("url", "cuda"),
    [
        ("https://example.org/whl/cu128", (12, 8)),
        ("https://example.org/whl/cu130/", (13, 0)),
        ("https://example.org/whl/cu118", (11, 8)),
        ("https://example.org/whl/cpu", None),
    ],
)
def test_the_build_that_an_index_holds(url: str, cuda: tuple[int, int] | None) -> None:
    build = nvidia.build_of_index(url)
    assert build is not None and build.cuda == cuda


def test_an_index_that_tells_nothing() -> None:
    assert nvidia.build_of_index("https://example.org/simple") is None
    assert nvidia.build_of_index("") is None


def test_the_build_that_an_installed_torch_is() -> None:
    assert nvidia.build_in("cuda: Optional[str] = None\n", "x") == Build(None, "x")
    assert nvidia.build_in("debug = False\ncuda = '13.0'\n", "x") == Build((13, 0), "x")
    assert nvidia.build_in("nothing of it", "x") is None


@pytest.mark.parametrize(
    ("capability", "cuda", "expected"),
    [
        ((8, 9), (13, 0), True),  # by the code for 8.6
        ((7, 0), (13, 0), False),
        ((7, 0), (12, 8), False),
        ((7, 0), (12, 6), True),
        ((6, 1), (12, 6), True),
        ((12, 0), (12, 6), False),
        ((10, 3), (13, 0), True),
        ((7, 5), (13, 2), True),
    ],
)
def test_cards_that_a_build_has_code_for(
    capability: tuple[int, int], cuda: tuple[int, int], expected: bool
) -> None:
    assert nvidia.is_served(capability, cuda) is expected


def test_a_card_on_the_bus(tmp_path: Path) -> None:
    assert not nvidia.on_the_bus(tmp_path)
    card = tmp_path / "0000:65:00.0"
    card.mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x040300\n")  # its sound
    assert not nvidia.on_the_bus(tmp_path)
    (card / "class").write_text("0x030000\n")
    assert nvidia.on_the_bus(tmp_path)


def test_a_runtime_that_does_not_exist(host: Machine) -> None:
    with pytest.raises(UserError, match="TATARA_RUNTIME=docker or local, found 'podman'"):
        host.examine("demo", TATARA_RUNTIME="podman")


@pytest.mark.parametrize(
    ("profile", "env"),
    [("vla-24gb", {}), ("vla", {"RECIPE": "24gb"}), ("vla", {"RECIPE": "auto"})],
    ids=["by its name", "RECIPE", "RECIPE=auto"],
)
def test_a_recipe_is_planned_though_the_service_names_another_profile(
    host: Machine, profile: str, env: dict[str, str]
) -> None:
    host.gpus(RTX_4090)
    host.docker({"vla": service("vla", command=["train", "profiles/vla.yaml"])})
    assert host.examine("vla")["GPU memory"].level == "error"
    found = host.examine(profile, **env)["GPU memory"]
    assert found.level == "ok" and found.needed.startswith("17.")


def test_an_unknown_recipe_is_named(host: Machine) -> None:
    host.docker({"vla": service("vla", command=["train", "profiles/vla.yaml"])})
    found = host.examine("vla", RECIPE="7gb")["profile"]
    assert found.level == "error" and "RECIPE: expected auto or one of" in found.found


def test_recipes_are_chosen_without_nvml(host: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python of the system may have pydantic and not the driver's library."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (host.bin / "nvidia-smi").unlink()
    host.docker({"vla": service("vla", command=["train", "profiles/vla.yaml"])})
    found = host.examine("vla", RECIPE="auto")
    assert "no NVIDIA GPU" in found["NVIDIA driver"].found and found["disk"].needed
