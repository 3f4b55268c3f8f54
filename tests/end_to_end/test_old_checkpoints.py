"""A checkpoint of revision 2b0f184 still resumes, fine-tunes and converts (tests/data/revision_2b0f184/README.md)."""

import json

import pytest
import torch

from helpers.commands import SIMMIM, run, scalars, train
from helpers.paths import DATA
from simmim_plugin import SimMIMViT
from simmim_plugin.checkpoints.convert import convert_file

OLD = DATA / 'revision_2b0f184'
ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)


def test_it_resumes_with_the_same_losses(image_folder, tmp_path):
    arch = [f'model.backbone.arch.{name}={value}' for name, value in ARCH.items()]
    flags = ['--resume', OLD / 'epoch_1.pth']
    log = train(image_folder, tmp_path / 'work', *arch, 'train_cfg.max_epochs=2', flags=flags)
    assert 'resumed epoch: 1, iter: 3' in log
    expected = json.loads((OLD / 'losses.json').read_text())
    assert {str(line['iter']): line['loss'] for line in scalars(tmp_path / 'work')} == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_it_fine_tunes(image_folder, tmp_path):
    (tmp_path / 'labelled').mkdir()
    for part in ('train', 'val'):
        (tmp_path / 'labelled' / part).symlink_to(image_folder)
    output = run(
        *SIMMIM, 'finetune', tmp_path / 'labelled', '--checkpoint', OLD / 'epoch_1.pth', '--epochs', 1,
        '--batch-size', 4, '--out', tmp_path / 'work',
    )  # fmt: skip
    assert 'accuracy/top1' in output
    # Per block: 13 weights and biases, 2 of LayerScale and its bias table. Patch embedding: 2; class and mask token.
    expected = 'Loaded 36 tensors of load_from; new ones, as initialised: backbone.fc_norm.weight, '
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert expected in log and 'Resized to the model: none' in log


def test_init_cfg_takes_every_weight():
    """The shared bias table goes to every block; the final norm and the decoder are not loaded."""
    saved = torch.load(OLD / 'epoch_1.pth', weights_only=True)['state_dict']
    init_cfg = dict(type='Pretrained', checkpoint=str(OLD / 'epoch_1.pth'))
    vit = SimMIMViT(
        arch=ARCH, img_size=64, patch_size=8, layer_scale_init_value=0.1, use_shared_rel_pos_bias=False,
        use_rel_pos_bias=True, out_type='avg_featmap', init_cfg=init_cfg,
    )  # fmt: skip
    vit.init_weights()
    for name, value in vit.state_dict().items():
        table = 'rel_pos_bias.relative_position_bias_table'
        old = table if name.endswith('relative_position_bias_table') else name
        if not name.startswith('fc_norm.'):
            assert torch.equal(value, saved[f'backbone.{old}']), name


def test_it_converts_to_the_same_tensors(tmp_path):
    convert_file(OLD / 'epoch_1.pth', tmp_path / 'timm.pth', 'timm')
    expected, found = (torch.load(path, weights_only=True) for path in (OLD / 'timm.pth', tmp_path / 'timm.pth'))
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
