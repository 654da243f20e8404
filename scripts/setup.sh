#!/usr/bin/env bash
# Makes .venv and installs the package with one engine. Skips everything when nothing has changed.
#   PYTHON=python3.12 ENGINE=gpu scripts/setup.sh        ENGINE: cpu, gpu or none
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${ENGINE:-}" ]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    ENGINE=gpu
  else
    ENGINE=cpu
  fi
fi
stamp=.venv/.installed-$(cat pyproject.toml scripts/setup.sh <(echo "$ENGINE") | cksum | cut -d' ' -f1)
[ -e "$stamp" ] && exit 0

PYTHON=${PYTHON:-$(command -v python3.11 || command -v python3.12 || command -v python3)}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "Python 3.11 or newer is needed; $PYTHON is older. Set PYTHON=/path/to/python3.11" >&2; exit 1; }

echo "Setting up .venv with the $ENGINE engine (a few minutes, once) ..."
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip() { .venv/bin/python -m pip "$@" --disable-pip-version-check --quiet; }

case $ENGINE in
  cpu)
    # The default index serves a CUDA build of several gigabytes. PyTorch's own CPU index has a
    # small one; where it cannot be reached, the plain pin takes what the machine provides.
    index=https://download.pytorch.org/whl/cpu
    if curl --silent --fail --head --max-time 3 "$index/torch/" >/dev/null 2>&1; then
      pip install torch==2.13.0 --index-url "$index"
    else
      pip install torch==2.13.0
    fi
    pip install -e '.[cpu,dev]'
    # These three do not fit the CPU build of torch and then break `import transformers`; triton
    # (1 GB) has no CPU backend and vLLM switches it off.
    pip uninstall -y torchvision torchaudio torchcodec triton
    ;;
  gpu) pip install -e '.[gpu,dev]' ;;
  none) pip install -e '.[dev]' ;;
  *) echo "ENGINE must be cpu, gpu or none, not '$ENGINE'" >&2; exit 1 ;;
esac
rm -f .venv/.installed-*
touch "$stamp"
