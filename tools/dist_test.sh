#!/usr/bin/env bash
# Evaluate with one process per GPU, or GPUS gloo processes on a machine without GPUs.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several machines: NNODES, NODE_RANK and MASTER_ADDR on each, as for tools/dist_train.sh
set -euo pipefail
case "${1:-}" in
-h | --help) sed -n '2,4p' "$0" | cut -c3- && exit ;;
esac
if [ $# -lt 3 ]; then
    sed -n '2,4p' "$0" | cut -c3- >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1 checkpoint=$2 gpus=$3
shift 3
SCRIPT="$here/test.py" exec "$here/dist_train.sh" "$config" "$gpus" "$checkpoint" "$@"
