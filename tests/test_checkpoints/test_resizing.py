"""`simmim convert` to other image sizes and patches, compared with timm's own resizing of the same models."""

import sys
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_patch_embed
from torch import Tensor

from helpers.commands import run_streams
from helpers.models import TINY, assert_close
from helpers.other_projects import backbone_state, photos, plugin_state, randomise
from helpers.paths import ROOT
from simmim_plugin import SimMIMViT
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import NOTE, load_file, save_file
from simmim_plugin.checkpoints.loading import build_backbone, load_pretrained
from simmim_plugin.checkpoints.saved import read

VIT: dict[str, Any] = dict(embed_dim=64, depth=2, num_heads=4, num_classes=0)


def vit(name: str = 'vit_base_patch16_224', **changes: Any) -> Any:
    return timm.create_model(name, **{**VIT, **changes})


def resized_by_timm(model: Any, **changes: Any) -> Any:
    """The model of another size with the weights of `model`, resized by timm's `checkpoint_filter_fn`."""
    other = vit(**changes)
    state = timm.models.vision_transformer.checkpoint_filter_fn(dict(model.state_dict()), other)
    other.load_state_dict(state)
    return other.eval()


SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of timm's models: before, after
    'larger': (dict(img_size=64), dict(img_size=96)),
    'wide': (dict(img_size=64), dict(img_size=(64, 96))),
    'smaller patches': (dict(img_size=64, patch_size=16), dict(img_size=64, patch_size=8)),
    'DINOv2': (
        dict(img_size=56, patch_size=14, init_values=0.1, reg_tokens=4, no_embed_class=True),
        dict(img_size=96, patch_size=16, init_values=0.1, reg_tokens=4, no_embed_class=True),
    ),
}


@pytest.mark.parametrize('name', SIZES)
def test_sizes_and_patches_change_as_timm_changes_them(name, tmp_path):
    before, after = SIZES[name]
    model = randomise(vit(**before))
    save_file(model.state_dict(), tmp_path / 'timm.safetensors')
    size = after['img_size']
    height, width = size if isinstance(size, tuple) else (size, size)
    patch = after.get('patch_size')
    report = convert_file(
        tmp_path / 'timm.safetensors', tmp_path / 'ours.pth', 'plugin', (height, width), 4, patch_size=patch
    )
    assert any(line.startswith('resized: backbone.pos_embed 4x4 -> ') for line in report.notes)
    saved = read(tmp_path / 'ours.pth')
    backbone = build_backbone(saved, out_type='raw')
    assert backbone.img_size == (height, width) and backbone.patch_size == (patch or 16)
    images = torch.nn.functional.interpolate(photos('any'), (height, width), mode='bicubic')
    with torch.no_grad():
        expected = resized_by_timm(model, **after).forward_features(images)
        assert_close(backbone(images)[0], expected.numpy())


def test_the_decoder_stays_at_another_size_and_goes_with_other_patches(tmp_path):
    """Bias tables are interpolated as a model of the new size does on loading."""
    save_file(plugin_state('pretrain'), tmp_path / 'a.pth')
    convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', 'plugin')  # with a config
    report = convert_file(tmp_path / 'b.pth', tmp_path / 'c.pth', 'plugin', img_size=(64, 96))
    assert not report.left_out and report.notes == [
        'resized: backbone.rel_pos_bias.relative_position_bias_table 4x4 -> 4x6'
    ]
    model, pipeline = load_pretrained(tmp_path / 'c.pth')
    assert model.backbone.img_size == (64, 96) and list(pipeline[1]['size']) == [64, 96]
    expected = SimMIMViT(**{**{k: v for k, v in TINY.items() if k != 'type'}, 'img_size': (64, 96)}).eval()
    expected.load_state_dict(backbone_state(plugin_state('pretrain')))
    mask = torch.rand(2, 4, 6) > 0.5
    with torch.no_grad():
        assert_close(model.backbone(photos('wide'), mask)[0], expected(photos('wide'), mask)[0].numpy())
    report = convert_file(tmp_path / 'b.pth', tmp_path / 'd.pth', 'plugin', patch_size=8)
    assert report.left_out == ['head.decoder.weight', 'head.decoder.bias']
    assert report.notes[0] == 'resized: backbone.patch_embed.proj.weight 16 x 16 -> 8 x 8 px'
    state = load_file(tmp_path / 'd.pth')['state_dict']
    weight = plugin_state('pretrain')['backbone.patch_embed.proj.weight']
    torch.testing.assert_close(state['backbone.patch_embed.proj.weight'], resample_patch_embed(weight, [8, 8]))
    note = load_file(tmp_path / 'd.pth')[NOTE]['model']['backbone']
    assert (note['patch_size'], list(note['img_size'])) == (8, [64, 64])


def test_a_larger_patch_keeps_the_tokens_of_enlarged_images(tmp_path):
    """What the pseudo-inverse is for (FlexiViT, section 3.4): an image enlarged with its patches gives the same."""
    state = {**plugin_state('absolute')}
    save_file({'state_dict': state, NOTE: {'model': {'backbone': TINY}}}, tmp_path / 'a.pth')
    convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', 'plugin', img_size=(128, 128), patch_size=32)
    weight = load_file(tmp_path / 'b.pth')['state_dict']['backbone.patch_embed.proj.weight']
    patch = photos('any')[:, :, :16, :16]
    large = torch.nn.functional.interpolate(patch, (32, 32), mode='bicubic', antialias=True)
    assert_close(tokens(large, weight), tokens(patch, state['backbone.patch_embed.proj.weight']).numpy(), 1e-3)


def tokens(patch: Tensor, weight: Tensor) -> Tensor:
    return patch.flatten(1) @ weight.flatten(1).T


def test_a_size_that_the_source_does_not_say_is_its_own_if_it_fits(tmp_path):
    state = {name: x for name, x in plugin_state('wide').items() if not name.startswith('head.')}
    save_file(state, tmp_path / 'wide.pth')  # tables of 4 x 6 patches, and no config
    report = convert_file(tmp_path / 'wide.pth', tmp_path / 'a.pth', 'plugin', img_size=(64, 96))
    assert not any(line.startswith('resized') for line in report.notes)
    report = convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', 'plugin', img_size=(96, 64))  # of the same shape
    assert report.notes == ['resized: backbone.rel_pos_bias.relative_position_bias_table 4x6 -> 6x4']
    with pytest.raises(ValueError, match=r'has 80 rows, which no square grid .* --img-size HEIGHT WIDTH'):
        convert_file(tmp_path / 'wide.pth', tmp_path / 'c.pth', 'plugin', img_size=(128, 128))


def test_wrong_sizes_are_named(tmp_path):
    save_file(plugin_state('pretrain'), tmp_path / 'a.pth')
    for changes, message in (
        (dict(img_size=(60, 64)), '--img-size of 60 x 64 px: both sides must be multiples of the patch, 16 px'),
        (dict(patch_size=0), '--patch-size=0 must be a whole number of at least 1'),
        (dict(patch_size=15), 'multiples of the patch, 15 px, e.g. 60 x 60; --patch-size and --img-size go together'),
        (dict(in_channels=0), '--in-channels=0 must be a whole number of at least 1'),
    ):
        with pytest.raises(ValueError, match=message):
            convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', 'plugin', **changes)
    assert not (tmp_path / 'b.pth').exists()
    backbone = {name[9:]: x for name, x in plugin_state('pretrain').items() if name.startswith('backbone.')}
    arguments = {**{k: v for k, v in TINY.items() if k != 'type'}, 'patch_size': 8}
    with pytest.raises(
        ValueError, match=r'has patches of 16 x 16 px and the model of 8 x 8 px; .* --to plugin --patch-size 8'
    ):
        SimMIMViT(**arguments).load_state_dict(backbone)


def test_the_command(tmp_path):
    save_file(plugin_state('pretrain'), tmp_path / 'a.pth')
    arguments = ['--to', 'backbone', '--img-size', '48', '72', '--patch-size', '8']
    code, output, errors = run_streams(
        sys.executable, ROOT / 'tools/convert_checkpoint.py', tmp_path / 'a.pth', tmp_path / 'b.pth', *arguments
    )
    assert code == 0, errors
    assert output.splitlines()[1:5] == [
        'left out: head.decoder.weight',
        'left out: head.decoder.bias',
        'resized: backbone.patch_embed.proj.weight 16 x 16 -> 8 x 8 px',
        'resized: backbone.rel_pos_bias.relative_position_bias_table 4x4 -> 6x9',
    ]
