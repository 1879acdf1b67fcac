"""A profile as a task of SkyPilot 0.14, which rents machines at many clouds and ends them.

Two things bound what is paid for: `timeout` ends a training at its deadline, saved, and kills one
that hangs beyond that; autodown ends machines whose queue is empty. Their disks end with them: what
has to stay is copied to a bucket, seals last.
"""

import shlex
from dataclasses import dataclass
from typing import Any

from workloads.cluster.job import ClusterJob
from workloads.errors import UserError

_KILL = 660  # seconds from the deadline's SIGTERM to SIGKILL: longer than the longest save
_KEPT = "/tatara-outputs"  # where the bucket is mounted


@dataclass(frozen=True)
class Rented:
    """What to rent, and for how long.

    infra: a cloud, with its region where that matters: lambda/us-east-1. accelerator: the name of a
    GPU. most: dollars an hour at most, 0 for no limit. idle_minutes: from the job's end until the
    machines
    are ended. bucket: an address. like: the profile whose Compose services train a profile of your
    own.
    save_seconds: reserved before the deadline for the last step and its checkpoint.
    """

    infra: str = ""
    accelerator: str = ""
    most: float = 0.0
    idle_minutes: int = 60
    bucket: str = ""
    like: str = ""
    save_seconds: int = 300


# Docker on rented machines lacks NVIDIA's runtime; with systemd's cgroups, containers lose their
# GPUs whenever systemd reloads, which SkyPilot makes it do.
_TOOLKIT = """\
set -e
command -v nvidia-ctk >/dev/null || {
  sudo apt-get update -qq
  sudo apt-get install -y -qq nvidia-container-toolkit
}
sudo nvidia-ctk runtime configure --runtime=docker
sudo python3 -c '
import json
path = "/etc/docker/daemon.json"
settings = json.load(open(path))
settings["exec-opts"] = ["native.cgroupdriver=cgroupfs"]
json.dump(settings, open(path, "w"), indent=1)
'
sudo systemctl restart docker
"""
_DOCKER = """\
sudo usermod -aG docker "$USER"
"""
# SkyPilot's names to Tatara's.
_NAMES = """\
export NNODES=$SKYPILOT_NUM_NODES NODE_RANK=$SKYPILOT_NODE_RANK
export MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
"""
_FETCH = """\
run=outputs/{name}/$RUN_ID kept={kept}/{name}/$RUN_ID
if ((NODE_RANK == 0)) && [[ -d $kept ]]; then # on new machines: what the run had on the old ones
  mkdir -p "$run" && rsync -a "$kept/" "$run/"
fi
"""
# 75 is worth retrying; the run keeps its id and goes on.
_TRIES = """\
for attempt in $(seq 0 {retries}); do
  code=0
  {command} || code=$?
  ((code == 75)) || break
done
"""
_COPY = """\
if ((NODE_RANK == 0)); then # seals last: a copy that was cut short has none
  mkdir -p "$kept"
  rsync -a --inplace --exclude complete.json "$run/" "$kept/" &&
    rsync -a --inplace "$run/" "$kept/" || ((code > 0)) || code=1
fi
"""


def task(job: ClusterJob, rented: Rented) -> dict[str, Any]:
    """The task as a mapping, ready to be written as YAML.

    Raises UserError for GPUs of no type.
    """
    if job.gpus and not rented.accelerator:
        raise UserError(
            "expected --gpu-type beside --gpus, found none; name what to rent: --gpu-type H100"
        )
    resources: dict[str, Any] = {
        "infra": rented.infra,
        "accelerators": f"{rented.accelerator}:{job.gpus}" if job.gpus else "",
        "cpus": f"{job.cpus}+" if job.cpus else "",
        "image_id": f"docker:{job.image}" if job.image else "",
        "max_hourly_cost": rented.most,
        "autostop": {"idle_minutes": rented.idle_minutes, "down": True, "wait_for": "jobs"},
        # Read by `sky jobs launch`, which starts the machines again too.
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]},
    }
    found: dict[str, Any] = {
        "name": f"tatara-{job.name}",
        "num_nodes": job.nodes,
        "resources": {name: value for name, value in resources.items() if value},
        "workdir": ".",
        "envs": {"RUN_ID": job.run_id},
    }
    secrets = [*job.secrets, *(["TATARA_RENDEZVOUS_SECRET"] if job.nodes > 1 else [])]
    if secrets:
        found["secrets"] = dict.fromkeys(secrets)
    if rented.bucket:
        found["file_mounts"] = {_KEPT: {"source": rented.bucket, "mode": "MOUNT"}}
    if not job.image:
        found["setup"] = (_TOOLKIT if job.gpus else "set -e\n") + _DOCKER
    found["run"] = _run(job, rented)
    return found


def _run(job: ClusterJob, rented: Rented) -> str:
    """The script that each machine runs in the checkout sent to it."""
    profile = f"profiles/{job.name}.yaml"
    lines = [
        f"cat >{shlex.quote(profile)} <<'END_OF_PROFILE'\n{job.profile}END_OF_PROFILE\n",
        _NAMES,
    ]
    deadline = ""
    if job.hours:
        seconds = round(job.hours * 3600) - rented.save_seconds
        if seconds <= 0:
            raise UserError(
                f"--hours: expected more than the {rented.save_seconds} s of --save-seconds, found "
                f"{job.hours:g}; allow more time"
            )
        deadline = f"timeout --preserve-status --kill-after={_KILL} {seconds} "
    if job.image:
        # Signals go to the training alone, which passes them on to its processes.
        alone = deadline.replace("timeout ", "timeout --foreground ")
        command = f"{alone}python -m workloads.entry train {shlex.quote(profile)}"
        lines.append("export PATH=/opt/venv/bin:$PATH TATARA_OUTPUTS=$PWD/outputs\n")
    else:
        like = f" --like {shlex.quote(rented.like)}" if rented.like else ""
        start = f"{deadline}scripts/start_training.sh {shlex.quote(job.name)}{like} --wait"
        if job.nodes > 1:
            start += ' --node "$NODE_RANK" --master "$MASTER_ADDR"'
        # This shell does not have the group yet that the setup joined.
        command = f"sg docker -c {shlex.quote('exec ' + start)}"
    tries = _TRIES.format(retries=job.retries, command=command)
    if rented.bucket:
        lines += [_FETCH.format(name=shlex.quote(job.name), kept=_KEPT), tries, _COPY]
    else:
        lines.append(tries)
    return "".join([*lines, 'exit "$code"\n'])
