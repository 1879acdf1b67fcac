"""What `tatara train` makes of a machine with fewer GPUs than a profile has nodes or ranks."""

from argparse import Namespace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from workloads import device
from workloads.check import shallow
from workloads.commands import train
from workloads.config.merge import resolve
from workloads.device import Gpu
from workloads.errors import UserError
from workloads.launch import supervisor
from workloads.launch.supervisor import Job, _same_run
from workloads.run import Run
from workloads.run.manifest import start

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]


def cards(count: int) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(number, f"GPU-{number}", "NVIDIA H100", 80 << 30, 79 << 30, (9, 0))
        for number in range(count)
    )


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, torch: str = "2.13.0") -> None:
    """A machine with so many GPUs, and a build of torch."""
    version = metadata.version
    monkeypatch.setattr(device, "gpus", lambda env: cards(count))
    monkeypatch.setattr(metadata, "version", lambda it: torch if it == "torch" else version(it))


def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, **env: str) -> Job:
    """The job that `tatara train demo` would start."""
    found: list[Any] = []
    monkeypatch.chdir(ROOT)
    with_gpus(monkeypatch, gpus)
    monkeypatch.setattr(supervisor, "launch", found.append)
    for name, value in {"TATARA_OUTPUTS": str(tmp_path), **env}.items():
        monkeypatch.setenv(name, value)
    train.main(Namespace(profile="demo", resume=None), ["train.max_steps=1"])
    (job,) = found
    assert isinstance(job, Job)
    return job


@pytest.mark.parametrize(("gpus", "nodes"), [(0, 2), (1, 1), (2, 2), (8, 2)])
def test_local_nodes_have_a_gpu_each_or_none_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, nodes: int
) -> None:
    """One GPU for two local nodes would leave the second without, and NCCL waiting for it."""
    job = launched(monkeypatch, tmp_path, gpus)
    assert (job.nodes, job.ranks) == (nodes, 1)
    assert ("parallel.nodes=1" in job.words) == (gpus == 1)


@pytest.mark.parametrize(("torch", "expected"), [("2.13.0", 4), ("2.13.0+cpu", 0)])
def test_a_torch_for_cpus_uses_no_gpu(
    monkeypatch: pytest.MonkeyPatch, torch: str, expected: int
) -> None:
    with_gpus(monkeypatch, 4, torch)
    assert device.gpu_count({}) == expected


def test_a_node_of_several_hosts_keeps_to_what_it_was_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = launched(monkeypatch, tmp_path, 1, NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert (job.nodes, job.node, job.ranks) == (2, 1, 1)


@pytest.mark.parametrize(("ranks", "mistakes"), [("2", []), ("auto", []), ("3", ["ranks"])])
def test_more_ranks_than_gpus_are_found_before_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranks: str, mistakes: list[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with_gpus(monkeypatch, 4)
    env = {"TATARA_OUTPUTS": str(tmp_path)}
    config, _ = resolve(ROOT / "profiles" / "demo.yaml", env, [f"parallel.ranks_per_node={ranks}"])
    found = [finding for finding in shallow(config, env) if finding.level == "error"]
    assert [item.name for item in found] == mistakes


@pytest.mark.parametrize(
    ("wanted", "one", "two"),
    [("auto", "single", "fsdp2"), ("fsdp2", "single", "fsdp2"), ("ddp", "single", "ddp")],
)
def test_one_rank_shares_nothing(wanted: str, one: str, two: str) -> None:
    config, _ = resolve(ROOT / "profiles" / "demo.yaml", {}, [f"parallel.strategy={wanted}"])
    assert (config.strategy(1), config.strategy(2)) == (one, two)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("action_head.kind=gpt", "expected action_head.kind lstm, .* found gpt"),
        ("action_head.gripper_weight=0.1", "expected action_head.gripper_weight 0.01"),
        ("data.normalise=null", "expected data.normalise.low -0.65, .* found None"),
        ("adapter.method=lora", "expected adapter.method full"),
    ],
)
def test_a_run_is_not_resumed_as_another(tmp_path: Path, changed: str, named: str) -> None:
    profile, own = ROOT / "profiles/recipes/policy-tiny.yaml", ["data.source=calvin"]
    config, provenance = resolve(profile, {}, own)
    run = Run(tmp_path / "policy-tiny" / "one")
    start(run, config, provenance, {})
    later, _ = resolve(profile, {}, [*own, "optim.learning_rate=1e-5", "train.max_steps=9"])
    _same_run(Job(later, provenance, {}, []), run)
    other, _ = resolve(profile, {}, [*own, changed])
    with pytest.raises(UserError, match=named):
        _same_run(Job(other, provenance, {}, []), run)
