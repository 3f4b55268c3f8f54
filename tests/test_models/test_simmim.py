import subprocess
import sys

import pytest
import torch

from helpers.models import TINY
from simmim_plugin import ReconstructionLoss, SimMIM, SimMIMDataPreprocessor, SimMIMHead, SimMIMViT

pytestmark = pytest.mark.core


def test_head_takes_its_sizes_from_the_backbone():
    model = SimMIM(backbone={**TINY, 'in_channels': 5, 'patch_size': 8})
    x, mask = torch.randn(2, 5, 64, 64), torch.rand(2, 8, 8) < 0.5
    assert model.reconstruct(x, mask).shape == x.shape
    assert model(x, mask=mask, mode='loss')['loss'].ndim == 0
    assert model(x)[0].shape == (2, 48, 8, 8)


def test_built_modules_are_accepted_and_anything_else_is_named():
    backbone = SimMIMViT(**{k: v for k, v in TINY.items() if k != 'type'})
    head = SimMIMHead(48, 16, loss=ReconstructionLoss('l2'))
    model = SimMIM(backbone=backbone, head=head)
    assert model.backbone is backbone and model.head is head and head.loss_module.criterion == 'l2'
    with pytest.raises(ValueError, match=r"^loss='l1' must be a dict with a 'type', or a built module"):
        SimMIM(backbone=TINY, head=dict(loss='l1'))


def test_any_backbone_that_takes_a_mask_works():
    model = SimMIM(backbone=TINY).eval()
    plain = torch.nn.Module()
    plain.forward = model.backbone.forward
    plain.embed_dims, plain.patch_size, plain.in_channels = 48, 16, 3
    images, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 4, 4) < 0.5
    assert torch.equal(SimMIM(plain, model.head).loss(images, mask)['loss'], model.loss(images, mask)['loss'])


def test_modes_and_missing_masks_are_named():
    model = SimMIM(backbone=TINY)
    with pytest.raises(ValueError, match="mode='guess' is unknown; choose one of 'loss', 'predict', 'tensor'"):
        model(torch.zeros(1, 3, 64, 64), mode='guess')
    with pytest.raises(ValueError, match='SimMIMMaskGenerator'):
        model(torch.zeros(1, 3, 64, 64), mode='loss')


def test_preprocessor_normalises_and_back():
    preprocessor = SimMIMDataPreprocessor(mean=[10, 20, 30], std=[2, 4, 5])
    image = torch.full((1, 3, 2, 2), 30, dtype=torch.uint8)
    mask = torch.ones(1, 1, 1, dtype=torch.uint8)
    data = preprocessor(dict(inputs=image, mask=mask))
    assert data['inputs'][0, :, 0, 0].tolist() == [10, 2.5, 0]
    assert torch.equal(data['mask'], mask)
    assert torch.equal(preprocessor.denormalize(data['inputs']), image.float())
    assert not preprocessor.state_dict()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
def test_preprocessor_leaves_the_images_it_is_given(dtype):
    given = torch.arange(48).reshape(1, 3, 4, 4).to(dtype)
    before = given.clone()
    SimMIMDataPreprocessor(mean=[10, 20, 30], std=[2, 4, 5])(dict(inputs=given))
    SimMIMDataPreprocessor(mean=[10, 20, 30], std=[2, 4, 5])(dict(inputs=given.expand(2, -1, -1, -1)))
    assert torch.equal(given, before)


def test_preprocessor_names_wrong_channels():
    with pytest.raises(ValueError, match=r'\(1, 5, 8, 8\) do not fit mean and std for 3 channels'):
        SimMIMDataPreprocessor([0, 0, 0], [1, 1, 1])(dict(inputs=torch.zeros(1, 5, 8, 8)))
    with pytest.raises(ValueError, match='one value per channel'):
        SimMIMDataPreprocessor([0, 0, 0], [1])
    with pytest.raises(ValueError, match='mean=0 and std=1 must have one value per channel'):
        SimMIMDataPreprocessor(0, 1)
    with pytest.raises(ValueError, match=r'std\[1\]=0 must be a number above 0; `simmim statistics` prints'):
        SimMIMDataPreprocessor([0, 0], [1, 0])
    with pytest.raises(ValueError, match=r'mean\[0\]=nan must be a number'):
        SimMIMDataPreprocessor([float('nan')], [1])


@pytest.mark.parametrize('framework', ['mmengine', 'mmpretrain', 'mmdet', 'mmseg'])
def test_found_from_every_framework_without_a_custom_import(framework):
    """A fresh process; the framework's own registry and default scope; short names inside `simmim_plugin` parts."""
    pytest.importorskip(framework)
    if framework == 'mmdet':  # imports them with its models; `make setup-test` provides them
        pytest.importorskip('mmcv.ops', reason="MMCV's operators are not installed", exc_type=ImportError)
    code = f"""
from mmengine.registry import init_default_scope
from {framework}.registry import MODELS, TRANSFORMS, HOOKS
init_default_scope({framework!r})
arch = dict(embed_dims=48, num_layers=1, num_heads=4, feedforward_channels=96)
backbone = dict(type='simmim_plugin.SimMIMViT', arch=arch, img_size=32)
loss = dict(type='ReconstructionLoss', criterion='l1')
model = MODELS.build(dict(type='simmim_plugin.SimMIM', backbone=backbone, head=dict(type='SimMIMHead', loss=loss)))
assert type(model.backbone).__module__ == 'simmim_plugin.models.vit'
assert type(model.head.loss_module).__module__ == 'simmim_plugin.models.losses'
for kind in ('SimMIMViT', 'SimMIMHead', 'ReconstructionLoss', 'SimMIM', 'SimMIMDataPreprocessor'):
    assert MODELS.get('simmim_plugin.' + kind).__module__.startswith('simmim_plugin.'), kind
assert TRANSFORMS.build(dict(type='simmim_plugin.SimMIMMaskGenerator', mask_ratio=0.5)).parts[0].ratio == 0.5
assert HOOKS.get('simmim_plugin.ReconstructionHook').__module__ == 'simmim_plugin.engine.hooks.reconstruction_hook'
print('found')
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.stdout.endswith('found\n'), result.stderr


def test_without_the_framework_the_message_names_the_command():
    code = """
import sys
sys.modules['mmengine'] = None  # as if it were not installed
try:
    from simmim_plugin import SimMIMViT
except ModuleNotFoundError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert 'make setup' in result.stdout and "pip install 'simmim_plugin[mm]'" in result.stdout, result.stderr


def test_sizes_of_the_head_are_those_given_whatever_the_backbone():
    class Plain(torch.nn.Module):
        def forward(self, x, mask):
            return (torch.nn.functional.avg_pool2d(x, 8).repeat(1, 4, 1, 1),)  # 12 channels

    model = SimMIM(Plain(), head=dict(in_channels=12, patch_size=8, out_channels=3))
    assert model.head.decoder.weight.shape == (3 * 8 * 8, 12)
    x, mask = torch.randn(2, 3, 64, 64), torch.ones(2, 8, 8)
    assert model.reconstruct(x, mask).shape == x.shape and model.loss(x, mask)['loss'].ndim == 0
    with pytest.raises(ValueError, match=r'^Plain as backbone has no in_channels; give head=dict\(out_channels=...\)'):
        SimMIM(Plain(), head=dict(in_channels=12, patch_size=8))
    wide = {**TINY, 'arch': {**TINY['arch'], 'embed_dims': 64}}
    assert SimMIM(backbone=wide, head=dict(in_channels=32)).head.decoder.in_features == 32
