#!/bin/sh
# Everything that is to be measured on a GPU, in at most 8 minutes: see benchmarks/gpu.py.
#
#     [WHEELS=folder] [PYTHON=python3] [FEDEXPERTS_DATA=folder] [OUT=folder] benchmarks/gpu.sh [--minutes 7.5] [--toy]
#
# Needs the repository and a Python >= 3.11 with torch >= 2.6 for CUDA, transformers 5, numpy, scipy, scikit-learn, pyarrow,
# pillow and safetensors. What else is imported can be brought as wheels, which are unpacked into a folder that goes away again:
#     pydantic 2.14.3, pydantic_core 2.50.4, annotated_types 0.8.0, typing_inspection 0.4.5, typing_extensions 4.16.0,
#     sgp4 2.27, tomli_w 1.2.0
# Of CIFAR-10, any of train-*-of-5.parquet and test.parquet in $FEDEXPERTS_DATA/cifar10; without them the last part fails alone.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
path=$root/src
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$WHEELS"/*.whl
    path=$path:$site
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
"$python" "$root/benchmarks/gpu.py" --out "${OUT:-$root/runs/gpu}" "$@"
