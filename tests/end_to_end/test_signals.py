"""Signals to one process of several: exit code 75 means that there is a checkpoint to resume from."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.commands import SMALL
from helpers.paths import ROOT
from helpers.processes import children_of, command_of, gloo_environment
from simmim_plugin.checkpoints.files import load_file

pytestmark = pytest.mark.slow

OPTIONS = [*SMALL, 'train_cfg.max_epochs=100000', 'train_dataloader.batch_size=2']
COMPARISON = """
import sys
from pathlib import Path
from simmim_plugin.experiments.runs import Stages
log = Path(sys.argv[1])
Stages().run_all('run', Stages.call, dict(a=(sys.argv[2:], log)))
"""


def wait_for(condition, process):
    for _ in range(1500):
        if condition():
            return
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.1)
    raise AssertionError('nothing happened')


def start(images, work, *before, **environment):
    """Two ranks; the launcher is the process."""
    command = [
        *before,
        'bash',
        ROOT / 'tools/dist_train.sh',
        ROOT / 'configs/simmim_vit-tiny_folder.py',
        2,
        '--work-dir',
        work,
    ]
    command += ['--resume', '--cfg-options', f'data_root={images}', *OPTIONS]
    return subprocess.Popen(
        [str(word) for word in command], env={**gloo_environment(), **environment}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def ranks_of(launcher):
    return [pid for pid in children_of(launcher.pid) if 'train.py' in command_of(str(pid))]


def gone(pid):
    return not command_of(str(pid))  # a zombie has none


@pytest.mark.parametrize(('number', 'restarts'), [(0, 0), (1, 0), (1, 3)])
def test_a_signal_to_one_rank_alone(number, restarts, image_folder, tmp_path):
    """With restarts, too: torchrun takes 75 for a failure."""
    launcher = start(image_folder, tmp_path / 'work', MAX_RESTARTS=str(restarts))
    wait_for((tmp_path / 'work/epoch_2.pth').exists, launcher)
    os.kill(sorted(ranks_of(launcher))[number], signal.SIGTERM)
    output = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 75, output[-3000:]
    (path,) = (tmp_path / 'work').glob('iter_*.pth')
    assert load_file(path)['meta']['iter'] == int(path.stem[5:])


SLOW_DISK = """
import time
from simmim_plugin.utils import files
sync = files._sync
files._sync = lambda path: (time.sleep(60 * path.name.startswith('.iter_')), sync(path))
"""


def test_ctrl_c_saves_and_nohup_ignores_a_terminal_that_is_gone(image_folder, tmp_path):
    launcher = start(image_folder, tmp_path / 'work', 'env', '--default-signal=INT', 'nohup')
    wait_for((tmp_path / 'work/epoch_1.pth').exists, launcher)
    launcher.send_signal(signal.SIGHUP)
    wait_for((tmp_path / 'work/epoch_5.pth').exists, launcher)
    launcher.send_signal(signal.SIGINT)
    output = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 130, output[-3000:]
    (path,) = (tmp_path / 'work').glob('iter_*.pth')
    assert load_file(path)['meta']['iter'] == int(path.stem[5:])
    assert f'{path} is written. Continue with {ROOT}/tools/dist_train.sh {ROOT}/configs/' in output


def test_a_second_ctrl_c_ends_the_ranks_at_once(image_folder, tmp_path, monkeypatch):
    (tmp_path / 'sitecustomize.py').write_text(SLOW_DISK)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{ROOT}')
    launcher = start(image_folder, tmp_path / 'slow', 'env', '--default-signal=INT')
    wait_for((tmp_path / 'slow/epoch_1.pth').exists, launcher)
    ranks = ranks_of(launcher)
    launcher.send_signal(signal.SIGINT)
    wait_for(lambda: list((tmp_path / 'slow').glob('.iter_*.part')), launcher)
    begun = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    output = launcher.communicate(timeout=50)[0]
    assert launcher.returncode == 130 and time.monotonic() - begun < 30, output[-3000:]
    assert all(map(gone, ranks)) and not list((tmp_path / 'slow').glob('iter_*.pth'))


def test_without_a_checkpoint_the_code_is_another(image_folder, tmp_path):
    """SIGTERM at the start, before there is anything to save, and while a rank has been killed."""
    launcher = start(image_folder, tmp_path / 'work')
    wait_for(lambda: len(ranks_of(launcher)) == 2, launcher)
    launcher.terminate()
    output = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 128 + signal.SIGTERM, output[-3000:]
    assert not list((tmp_path / 'work').glob('*.pth'))

    launcher = start(image_folder, tmp_path / 'work')
    wait_for((tmp_path / 'work/epoch_1.pth').exists, launcher)
    ranks = ranks_of(launcher)
    os.kill(ranks[1], signal.SIGKILL)
    launcher.terminate()
    output = launcher.communicate(timeout=200)[0]
    assert launcher.returncode in (1, 128 + signal.SIGTERM), output[-3000:]
    assert all(gone(pid) for pid in ranks)


def test_ranks_end_with_a_launcher_that_is_killed(image_folder, tmp_path):
    launcher = start(image_folder, tmp_path / 'work')
    wait_for((tmp_path / 'work/epoch_1.pth').exists, launcher)
    ranks = ranks_of(launcher)
    launcher.kill()
    launcher.wait()
    for _ in range(600):
        if all(map(gone, ranks)):
            break
        time.sleep(0.1)
    assert all(map(gone, ranks)) and list((tmp_path / 'work').glob('iter_*.pth'))


def test_a_training_ends_with_a_comparison_that_is_killed(image_folder, tmp_path):
    work = tmp_path / 'work'
    words = [ROOT / 'tools/train.py', ROOT / 'configs/simmim_vit-tiny_folder.py', '--work-dir', work, '--cfg-options']
    words = [sys.executable, '-c', COMPARISON, tmp_path / 'log', *words, f'data_root={image_folder}', *OPTIONS]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    comparison = subprocess.Popen([str(word) for word in words], env=environment, stderr=subprocess.DEVNULL)
    wait_for((work / 'epoch_1.pth').exists, comparison)
    (training,) = children_of(comparison.pid)
    comparison.kill()
    comparison.wait()
    for _ in range(600):
        if gone(training):
            break
        time.sleep(0.1)
    assert gone(training) and list(work.glob('iter_*.pth'))
