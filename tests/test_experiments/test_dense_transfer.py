"""The comparison for detection and segmentation: configs of its runs, tables, and a complete tiny comparison."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.commands import run
from helpers.dense import make_dense
from helpers.dense_pretraining import ARCH, DETECTION, LOADERS, SEGMENTATION
from helpers.paths import ROOT
from simmim_plugin.experiments import dense_transfer
from simmim_plugin.experiments.runs import Stages
from simmim_plugin.visualization.curves import read_scalars

pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")
PRETRAIN = f"""_base_ = {str(ROOT / 'configs/simmim_vit-tiny_dense.py')!r}
model = dict(backbone=dict(arch={ARCH}))
train_dataloader = {LOADERS}
train_cfg = dict(max_epochs=1)
param_scheduler = []
"""


@pytest.fixture
def place(tmp_path) -> Path:
    """Labelled data, and configs of a tiny ViT."""
    make_dense(tmp_path / 'data', dict(train=4, valid=2), side=96)
    for name, text in (('pretrain', PRETRAIN), ('det', DETECTION), ('seg', SEGMENTATION)):
        (tmp_path / f'{name}.py').write_text(text)
    return tmp_path


@pytest.mark.parametrize('name', ['det', 'seg'])
def test_rows_differ_only_in_the_checkpoint(place, name):
    path, data = str(place / f'{name}.py'), str(place / 'data')
    scratch = dense_transfer._config(path, data, 1, None)
    pretrained = dense_transfer._config(path, data, 1, place / 'epoch_1.pth')
    assert scratch.load_from is None and pretrained.load_from == str(place / 'epoch_1.pth')
    pretrained.load_from = None
    assert scratch.to_dict() == pretrained.to_dict() and scratch.randomness.seed == 1
    assert scratch.train_dataloader.dataset.data_root == scratch.val_dataloader.dataset.data_root == data
    if name == 'det':
        assert scratch.val_evaluator.ann_file == f'{data}/annotations/valid.json'


def test_a_config_of_another_kind_is_rejected(place):
    with pytest.raises(ValueError, match='is no config of MMDetection or MMSegmentation'):
        dense_transfer._config(str(ROOT / 'configs/simmim_vit-tiny_folder.py'), str(place), 0, None)


def test_table_by_hand():
    values = {'scratch': (10.0, 20.0), 'pretrained': (13.0, 21.0)}
    runs = {
        row: [{'seed': s, 'mIoU': v, 'seconds': 60.0} for s, v in enumerate(found)] for row, found in values.items()
    }
    lines = dense_transfer.table({'runs': {'seg': runs}}).splitlines()
    assert lines[2] == '| seg | scratch |  |  | 15.0 (10.0 to 20.0) | 1.0 |'
    assert lines[4] == '| seg | difference, by seed |  |  | +2.0 (+1.0 to +3.0) |  |'


def test_the_given_data_root_overrides_that_of_a_leaf(place):
    make_dense(place / 'other', dict(train=1, valid=1))
    annotations = place / 'other/annotations/train.json'
    annotations.write_text(annotations.read_text().replace('square', 'triangle'))
    leaf = place / 'leaf.py'
    leaf.write_text(f"_base_ = 'det.py'\ndata_root = {str(place / 'other')!r}\n"
                    "val_evaluator = [dict(type='CocoMetric', ann_file='/nowhere.json', metric='bbox')]\n")  # fmt: skip
    cfg = dense_transfer._config(str(leaf), str(place / 'data'), 0, None)
    assert cfg.train_dataloader.dataset.metainfo.classes == ['square', 'bar']
    assert cfg.val_evaluator[0].ann_file == f'{place}/data/annotations/valid.json'


def test_pictures_of_an_interrupted_call_are_drawn_again(place):
    class Recorder(Stages):
        calls = 0

        def call(self, command, log):
            self.calls += 1
            assert not (place / 'run/drawn').exists()

    (place / 'run/drawn/1/vis_data/vis_image').mkdir(parents=True)
    (place / 'run/drawn/1/vis_data/vis_image/test_1.png').touch()
    cfg, stages = dense_transfer._config(str(place / 'det.py'), str(place / 'data'), 0, None), Recorder()
    for _ in range(2):
        dense_transfer._draw(stages, cfg, place / 'run')
    assert stages.calls == 1


@pytest.mark.slow
def test_a_complete_comparison_and_resuming(place):
    out = place / 'out'
    command = [sys.executable, ROOT / 'tools/transfer_dense.py', place / 'det.py', place / 'seg.py', '--seeds', 0]
    command += ['--data-root', place / 'data', '--images', place / 'data/images/train', '--out', out, '--jobs', 2]
    printed = run(*command, '--pretrain', place / 'pretrain.py', '--amp')
    results = json.loads((out / 'results.json').read_text())
    for name, metrics in (('det', ['box AP', 'mask AP']), ('seg', ['mIoU'])):
        for row in ('scratch', 'pretrained'):
            (only,) = results['runs'][name][row]
            assert len(only['curve']) == 2 and len(only['loss']) == 4, only
            folder = out / name / f'{row}_seed_0'
            (last,) = [line for line in read_scalars(folder) if line.get('step') == only['curve'][-1]['step']
                       and 'loss' not in line]  # fmt: skip
            for metric in metrics:
                logged = (
                    last['mIoU'] if name == 'seg' else 100 * last[f'coco/{"bbox" if "box" in metric else "segm"}_mAP']
                )
                assert only[metric] == only['curve'][-1][metric] == pytest.approx(logged)
            loaded = 'tensors of load_from' in (out / name / f'{row}_seed_0.log').read_text()
            assert loaded == (row == 'pretrained')
            assert len(list(folder.glob('drawn/*/vis_data/vis_image/*.png'))) == 2  # one per image
        sheet = np.asarray(Image.open(out / f'{name}.png').convert('RGB'))
        assert sheet.std() > 20 and f'predictions: {out / name}.png' in printed
    assert '| seg | difference, by seed |' in printed and Image.open(out / 'plot.png').size[0] > 500
    written = {path: path.stat().st_mtime_ns for path in out.rglob('*.pth')}
    run(*command, '--pretrain', place / 'pretrain.py', '--amp')
    assert written == {path: path.stat().st_mtime_ns for path in out.rglob('*.pth')} and written
    message = run(*command, '--pretrain', place / 'seg.py', '--amp', ok=False)
    assert 'is no config of a SimMIM pretraining with max_epochs' in message
