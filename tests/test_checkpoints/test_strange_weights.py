"""Files whose tensors or configs are not those of a model: one line that says what, before anything is changed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.families import FAMILIES
from helpers.models import TINY
from simmim_plugin import SimMIM, SimMIMViT
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.checkpoints.start import read_start

pytestmark = pytest.mark.core
ARGUMENTS = {name: value for name, value in TINY.items() if name != 'type'}
WEIGHT = 'backbone.blocks.1.mlp.fc1.weight'
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    'quantised': (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), r'a quantised tensor \(torch.qint8\)'),
    'meta': (lambda x: x.to('meta'), "a tensor on the device 'meta', without values"),
    'sparse': (Tensor.to_sparse, r'a sparse tensor \(torch.sparse_coo\)'),
    'CSR': (Tensor.to_sparse_csr, r'a sparse tensor \(torch.sparse_csr\)'),
    'nested': (lambda x: torch.nested.as_nested_tensor([x[0], x[1]]), 'a nested tensor'),
    'complex': (lambda x: x.to(torch.complex64), 'of torch.complex64'),
    'bool': (lambda x: x > 0, 'of torch.bool'),
    'int8': (lambda x: x.to(torch.int8), 'of torch.int8'),
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(SimMIM(backbone=TINY).state_dict())


@pytest.mark.parametrize('kind', KINDS)
def test_weights_are_dense_floating_point_tensors(kind, state, tmp_path):
    change, what = KINDS[kind]
    path = tmp_path / 'strange.pth'
    torch.save({**state, WEIGHT: change(state[WEIGHT])}, path)
    model = SimMIMViT(**{**ARGUMENTS, 'init_cfg': dict(type='Pretrained', checkpoint=str(path))})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for take in (lambda: read_start(str(path)), model.init_weights):
        with pytest.raises(ValueError, match=rf"strange\.pth': backbone\.blocks\.1\.mlp\.fc1\.weight is {what}; the w"):
            take()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


BLOCK = 'backbone.blocks.1.'
SHAPES: dict[str, tuple[dict[str, Tensor | None], str]] = {
    'narrow': (
        {BLOCK + 'attn.proj.weight': torch.ones(48, 32)}, r'blocks\.1\.attn\.proj\.weight is of shape \(48, 32\), and '
    ),
    'narrow in all': (
        {f'backbone.blocks.{i}.attn.proj.weight': torch.ones(48, 32) for i in range(3)},
        r'of another shape: blocks\.0\.attn\.proj\.weight \(48, 32\) instead of \(48, 48\)',
    ),
    'another MLP': (
        {
            BLOCK + 'mlp.fc1.weight': torch.ones(96, 48), BLOCK + 'mlp.fc1.bias': torch.ones(96),
            BLOCK + 'mlp.fc2.weight': torch.ones(48, 96),
        },
        r'blocks\.1\.mlp\.fc1\.weight is of shape \(96, 48\), and that of the first block \(192, 48\)',
    ),
    'numbered twice': ({'backbone.blocks.01.norm1.weight': torch.ones(48)}, '4 blocks, and among them blocks.01: '),
    'far away': ({'backbone.blocks.3000000.norm1.weight': torch.ones(48)}, '4 blocks, .* blocks.3000000: '),
    'incomplete': ({BLOCK + 'attn.qkv.weight': None}, r'the backbone lacks blocks\.1\.attn\.qkv\.weight, '),
    'a number': ({BLOCK + 'mlp.fc1.weight': torch.tensor(1.0)}, r'mlp\.fc1\.weight is of shape \(\), which '),
    'nothing': ({'backbone.patch_embed.proj.weight': torch.ones(48, 3, 0, 0)}, r'of shape \(48, 3, 0, 0\)'),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize('other', [False, True])
@pytest.mark.parametrize('case', SHAPES)
def test_blocks_are_alike_and_fit_the_architecture(case, other, state, tmp_path):
    """In our files and in those of others, timm's here: nothing is written."""
    changes, message = SHAPES[case]
    changed = {name: value for name, value in {**state, **changes}.items() if value is not None}
    if other:
        kept = {name: value for name, value in changed.items() if name.startswith('backbone.')}
        changed = {name[9:]: value for name, value in kept.items() if name != 'backbone.mask_token'}
    torch.save(changed, tmp_path / 'strange.pth')
    with pytest.raises(ValueError, match=message):
        convert_file(tmp_path / 'strange.pth', tmp_path / 'out.pth', 'plugin')
    assert not (tmp_path / 'out.pth').exists()


CONFIG = dict(model_type='vit', num_attention_heads=4, image_size=64)
IMAGES: dict[str, Any] = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)
JSONS: dict[str, tuple[str | bytes | dict[str, Any], str]] = {
    'empty': ('', "config.json' is damaged, or no JSON file"),
    'cut': ('{', "config.json' is damaged, or no JSON file"),
    'list': ('[1]', "config.json' holds a list, not a dict"),
    'null': ('null', "config.json' holds a NoneType, not a dict"),
    'bytes': (b'\xff\xfe{}', "config.json' is damaged, or no JSON file"),
    'nested': ('[' * 100000, "config.json' is damaged, or no JSON file"),
    'NaN': ({**CONFIG, 'layer_norm_eps': float('nan')}, 'config.json: layer_norm_eps=nan must be a number above 0'),
    'heads': ({**CONFIG, 'num_attention_heads': '4'}, "config.json: num_attention_heads='4' must be a whole number"),
    'size': ({**CONFIG, 'image_size': 1e400}, 'config.json: image_size=inf must be one side or'),
    'patch': ({**CONFIG, 'patch_size': 0}, 'config.json: patch_size=0 must be a whole number of at least 1'),
    'no mean': ({**IMAGES, 'image_mean': None}, 'preprocessor_config.json: image_mean=None must be a list of numbers'),
    'a number': ({**IMAGES, 'image_mean': 0.5}, 'preprocessor_config.json: image_mean=0.5 must be a list of numbers'),
    'texts': ({**IMAGES, 'image_mean': ['x'] * 3}, r"preprocessor_config.json: image_mean\[0\]='x' must be a number"),
    'flat': (
        {**IMAGES, 'image_std': [0, 1, 1]},
        r'preprocessor_config.json: image_std\[0\]=0 must be a number above 0',
    ),
    'scale': ({**IMAGES, 'rescale_factor': 0}, 'preprocessor_config.json: rescale_factor=0 must be a number above 0'),
}


def hf_folder(path, config: Any, images: Any) -> str:
    torch.save(FAMILIES['timm']().weights, path / 'pytorch_model.bin')
    for name, content in (('config.json', config), ('preprocessor_config.json', images)):
        text = json.dumps(content) if isinstance(content, dict) else content
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize('case', JSONS)
def test_configs_of_hugging_face_are_checked(case, tmp_path):
    content, message = JSONS[case]
    is_config = message.startswith('config')
    path = hf_folder(tmp_path, content if is_config else CONFIG, IMAGES if is_config else content)
    with pytest.raises(ValueError, match=f"checkpoint '.*/{message}"):
        read(path)
    if not isinstance(content, dict):
        with pytest.raises(ValueError, match=f'/preprocessor_{message}'):
            read(hf_folder(tmp_path, CONFIG, content))


@pytest.mark.parametrize(
    ('changes', 'mean', 'std'),
    [
        ({}, 127.5, 63.75),
        ({'do_normalize': False}, 0.0, 255.0),
        ({'do_normalize': False, 'image_mean': None}, 0.0, 255.0),
        ({'do_rescale': False}, 0.5, 0.25),
        ({'rescale_factor': 0.5}, 1.0, 0.5),
    ],
)
def test_mean_and_std_are_those_that_hugging_face_applies(changes, mean, std, tmp_path):
    """It multiplies by rescale_factor, then normalises: by hand."""
    saved = read(hf_folder(tmp_path, CONFIG, {**IMAGES, **changes}))
    assert saved.part('data_preprocessor') == dict(mean=[mean] * 3, std=[std] * 3)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mean=(float('nan'), 1, 2), std=(1, 1, 1)), '--mean=nan must be a number'),
        (dict(mean=(1, 1, 2), std=(0, 1, 1)), '--std=0 must be a number above 0'),
        (dict(img_size=(16_000_000, 16_000_000)), '--img-size ask for 1000000000000000000000000 values in one tensor'),
        (dict(in_channels=100_000_000), '--in-channels and --patch-size ask for 1228800000000 values in one tensor'),
        (dict(patch_size=1 << 20, img_size=(1 << 20, 1 << 20)), '--in-channels and --patch-size ask for'),
    ],
)
def test_options_are_finite_and_fit_into_memory(options, message, state, tmp_path):
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=message):
        convert_file(tmp_path / 'a.pth', tmp_path / 'out.pth', 'plugin', **options)
    assert not (tmp_path / 'out.pth').exists()


def test_weights_in_another_place_are_found_and_named(tmp_path):
    weights = FAMILIES['timm']().weights
    path = str(tmp_path / 'a.pth')
    for prefix in ('model.', 'student.backbone.'):
        torch.save({'state_dict': {prefix + name: x for name, x in weights.items()} | {'loss.w': torch.ones(1)}}, path)
        with pytest.raises(ValueError, match=f"a.pth': the names of its weights start with '{prefix}', .*; save them "):
            read_start(path)
    torch.save({'epoch': 3, 'model_ema': weights}, path)
    with pytest.raises(ValueError, match=r"but named tensors as 'model_ema'; .*torch\.load\(SRC\)\['model_ema'\], NEW"):
        read_start(path)


def test_a_masked_backbone_is_called_that(state, tmp_path):
    note = dict(model=dict(type='SimMIM', backbone=dict(type='simmim_plugin.MaskedBackbone', model=dict(type='timm'))))
    torch.save({'state_dict': state, 'simmim_plugin': note}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"a\.pth': it holds a MaskedBackbone, for which this command has no recipe"):
        read_start(str(tmp_path / 'a.pth'))
