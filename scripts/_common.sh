# shellcheck shell=bash
# Sourced by the scripts beside it: where the repository is, what runs it, what .env says.
# _docker.sh and _local.sh, of which choose_runtime takes one, hold what differs. What needs more
# than a few lines is Python: workloads/host, which needs nothing installed.
cd -P "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

say() { printf '%s\n' "$*"; }
fail() { fail_with 2 "$@"; }
fail_with() {
  printf '%s\n' "${*:2}" >&2
  exit "$1"
}

[[ $(uname -s) == Linux ]] ||
  fail "expected Linux, found $(uname -s); on Windows use WSL 2, on macOS a Linux machine"
python=.venv/bin/python
[[ -x $python ]] || python=$(command -v python3) ||
  fail "expected python3 on PATH, found none; install it (Debian, Ubuntu: sudo apt-get install -y python3)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "expected Python 3.10 or newer, found $("$python" -V); install a newer one: https://www.python.org/downloads/"
host() { "$python" -m workloads.host "$@"; }

# .env, the caller's environment before it: TATARA_OUTPUTS, TATARA_CACHE, BASE_IMAGE, RECIPE, NODE_RANK.
settings=$(host settings) || exit
eval "$settings"

# Sets RUNTIME to docker where an engine answers that can be used, else to local; TATARA_RUNTIME
# forces one.
choose_runtime() {
  local answer
  answer=$(host runtime) || exit
  RUNTIME=${answer%%$'\t'*}
  say "runtime: $RUNTIME (${answer#*$'\t'})" >&2
  # shellcheck source=/dev/null
  . "scripts/_$RUNTIME.sh"
}

# was_asked_to_stop JOB: by stop_training.sh, which notes the jobs it asks; a note of others may be left.
was_asked_to_stop() { grep -qsw -- "$1" .cache/stopping .cache/stopped; }

# The caller, also behind sudo: files that a run writes belong to them.
caller_uid() { printf '%s' "${SUDO_UID:-$(id -u)}"; }
caller_gid() { printf '%s' "${SUDO_GID:-$(id -g)}"; }
# own PATH…: give what root has made to whoever called sudo.
own() { [[ $(id -u) != 0 ]] || chown "$(caller_uid):$(caller_gid)" "$@"; }
