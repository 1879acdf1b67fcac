"""A profile as a batch script of Slurm: it saves before its time limit, is requeued, and resumes.

What Slurm sends, and to whom (tried on 22.05, proctrack/linuxproc):

    scancel J                  CONT and TERM to the batch script and to every process of the task
    --signal=B:USR1@N          USR1 to the batch script alone, N to N + 60 s before the limit
    scancel --signal=TERM J.0  TERM to every process of the task
    kill -TERM <srun>          KILL to the task, at once: the script must never do that
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

_EARLY = 60  # seconds; Slurm may send a signal this much too early


@dataclass(frozen=True)
class SlurmJob:
    """The values of a batch script."""

    name: str
    profile: str
    settings: tuple[str, ...]
    nodes: int
    outputs: Path
    checkout: Path
    python: str
    gpus: int = 0
    cpus: int = 0
    limit: str = ""
    save_seconds: int = 300
    retries: int = 3
    options: tuple[str, ...] = ()  # any further option of sbatch
    array: tuple[str, tuple[str, ...]] = ("", ())  # a setting, and its value in each element
    image: str = ""
    runtime: str = ""  # pyxis or apptainer


_SCRIPT = Template("""\
#!/bin/bash
$options
set -u

# Slurm's names to Tatara's. The run keeps its id when the job is requeued, and goes on by it.
export NNODES=$$SLURM_JOB_NUM_NODES
export MASTER_ADDR=$${MASTER_ADDR:-$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_PORT=$$((20000 + 2 * (SLURM_JOB_ID % 10000))) # and the next one
export RUN_ID=$run_id
export TATARA_OUTPUTS=$outputs
$array
arguments=(train $profile$settings$element)

# Signals go to the step, which saves and ends with 3; srun itself would kill it.
why=""
trap 'why=$${why:-limit}; scancel --signal=TERM "$$SLURM_JOB_ID.0"' USR1
trap 'why=$${why:-wish}; scancel --signal=TERM "$$SLURM_JOB_ID.0"' TERM
export NODE_0_CODE=$$TATARA_OUTPUTS/.$$RUN_ID.code
rm -f "$$NODE_0_CODE"
srun --kill-on-bad-exit=0$container bash -c '
  trap : TERM
  NODE_RANK=$$SLURM_NODEID "$$@"
  code=$$?
  ((SLURM_NODEID > 0)) || echo "$$code" >"$$NODE_0_CODE"
  exit "$$code"
' _ $program "$${arguments[@]}" &
step=$$!
while true; do # a trap ends the wait with a code of its own, not the step
  wait "$$step"
  code=$$?
  kill -0 "$$step" 2>/dev/null || break
done
if ((code > 128)); then # the step may have ended between the trap and the look at it
  wait "$$step"
  ended=$$?
  ((ended == 127)) || code=$$ended
fi
code=$$(cat "$$NODE_0_CODE" 2>/dev/null || echo "$$code") # of node 0; srun has the highest of all
rm -f "$$NODE_0_CODE"

# 75 is worth retrying, $retries times; what the time limit ended goes on as often as it takes.
tries=$$TATARA_OUTPUTS/.$$RUN_ID.retries
count=$$(cat "$$tries" 2>/dev/null || echo 0)
again=""
if ((code == 75 && count < $retries)); then
  again=yes
  echo $$((count + 1)) >"$$tries"
elif ((code == 3)) && [[ $$why == limit ]]; then
  again=yes
fi
if [[ -n $$again ]]; then
  scontrol requeue "$$SLURM_JOB_ID" && sleep 60 # until Slurm ends this script
  exit "$$code"
fi
rm -f "$$tries"
exit "$$code"
""")


def render(job: SlurmJob) -> str:
    """The batch script; all of its paths are those of the machine that it is rendered on."""
    setting, values = job.array
    words = "".join(f" {shlex.quote(word)}" for word in job.settings)
    run_id = "slurm-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID" if values else "slurm-$SLURM_JOB_ID"
    container, program = _program(job)
    return _SCRIPT.substitute(
        options="\n".join(f"#SBATCH {option}" for option in _options(job)),
        run_id=run_id,
        outputs=shlex.quote(str(job.outputs)),
        array=f"values=({' '.join(map(shlex.quote, values))})" if values else "",
        profile=shlex.quote(job.profile),
        settings=words,
        element=f' {shlex.quote(setting)}="${{values[$SLURM_ARRAY_TASK_ID]}}"' if values else "",
        container=container,
        program=program,
        retries=job.retries,
    ).replace("\n\n\n", "\n\n")


def _options(job: SlurmJob) -> list[str]:
    found = [
        f"--job-name=tatara-{job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={job.gpus}"] if job.gpus else []),
        *([f"--cpus-per-task={job.cpus}"] if job.cpus else []),
        *([f"--time={job.limit}"] if job.limit else []),
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{job.save_seconds + _EARLY}",
        f"--chdir={job.checkout}",
        f"--output={job.outputs}/slurm-{'%A-%a' if job.array[1] else '%j'}.log",
        *([f"--array=0-{len(job.array[1]) - 1}"] if job.array[1] else []),
    ]
    return [*found, *job.options]


def _program(job: SlurmJob) -> tuple[str, str]:
    """Options of srun, and the command of each node: in a plain environment or an image."""
    if not job.runtime:
        return "", f"{shlex.quote(job.python)} -m workloads.cli"
    mounts = [(str(job.outputs), str(job.outputs)), (str(job.checkout), "/workspace")]
    inside = "python -m workloads.entry"
    image = shlex.quote(job.image)
    if job.runtime == "pyxis":
        pairs = ",".join(f"{source}:{target}" for source, target in mounts)
        options = ["--no-container-mount-home", "--container-workdir=/workspace"]
        words = [f"--container-image={image}", f"--container-mounts={shlex.quote(pairs)}"]
        return " \\\n  " + " ".join([*words, *options]), inside
    binds = " ".join(f"--bind {shlex.quote(f'{source}:{target}')}" for source, target in mounts)
    gpu = "--nv " if job.gpus else ""
    return "", f"apptainer exec {gpu}{binds} --pwd /workspace {image} {inside}"


def sbatch(script: Path, more: Sequence[str] = ()) -> list[str]:
    """The command that submits a script."""
    return ["sbatch", *more, str(script)]
