# shellcheck shell=bash
# Sourced by _common.sh: trainings as processes of the project's .venv. Each leaves a file in
# .cache/running, named by its process, with the time that process began and its profile.

services() { say "$1"; }
is_set_up() { [[ -f .env ]] && .venv/bin/python -IS scripts/local_setup.py --is-ready 2>/dev/null; }

# in_service PROFILE COMMAND…: a command where that profile trains, which is here.
in_service() {
  [[ $2 == python ]] || fail "expected a Python program, found $2"
  .venv/bin/python "${@:3}"
}

# started PID: when a process began, which with its number names it for good. The folder it works in
# is this checkout, as far as one may look: a copy made while it trains has its file, too.
started() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null; }
is_there() {
  local begun
  begun=$(started "$1") && [[ $begun == "$(head -n 1 ".cache/running/$1" 2>/dev/null)" ]] &&
    [[ ! -e /proc/$1/cwd || /proc/$1/cwd -ef . ]]
}

# running [PROFILE]: what trains now, as processes.
running() {
  local file
  for file in .cache/running/*; do
    [[ -f $file ]] || continue
    if ! is_there "${file##*/}"; then
      rm -f "$file"
    elif [[ -z ${1:-} || $(tail -n 1 "$file") == "$1" ]]; then
      say "${file##*/}"
    fi
  done
}

# begin PROFILE LIKE WORD…: start it beside this shell; sets JOB to its process.
begin() {
  mkdir -p .cache/running
  LOG=.cache/$1.log
  : >"$LOG" # there before it is followed: the job's own shell may come later
  setsid .venv/bin/python -m workloads.cli train "$1" "${@:3}" >"$LOG" 2>&1 </dev/null 9>&- &
  JOB=$!
  printf '%s\n%s\n' "$(started "$JOB")" "$2" >".cache/running/$JOB"
}

# Nodes that are processes beside node 0 are its own, and end with it.
keep_up() { :; }
alive() { kill -0 "$JOB" 2>/dev/null; }
# Sets CODE once the job has ended.
await_end() {
  CODE=0
  # shellcheck disable=SC2034
  wait "$JOB" || CODE=$?
  rm -f ".cache/running/$JOB"
}
show_log() {
  case $1 in
    --follow) tail -n +1 -f --pid "$JOB" "$LOG" ;;
    *) tail -n "$2" "$LOG" ;;
  esac
}
how_to_log() { say "tail -f $LOG"; }
ask_to_stop() { send TERM "" "$@"; }
# The group too: nothing of a run outlives it.
end_now() { send KILL - "$@"; }
# send SIGNAL SIGN JOB…: to those that have not ended meanwhile; "-" is the sign of a group.
send() {
  local job said
  for job in "${@:3}"; do
    said=$(kill -"$1" -- "$2$job" 2>&1) || ! is_there "$job" || fail "$said"
  done
}
name_of() { say "$(tail -n 1 ".cache/running/$1" 2>/dev/null) (process $1)"; }
