"""Detection and segmentation with two gloo processes through the scripts, and evaluation as with one process."""

import json
import subprocess
import sys

import pytest

from helpers.dense import make_dense
from helpers.dense_pretraining import DETECTION, SEGMENTATION
from helpers.paths import ROOT
from helpers.processes import gloo_environment

pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")


@pytest.mark.slow
@pytest.mark.parametrize(
    ('text', 'last', 'metrics'),
    [
        (DETECTION, 'epoch_2.pth', {'coco/bbox_mAP', 'coco/segm_mAP'}),
        (SEGMENTATION, 'iter_4.pth', {'aAcc', 'mIoU', 'mAcc'}),
    ],
    ids=['detection', 'segmentation'],
)
def test_two_processes_train_and_evaluate_as_one(tmp_path, text, last, metrics):
    data = make_dense(tmp_path / 'data', dict(train=4, valid=3), side=96)
    config = tmp_path / 'leaf.py'
    config.write_text(text)

    def call(name, *command):
        command = [*command, '--work-dir', tmp_path / name, '--cfg-options', f'data_root={data}']
        done = subprocess.run(
            [str(word) for word in command], env=gloo_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout + done.stderr

    log = call('train', 'bash', ROOT / 'tools/dist_train.sh', config, 2)
    assert 'Total batch 4 = 2 processes x 2 images x 1 accumulated' in log
    checkpoint = tmp_path / 'train' / last
    call('two', 'bash', ROOT / 'tools/dist_test.sh', config, checkpoint, 2)
    call('one', sys.executable, ROOT / 'tools/test.py', config, checkpoint)
    found = []
    for name in ('two', 'one'):
        (path,) = (tmp_path / name).glob('*/*.json')
        found.append({k: v for k, v in json.loads(path.read_text()).items() if 'time' not in k})
    assert metrics <= set(found[0]) and found[0] == pytest.approx(found[1], abs=1e-3)
