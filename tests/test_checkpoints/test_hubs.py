"""Weights by name: from the cache of the libraries, or a line that says how to get them, at once."""

import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BeitConfig, BeitModel

from helpers.hubs import empty_cache, snapshot
from helpers.other_projects import randomise
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.saved import read

VIT = 'test_vit.r160_in1k'  # timm's own for tests: 64 wide, 6 blocks


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    return empty_cache(tmp_path, monkeypatch)


def test_a_model_of_timm(cache):
    theirs: Any = randomise(timm.create_model(VIT))
    save_file(theirs.state_dict(), snapshot(cache, f'timm/{VIT}') / 'model.safetensors')
    saved = read(f'timm:{VIT}')
    assert saved.state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in saved.state.items())
    backbone = saved.part('backbone')
    assert (saved.img_size, backbone['patch_size'], backbone['arch']) == ((160, 160), 16, dict(num_heads=2))
    assert saved.part('data_preprocessor')['mean'] == pytest.approx([255 * x for x in theirs.pretrained_cfg['mean']])
    convert_file(f'timm:{VIT}', cache / 'ours.pth', 'plugin')
    converted = read(cache / 'ours.pth')
    assert converted.backbone['arch']['num_heads'] == 2 and converted.backbone['img_size'] == [160, 160]
    assert converted.part('data_preprocessor')['mean'] == saved.part('data_preprocessor')['mean']


def test_a_model_of_hugging_face(cache):
    size = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=64)
    theirs = randomise(BeitModel(BeitConfig(**size, use_mean_pooling=False), add_pooling_layer=False))
    folder = snapshot(cache, 'someone/a-model')
    theirs.save_pretrained(folder)
    (folder / 'preprocessor_config.json').write_text(json.dumps(dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)))
    saved = read('hf:someone/a-model')
    assert saved.path == 'hf:someone/a-model' and saved.img_size == (64, 64)
    assert saved.part('data_preprocessor') == dict(mean=[127.5] * 3, std=[63.75] * 3)
    assert torch.equal(saved.state['embeddings.cls_token'], theirs.embeddings.cls_token)


def test_without_a_network_one_line_says_how_to_get_it(cache, monkeypatch):
    monkeypatch.setattr(timm, 'create_model', None)  # not called: it would try for minutes
    with pytest.raises(FileNotFoundError, match=rf'timm:{VIT} is not in the cache here .*: python -c "import timm; .*'):
        read(f'timm:{VIT}')
    with pytest.raises(FileNotFoundError, match=r'does not answer: no network.*: hf download a/b --local-dir FOLDER'):
        read('hf:a/b')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(FileNotFoundError, match='HF_HUB_OFFLINE is set'):
        read('hf:a/b')


def test_unknown_names(cache):
    with pytest.raises(ValueError, match="checkpoint 'timm:nope': timm has no pretrained model 'nope'"):
        read('timm:nope')
    with pytest.raises(ValueError, match="checkpoint 'hf:a/b/c': 'a/b/c' is no name of a model of the Hugging Face"):
        read('hf:a/b/c')


def test_a_model_without_weights_in_one_file(cache, monkeypatch):
    def download(name: str, file: str) -> str:
        raise huggingface_hub.errors.EntryNotFoundError(f'{name} has no {file}')

    monkeypatch.setattr(urllib.request, 'urlopen', lambda *args, **kwargs: io.BytesIO())  # an answer
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    with pytest.raises(ValueError, match=r'has neither model\.safetensors nor pytorch_model\.bin'):
        read('hf:a/b')


def test_quick_gelu_is_refused(cache, monkeypatch):
    class QuickGELU(nn.Module):
        """CLIP's."""

    def create(name: str, **kwargs: object) -> nn.Module:
        model = timm.models.create_model(name)
        for block in model.blocks:
            block.mlp.act = QuickGELU()
        return model

    snapshot(cache, f'timm/{VIT}').joinpath('model.safetensors').touch()
    monkeypatch.setattr(timm, 'create_model', create)
    with pytest.raises(ValueError, match='have QuickGELU, those of SimMIMViT have GELU'):
        read(f'timm:{VIT}')


BLOCKS = {
    'vit_base_patch16_rpn_224.sw_in1k': "_224.sw_in1k' are ResPostBlock of timm, those of SimMIMViT",
    'vit_pwee_patch16_reg1_gap_256.sbb_in1k': 'it has attention and MLP in parallel; docs/backbones.md',
}


@pytest.mark.parametrize('name', BLOCKS)
def test_other_blocks_are_named(cache, monkeypatch, name):
    theirs = timm.create_model(name, depth=2, embed_dim=48, num_heads=3)
    snapshot(cache, timm.get_pretrained_cfg(name).hf_hub_id).joinpath('model.safetensors').touch()
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: theirs)
    with pytest.raises(ValueError, match=BLOCKS[name]):
        convert_file(f'timm:{name}', cache / 'ours.pth', 'plugin')
