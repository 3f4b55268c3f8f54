"""A training that is killed many times ends bit for bit like one that was never interrupted.

SURVIVAL_ENDS=1000 makes the long test out of the short one, for each number of processes; SURVIVAL_SEED draws other
moments.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.commands import run
from helpers.paths import ROOT
from helpers.same import same
from simmim_plugin.checkpoints.files import load_file

EPOCHS, LINES = 20, 1  # lines of the log in an epoch of six iterations: at the fourth (of three: at the end)
ENDS = int(os.environ.get('SURVIVAL_ENDS', '4'))  # 1,000 in a long run
# Everything with randomness or state: drop path, crops, masks, a ramp of their ratio, an average of the weights,
# accumulated gradients, persistent workers, histories, schedules.
CONFIG = """
_base_ = {base!r}
data_root = {data!r}
model = dict(backbone=dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2), drop_path_rate=0.5))
train_dataloader = dict(batch_size=2, num_workers=2)
auto_scale_lr = dict(base_batch_size=2)
optim_wrapper = dict(accumulative_counts=2)
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.1, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=5, end={epochs}, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs={epochs})
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval=1, max_keep_ckpts=2))
custom_hooks = [
    dict(type='ReconstructionHook', interval=10, num_images=2, num_measured=2),
    dict(type='MaskRatioHook', start=0.1),
    dict(type='EMAHook', ema_type='simmim_plugin.ForeachEMA', momentum=0.01),
]
"""


@pytest.fixture
def config(image_folder, tmp_path):
    path = tmp_path / 'survival.py'
    base = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
    path.write_text(CONFIG.format(base=base, data=str(image_folder), epochs=EPOCHS))
    return path


def train(config, work_dir, *flags, **kwargs):
    # Where the tests run in the background, SIGINT would be ignored.
    command = ['env', '--default-signal=INT', sys.executable, ROOT / 'tools/train.py', config, '--work-dir', work_dir]
    command += flags
    return subprocess.Popen(
        [str(word) for word in command], env={**os.environ, 'OMP_NUM_THREADS': '1'}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs,
    )  # fmt: skip


def finish(process, code=0):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output[-3000:]
    return output


def losses(work_dir):
    """Iteration -> values of its log line, over all runs in a work dir; lines that occur twice must be equal."""
    found = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            values = json.loads(line) if line.endswith('}') else {}  # the last line of a killed run may be incomplete
            if 'loss' in values:
                line_values = {name: values[name] for name in ('loss', 'grad_norm', 'lr', 'mask_ratio')}
                assert found.setdefault(values['iter'], line_values) == line_values, values
    return found


def same_end(straight, stopped):
    """Assert that two work dirs have the same last checkpoint and the same log lines."""
    assert losses(stopped) == losses(straight) and len(losses(straight)) == EPOCHS * LINES
    ends = [load_file(folder / f'epoch_{EPOCHS}.pth') for folder in (straight, stopped)]
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert same(ends[0][part], ends[1][part], part) > 10
    assert ends[0]['param_schedulers'] == ends[1]['param_schedulers']
    assert same(*(end['message_hub']['log_scalars'] for end in ends)) >= 4


@pytest.fixture
def straight(config, tmp_path):
    run(sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'straight')
    return tmp_path / 'straight'


def survive(config, work_dir, ends, processes=1, seed=0):
    """How often each end came, and what else helpers/survival.py reports."""
    command = [sys.executable, ROOT / 'tests/helpers/survival.py', config, work_dir, ends, seed, processes]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [str(word) for word in command], env=environment, check=False, capture_output=True, text=True,
        timeout=300 + 30 * ends,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_end(straight, work_dir):
    same_end(straight, work_dir)
    names = {path.name for path in work_dir.glob('*.pth')}
    # A kill between the new name of a checkpoint and the note of it in `last_checkpoint` leaves one over, whole.
    left = {name for name in names if name.startswith('iter_')}
    assert names - left == {f'epoch_{EPOCHS - 1}.pth', f'epoch_{EPOCHS}.pth'}
    assert not list(work_dir.glob('.*.part'))  # partly written files are removed


def test_one_end_at_a_random_moment(config, straight, tmp_path):
    assert survive(config, tmp_path / 'killed', 1)['ended'] == 1
    check_end(straight, tmp_path / 'killed')


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_ends_at_random_moments(config, processes, tmp_path):
    """SIGKILL, SIGINT once and twice, SIGHUP, SIGTERM with a second one or SIGKILL while it saves."""
    straight = tmp_path / 'straight'
    survive(config, straight, 0, processes)
    ended, chains = 0, int(os.environ.get('SURVIVAL_SEED', '0'))
    while ended < ENDS:  # the training may finish before
        work_dir = tmp_path / f'chain{chains}'
        done = survive(config, work_dir, ENDS - ended, processes, chains)
        print(done)
        check_end(straight, work_dir)
        ended, chains = ended + done['ended'], chains + 1


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'code'), [('SIGTERM', 75), ('SIGUSR1', 75), ('SIGHUP', 75), ('SIGINT', 130)])
def test_a_signal_writes_a_checkpoint_in_the_middle_of_an_epoch(config, straight, name, code, tmp_path):
    work_dir = tmp_path / 'signalled'
    process = train(config, work_dir)
    while not (work_dir / 'epoch_3.pth').exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    output = finish(process, code)
    (path,) = work_dir.glob('iter_*.pth')
    command = f'python tools/train.py {config} --work-dir {work_dir} --resume'
    assert f'{name}: stopped after iteration {path.stem[5:]}; {path} is written. Continue with {command}\n' in output
    assert 'Traceback' not in output
    assert load_file(path)['meta']['iter'] == int(path.stem[5:])
    output = finish(train(config, work_dir, '--resume'))
    assert f'iter: {path.stem[5:]}' in output
    same_end(straight, work_dir)
    assert not path.exists()  # counted among those that max_keep_ckpts keeps
