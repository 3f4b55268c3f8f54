"""The configs in a folder of Hugging Face, which are data from elsewhere, as a config of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_plugin.utils.arguments import flag, number, sides, whole
from simmim_plugin.utils.files import read_json

# Defaults of Hugging Face's classes, which config.json may leave out: epsilon of the norms, side of a patch.
DEFAULTS = {'dinov2': (1e-6, 14), 'dinov2_with_registers': (1e-6, 16), 'vit_msn': (1e-6, 16)}
# Types of ViTs; of other models, nothing is assumed.
VITS = ('beit', 'data2vec-vision', 'deit', 'vit', 'vit_mae', *DEFAULTS)


def hf_configs(folder: Path) -> dict[str, Any]:
    """What `config.json` and `preprocessor_config.json` say of model and images, as far as they are there.

    Raises:
        ValueError: One is no JSON object, or a value is of another type or out of range; the message has file and key.
    """
    model: dict[str, Any] = {}
    config = read_json(folder / 'config.json')
    if 'model_type' in config:  # else it is timm's, or of something else
        model['backbone'] = _backbone(config, f'{folder / "config.json"}: ')
    path = folder / 'preprocessor_config.json'
    if normalisation := _normalisation(read_json(path), config.get('num_channels', 3), f'{path}: '):
        model['data_preprocessor'] = normalisation
    return model


def _backbone(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    kind = str(config['model_type'])
    size = config.get('image_size', 224)
    if kind not in VITS:
        heads, eps = config.get('num_attention_heads'), config.get('layer_norm_eps')
        stated = dict(patch_size=config.get('patch_size', 16), norm_eps=eps, hidden_act=config.get('hidden_act'))
        stated['arch'] = dict(num_heads=heads) if isinstance(heads, int) else None
        return dict(img_size=size) | {key: value for key, value in stated.items() if value is not None}
    eps, patch = DEFAULTS.get(kind, (1e-12, 16))
    patch, heads = config.get('patch_size', patch), config.get('num_attention_heads', 12)
    eps, act = config.get('layer_norm_eps', eps), config.get('hidden_act', 'gelu')
    sides(f'{place}image_size', size)
    whole(f'{place}patch_size', patch, 1)
    whole(f'{place}num_attention_heads', heads, 1)
    number(f'{place}layer_norm_eps', eps, 0, ends='(]')
    return dict(img_size=size, patch_size=patch, arch=dict(num_heads=heads), norm_eps=eps, hidden_act=act)


def _normalisation(config: Mapping[str, Any], channels: Any, place: str) -> dict[str, Any]:
    """Mean and std in the units of the stored images; {} if they are not stated."""
    scale = 1.0
    if flag(f'{place}do_rescale', config.get('do_rescale', True)):
        scale = 1 / number(f'{place}rescale_factor', config.get('rescale_factor', 1 / 255), 0, ends='(]')
    if not flag(f'{place}do_normalize', config.get('do_normalize', True)):
        channels = whole('config.json: num_channels', channels, 1, 1000)
        return dict(mean=[0.0] * channels, std=[scale] * channels)
    if 'image_mean' not in config or 'image_std' not in config:
        return {}
    for key in ('image_mean', 'image_std'):
        if not isinstance(config[key], list):
            raise ValueError(f'{place}{key}={config[key]!r} must be a list of numbers, one per channel')
    mean = [scale * number(f'{place}image_mean[{i}]', value) for i, value in enumerate(config['image_mean'])]
    std = [scale * number(f'{place}image_std[{i}]', value, 0, ends='(]') for i, value in enumerate(config['image_std'])]
    return dict(mean=mean, std=std)
