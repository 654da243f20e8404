#!/usr/bin/env bash
# Runs the suite: first what needs no Ray and no engine, on several cores; then the rest, one test
# after the other. Arguments go to pytest, both times.
set -euo pipefail
cd "$(dirname "$0")/.."

# Sockets of tests need short paths.
base=$(mktemp -d /tmp/ab-XXXXXX)
trap 'rm -rf "$base"' EXIT
cores=$(nproc)

run() { .venv/bin/python -m pytest "$@" || [ $? -eq 5 ]; } # 5: no test was chosen

run -m 'not slow' -n $((cores < 4 ? cores : 4)) --dist loadfile --basetemp "$base/t" "$@"
run -m slow "$@"
