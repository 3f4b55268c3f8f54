#!/usr/bin/env bash
# Train on a Slurm cluster: submit a batch job, which is requeued and resumed whenever its time runs out.
#   GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (10), NOTICE (180: seconds before the end that the checkpoint is written at)
# and SBATCH_ARGS, such as --time=24:00:00, are environment variables. The log is JOB_NAME-JOB.log.
set -euo pipefail
case "${1:-}" in
-h | --help) sed -n '2,5p' "$0" | cut -c3- && exit ;;
esac
if [ $# -lt 3 ]; then
    sed -n '2,5p' "$0" | cut -c3- >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# PYTHON, else an active virtual environment, else the project's, else `python` on the PATH.
python=${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}
[ -n "$python" ] || { [ -x "$here/../.venv/bin/python" ] && python="$here/../.venv/bin/python"; } || python=python
partition=$1 name=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -ge "$per_node" ] || per_node=$gpus
# --resume starts from scratch without a checkpoint. 75: stopped by a signal, with a checkpoint (InterruptHook).
# shellcheck disable=SC2086 (SBATCH_ARGS is a list of words)
exec sbatch --partition "$partition" --job-name "$name" --gres "gpu:$per_node" --ntasks "$gpus" \
    --ntasks-per-node "$per_node" --cpus-per-task "${CPUS_PER_TASK:-10}" --output "$name-%j.log" --open-mode append \
    --requeue --signal "USR1@${NOTICE:-180}" ${SBATCH_ARGS:-} <<EOF
#!/usr/bin/env bash
srun --kill-on-bad-exit=1 $(printf '%q ' "$python" -u "$here/train.py" "$config" --launcher slurm --resume "$@")
code=\$?
[ \$code -ne 75 ] || scontrol requeue "\$SLURM_JOB_ID"
exit \$code
EOF
