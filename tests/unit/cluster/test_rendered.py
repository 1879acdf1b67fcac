"""A profile as a task of SkyPilot and as a TrainJob: valid by the engines' own fields."""

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from workloads.cli import main
from workloads.cluster.fields import known, wrong_fields
from workloads.cluster.job import ClusterJob, dump, profile_of
from workloads.cluster.sky import Rented, task
from workloads.cluster.trainjob import ClusterPlace, documents, job_name
from workloads.config.merge import resolve
from workloads.errors import UserError

pytestmark = pytest.mark.unit

JOB = ClusterJob(
    name="demo",
    run_id="20260101-120000-abcd",
    profile='workload: llm\ndata:\n  source: it\'s "here"\n',
    nodes=2,
    ranks=4,
    gpus=4,
    cpus=16,
    hours=2.0,
    image="registry.example/tatara:1",
    secrets=("HF_TOKEN",),
)
RENTED = Rented(infra="lambda/us-east-1", accelerator="H100", most=12.5, bucket="s3://mine/runs")
PLACE = ClusterPlace(volume="shared", secret="tokens", queue="team", namespace="research")


def runtime(job: ClusterJob = JOB) -> dict[str, Any]:
    return documents(job, PLACE)[1]


def train_job(job: ClusterJob = JOB) -> dict[str, Any]:
    return documents(job, PLACE)[2]


def pod(document: dict[str, Any]) -> dict[str, Any]:
    (node,) = document["spec"]["template"]["spec"]["replicatedJobs"]
    found: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    return found


FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sky, an image": ("sky", "Task", task(JOB, RENTED)),
    "sky, compose": ("sky", "Task", task(replace(JOB, image=""), RENTED)),
    "sky, plain": ("sky", "Task", task(replace(JOB, gpus=0, hours=0, image=""), Rented())),
    "runtime": ("trainer", "TrainingRuntime", runtime()),
    "trainjob": ("trainer", "TrainJob", train_job()),
    "trainjob, plain": ("trainer", "TrainJob", train_job(replace(JOB, gpus=0, cpus=0, hours=0))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_field_is_known_to_its_engine(form: str) -> None:
    engine, kind, document = FORMS[form]
    assert wrong_fields(engine, kind, document) == []
    assert yaml.safe_load(dump([document])) == document


def _wrong_name(document: dict[str, Any]) -> None:
    document["spec"]["trainer"]["numNode"] = 2


def _wrong_type(document: dict[str, Any]) -> None:
    document["spec"]["trainer"]["numProcPerNode"] = "auto"


def _missing(document: dict[str, Any]) -> None:
    del document["spec"]["runtimeRef"]["name"]


def _deep_down(document: dict[str, Any]) -> None:
    pod(document)["containers"][0]["volumeMount"] = []


def _wrong_choice(document: dict[str, Any]) -> None:
    document["spec"]["template"]["spec"]["failurePolicy"]["rules"][0]["action"] = "Fail"


def _autodown(document: dict[str, Any]) -> None:
    document["resources"]["autostop"]["idle_minute"] = 5


def _cap(document: dict[str, Any]) -> None:
    document["resources"]["max_hourly_cost"] = True


@pytest.mark.parametrize(
    ("form", "change", "text"),
    [
        ("trainjob", _wrong_name, "TrainJob.spec.trainer.numNode: no such field; did you mean"),
        ("trainjob", _wrong_type, "numProcPerNode: expected integer, found 'auto'"),
        ("trainjob", _missing, "TrainJob.spec.runtimeRef: expected name, found none"),
        ("runtime", _deep_down, "containers[0].volumeMount: no such field"),
        ("runtime", _wrong_choice, "expected one of FailJobSet, RestartJobSet"),
        ("sky, image", _autodown, "autostop.idle_minute: no such field"),
        ("sky, image", _cap, "max_hourly_cost: expected number, found True"),
    ],
)
def test_a_wrong_field_is_found(
    form: str, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    engine, kind, document = FORMS[form.replace("sky, image", "sky, an image")]
    document = copy.deepcopy(document)
    change(document)
    (found,) = wrong_fields(engine, kind, document)
    assert text in found


@pytest.mark.parametrize("engine", ["sky", "trainer"])
def test_each_list_names_where_it_is_from(engine: str) -> None:
    assert known(engine)["version"].lstrip("v")[0].isdigit()
    assert known(engine)["source"].startswith("https://")
    assert known(engine)["licence"] == "Apache-2.0"


PROFILES = sorted(Path("profiles").glob("**/*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_goes_along_as_it_was_resolved(path: Path, tmp_path: Path) -> None:
    """Settings of the environment and the command line too, which are not there."""
    config, _ = resolve(path, {"TATARA__TRAIN__LOG_EVERY": "7"}, ["train.seed=5"])
    sent = tmp_path / path.name
    sent.write_text(profile_of(config))
    assert resolve(sent, {})[0] == config


def test_what_a_pod_may_do_and_where_it_writes() -> None:
    found = pod(runtime())
    assert found["securityContext"]["runAsNonRoot"]
    assert found["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert found["terminationGracePeriodSeconds"] == 600
    volumes = {volume["name"]: volume for volume in found["volumes"]}
    assert volumes["volume"]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    mounts = {mount["name"]: mount["mountPath"] for mount in found["containers"][0]["volumeMounts"]}
    assert mounts == {"volume": "/volume", "profiles": "/etc/tatara", "shm": "/dev/shm"}


def test_which_exit_codes_restart() -> None:
    spec = runtime()["spec"]["template"]["spec"]
    (node,) = spec["replicatedJobs"]
    assert node["name"] == "node" == pod(runtime())["containers"][0]["name"]
    assert node["template"]["spec"]["backoffLimit"] == 0
    drained, ended = node["template"]["spec"]["podFailurePolicy"]["rules"]
    assert drained["action"] == "Ignore"
    assert ended["action"] == "FailJob" and ended["onExitCodes"]["values"] == [1, 2, 3]
    assert spec["failurePolicy"]["maxRestarts"] == 3
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_what_a_trainjob_asks_for() -> None:
    found = train_job()
    trainer = found["spec"]["trainer"]
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert found["metadata"]["namespace"] == "research"
    assert found["spec"]["activeDeadlineSeconds"] == 7200
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": 4, "cpu": 16}
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    env = {item["name"]: item for item in trainer["env"]}
    assert env["RUN_ID"]["value"] == JOB.run_id
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "tokens", "key": "HF_TOKEN"}
    assert not [name for name in env if name.startswith("PET_")]  # Trainer refuses them


def test_a_pod_starts_training_with_our_names_and_none_of_torchruns(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/bash\necho "$@"\nenv\n')
    program.chmod(0o755)
    env = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "a-node-0-0.a"}
    env |= {"PET_MASTER_PORT": "29500", "PET_NPROC_PER_NODE": "4"}
    trainer = train_job()["spec"]["trainer"]
    done = subprocess.run(
        [*trainer["command"], *trainer["args"]],
        env={**env, "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "-m workloads.entry train /etc/tatara/demo.yaml"
    for line in ("NNODES=2", "NODE_RANK=1", "MASTER_ADDR=a-node-0-0.a", "MASTER_PORT=29500"):
        assert line in lines
    assert "PET_" not in done.stdout


@pytest.mark.parametrize("name", ["demo", "VLA_h100.long-name-of-a-profile-that-goes-on", "7b"])
def test_host_names_of_pods_fit(name: str) -> None:
    found = job_name(name, "20260101-120000-abcd")
    assert len(f"{found}-node-0-10") <= 63
    assert found == found.lower() and "_" not in found
    with pytest.raises(UserError, match="--run-id: expected at most"):
        job_name(name, "x" * 60)


def test_what_sky_is_asked_for() -> None:
    found = task(JOB, RENTED)
    assert found["num_nodes"] == 2
    resources = found["resources"]
    assert resources["accelerators"] == "H100:4"
    assert resources["infra"] == "lambda/us-east-1"
    assert resources["image_id"] == f"docker:{JOB.image}"
    assert resources["max_hourly_cost"] == 12.5
    assert resources["autostop"] == {"idle_minutes": 60, "down": True, "wait_for": "jobs"}
    assert resources["job_recovery"]["recover_on_exit_codes"] == [75]
    assert found["envs"] == {"RUN_ID": JOB.run_id}
    assert found["secrets"] == {"HF_TOKEN": None, "TATARA_RENDEZVOUS_SECRET": None}
    assert "nvidia-ctk" in task(replace(JOB, image=""), RENTED)["setup"]
    assert "setup" not in found


@pytest.mark.parametrize("form", ["sky, an image", "sky, compose", "sky, plain"])
@pytest.mark.parametrize("part", ["setup", "run"])
def test_scripts_are_sound_bash(form: str, part: str, tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/bash\n" + FORMS[form][2].get(part, ""))
    shellcheck = Path(sys.executable).with_name("shellcheck")
    words = [shellcheck, "--exclude=SC2016,SC2155,SC2015,SC2034"]
    done = subprocess.run(
        [*(words if shellcheck.exists() else ["bash", "-n"]), script],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# A stand-in for the training: notes its arguments, ends with the first code that is left in a file.
TRAINING = """#!/bin/bash
echo "$@ $NODE_RANK $MASTER_ADDR" >>"$MARKS/started"
mkdir -p outputs/demo/$RUN_ID/final
echo model >outputs/demo/$RUN_ID/final/model; echo seal >outputs/demo/$RUN_ID/final/complete.json
code=$(head -n 1 "$MARKS/codes"); sed -i 1d "$MARKS/codes"
exit "$code"
"""
RSYNC = """#!/bin/bash
echo "$@" >>"$MARKS/copied"
"""


@pytest.mark.parametrize(
    ("codes", "ended"), [([0], 0), ([75, 75, 0], 0), ([3], 3), ([2], 2), ([75, 75, 75, 75], 75)]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_machine_tries_again_after_75_and_node_0_copies(
    tmp_path: Path, codes: list[int], ended: int, rank: int
) -> None:
    for name, text in (("python", TRAINING), ("rsync", RSYNC)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    (tmp_path / "profiles").mkdir()
    bucket = tmp_path / "bucket"
    script = task(JOB, RENTED)["run"].replace("/tatara-outputs", str(bucket))
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MARKS": str(tmp_path), "RUN_ID": JOB.run_id}
    env |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank)}
    env["SKYPILOT_NODE_IPS"] = "10.0.0.1\n10.0.0.2"
    script = script.replace("/opt/venv/bin:", "")
    done = subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, timeout=60)
    assert done.returncode == ended
    assert (tmp_path / "profiles" / "demo.yaml").read_text() == JOB.profile
    started = (tmp_path / "started").read_text().splitlines()
    line = f"-m workloads.entry train profiles/demo.yaml {rank} 10.0.0.1"
    assert started == [line] * len(codes)
    assert (tmp_path / "copied").exists() is (rank == 0)
    if rank == 0:
        first, last = (tmp_path / "copied").read_text().splitlines()
        assert "--exclude complete.json" in first and "--exclude" not in last
        assert last.endswith(f"outputs/demo/{JOB.run_id}/ {bucket}/demo/{JOB.run_id}/")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["sky", "demo", "train.sed=1"], "train.sed"),
        (["sky", "demo", "--gpus", "2"], "--gpu-type"),
        (["sky", "demo", "--hours", "0.05"], "--hours: expected more than the 300 s"),
        (["sky", "demo", "--queue", "x"], "--queue: expected with trainjob alone, found with sky"),
        (["sky", "demo", "--gpus", "-1"], "--gpus: expected 0 or more, found -1"),
        (["slurm", "demo", "--hours", "nan"], "--hours: expected 0 or more, found nan"),
        (["slurm", "demo", "--bucket", "x"], "--bucket: expected with sky alone"),
        (["trainjob", "demo"], "expected --image ADDRESS"),
        (["trainjob", "llm-4090", "--gpus", "1", "--image", "a"], "expected at most the 1 of"),
        (["slurm", "demo", "--hours", "1", "--time", "1:00:00"], "expected --time or --hours"),
    ],
)
def test_mistakes_are_found_before_anything_is_spent(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *words, "--print"]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "more", "program", "install"),
    [
        ("sky", (), "sky", "uv tool install"),
        ("trainjob", ("--image", "a/b:1"), "kubectl", "Kubeflow Trainer"),
    ],
)
def test_without_the_engine_it_says_what_to_install(
    engine: str,
    more: tuple[str, ...],
    program: str,
    install: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    assert main(["submit", engine, "demo", *more]) == 2
    told = capsys.readouterr().err
    assert f"expected {program} on PATH, found none" in told and install in told
    assert main(["submit", engine, "demo", *more, "--check"]) == 0
    assert "its fields are known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("engine", "more", "program", "called"),
    [
        ("sky", ("--option=--yes",), "sky", "launch -c tatara-demo --secret HF_TOKEN"),
        ("trainjob", ("--image", "a/b:1"), "kubectl", "apply -f"),
    ],
)
def test_the_engine_is_called_and_never_told_a_secret_by_its_arguments(
    engine: str,
    more: tuple[str, ...],
    program: str,
    called: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / program).write_text('#!/bin/bash\necho "called: $*"\nexit "$CODE"\n')
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("TATARA_RENDEZVOUS_SECRET", "canary_too")
    monkeypatch.setenv("CODE", "0")
    assert main(["submit", engine, "demo", *more, "--run-id", "again"]) == 0
    told = capfd.readouterr().out
    assert f"called: {called}" in told and "run demo/again" in told
    (path,) = (tmp_path / "outputs").iterdir()
    assert "canary" not in told + path.read_text()
    monkeypatch.setenv("CODE", "1")
    assert main(["submit", engine, "demo", *more]) == 2
    assert f"{program} did not take" in capfd.readouterr().err


@pytest.mark.parametrize(("code", "ended"), [("0", 0), ("1", 2)])
def test_sky_itself_reads_the_file_where_it_is_installed(
    code: str,
    ended: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the python of its own environment, which the first line of its program names."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/bash\n[[ $2 == *Task.from_yaml* && -f $3 ]] || exit 9\nexit {code}\n"
    )
    (tmp_path / "sky").write_text(f"#!{python}\n")
    for path in (python, tmp_path / "sky"):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    assert main(["submit", "sky", "demo", "--check"]) == ended
    told = capsys.readouterr()
    assert ("SkyPilot reads it" in told.out) is (ended == 0)
    assert ("SkyPilot refuses it" in told.err) is (ended == 2)


@pytest.mark.parametrize("engine", ["sky", "trainjob"])
def test_printing_takes_no_torch(engine: str) -> None:
    words = ["submit", engine, "demo", "--image", "a/b:1", "--print"]
    code = f"import sys; from workloads.cli import main; assert main({words}) == 0"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load_all(done.stdout)


def test_hours_are_slurms_time_limit_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "slurm", "demo", "--hours", "1.5", "--print"]) == 0
    assert "#SBATCH --time=90\n" in capsys.readouterr().out
