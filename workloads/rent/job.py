"""Scripts for the machine's shell, sent by ssh, without secrets.

The training is detached from every connection. Its process id and, at its end, its exit code are
beside its log; its secrets are files in memory, removed at its end.
"""

import shlex

from workloads.rent.ledger import Ledger

# One folder a run, in memory, accessible only to its user.
_SECRETS = "/dev/shm/tatara-{run}"
PREPARE = """\
set -eu
for program in python3 rsync setsid; do
  command -v "$program" >/dev/null || {{ echo "expected $program, found none" >&2; exit 2; }}
done
for file in {folder}/.cache/rent/*/runner.process; do
  if [ -f "$file" ] && grep -qs runner "/proc/$(cat "$file")/cmdline"; then
    echo "a training runs there already: $(basename "$(dirname "$file")"); end it, or wait" >&2
    exit 2
  fi
done
mkdir -p {folder}/.cache {outputs}
"""
KEEP_SECRET = """\
set -eu
[ "$(stat -f -c %T /dev/shm)" = tmpfs ] || {{ echo "/dev/shm is not in memory" >&2; exit 2; }}
umask 077
mkdir -p {folder}
cat >{folder}/{name}
"""
_SETTINGS = """\
set -eu
cd {folder}
export TATARA_OUTPUTS={outputs} TATARA_RUNTIME=local TATARA_LEASE={run} RUN_ID={run}
export PYTHONUNBUFFERED=1
{secrets}"""
_RUNNER = """\
trap : HUP INT TERM
code=75
for attempt in $(seq 0 {retries}); do
  {command} >>{job}/log 2>&1 &
  echo $! >{job}/process
  code=0
  wait $! || code=$?
  [ "$code" = 75 ] && [ ! -e {job}/stop ] || break
done
rm -rf {secrets}
echo "$code" >{job}/exit.part
mv {job}/exit.part {job}/exit
"""
_START = """\
mkdir -p {job}
rm -f {job}/exit {job}/stop {job}/process
setsid bash {job}/runner >/dev/null 2>&1 </dev/null &
echo $! >{job}/runner.process
"""
# Only the supervisor is signalled: it saves and ends its ranks.
STOP = """\
cd {folder} && touch {job}/stop && kill -{signal} "$(cat {job}/process)"
"""
FORGET = "rm -rf {secrets}"
LOG = "tail -n {lines} {follow} {job}/log"


def prepare(ledger: Ledger) -> str:
    return PREPARE.format(
        folder=shlex.quote(ledger.folder), outputs=shlex.quote(ledger.outputs_there)
    )


def secrets_folder(ledger: Ledger) -> str:
    return shlex.quote(_SECRETS.format(run=ledger.run_id))


def keep_secret(ledger: Ledger, name: str) -> str:
    """Script that stores a secret from stdin."""
    return KEEP_SECRET.format(folder=secrets_folder(ledger), name=name.lower())


def settings(ledger: Ledger, secrets: tuple[str, ...]) -> str:
    """Script of the environment for set-up, doctor and training: secrets as names of files."""
    files = [f"{name}_FILE={secrets_folder(ledger)}/{name.lower()}" for name in secrets]
    outputs = ledger.outputs if ledger.outputs.startswith("/") else f'"$PWD"/{ledger.outputs}'
    return _SETTINGS.format(
        folder=shlex.quote(ledger.folder),
        outputs=outputs,
        run=shlex.quote(ledger.run_id),
        secrets=f"export {' '.join(files)}\n" if files else "",
    )


def python(ledger: Ledger) -> str:
    return shlex.quote(ledger.python or ".venv/bin/python")


def profile(ledger: Ledger) -> str:
    """Path of the resolved profile below the checkout on the machine."""
    return f".cache/rent/{ledger.run_id}/{ledger.profile}.yaml"


def runner(ledger: Ledger, retries: int, resume: bool) -> str:
    """The script that outlives every connection: it trains, and again after exit code 75."""
    train = [python(ledger), "-m", "workloads.cli", "train", shlex.quote(profile(ledger))]
    if resume:
        train += ["--resume", shlex.quote(ledger.run_id)]
    return _RUNNER.format(
        command=" ".join(train),
        retries=retries,
        job=_job(ledger),
        secrets=secrets_folder(ledger),
    )


def start(ledger: Ledger, secrets: tuple[str, ...]) -> str:
    return settings(ledger, secrets) + _START.format(job=_job(ledger))


def stop(ledger: Ledger, signal: str) -> str:
    return STOP.format(folder=shlex.quote(ledger.folder), job=_job(ledger), signal=signal)


def forget(ledger: Ledger) -> str:
    return FORGET.format(secrets=secrets_folder(ledger))


def log(ledger: Ledger, lines: int, follow: bool) -> str:
    job = shlex.quote(ledger.job_folder)
    return LOG.format(lines=lines, follow="-F" if follow else "", job=job)


def _job(ledger: Ledger) -> str:
    """The job's folder relative to the checkout, where the scripts run."""
    return shlex.quote(f".cache/rent/{ledger.run_id}")
