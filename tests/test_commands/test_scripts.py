"""The Slurm script: what it submits, and when a job is requeued."""

import os
import subprocess

import pytest

from helpers.paths import ROOT

PROGRAMS = {
    'sbatch': 'printf "%s\\n" "$@" >sbatch.txt; SLURM_JOB_ID=42 bash -s',
    'srun': 'printf "%s\\n" "$@" >srun.txt; exit "$CODE"',
    'scontrol': 'printf "%s\\n" "$@" >scontrol.txt',
}


@pytest.fixture
def submit(tmp_path):
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, script in PROGRAMS.items():
        (folder / name).write_text(f'#!/usr/bin/env bash\n{script}\n')
        (folder / name).chmod(0o755)

    def call(code, *words, **environment):
        command = ['bash', ROOT / 'tools/slurm_train.sh', *words]
        path = f'{folder}:{os.environ["PATH"]}'
        environment = {**os.environ, 'PATH': path, 'CODE': str(code), 'PYTHON': 'python3', **environment}
        return subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)

    return call


def test_a_preempted_job_is_requeued(submit, tmp_path):
    words = ['gpu', 'vit', 'my config.py', '--cfg-options', "data_root=/a folder/it's", 'model.backbone.arch=large']
    done = submit(75, *words, GPUS='16', SBATCH_ARGS='--time=24:00:00 --exclusive', NOTICE='300')
    assert done.returncode == 75, done.stderr
    assert (tmp_path / 'scontrol.txt').read_text().split() == ['requeue', '42']
    submitted = (tmp_path / 'sbatch.txt').read_text().splitlines()
    assert submitted[:4] == ['--partition', 'gpu', '--job-name', 'vit']
    assert submitted[-2:] == ['--time=24:00:00', '--exclusive'] and '--requeue' in submitted
    for name, value in (('--signal', 'USR1@300'), ('--ntasks', '16'), ('--ntasks-per-node', '8')):
        assert submitted[submitted.index(name) + 1] == value
    started = (tmp_path / 'srun.txt').read_text().splitlines()
    assert started[:3] == ['--kill-on-bad-exit=1', 'python3', '-u'] and started[3].endswith('tools/train.py')
    assert started[4:] == [words[2], '--launcher', 'slurm', '--resume', *words[3:]]


@pytest.mark.parametrize('code', [0, 1])
def test_a_finished_job_is_not_requeued(submit, code, tmp_path):
    assert submit(code, 'gpu', 'vit', 'config.py').returncode == code
    assert (tmp_path / 'srun.txt').exists() and not (tmp_path / 'scontrol.txt').exists()


def test_missing_arguments_print_the_usage(submit):
    done = submit(0, 'gpu')
    assert done.returncode == 2 and 'slurm_train.sh PARTITION JOB_NAME CONFIG' in done.stderr
