"""Features of another resolution than the masks: Swin embeds and masks patches of 4 px, its features have stride 32."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from simmim_plugin import HeldOutLoss, SimMIM, SimMIMHead
from simmim_plugin.models.losses import masked_loss, visible_mean
from simmim_plugin.models.masks import pixel_mask

CONDITIONS = [(4, 32), (8, 16), (32, 8)]  # side of a patch of the mask, stride of the features


class Strided(nn.Module):
    """A backbone that dims the masked pixels and averages squares of `stride` px: (B, 12, H / stride, W / stride)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x, mask):
        x = x if mask is None else x * (1 - 0.5 * pixel_mask(mask, x.shape[2:]))
        return (nn.functional.avg_pool2d(x, self.stride).repeat(1, 4, 1, 1),)


def example(patch: int, stride: int):
    torch.manual_seed(0)
    model = SimMIM(Strided(stride), dict(in_channels=12, patch_size=stride, out_channels=3))
    images = torch.randn(3, 3, 64, 96)
    grid = (3, 64 // patch, 96 // patch)
    masks = [(torch.rand(grid) < 0.3).to(torch.uint8) for _ in range(2)]
    assert all(0 < mask.sum() < mask.numel() for mask in masks[0] | masks[1])
    return model, images, *masks


@pytest.mark.parametrize(('patch', 'stride'), CONDITIONS)
def test_loss_and_gradient_are_those_of_mmpretrain(patch, stride):
    selfsup = pytest.importorskip('mmpretrain.models.selfsup')
    assert selfsup
    from mmpretrain.models import PixelReconstructionLoss, SimMIMLinearDecoder
    from mmpretrain.models.heads import SimMIMHead as Theirs

    model, images, mask, _ = example(patch, stride)
    decoder = SimMIMLinearDecoder(in_channels=12, encoder_stride=stride)
    decoder.decoder[0].weight.data = model.head.decoder.weight.data[:, :, None, None].clone()
    decoder.decoder[0].bias.data = model.head.decoder.bias.data.clone()
    theirs = Theirs(patch, dict(type='PixelReconstructionLoss', criterion='L1', channel=3))
    assert isinstance(theirs.loss_module, PixelReconstructionLoss)
    features = model.backbone(images, mask)[-1]
    expected = theirs.loss(decoder(features), images, mask)
    found = model.loss(images, mask)['loss']
    assert torch.allclose(model.reconstruct(images, mask), decoder(features), atol=1e-6)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    found.backward()
    gradient = decoder.decoder[0].weight.grad.flatten(1)
    assert gradient.any() and torch.allclose(model.head.decoder.weight.grad, gradient, atol=1e-7)


@pytest.mark.parametrize(('patch', 'stride'), CONDITIONS)
def test_every_error_and_the_baseline_by_hand(patch, stride):
    model, images, local, coarse = example(patch, stride)
    mask = local | coarse
    error = (model.reconstruct(images, mask) - images).abs().detach().numpy()
    square = np.ones((patch, patch))
    losses = model(images, mask=mask, mode='loss', mask_local=local, mask_global=coarse)
    for name, part in (('loss', mask), ('error_local', local), ('error_global', coarse)):
        pixels = np.kron(part.numpy(), square)[:, None]
        assert losses[name].item() == pytest.approx((error * pixels).sum() / pixels.sum() / 3, rel=1e-5)
    by_image = model(images, mask=mask, mode='predict', mask_local=local, mask_global=coarse)
    metric = HeldOutLoss()
    metric.process(None, by_image)
    pixels = np.kron(mask.numpy(), square)[:, None]
    alone = [(error[i] * pixels[i]).sum() / pixels[i].sum() / 3 for i in range(3)]
    assert metric.compute_metrics(metric.results)['loss'] == pytest.approx(np.mean(alone), rel=1e-5)
    x = images.double().numpy()
    mean = (x * (1 - pixels)).sum((2, 3), keepdims=True) / (1 - pixels).sum((2, 3), keepdims=True)
    by_hand = (np.abs(x - mean) * pixels).sum() / pixels.sum() / 3
    expanded = pixel_mask(mask, images.shape[2:])
    found = masked_loss(model, visible_mean(images, expanded), images, expanded)
    assert found == pytest.approx(by_hand, rel=1e-5)


def test_targets_are_normalised_by_squares_of_the_stride():
    head = SimMIMHead(12, 32, normalize_target=True)
    nn.init.zeros_(head.decoder.weight)
    nn.init.zeros_(head.decoder.bias)
    images = torch.randn(1, 3, 64, 96) * 7 + 20
    picture = head(torch.zeros(1, 12, 2, 3), images)
    squares = images.unfold(2, 32, 32).unfold(3, 32, 32).mean((1, 4, 5))
    assert torch.allclose(picture[:, 0], squares.repeat_interleave(32, 1).repeat_interleave(32, 2), rtol=1e-5)


@pytest.mark.parametrize(
    ('mask', 'size', 'message'),
    [
        ((3, 3), (64, 64), 'a mask of 3 x 3 does not divide images of 64 x 64 px into squares; set model_patch_size'),
        ((4, 8), (64, 64), 'a mask of 4 x 8 does not divide images of 64 x 64 px'),
        ((0, 0), (64, 64), 'a mask of 0 x 0'),
        ((128, 128), (64, 64), 'a mask of 128 x 128'),
    ],
)
def test_a_mask_that_does_not_divide_the_image_is_named(mask, size, message):
    with pytest.raises(ValueError, match='^' + re.escape(message)):
        pixel_mask(torch.zeros(1, *mask), size)


def test_a_head_of_another_stride_or_width_is_named():
    model, images, mask, _ = example(4, 32)
    with pytest.raises(ValueError, match=r'^features of 12 channels do not fit in_channels=8 of SimMIMHead; set head='):
        SimMIM(model.backbone, dict(in_channels=8, patch_size=32, out_channels=3)).loss(images, mask)
    message = (
        r'^features of 2 x 3 for images of 64 x 96 px have a stride of 32 x 32 px, but SimMIMHead has patch_size=16; '
        r'set head=dict\(patch_size=...\) to the stride'
    )
    with pytest.raises(ValueError, match=message):
        SimMIM(model.backbone, dict(in_channels=12, patch_size=16, out_channels=3)).loss(images, mask)
