"""Which tokens a position embedding is of: timm's own models, whose weights alone do not say it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from helpers.families import ARCH, hf_model, timm_vit
from helpers.other_projects import photos, randomise
from simmim_plugin import SimMIMViT
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import save_file
from simmim_plugin.checkpoints.layouts import PATCHES_ALONE
from simmim_plugin.checkpoints.loading import build_backbone
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.checkpoints.start import read_start

ADVICE = r'simmim convert SRC DST --to plugin --img-size HEIGHT WIDTH'
CASES: dict[str, dict[str, Any]] = {  # of VisionTransformer: all of them also have the rows of another grid or layout
    'LayerScale, 14 x 16': dict(img_size=(224, 256), init_values=0.1),
    'LayerScale, 4 x 6': dict(img_size=(64, 96), init_values=0.1),
    'no LayerScale, 4 x 6': dict(img_size=(64, 96)),
    'patches alone, 5 x 5': dict(img_size=80, no_embed_class=True),
    'patches alone, LayerScale, 15 x 15': dict(img_size=240, init_values=0.1, no_embed_class=True),
    '8 registers': dict(img_size=64, reg_tokens=8),
    '8 registers, patches alone': dict(img_size=80, reg_tokens=8, no_embed_class=True),
    '4 registers, 4 x 5': dict(img_size=(64, 80), reg_tokens=4, init_values=0.1),
}


def assert_same_features(path: Path, model: Any, size: tuple[int, int]) -> None:
    images = torch.nn.functional.interpolate(photos('any'), size, mode='bicubic')
    backbone: Any = build_backbone(read(path), out_type='raw')
    assert backbone.img_size == size
    with torch.no_grad():
        expected = model.forward_features(images)
        assert (backbone(images)[0] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize('name', CASES)
def test_the_size_that_is_given_decides(name, tmp_path):
    model: Any = timm_vit(**CASES[name], num_classes=0)
    path, size = tmp_path / 'timm.pth', model.patch_embed.img_size
    save_file(dict(model.state_dict()), path)
    report = convert_file(path, tmp_path / 'ours.pth', 'plugin', size, num_heads=4)
    assert not any(line.startswith('resized') for line in report.notes)
    assert_same_features(tmp_path / 'ours.pth', model, size)
    images = torch.nn.functional.interpolate(photos('any'), size, mode='bicubic')
    ours = SimMIMViT(
        arch=ARCH, img_size=size, use_shared_rel_pos_bias=False, use_abs_pos_embed=True, out_type='raw',
        layer_scale_init_value=CASES[name].get('init_values', 0.0), num_registers=CASES[name].get('reg_tokens', 0),
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
    ).eval()  # fmt: skip
    ours.init_weights()
    with torch.no_grad():
        expected = model.forward_features(images)
        assert (ours(images)[0] - expected).abs().max() < 1e-5 * expected.abs().max()
    takes: tuple[Callable[[], Any], ...] = (
        lambda: convert_file(path, tmp_path / 'b.pth', 'plugin', num_heads=4),
        lambda: read_start(str(path), 4),
    )
    for take in takes:  # nothing states it
        with pytest.raises(ValueError, match=rf'pos_embed has \d+ rows, .* patches.*{ADVICE}'):
            take()
    assert not (tmp_path / 'b.pth').exists()


def test_rows_that_only_one_size_has_need_no_option(tmp_path):
    for changes in (dict(), dict(init_values=0.1), dict(no_embed_class=True, reg_tokens=4, init_values=0.1)):
        model: Any = timm_vit(**changes, num_classes=0)
        save_file(dict(model.state_dict()), tmp_path / 'timm.pth')
        report = convert_file(tmp_path / 'timm.pth', tmp_path / 'ours.pth', 'plugin', num_heads=4)
        assert not any('assumed' in line for line in report.notes)
        assert_same_features(tmp_path / 'ours.pth', model, (64, 64))
        assert not read_start(str(tmp_path / 'timm.pth'), 4).assumed
    alone: Any = timm_vit(img_size=(64, 96), init_values=0.1, no_embed_class=True)
    save_file(dict(alone.state_dict()), tmp_path / 'timm.pth')
    with pytest.raises(ValueError, match=f'has 24 rows, which is no square of patches with 0 or 1 other .*{ADVICE}'):
        convert_file(tmp_path / 'timm.pth', tmp_path / 'b.pth', 'plugin', num_heads=4)


def test_published_models_are_read_without_an_option(tmp_path):
    """FlexiViT: positions of 15 x 15 patches alone, as many as a class token and 14 x 16 patches have."""
    model: Any = randomise(timm.create_model('flexivit_small', num_classes=0))
    path, line = tmp_path / 'timm.pth', 'assumed: pos_embed is of 15 x 15 patches alone, as in published models, not '
    save_file(dict(model.state_dict()), path)
    for size in (None, (240, 240)):
        report = convert_file(path, tmp_path / 'ours.pth', 'plugin', size)
        assert any(each.startswith(line) for each in report.notes) == (size is None)
        assert_same_features(tmp_path / 'ours.pth', model, (240, 240))
    assert read_start(str(path)).assumed[0] == f'{line}the class token and 14 x 16 patches: --img-size'
    with pytest.raises(ValueError, match=f'ambiguous: the class token and 14 x 16 .* or 15 x 15 patches .*{ADVICE}'):
        convert_file(path, tmp_path / 'b.pth', 'plugin', (224, 256))
    wide = SimMIMViT(
        arch='small', img_size=(224, 256), use_shared_rel_pos_bias=False, use_abs_pos_embed=True,
        layer_scale_init_value=0.0, init_cfg=dict(type='Pretrained', checkpoint=str(path)),
    )  # fmt: skip
    with pytest.raises(ValueError, match=f'ambiguous: .*{ADVICE}'):
        wide.init_weights()
    report = convert_file(tmp_path / 'ours.pth', tmp_path / 'wide.pth', 'plugin', (224, 256))  # its size is noted
    assert report.notes == ['resized: backbone.pos_embed 15x15 -> 14x16']


def test_published_models_with_positions_of_the_patches_alone_are_those_of_timm():
    found: dict[tuple[int, int, bool, int], set[int]] = {}
    for name in timm.list_models(['flexivit_*', 'deit3_*', '*reg4_dinov2']):
        with torch.device('meta'):
            model: Any = timm.create_model(name)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        if 'blocks.0.mlp.fc1_g.weight' not in shapes and model.embed_dim != 1536:  # SwiGLU
            scaled, registers = 'blocks.0.ls1.gamma' in shapes, model.num_reg_tokens
            found.setdefault((model.embed_dim, len(model.blocks), scaled, registers), set()).add(shapes['pos_embed'][1])
    assert found == {key: set(rows) for key, rows in PATCHES_ALONE.items()}


def test_a_config_that_contradicts_its_weights(tmp_path):
    pytest.importorskip('transformers')
    folder, ours = tmp_path / 'folder', tmp_path / 'ours.pth'
    hf_model('ViTModel').save_pretrained(folder)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'image_size': 128}))
    for size in (None, (128, 128)):
        with pytest.raises(ValueError, match=r'17 rows, which a grid of 8 x 8 patches does not have; give .* --img-si'):
            convert_file(folder, ours, 'plugin', size)
    convert_file(folder, ours, 'plugin', (64, 64))  # as it says
    assert read(ours).img_size == (64, 64)
    (folder / 'config.json').write_text(json.dumps({**config, 'num_attention_heads': 5}))
    for heads in (None, 4):
        with pytest.raises(ValueError, match=r'config\.json.* is wrong: it states 5 attention heads, among which 64'):
            convert_file(folder, ours, 'plugin', num_heads=heads)
        with pytest.raises(ValueError, match=r'config\.json.* is wrong: it states 5 attention heads, among which 64'):
            read_start(str(folder), heads)
