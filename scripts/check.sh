#!/usr/bin/env bash
# Everything that can be said about the code without running it. Each check runs, whatever the
# others say; exit 1 names those that found something.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

bin=.venv/bin
failed=()
out=$(mktemp)
trap 'rm -f "$out"' EXIT

check() { # NAME COMMAND...
  if "${@:2}" >"$out" 2>&1; then
    printf '  ok    %s\n' "$1"
  else
    printf '  FOUND %s\n' "$1"
    cat "$out"
    failed+=("$1")
  fi
}

mapfile -t shell < <(git ls-files '*.sh' .ci/run | while read -r file; do [[ -f $file ]] && echo "$file"; done)

check "lint (ruff)" "$bin/ruff" check --quiet .
check "format (ruff)" "$bin/ruff" format --quiet --check --diff .
check "types (mypy)" "$bin/mypy"
check "import contracts" "$bin/lint-imports" --no-logo
check "house sizes" "$bin/python" scripts/check_house.py
check "words of the glossary" "$bin/python" scripts/check_words.py
check "shell (shellcheck)" "$bin/shellcheck" "${shell[@]}"
check "shell format (shfmt)" "$bin/shfmt" -i 2 -ci -d "${shell[@]}"
check "Dockerfile (hadolint)" "$bin/hadolint" --config .hadolint.yaml images/Dockerfile
check "generated pages" "$bin/python" scripts/reference_docs.py --check
check "chart of the first page" "$bin/python" scripts/benchmark_chart.py --check
check "workflow (check-jsonschema)" "$bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml

if ((${#failed[@]})); then
  printf 'found something: %s\n' "${failed[*]}" >&2
  exit 1
fi
