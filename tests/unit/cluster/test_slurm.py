"""A profile as a batch script: what it asks for, whom it signals, when it is requeued."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.waiting import until
from workloads.cli import main
from workloads.cluster.slurm import SlurmJob, render

pytestmark = pytest.mark.unit

JOB = SlurmJob(
    name="demo",
    profile="profiles/demo.yaml",
    settings=("train.seed=1", "model.name=a b"),
    nodes=2,
    outputs=Path("/data/my outputs"),
    checkout=Path("/home/me/tatara"),
    python="/home/me/tatara/.venv/bin/python",
)
FORMS = {
    "plain": JOB,
    "array": replace(JOB, array=("train.seed", ("1", "2"))),
    "pyxis": replace(JOB, runtime="pyxis", image="tatara.sqsh"),
    "apptainer": replace(JOB, runtime="apptainer", image="tatara.sif", gpus=4),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_sound_bash(form: str, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render(FORMS[form]))
    shellcheck = Path(sys.executable).with_name("shellcheck")
    words = [shellcheck, "--exclude=SC2016"] if shellcheck.exists() else ["bash", "-n"]
    done = subprocess.run([*words, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_asked_for() -> None:
    job = replace(JOB, gpus=4, limit="4:00:00", save_seconds=300, options=("--partition=gpu",))
    lines = render(job).splitlines()
    for option in (
        "--nodes=2",
        "--gpus-per-node=4",
        "--time=4:00:00",
        "--signal=B:USR1@360",
        "--requeue",
        "--partition=gpu",
    ):
        assert f"#SBATCH {option}" in lines
    assert "arguments=(train profiles/demo.yaml train.seed=1 'model.name=a b')" in lines


# Stand-ins for Slurm's programs: srun ends with CODE once it has been sent the signal that the step
# gets, requeue leaves a mark.
PROGRAMS = {
    "scontrol": "#!/bin/bash\nif [[ $1 == requeue ]]; then\n"
    '  touch "$MARKS/requeued"\n  kill $PPID\nfi\n',
    "scancel": '#!/bin/bash\necho "$@" >"$MARKS/signal"\n',
    "srun": '#!/bin/bash\ntouch "$MARKS/started"\n'
    'until [[ -z $WAITS || -s $MARKS/signal ]]; do sleep 0.02; done\nexit "$CODE"\n',
    "sleep": '#!/bin/bash\n[[ $1 == 60 ]] || exec /bin/sleep "$@"\n',
}


@pytest.mark.parametrize(
    ("code", "signal", "requeued"),
    [
        (0, "", False),
        (1, "", False),
        (2, "", False),
        (75, "", True),
        (3, "USR1", True),
        (3, "TERM", False),
        (143, "TERM", False),
        (0, "USR1", False),
    ],
)
def test_when_a_job_goes_on_by_itself(
    tmp_path: Path, code: int, signal: str, requeued: bool
) -> None:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(render(replace(JOB, outputs=tmp_path)))
    env = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "MARKS": str(tmp_path),
        "CODE": str(code),
        "WAITS": signal,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]",
    }
    with subprocess.Popen(["bash", script], env=env) as process:
        if signal:
            until((tmp_path / "started").exists)
            subprocess.run(["kill", f"-{signal}", str(process.pid)], check=True)
        ended = process.wait(60)
    assert (tmp_path / "requeued").exists() is requeued
    if signal:
        assert (tmp_path / "signal").read_text().strip() == "--signal=TERM 7.0"
    if not requeued:
        assert ended == code


def test_the_retries_after_75_are_bounded(tmp_path: Path) -> None:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(render(replace(JOB, outputs=tmp_path, retries=2)))
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MARKS": str(tmp_path), "CODE": "75", "WAITS": ""}
    env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    ends = []
    for _ in range(3):
        (tmp_path / "requeued").unlink(missing_ok=True)
        subprocess.run(["bash", script], env=env, timeout=60)
        ends.append((tmp_path / "requeued").exists())
    assert ends == [True, True, False]


def test_a_mistake_is_found_before_the_queue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "slurm", "demo", "train.sed=1", "--print"]) == 2
    assert "train.sed" in capsys.readouterr().err
    assert main(["submit", "slurm", "demo", "--array", "train.seed=1,x", "--print"]) == 2
    assert main(["submit", "slurm", "demo", "--image", "x.sif", "--print"]) == 2


def test_printing_takes_no_torch_and_less_than_a_second() -> None:
    code = (
        "import sys; from workloads.cli import main; main(['submit', 'slurm', 'demo', '--print'])"
    )
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "arguments=(train profiles/demo.yaml)" in done.stdout


def test_without_a_scheduler_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["submit", "slurm", "demo"]) == 2
    assert "expected sbatch on PATH, found none" in capsys.readouterr().err
