"""Ordinary ViTs: SimMIMViT with their weights gives their libraries' own numbers on photos."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from helpers.families import ARCH, FAMILIES, GRID, Family, hf_model, mmpretrain_vit, simmim_vit, timm_vit
from helpers.other_projects import assert_same, mmpretrain_model, photos, randomise
from simmim_plugin import SimMIM, SimMIMViT
from simmim_plugin.apis import train
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.layouts import embeds_patches_only
from simmim_plugin.checkpoints.loading import build_backbone, fit_checkpoint
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.checkpoints.start import read_start
from simmim_plugin.checkpoints.state_dicts import from_plugin, recognise, to_plugin


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(params=FAMILIES)
def family(request) -> Family:
    if request.param.startswith(('ViT', 'DeiT', 'Dinov2')):
        pytest.importorskip('transformers')
    return FAMILIES[request.param]()


@torch.no_grad()
def test_features_are_those_of_the_library(family):
    state, images = family.weights, photos('pretrain')
    assert recognise(state) == family.kind
    expected = family.tokens(images)
    actual = simmim_vit(state, family.eps)(images)[0]
    assert expected.std() > 0.1 and relative(actual, expected) < 1e-5
    left_out = {name.partition('.')[0] for name in to_plugin(state, like=GRID).left_out}
    assert left_out == set(family.left_out)
    wrapped = {f'module.{name}': value for name, value in state.items()}
    assert_same(to_plugin({'model': wrapped}, like=GRID).state, to_plugin(state, like=GRID).state)


@pytest.mark.parametrize('name', [name for name in FAMILIES if name.startswith('timm')] + ['torchvision'])
@torch.no_grad()
def test_in_double_precision_the_difference_is_rounding(name):
    """The key bias, which SimMIMViT leaves out, changes nothing."""
    family, images = FAMILIES[name](), photos('pretrain').double()
    family.model.double()
    assert relative(simmim_vit(family.weights)(images)[0], family.tokens(images)) < 1e-10


CLASSIFIERS = ('timm', 'torchvision', 'ViTForImageClassification', 'MMPretrain', 'timm DeiT III')


@pytest.mark.parametrize('name', CLASSIFIERS)
@torch.no_grad()
def test_classifiers_are_read(name):
    family, images = FAMILIES[name](), photos('pretrain')
    state = to_plugin(family.weights, like=GRID).state
    features = simmim_vit(family.weights, family.eps, out_type='cls_token')(images)[0]
    logits = features @ state['head.fc.weight'].T + state['head.fc.bias']
    if name == 'MMPretrain':
        family.model.backbone.out_type = 'cls_token'
    expected = family.model(images)
    assert relative(logits, getattr(expected, 'logits', expected)) < 1e-5


@torch.no_grad()
def test_mean_pooling_with_its_norm_is_read():
    """MAE's fine-tuning and timm's `global_pool='avg'`: a norm of the mean, instead of one of all tokens."""
    model, images = timm_vit(global_pool='avg'), photos('pretrain')
    state = to_plugin(model.state_dict()).state
    features = simmim_vit(model.state_dict(), out_type='avg_featmap')(images)[0]
    assert relative(features @ state['head.fc.weight'].T + state['head.fc.bias'], model(images)) < 1e-5
    theirs = mmpretrain_model(mmpretrain_vit(out_type='avg_featmap', final_norm=False))
    randomise(theirs)
    features = simmim_vit(theirs.state_dict(), out_type='avg_featmap')(images)[0]
    assert relative(features, theirs(images)[0]) < 1e-5
    both = mmpretrain_model(mmpretrain_vit(out_type='avg_featmap')).state_dict()
    with pytest.raises(ValueError, match='two norms behind its blocks'):
        to_plugin(both)


@torch.no_grad()
def test_masks_are_those_of_transformers():
    pytest.importorskip('transformers')
    images, mask = photos('pretrain'), torch.rand(2, 4, 4) > 0.5
    model: Any = hf_model('ViTForMaskedImageModeling')
    state = to_plugin(model.state_dict()).state
    backbone = simmim_vit(model.state_dict(), 1e-12, out_type='featmap')
    simmim = SimMIM(backbone=backbone)
    simmim.head.load_state_dict({name[5:]: x for name, x in state.items() if name.startswith('head.')})
    expected = model(images, bool_masked_pos=mask.flatten(1))
    assert relative(simmim.head(backbone(images, mask)[0]), expected.reconstruction) < 1e-5
    model = hf_model('Dinov2Model')
    expected = model(images, bool_masked_pos=mask.flatten(1)).last_hidden_state
    assert relative(simmim_vit(model.state_dict())(images, mask)[0], expected) < 1e-5


# What comes back: names and shapes of the same classes, with a key bias of zeros.
BACK = {
    'timm': 'timm', 'timm DeiT III': 'timm', 'timm DINOv2': 'timm', 'timm DINOv2 with registers': 'timm',
    'ViTModel': 'hf', 'ViTForImageClassification': 'hf', 'ViTForMaskedImageModeling': 'hf', 'ViTMAEModel': 'hf',
    'Dinov2Model': 'hf', 'Dinov2WithRegistersModel': 'hf', 'MMPretrain LayerScale': 'mmpretrain',
}  # fmt: skip


def without_key_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in state.items()}
    for name, value in state.items():
        if name.endswith(('attn.qkv.bias', 'key.bias')):
            (value.chunk(3)[1] if 'qkv' in name else value).zero_()
    return state


@pytest.mark.parametrize('name', BACK)
def test_what_comes_back_is_what_went_in(name):
    if BACK[name] == 'hf':
        pytest.importorskip('transformers')
    state = FAMILIES[name]().weights
    ours = to_plugin(state, like=GRID).state
    theirs, left_out = from_plugin(ours, BACK[name])
    assert not left_out
    assert_same(theirs, without_key_bias({k: v for k, v in state.items() if not k.startswith('pooler.')}))
    assert_same(to_plugin(theirs, like=GRID).state, ours)


@pytest.mark.parametrize('to', ['timm', 'hf', 'mmpretrain', 'official', 'backbone'])
@pytest.mark.parametrize('registers', [0, 4])
@pytest.mark.parametrize('scale', [0.0, 0.1])
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'avg_featmap'])
@torch.no_grad()
def test_ours_go_and_come_back(to, registers, scale, out_type):
    arguments = dict(arch=ARCH, img_size=64, use_shared_rel_pos_bias=False, use_abs_pos_embed=True, out_type=out_type)
    model: Any = SimMIMViT(**arguments, num_registers=registers, layer_scale_init_value=scale)
    model = randomise(SimMIM(backbone=model) if out_type == 'featmap' else nn.ModuleDict({'backbone': model}))
    state = dict(model.state_dict())
    if out_type != 'featmap':
        state |= {'head.fc.weight': torch.randn(7, 64), 'head.fc.bias': torch.randn(7)}
    if registers and (to in ('mmpretrain', 'official') or (to == 'hf' and out_type == 'avg_featmap')):
        with pytest.raises(ValueError, match=r'the model has register tokens'):
            from_plugin(state, to)
        return
    theirs, left_out = from_plugin(state, to)
    if to == 'timm':
        pool = dict(
            global_pool='avg' if out_type == 'avg_featmap' else 'token', num_classes=7 if 'head.fc.bias' in state else 0
        )
        vit: Any = timm_vit(reg_tokens=registers, init_values=scale or None, **pool)
        vit.load_state_dict(theirs)  # strict
        expected = vit.forward_features(photos('pretrain'))
        if out_type == 'cls_token':
            assert relative(model['backbone'](photos('pretrain'))[0], expected[:, 0]) < 1e-5
    back, nothing = to_plugin(theirs, sure=True, like=GRID)
    assert not nothing and back.keys() == state.keys() - set(left_out)
    scaled = {name for name in back if 'gamma' in name}
    assert_same(back, {name: value for name, value in state.items() if name not in left_out})
    assert bool(scaled) == bool(scale)


@torch.no_grad()
def test_registers_of_timm_are_written_with_or_without_positions():
    """Both of its ways give our features: `no_embed_class` where the class token has no position."""
    for name in ('timm DINOv2 with registers', 'DINOv2 with registers'):
        family = FAMILIES[name]()
        ours = to_plugin(family.weights).state
        bare = {key.removeprefix('backbone.'): value for key, value in ours.items()}
        model: Any = timm_vit(
            reg_tokens=4, init_values=0.1, num_classes=7 if 'head.fc.bias' in ours else 0,
            no_embed_class=embeds_patches_only(bare),
        )  # fmt: skip
        model.load_state_dict(from_plugin(ours, 'timm').state)
        images = photos('pretrain')
        assert relative(model.forward_features(images), family.tokens(images)) < 1e-5


def test_names_of_transformers_5_in_memory_are_those_on_disk():
    pytest.importorskip('transformers')
    for name, mlp in (('ViTModel', True), ('Dinov2Model', False)):
        state = FAMILIES[name]().weights
        renamed = {}
        for key, value in state.items():
            new = key.replace('encoder.layer.', 'layers.').replace('attention.output.dense', 'attention.o_proj')
            for old, part in (('query', 'q'), ('key', 'k'), ('value', 'v')):
                new = new.replace(f'attention.attention.{old}', f'attention.{part}_proj')
            if mlp:
                new = new.replace('intermediate.dense', 'mlp.fc1').replace('output.dense', 'mlp.fc2')
            renamed[new] = value
        assert any('.q_proj.' in key for key in renamed)
        assert_same(to_plugin(renamed).state, to_plugin(state).state)


def test_the_training_files_of_dinov2_are_read():
    """A teacher in blocks of blocks, numbered through, and heads of the training."""
    state = FAMILIES['DINOv2 with registers']().weights
    teacher = {f'backbone.{key.replace("blocks.", "blocks.0.")}': value for key, value in state.items()}
    converted, left_out = to_plugin({'teacher': {**teacher, 'dino_head.mlp.0.weight': torch.ones(1)}})
    assert_same(converted, to_plugin(state).state)
    assert left_out == ['dino_head.mlp.0.weight']


SOURCES = {
    'timm': 'timm DINOv2',
    'hf': 'Dinov2WithRegistersModel',
    'mmpretrain': 'MMPretrain',
    'torchvision': 'torchvision',
}


@pytest.mark.parametrize('source', SOURCES)
@torch.no_grad()
def test_init_cfg_and_load_from_take_them(source, tmp_path):
    family, images = FAMILIES[SOURCES[source]](), photos('pretrain')
    path = tmp_path / 'weights.pth'
    if source == 'hf':
        path = tmp_path / 'folder'
        family.model.save_pretrained(path)
    else:
        torch.save(family.weights, path)
    arguments = dict(
        arch=ARCH, img_size=64, use_shared_rel_pos_bias=False, use_abs_pos_embed=True, out_type='raw',
        num_registers=4 * (source == 'hf'), layer_scale_init_value=0.1 * (source in ('hf', 'timm')),
    )  # fmt: skip
    model = SimMIMViT(**arguments, init_cfg=dict(type='Pretrained', checkpoint=str(path))).eval()
    model.init_weights()
    expected = family.tokens(images)
    assert relative(model(images)[0], expected) < 1e-5
    model = SimMIM(backbone=SimMIMViT(**{**arguments, 'out_type': 'featmap'})).eval()
    train._check_checkpoint(Config(dict(load_from=str(path))))  # has MMEngine read files as here
    checkpoint = CheckpointLoader.load_checkpoint(str(path))
    fitted = fit_checkpoint(model, checkpoint)
    model.load_state_dict(checkpoint['state_dict'])
    assert {name for name in fitted.kept if 'backbone' in name} <= {'backbone.mask_token'}
    assert relative(model.backbone(images)[0].flatten(2).transpose(1, 2), expected[:, -16:]) < 1e-5


@pytest.mark.parametrize('source', ['MAE', 'DINOv2 with registers', 'torchvision', 'timm DeiT', 'ViTMAEForPreTraining'])
@torch.no_grad()
def test_converted_files_are_whole_models(source, tmp_path):
    """A file of any family, or a folder, with a config of ours: as `simmim features` and the probes read it."""
    family, images, path = FAMILIES[source](), photos('pretrain'), tmp_path / 'source.pth'
    if family.kind == 'hf':
        path = tmp_path / 'folder'
        family.model.save_pretrained(path)
    else:
        torch.save({'model': family.weights}, path)
    report = convert_file(path, tmp_path / 'ours.pth', 'plugin', num_heads=4)
    assert report.kind == family.kind
    backbone: Any = build_backbone(read(tmp_path / 'ours.pth'), out_type='raw')
    assert relative(backbone(images)[0], family.tokens(images)) < 1e-5
    assert backbone.blocks[0].norm1.eps == family.eps


@torch.no_grad()
def test_weights_in_a_folder_of_hugging_face_are_read_with_its_config(tmp_path):
    """Heads and epsilon are not in the weights; a file without a config says what was assumed."""
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=192, num_hidden_layers=12, num_attention_heads=6, intermediate_size=768, image_size=64)
    config = transformers.ViTConfig(**sizes, patch_size=16, layer_norm_eps=1e-3)
    theirs, images = randomise(transformers.ViTModel(config, add_pooling_layer=False)), photos('pretrain')
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / 'model.safetensors'
    report = convert_file(weights, tmp_path / 'ours.pth', 'plugin')
    assert not any('assumed' in line for line in report.notes)
    backbone: Any = build_backbone(read(tmp_path / 'ours.pth'), out_type='raw')
    assert relative(backbone(images)[0], theirs(images).last_hidden_state) < 1e-5
    (tmp_path / 'config.json').write_text('{"architecture": "vit_tiny_patch16_224"}')  # as timm writes it
    assert read(weights).note == {}
    (tmp_path / 'config.json').unlink()
    heads, eps = convert_file(weights, tmp_path / 'bare.pth', 'plugin').notes[:2]
    assert heads.startswith('assumed: 3 heads, as in published')
    assert eps == 'assumed: an epsilon of 1e-06 of the norms; config.json, which says it, is not next to the file'
    assert read_start(str(weights)).assumed == (heads, eps)
