#!/usr/bin/env bash
# Train with one process per GPU, or GPUS gloo processes on a machine without GPUs.
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: NNODES, NODE_RANK and MASTER_ADDR on each, e.g. for the second of two
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 tools/dist_train.sh configs/simmim_vit-b.py 8
# MAX_RESTARTS=3, with --resume: when a process dies, restart all of them, at most three times.
# SIGTERM, SIGUSR1 and SIGHUP write a checkpoint and exit with code 75, Ctrl-C with 130 (a second one: at once):
# start again with --resume.
set -euo pipefail
case "${1:-}" in
-h | --help) sed -n '2,8p' "$0" | cut -c3- && exit ;;
esac
if [ $# -lt 2 ]; then
    sed -n '2,8p' "$0" | cut -c3- >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# PYTHON, else an active virtual environment, else the project's, else `python` on the PATH.
# SCRIPT is set by dist_test.sh.
python=${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}
[ -n "$python" ] || { [ -x "$here/../.venv/bin/python" ] && python="$here/../.venv/bin/python"; } || python=python
SIMMIM_COMMAND=$(printf '%q ' "$0" "$@") && export SIMMIM_COMMAND
config=$1 gpus=$2
shift 2
exec "$python" "$here/_torchrun.py" \
    --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$gpus" --max_restarts "${MAX_RESTARTS:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" \
    "${SCRIPT:-$here/train.py}" "$config" "$@" --launcher pytorch
