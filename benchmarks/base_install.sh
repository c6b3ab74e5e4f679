#!/usr/bin/env bash
# What the base install weighs, and that a bundle is served by it alone:
#     benchmarks/base_install.sh BUNDLE [OPTION OF PIP INSTALL ...]
# The options are --no-compile -c constraints-edge.txt unless others are given.
# Prints the packages and the MiB of what pip installed (pip itself left out), the answer, and the peak memory.
set -euo pipefail
bundle=$(realpath "$1")
shift
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- --no-compile -c constraints-edge.txt
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" .
"$venv/bin/python" -m pip list --format=freeze --disable-pip-version-check
cd "$venv"
site=$(echo "$venv"/lib/python3*/site-packages)
du -sm --exclude=pip --exclude='pip-*' --exclude=setuptools --exclude='setuptools-*' --exclude=pkg_resources "$site"
"$venv/bin/python" - "$bundle" <<'PYTHON'
import importlib.util
import resource
import sys

from export import Classifier

classifier = Classifier.load(sys.argv[1])
print(classifier("Not asking for a refund, just tell me where my parcel is!"))
absent = ["torch", "transformers", "datasets", "accelerate", "optimum", "evaluate", "onnx"]
assert not any(importlib.util.find_spec(name) for name in absent)
print("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB")
PYTHON
