"""Models of other projects, with random weights."""

from functools import cache
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import Tensor, nn

from helpers.models import TINY
from simmim_plugin import PackagePhotos, SimMIM, SimMIMViT
from simmim_plugin.checkpoints.state_dicts import to_plugin
from simmim_plugin.registry import build_part

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
PRETRAIN = dict(use_shared_rel_pos_bias=True)
FINETUNE = dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True, out_type='avg_featmap')
CLS = {**FINETUNE, 'out_type': 'cls_token'}
ABSOLUTE = dict(use_shared_rel_pos_bias=False, use_abs_pos_embed=True, layer_scale_init_value=0.0)
CHANNELS = dict(in_channels=5, use_abs_pos_embed=True)
WIDE = dict(img_size=(64, 96))
KINDS: dict[str, dict[str, Any]] = {
    'pretrain': PRETRAIN, 'finetune': FINETUNE, 'cls': CLS, 'absolute': ABSOLUTE, 'channels': CHANNELS, 'wide': WIDE,
    'wide-finetune': {**FINETUNE, **WIDE}, 'finetune-without-tables': {**ABSOLUTE, 'out_type': 'avg_featmap'},
}  # fmt: skip
CLASSES = 7


def backbone_of(kind: str) -> SimMIMViT:
    return build_part({**TINY, **KINDS[kind]}).eval()


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def plugin_state(kind: str) -> dict[str, Tensor]:
    """State dict of a random model, with our names: SimMIM if pretrained, else a classifier."""
    return dict(_plugin_state(kind))


@cache
def _plugin_state(kind: str) -> dict[str, Tensor]:
    backbone = randomise(backbone_of(kind))
    state = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    if backbone.out_type == 'featmap':
        head = randomise(SimMIM(backbone=backbone).head)
        return state | {f'head.{name}': value for name, value in head.state_dict().items()}
    return state | {'head.fc.weight': torch.randn(CLASSES, 48), 'head.fc.bias': torch.randn(CLASSES)}


@cache
def photos(kind: str) -> Tensor:
    """(2, C, H, W), normalised: the astronaut and a cat; more channels are shifted copies."""
    height, width = (64, 96) if kind.startswith('wide') else (64, 64)
    images = []
    for info in PackagePhotos().load_data_list()[:2]:
        with Image.open(info['img_path']) as file:
            pixels = np.array(file.convert('RGB').resize((width, height), Image.Resampling.BICUBIC))
        images.append(((torch.from_numpy(pixels) - MEAN) / STD).permute(2, 0, 1))
    batch = torch.stack(images)
    return torch.cat((batch, batch[:, :2].roll(3, -1)), dim=1) if kind == 'channels' else batch


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and torch.equal(actual[name], value), name


def mmpretrain_model(config: dict) -> nn.Module:
    init_default_scope('mmpretrain')  # the classifier looks up its parts there, whatever an earlier test set
    return MODELS.build({'_scope_': 'mmpretrain', **config})


def backbone_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the backbone of a file of any kind, by our names without a prefix."""
    converted = to_plugin(state, sure=True).state
    return {name.removeprefix('backbone.'): x for name, x in converted.items() if name.startswith('backbone.')}
