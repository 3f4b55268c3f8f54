"""Checkpoints of models with another target than pixels: rebuilt, drawn, converted."""

import copy
import re

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image

from helpers.checkpoints import random_weights
from helpers.models import TINY
from helpers.other_projects import randomise
from helpers.swin import HEAD, PRETRAIN
from simmim_plugin import SimMIM, load_pretrained
from simmim_plugin.apis.explorer import Explorer
from simmim_plugin.apis.reconstruct import reconstruct_files
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.models.losses import masked_loss

NAMES = ['normalized_pixels', 'low_pass', 'hog', 'features']
PREPROCESSOR = dict(type='SimMIMDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3)
PIPELINE = [dict(type='LoadImage'), dict(type='SimMIMMaskGenerator', input_size=64), dict(type='PackSimMIMInputs')]


def write_teacher(folder):
    """Config of a teacher, whose weights timm writes."""
    model = random_weights(
        timm.create_model('vit_tiny_patch16_224', img_size=64, embed_dim=64, depth=2, num_heads=2, num_classes=0)
    )
    torch.save(model.state_dict(), folder / 'teacher.pth')
    arch = dict(embed_dims=64, num_layers=2, num_heads=2, feedforward_channels=256)
    return dict(
        type='SimMIMViT', arch=arch, img_size=64, patch_size=16, use_abs_pos_embed=True, use_shared_rel_pos_bias=False,
        layer_scale_init_value=0.0, init_cfg=dict(type='Pretrained', checkpoint=str(folder / 'teacher.pth')),
    )  # fmt: skip


def write(folder, name):
    """A checkpoint of a model with a target, and the model."""
    target = dict(type=name, teacher=write_teacher(folder)) if name == 'features' else name
    loss = dict(type='ReconstructionLoss', criterion='l2')
    parts = dict(backbone=TINY, head=dict(target=target, loss=loss), data_preprocessor=PREPROCESSOR)
    model = random_weights(SimMIM(**parts)).eval()
    note = dict(model=dict(type='SimMIM', **parts), pipeline=PIPELINE)
    torch.save(dict(state_dict=model.state_dict(), simmim_plugin=note), folder / f'{name}.pth')
    return folder / f'{name}.pth', model


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(skimage.data.astronaut()[:256, 100:356]).save(tmp_path / 'astronaut.png')
    return tmp_path / 'astronaut.png'


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_a_checkpoint_is_rebuilt_and_drawn(name, tmp_path, photo):
    path, model = write(tmp_path, name)
    again, _ = load_pretrained(path)
    images, mask = torch.randn(1, 3, 64, 64), (torch.rand(1, 4, 4) > 0.5).float()
    assert torch.equal(again.reconstruct(images, mask), model.reconstruct(images, mask))
    loss = model(images, mask, mode='loss')['loss'].item()
    assert again(images, mask, mode='loss')['loss'].item() == loss
    (loss,) = reconstruct_files(path, [photo], tmp_path / 'sheet.png')
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    side = 192 if name in ('normalized_pixels', 'low_pass') else 320
    assert np.isfinite(loss) and sheet.shape == (24 + side + 24 + 4 + 4, 4 * (side + 4) + 4, 3)
    explorer = Explorer(path)
    image = explorer.read(photo)
    masks = explorer.random_masks(dict(ratio=0.5, unit=32), dict(ratio=0.0, unit=64))
    made = explorer.reconstruct(image, masks)
    inputs = model.data_preprocessor(dict(inputs=image[None]))['inputs']
    pixels = masks['mask'].repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    predicted = model.reconstruct(inputs, masks['mask'])
    assert made.loss == pytest.approx(masked_loss(model, predicted, inputs, pixels), rel=1e-5)
    assert made.predicted.shape == made.composite.shape == made.masked.shape == (320, 320, 3)
    same = (made.composite == made.predicted).all(-1)
    assert same[pixels[0, 0].repeat_interleave(5, 0).repeat_interleave(5, 1) == 1].all() and not same.all()
    if name != 'low_pass':
        with pytest.raises(ValueError, match=r'^a painted mask: this model predicts .*; use a model that predicts pix'):
            explorer.painted_mask('1' * 16)


def test_the_teachers_file_must_be_there_and_whole(tmp_path):
    path, _ = write(tmp_path, 'features')
    assert not any('teacher' in name for name in load_file(path)['state_dict'])
    state = torch.load(tmp_path / 'teacher.pth')
    torch.save({name: x for name, x in state.items() if name != 'pos_embed'}, tmp_path / 'teacher.pth')
    with pytest.raises(ValueError, match=r'teacher\.pth'):
        load_pretrained(path)
    (tmp_path / 'teacher.pth').unlink()
    with pytest.raises(ValueError, match=r'features of a teacher, whose weights it does not hold, .* is no file here'):
        load_pretrained(path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(init_cfg=dict(type='Pretrained', checkpoint='https://example.org/x.pth')), 'is no file here'),
        (dict(init_cfg=dict(type='Pretrained', checkpoint=['x'])), 'is no file here'),
        (dict(init_cfg=[]), 'checkpoint=None of the teacher is no file here'),
        (dict(type='SimMIM'), r"its teacher is a 'SimMIM', not a SimMIMViT or MaskedBackbone"),
        (dict(type='os.system'), r"teacher\.type='os\.system', which is not built from a file"),
        (dict(arch=dict(embed_dims=2**16, num_layers=2, num_heads=2, feedforward_channels=2**16)), 'teacher'),
        (dict(patch_size=8), 'teacher'),
    ],
)
def test_the_teacher_that_a_strangers_file_states(changes, message, tmp_path):
    path, _ = write(tmp_path, 'features')
    content = torch.load(path)
    content['simmim_plugin']['model']['head']['target']['teacher'].update(changes)
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_pretrained(path)


def test_a_table_of_the_file_that_the_teacher_lacks_is_named(tmp_path):
    random = random_weights(SimMIM(TINY))
    torch.save(random.state_dict(), tmp_path / 'own.pth')
    config = TINY | dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'own.pth')))
    SimMIM(TINY, head=dict(target=dict(type='features', teacher=config)))
    for more, words in (
        (
            dict(use_shared_rel_pos_bias=False),
            'tables (rel_pos_bias.relative_position_bias_table) that the model has no',
        ),
        (dict(use_abs_pos_embed=True), 'own.pth is of another model than the teacher: it has no pos_embed'),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            SimMIM(TINY, head=dict(target=dict(type='features', teacher=config | more)))
    config = write_teacher(tmp_path) | dict(use_abs_pos_embed=False)
    with pytest.raises(ValueError, match='pos_embed'):
        SimMIM(TINY, head=dict(target=dict(type='features', teacher=config)))


def test_conversions_of_a_swin(tmp_path):
    parts = dict(
        backbone=PRETRAIN, head=dict(HEAD, target=dict(type='hog', bins=6), loss=dict(type='ReconstructionLoss'))
    )
    model = randomise(SimMIM(copy.deepcopy(PRETRAIN), dict(parts['head'])))
    note = dict(model=dict(type='simmim_plugin.SimMIM', **parts), pipeline=[dict(type='simmim_plugin.LoadImage')])
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note}, tmp_path / 'ours.pth')
    for side in (48, 96):
        convert_file(tmp_path / 'ours.pth', tmp_path / 'b.pth', 'plugin', img_size=(side, side))
        back, _ = load_pretrained(tmp_path / 'b.pth')
        assert back.head.target.bins == 6 and torch.equal(back.head.decoder.weight, model.head.decoder.weight)
    for to in ('official', 'timm', 'hf', 'mmpretrain'):
        report = convert_file(tmp_path / 'ours.pth', tmp_path / (to if to == 'hf' else f'{to}.pth'), to)
        assert {'head.decoder.weight', 'head.decoder.bias'} <= set(report.left_out)


@pytest.mark.parametrize('name', NAMES)
def test_conversions_keep_the_target_or_leave_the_head(name, tmp_path):
    path, model = write(tmp_path, name)
    convert_file(path, tmp_path / 'again.pth', 'plugin')
    convert_file(path, tmp_path / 'larger.pth', 'plugin', img_size=(96, 96))
    images, mask = torch.randn(1, 3, 64, 64), torch.ones(1, 4, 4)
    for other in ('again', 'larger'):
        found, _ = load_pretrained(tmp_path / f'{other}.pth')
        assert type(found.head.target) is type(model.head.target) and found.head.loss_module.criterion == 'l2'
        assert torch.equal(found.head.decoder.weight, model.head.decoder.weight)
    assert load_pretrained(tmp_path / 'again.pth')[0](images, mask, mode='loss') == model(images, mask, mode='loss')
    keeps = name in ('normalized_pixels', 'low_pass')
    report = convert_file(path, tmp_path / 'official.pth', 'official')
    names = load_file(tmp_path / 'official.pth')['model']
    assert ('decoder.0.weight' in names) is keeps
    assert ('head.decoder.weight' in report.left_out) is not keeps
    for to in ('timm', 'mmpretrain'):
        convert_file(path, tmp_path / f'{to}.pth', to)
    convert_file(path, tmp_path / 'hf', 'hf')
