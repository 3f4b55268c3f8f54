"""What `convert --to timm` and `--to hf` write, loaded by these libraries in a fresh process by the printed line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import run_streams
from helpers.models import TINY, assert_close
from helpers.other_projects import CLASSES, FINETUNE, KINDS, mmpretrain_model, photos, randomise
from helpers.swin import PRETRAIN
from simmim_plugin import SimMIM
from simmim_plugin.checkpoints import swin_files
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import NOTE, load_file, save_file
from simmim_plugin.checkpoints.loading import build_backbone
from simmim_plugin.checkpoints.other_projects import facts_of
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.checkpoints.swin import to_ours
from simmim_plugin.checkpoints.their_configs import timm_line
from simmim_plugin.registry import build_part

VIT: dict[str, Any] = KINDS['absolute']
SCALED = {**VIT, 'layer_scale_init_value': 0.1}
MODELS: dict[str, tuple[dict[str, Any], str, str]] = {  # arguments of SimMIMViT, classes of timm and Hugging Face
    'shared table': ({}, 'Beit', 'BeitModel'),
    'classifier with tables': (FINETUNE, 'Beit', 'BeitForImageClassification'),
    'ViT': (VIT, 'VisionTransformer', 'ViTForMaskedImageModeling'),
    'ViT classifier': ({**VIT, 'out_type': 'cls_token'}, 'VisionTransformer', 'ViTForImageClassification'),
    'pooled ViT': ({**VIT, 'out_type': 'avg_featmap'}, 'VisionTransformer', 'BeitForImageClassification'),
    'LayerScale, epsilon': ({**SCALED, 'norm_eps': 1e-3}, 'VisionTransformer', 'Dinov2Model'),
    'registers': ({**SCALED, 'num_registers': 4}, 'VisionTransformer', 'Dinov2WithRegistersModel'),
    'registers alone': ({**VIT, 'num_registers': 1}, 'VisionTransformer', 'Dinov2WithRegistersModel'),
}  # fmt: skip
LOAD = """
import functools, json, sys, timm, torch, transformers
folder = sys.argv[1]
images = torch.load(f'{folder}/images.pt')
found = {}
for name, lines in json.load(open(f'{folder}/lines.json')).items():
    models = [eval(line).eval() for line in lines]
    with torch.no_grad():
        features = models[0].forward_head(models[0].forward_features(images), pre_logits=True)
        found[name] = [features, models[0](images)]
        auto = transformers.AutoModel.from_pretrained(f'{folder}/{name}', output_loading_info=True)
        missing = [key for key in auto[1]['missing_keys'] if 'pooler.dense' not in key]
        assert not missing and not auto[1]['mismatched_keys'], auto[1]
        last = auto[0].eval()(images).last_hidden_state
        found[name] += [last, getattr(models[1](images), 'logits', None)]
    found[name].append([type(model).__name__ for model in models])
torch.save(found, f'{folder}/found.pt')
"""


def written(name: str, folder: Path) -> list[str]:
    """Write a random model as a checkpoint, and convert it; the lines that load it in timm and in Transformers."""
    config = {**TINY, **MODELS[name][0]}
    model: Any = randomise(build_part(config))
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    if model.out_type == 'featmap':
        state |= {f'head.{key}': value for key, value in randomise(SimMIM(backbone=model).head).state_dict().items()}
    else:
        state |= {'head.fc.weight': torch.randn(CLASSES, 48), 'head.fc.bias': torch.randn(CLASSES)}
    save_file({'state_dict': state, NOTE: {'model': {'backbone': config}}}, folder / f'{name}.pth')
    return written_lines(folder, name)


def written_lines(folder: Path, name: str, **arguments: Any) -> list[str]:
    """Convert `NAME.pth`; the lines that load it in timm and in Transformers."""
    lines = []
    for to, target in (('timm', folder / f'{name}.safetensors'), ('hf', folder / name)):
        report = convert_file(folder / f'{name}.pth', target, to, **arguments)
        lines += [line.removeprefix('model: ') for line in report.notes if line.startswith('model: ')]
    return lines


def swin_classifier() -> Any:
    """MMPretrain's, for images of 64 px."""
    arguments = {key: value for key, value in PRETRAIN.items() if key not in ('type', 'stage_cfgs')}
    backbone = dict(type='mmpretrain.SwinTransformer', **{**arguments, 'img_size': 64, 'window_size': 2})
    neck = dict(type='mmpretrain.GlobalAveragePooling')
    head = dict(type='mmpretrain.LinearClsHead', num_classes=CLASSES, in_channels=16)
    return randomise(mmpretrain_model(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)))


def test_a_fresh_process_loads_them(tmp_path):
    pytest.importorskip('transformers')
    lines = {name: written(name, tmp_path) for name in MODELS}
    swin = swin_classifier()
    save_file({'state_dict': swin.state_dict()}, tmp_path / 'swin.pth')
    lines['swin'] = written_lines(tmp_path, 'swin', img_size=(64, 64))
    (tmp_path / 'lines.json').write_text(json.dumps(lines))
    images = photos('any')
    torch.save(images, tmp_path / 'images.pt')
    code, _, errors = run_streams(sys.executable, '-c', LOAD, tmp_path, HF_HUB_OFFLINE='1')
    assert code == 0, errors
    found = torch.load(tmp_path / 'found.pt')
    for name, (changes, *classes) in MODELS.items():
        features, output, last, theirs, kinds = found[name]
        assert kinds == classes, name
        backbone = randomise(build_part({**TINY, **changes}))
        state = load_file(tmp_path / f'{name}.pth')['state_dict']
        with torch.no_grad():
            ours = backbone(images)[0]
            tokens, _ = backbone.forward_intermediates(images)
        pooled = ours if 'out_type' in changes else tokens[:, 0]
        assert_close(features, pooled.numpy())
        assert_close(last, tokens.numpy())
        if 'head.fc.weight' in state:
            logits = pooled @ state['head.fc.weight'].T + state['head.fc.bias']
            assert_close(output, logits.numpy())
            assert_close(theirs, logits.numpy())
    features, output, last, theirs, kinds = found['swin']
    assert kinds == ['SwinTransformer', 'SwinForImageClassification']
    with torch.no_grad():
        maps, logits = swin.backbone(images)[0], swin(images).numpy()
    assert_close(features, maps.mean((2, 3)).numpy())
    assert_close(last, maps.flatten(2).transpose(1, 2).numpy())
    assert_close(output, logits)
    assert_close(theirs, logits)


@pytest.mark.parametrize('name', MODELS)
def test_they_come_back(name, tmp_path):
    """And the config says what the weights do not: heads, epsilon, registers."""
    written(name, tmp_path)
    arguments = MODELS[name][0]
    for source in (f'{name}.safetensors', name):
        size, heads = (None, None) if source == name else ((64, 64), 4)  # 18 rows are also those of 3 x 6 patches
        convert_file(tmp_path / source, tmp_path / 'back.pth', 'plugin', size, heads)
        config = read(tmp_path / 'back.pth').backbone
        assert config['arch'] == TINY['arch'] and config['num_registers'] == arguments.get('num_registers', 0)
        if source == name:
            assert config['norm_eps'] == arguments.get('norm_eps', 1e-6)
        expected = load_file(tmp_path / f'{name}.pth')['state_dict']
        for key, value in load_file(tmp_path / 'back.pth')['state_dict'].items():
            if key in expected and 'mask_token' not in key:
                assert torch.equal(value, expected[key]), key
        assert build_backbone(read(tmp_path / 'back.pth')).num_layers == 3


@pytest.mark.parametrize('name', [name for name in MODELS if 'registers' not in name])
def test_mmpretrain_loads_them(name, tmp_path):
    written(name, tmp_path)
    report = convert_file(tmp_path / f'{name}.pth', tmp_path / 'theirs.pth', 'mmpretrain')
    model = mmpretrain_model(eval(report.notes[-1].removeprefix('model = '))).eval()
    model.load_state_dict(load_file(tmp_path / 'theirs.pth')['state_dict'])
    backbone = randomise(build_part({**TINY, **MODELS[name][0]}))
    assert type(model.backbone).__name__ == ('BEiTViT' if MODELS[name][1] == 'Beit' else 'VisionTransformer')
    with torch.no_grad():
        assert_close(model.backbone(photos('any'))[0], backbone(photos('any'))[0].numpy())


def test_published_models_are_named():
    """By name where the widths are those of a published model; the number of its heads is known, too."""
    import timm

    for name, heads in (('vit_tiny_patch16_224', 3), ('vit_huge_patch14_224', 16), ('vit_gigantic_patch14_224', 16)):
        with torch.device('meta'):
            theirs = timm.create_model(name, num_classes=0)
        state = {'backbone.' + key: value for key, value in theirs.state_dict().items()}
        facts = facts_of(state)
        assert facts.arch['num_heads'] == heads == theirs.blocks[0].attn.num_heads and facts.heads_assumed
        line = timm_line(facts, 'VisionTransformer', '')
        assert line.startswith(f'timm.create_model({name!r}, ') and 'depth' not in line
        assert line.count('=') == 7
    for size in ('tiny', 'small', 'base', 'large'):
        with torch.device('meta'):
            theirs = timm.create_model(name := f'swin_{size}_patch4_window7_224', num_classes=0)
        facts = swin_files.facts_of(to_ours(theirs.state_dict())[0])
        assert swin_files.timm_line(facts, '').startswith(f'timm.create_model({name!r}, ') and facts.img_size == (
            224,
            224,
        )
