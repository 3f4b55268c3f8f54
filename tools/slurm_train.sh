#!/usr/bin/env bash
# Train on a Slurm cluster.
#   GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (10) and SRUN_ARGS are taken from the environment.
set -euo pipefail
case "${1:-}" in
-h | --help) sed -n '2,4p' "$0" | cut -c3- && exit ;;
esac
if [ $# -lt 3 ]; then
    sed -n '2,4p' "$0" | cut -c3- >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# PYTHON, else an active virtual environment, else the project's, else what the path has.
python=${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}
[ -n "$python" ] || { [ -x "$here/../.venv/bin/python" ] && python="$here/../.venv/bin/python"; } || python=python
partition=$1 name=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -ge "$per_node" ] || per_node=$gpus
# shellcheck disable=SC2086 (SRUN_ARGS is a list of words)
exec srun --partition "$partition" --job-name "$name" --gres "gpu:$per_node" --ntasks "$gpus" \
    --ntasks-per-node "$per_node" --cpus-per-task "${CPUS_PER_TASK:-10}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$here/train.py" "$config" --launcher slurm "$@"
