"""A rank or worker that dies or hangs ends the job with its message, within the timeout of the config."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.processes import children_of, command_of, gloo_environment

pytestmark = pytest.mark.slow

CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['slow_images'])
data_root = {data!r}
model = dict(backbone=dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2)))
train_dataloader = dict(
    batch_size=3, num_workers=1, timeout=6,
    dataset=dict(type='SlowImages', file={file!r}, pipeline=_base_.train_pipeline),
)
auto_scale_lr = dict(enable=False)
env_cfg = dict(dist_cfg=dict(timeout=8))
custom_hooks = []
train_cfg = dict(max_epochs={epochs})
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""
DATASET = """
import os, time
from mmengine.registry import DATASETS
from simmim_plugin import ImageFolder

@DATASETS.register_module()
class SlowImages(ImageFolder):
    def __init__(self, *args, file, **kwargs):
        self.file = file
        super().__init__(*args, **kwargs)
    def prepare_data(self, idx):
        time.sleep(1000 if os.path.exists(self.file) else 0.02)
        return super().prepare_data(idx)
"""
SECONDS = 60  # of which torchrun waits 30 for a rank that does not respond


@pytest.fixture
def job(image_folder, tmp_path):
    """Start a training with two ranks and wait for its second checkpoint; returns the launcher and the ranks."""
    (tmp_path / 'slow_images.py').write_text(DATASET)
    config = tmp_path / 'job.py'
    started = []

    def start(*flags, epochs=1000, **environment):
        base = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
        file = str(tmp_path / 'hang')
        config.write_text(CONFIG.format(base=base, data=str(image_folder), file=file, epochs=epochs))
        command = ['bash', ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', tmp_path / 'work', *flags]
        environment = {
            **gloo_environment(),
            'PYTHONPATH': str(tmp_path),
            'TORCH_ELASTIC_SHUTDOWN_TIMEOUT': '4',
            **environment,
        }
        log = (tmp_path / 'log').open('w')
        started.append(subprocess.Popen([str(word) for word in command], env=environment, stdout=log, stderr=log))
        until(lambda: (tmp_path / 'work/epoch_2.pth').exists() or started[-1].poll() is not None, tmp_path)
        assert started[-1].poll() is None, (tmp_path / 'log').read_text()[-3000:]
        return started[-1], ranks_of(started[-1].pid)

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()  # not kill(), which would leave its processes behind
            process.wait(60)


def until(happened, tmp_path):
    for _ in range(2400):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError((tmp_path / 'log').read_text()[-3000:])


def ranks_of(launcher):
    """The training processes, in the order of their ranks."""
    ranks = [pid for pid in children_of(launcher) if 'train.py' in command_of(str(pid))]
    assert len(ranks) == 2
    rank = {
        pid: dict(x.split('=', 1) for x in Path(f'/proc/{pid}/environ').read_text().split('\0') if '=' in x)['RANK']
        for pid in ranks
    }
    return sorted(ranks, key=rank.get)


def ends(process, tmp_path):
    """Wait for the end; returns the log."""
    start = time.monotonic()
    assert process.wait(timeout=SECONDS + 20) == 1
    assert time.monotonic() - start < SECONDS
    return (tmp_path / 'log').read_text()


def test_nothing_listens_beyond_loopback(job):
    process, ranks = job()
    processes = [process.pid, *ranks, *(worker for rank in ranks for worker in children_of(rank))]
    sockets = {os.readlink(link) for pid in processes for link in Path(f'/proc/{pid}/fd').iterdir() if link.exists()}
    listening = []
    for table in ('tcp', 'tcp6'):
        for line in Path(f'/proc/net/{table}').read_text().splitlines()[1:]:
            address, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == '0A' and f'socket:[{inode}]' in sockets:
                listening.append(address.split(':')[0])
    loopback = {'0100007F', '00000000000000000000000001000000', '0000000000000000FFFF00000100007F'}
    assert len(listening) >= 3 and set(listening) <= loopback, listening  # the store, and gloo in each process


def test_a_process_that_is_killed(job, tmp_path):
    process, ranks = job()
    os.kill(ranks[1], signal.SIGKILL)
    log = ends(process, tmp_path)
    assert 'Signal 9 (SIGKILL)' in log and 'rank      : 1' in log[log.index('Root Cause') :]


def test_a_process_that_hangs(job, tmp_path):
    process, ranks = job()
    os.kill(ranks[1], signal.SIGSTOP)
    ends(process, tmp_path)
    traceback = (tmp_path / 'work/error_rank0.txt').read_text()
    assert 'Timed out waiting 8000ms' in traceback and 'train_loop.py' in traceback


def test_a_worker_that_is_killed(job, tmp_path):
    process, ranks = job()
    (worker,) = children_of(ranks[0])
    os.kill(worker, signal.SIGKILL)
    log = ends(process, tmp_path)
    assert f'DataLoader worker (pid {worker}) is killed by signal: Killed' in log or 'exited unexpectedly' in log


def test_a_worker_that_hangs(job, tmp_path):
    process, _ = job()
    (tmp_path / 'hang').touch()
    log = ends(process, tmp_path)
    assert 'DataLoader timed out after 6 seconds' in log


def test_torchrun_restarts_and_resumes(job, tmp_path):
    process, ranks = job('--resume', epochs=8, MAX_RESTARTS='1')
    os.kill(ranks[0], signal.SIGKILL)
    assert process.wait(timeout=120) == 0, (tmp_path / 'log').read_text()[-3000:]
    log = (tmp_path / 'log').read_text()
    assert 'resumed epoch: ' in log and (tmp_path / 'work/epoch_8.pth').exists()
