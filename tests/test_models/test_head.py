import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.models import TINY
from simmim_plugin import ReconstructionLoss, SimMIM, SimMIMHead, reconstruction_loss
from simmim_plugin.models.losses import CRITERIA

pytestmark = pytest.mark.core


def test_loss_of_masked_patches_equals_loss_of_the_decoded_image():
    torch.manual_seed(0)
    head = SimMIMHead(in_channels=8, patch_size=4, out_channels=5)
    features, target = torch.randn(2, 8, 3, 2, requires_grad=True), torch.randn(2, 5, 12, 8)
    mask = torch.tensor([[[1, 0], [0, 1], [1, 1]], [[0, 0], [1, 0], [0, 0]]])
    pixels = F.interpolate(mask[:, None].float(), scale_factor=4, mode='nearest')
    image_loss = reconstruction_loss(head(features), target, pixels)
    masked = head.loss(features, target, mask)['loss']
    assert torch.allclose(image_loss, masked, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(image_loss, head.parameters()), torch.autograd.grad(masked, head.parameters())):
        assert torch.allclose(a, b, atol=1e-7)


def test_pixels_of_a_patch_are_in_c_p_q_order():
    head = SimMIMHead(in_channels=1, patch_size=2, out_channels=3)
    with torch.no_grad():
        head.decoder.weight.zero_()
        head.decoder.bias.copy_(torch.arange(12))
    image = head(torch.zeros(1, 1, 1, 2))
    assert image.shape == (1, 3, 2, 4)
    assert image[0, 1, :, :2].tolist() == [[4, 5], [6, 7]]  # channel 1 comes after the four pixels of channel 0
    assert torch.equal(image[..., :2], image[..., 2:])


def test_decoder_keeps_the_frameworks_initialisation():
    torch.manual_seed(0)
    head = SimMIMHead(in_channels=64, patch_size=16)
    bound = 1 / 8  # uniform within +-1 / sqrt(in_channels), as of a 1x1 convolution
    assert bound * 0.99 < head.decoder.weight.abs().max().item() <= bound
    assert head.decoder.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_features_must_be_a_map():
    for out_type, shape in (('raw', (1, 17, 48)), ('cls_token', (1, 48))):
        model = SimMIM({**TINY, 'out_type': out_type})
        message = re.escape(
            f"features of shape {shape} are not a map of patches, (B, in_channels, h, w); set out_type='"
        )
        with pytest.raises(ValueError, match=message):
            model.loss(torch.zeros(1, 3, 64, 64), torch.ones(1, 4, 4))


def test_empty_mask_gives_zero():
    head = SimMIMHead(in_channels=8, patch_size=4)
    loss = head.loss(torch.randn(1, 8, 2, 2), torch.randn(1, 3, 8, 8), torch.zeros(1, 2, 2))['loss']
    loss.backward()
    assert loss.item() == 0


def constant_head(values: list[float], channels: int, patch: int, **kwargs) -> SimMIMHead:
    """A head that predicts the same patch, in (c, p, q) order, everywhere."""
    head = SimMIMHead(in_channels=2, patch_size=patch, out_channels=channels, **kwargs)
    with torch.no_grad():
        head.decoder.weight.zero_()
        head.decoder.bias.copy_(torch.tensor(values))
    return head


# Layers


def test_one_layer_is_linear_and_two_are_an_mlp_with_gelu():
    torch.manual_seed(0)
    outputs = 5 * 4**2
    assert sum(p.numel() for p in SimMIMHead(8, 4, 5).parameters()) == 8 * outputs + outputs
    head = SimMIMHead(8, 4, 5, num_layers=2)
    assert [tuple(p.shape) for p in head.parameters()] == [(8, 8), (8,), (outputs, 8), (outputs,)]
    features = torch.randn(2, 8, 3, 2)
    w1, b1, w2, b2 = (p.detach().numpy() for p in head.parameters())
    erf = np.vectorize(math.erf)
    x = features.permute(0, 2, 3, 1).numpy() @ w1.T + b1
    patches = (0.5 * x * (1 + erf(x / math.sqrt(2)))) @ w2.T + b2
    images = patches.reshape(2, 3, 2, 5, 4, 4).transpose(0, 3, 1, 4, 2, 5).reshape(2, 5, 12, 8)
    assert np.allclose(head(features).detach().numpy(), images, atol=1e-6)
    shapes = [tuple(p.shape) for p in SimMIMHead(8, 4, 5, num_layers=3).parameters()]
    assert shapes == [(8, 8), (8,)] * 2 + [(outputs, 8), (outputs,)]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_layers=0), 'num_layers=0 must be a whole number from 1 to 64; 1 is the published linear layer'),
        (dict(num_layers='x'), "num_layers='x' must be a whole number"),
        (dict(in_channels=0), 'in_channels=0 must be a whole number of at least 1; the embed_dims of the backbone'),
        (dict(patch_size=0), 'patch_size=0 must be a whole number of at least 1; the patch_size of the backbone'),
        (dict(out_channels=3.0), 'out_channels=3.0 must be a whole number of at least 1; 3 for RGB'),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f'^SimMIMHead.{message}'):
        SimMIMHead(**{**dict(in_channels=8, patch_size=4), **arguments})


@pytest.mark.parametrize('loss', [None, dict(type='ReconstructionLoss', criterion='l2', scope='all')])
def test_gradient_reaches_both_layers(loss):
    head = SimMIMHead(8, 4, num_layers=2, loss=loss)
    losses = head.loss(torch.randn(2, 8, 2, 2), torch.randn(2, 3, 8, 8), torch.ones(2, 2, 2, dtype=torch.uint8))
    losses['loss'].backward()
    assert all(p.grad.any() for p in head.parameters())


# Normalised targets


def test_normalised_target_by_hand():
    # Patch 1 2 3 4: mean 2.5, variance 5 / 3. A prediction of 0 is off by 1.5, 0.5, 0.5, 1.5 standard deviations.
    target = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    mask = torch.ones(1, 1, 1)
    for criterion, expected in (('l1', 1 / math.sqrt(5 / 3)), ('l2', 1.25 / (5 / 3))):
        loss = dict(type='ReconstructionLoss', criterion=criterion)
        for scope in ('masked', 'all'):
            head = constant_head([0.0] * 4, 1, 2, normalize_target=True, loss={**loss, 'scope': scope})
            found = head.loss(torch.zeros(1, 2, 1, 1), target, mask)['loss'].item()
            assert found == pytest.approx(expected, rel=2e-5)


def test_each_patch_is_normalised_over_its_pixels_and_channels():
    torch.manual_seed(0)
    target = torch.randn(2, 3, 4, 6) * torch.rand(2, 1, 4, 6) * 9 + 5
    mask = torch.tensor([[[1, 0, 1], [0, 0, 1]], [[1, 1, 0], [0, 1, 0]]])
    prediction = [0.1 * i for i in range(12)]
    errors = []
    for b, i, j in mask.nonzero().tolist():
        patch = target[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].numpy().astype(float).ravel()
        errors.append(np.abs((patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6) - prediction).mean())
    loss = constant_head(prediction, 3, 2, normalize_target=True).loss(torch.zeros(2, 2, 2, 3), target, mask)['loss']
    assert loss.item() == pytest.approx(np.mean(errors), rel=2e-5)


def test_picture_undoes_the_normalisation_of_each_true_patch():
    target = torch.tensor([[[[1.0, 2.0, 10.0, 10.0], [3.0, 4.0, 30.0, 30.0]]]])
    head = constant_head([0.0, 1.0, -2.0, 0.5], 1, 2, normalize_target=True)
    features = torch.zeros(1, 2, 1, 2)
    first, second = math.sqrt(5 / 3), math.sqrt(400 / 3)
    by_hand = [
        [2.5, 2.5 + first, 20, 20 + second],
        [2.5 - 2 * first, 2.5 + first / 2, 20 - 2 * second, 20 + second / 2],
    ]
    assert torch.allclose(head(features, target), torch.tensor([[by_hand]]))
    assert head(features)[0, 0].tolist() == [[0, 1, 0, 1], [-2, 0.5, -2, 0.5]]  # in the units of the model
    plain = constant_head([0.0, 1.0, -2.0, 0.5], 1, 2)
    assert torch.equal(plain(features, target), plain(features))


# Which pixels count


def example():
    torch.manual_seed(0)
    features, target = torch.randn(2, 8, 3, 2, requires_grad=True), torch.randn(2, 5, 12, 8)
    mask = torch.tensor([[[1, 0], [0, 1], [1, 1]], [[0, 0], [1, 0], [0, 0]]], dtype=torch.uint8)
    return features, target, mask


@pytest.mark.parametrize(('criterion', 'error'), [('l1', torch.abs), ('l2', torch.square), ('smooth_l1', None)])
def test_loss_of_all_pixels_equals_that_of_the_decoded_image(criterion, error):
    features, target, mask = example()
    head = SimMIMHead(8, 4, 5, num_layers=2, loss=dict(type='ReconstructionLoss', criterion=criterion, scope='all'))
    image = head(features)
    expected = F.smooth_l1_loss(image, target) if error is None else error(image - target).mean()
    assert torch.allclose(head.loss(features, target, mask)['loss'], expected, rtol=1e-5)
    assert torch.allclose(head.loss(features, target, torch.zeros_like(mask))['loss'], expected, rtol=1e-5)


@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('criterion', ['l1', 'l2', 'smooth_l1'])
def test_visible_patches_take_no_part_in_the_loss_and_its_gradient(criterion, normalize):
    features, target, mask = example()
    torch.manual_seed(1)
    head = SimMIMHead(8, 4, 5, num_layers=2, normalize_target=normalize, loss=ReconstructionLoss(criterion))
    parts = dict(local=mask, global_=torch.zeros_like(mask))
    parts['global_'][0, 1, 1] = 1
    losses = head.loss(features, target, mask, **parts)

    def of_patches_alone(chosen):
        """By hand: only the chosen patches are decoded, and compared with theirs."""
        b, y, x = chosen.nonzero().unbind(1)
        truth = target.unfold(2, 4, 4).unfold(3, 4, 4)[b, :, y, x].flatten(1)  # (n, C*p*p)
        if normalize:
            truth = (truth - truth.mean(1, keepdim=True)) / (truth.var(1, keepdim=True) + 1e-6).sqrt()
        return CRITERIA[criterion](head.decoder(features[b, :, y, x]), truth)

    expected = of_patches_alone(mask)
    for name, value in (
        ('loss', expected),
        ('error_local', expected),
        ('error_global', of_patches_alone(parts['global_'])),
    ):
        assert torch.allclose(losses[name], value, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, [features, *head.parameters()]) for loss in (losses['loss'], expected)]
    for first, second in zip(*gradients):
        assert first.any() and torch.allclose(first, second, atol=1e-6)


def test_frequency_term_sees_the_decoded_image():
    features, target, mask = example()
    head = SimMIMHead(8, 4, 5, loss=dict(type='ReconstructionLoss', frequency_weight=0.1))
    pixels = F.interpolate(mask[:, None].float(), scale_factor=4, mode='nearest')
    error = (head(features) - target).detach() * pixels
    spectrum = np.fft.fft2(error.double().numpy(), norm='ortho')
    weight = np.abs(spectrum) / np.abs(spectrum).max(axis=(-2, -1), keepdims=True)
    by_numpy = error.abs().sum().item() / pixels.sum().item() / 5 + 0.1 * (weight * np.abs(spectrum) ** 2).mean()
    assert head.loss(features, target, mask)['loss'].item() == pytest.approx(by_numpy, rel=1e-5)


# The errors of both masks


@pytest.mark.parametrize('scope', ['masked', 'all'])
@pytest.mark.parametrize('criterion', ['l1', 'l2'])
def test_errors_under_each_mask_by_hand(criterion, scope):
    # Four patches of one pixel and two channels; the prediction is 0, so that the errors are the values.
    target = torch.tensor([[[[1.0, -2.0], [4.0, 8.0]], [[3.0, 0.0], [-6.0, 0.0]]]])
    local = torch.tensor([[[1, 1], [0, 0]]], dtype=torch.uint8)
    coarse = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
    power = dict(l1=1, l2=2)[criterion]
    first, second, third, fourth = ((a**power + b**power) / 2 for a, b in ((1, 3), (2, 0), (4, 6), (8, 0)))
    head = constant_head([0.0, 0.0], 2, 1, loss=dict(type='ReconstructionLoss', criterion=criterion, scope=scope))
    losses = head.loss(torch.zeros(1, 2, 2, 2), target, local | coarse, local=local, global_=coarse)
    assert set(losses) == {'loss', 'error_local', 'error_global'}
    assert losses['error_local'].item() == pytest.approx((first + second) / 2, rel=2e-5)
    assert losses['error_global'].item() == pytest.approx((second + third) / 2, rel=2e-5)
    total = (first + second + third + (fourth if scope == 'all' else 0)) / (4 if scope == 'all' else 3)
    assert losses['loss'].item() == pytest.approx(total, rel=2e-5)
    assert losses['loss'].requires_grad
    assert not losses['error_local'].requires_grad and not losses['error_global'].requires_grad


def test_errors_do_not_change_the_gradient():
    features, target, mask = example()
    head = SimMIMHead(8, 4, 5)
    with_parts = head.loss(features, target, mask, local=mask, global_=torch.zeros_like(mask))
    alone = head.loss(features, target, mask, local=None, global_=None)
    assert set(alone) == {'loss'} and with_parts['error_global'].item() == 0
    assert with_parts['error_local'].item() == pytest.approx(with_parts['loss'].item(), rel=1e-6)
    gradients = [torch.autograd.grad(losses['loss'], head.decoder.weight)[0] for losses in (with_parts, alone)]
    assert torch.equal(*gradients)


def test_model_passes_both_masks_to_the_head_and_trains_on_the_loss_only():
    torch.manual_seed(0)
    model = SimMIM(backbone=TINY)
    local = torch.zeros(2, 4, 4, dtype=torch.uint8)
    coarse = torch.zeros(2, 4, 4, dtype=torch.uint8)
    local[:, :2], coarse[:, 1:3, 2:] = 1, 1
    mask = local | coarse
    inputs = torch.randn(2, 3, 64, 64)
    losses = model(inputs, mask=mask, mode='loss', mask_local=local, mask_global=coarse)
    total, logged = model.parse_losses(losses)
    assert total.item() == logged['loss'] == losses['loss'].item()
    assert set(logged) == {'loss', 'error_local', 'error_global'}
    model.eval()
    error = (model.reconstruct(inputs, mask) - inputs).abs().detach()
    for name, tokens in (('loss', mask), ('error_local', local), ('error_global', coarse)):
        pixels = np.kron(tokens.numpy(), np.ones((16, 16)))[:, None]
        by_hand = (error.numpy() * pixels).sum() / pixels.sum() / 3
        assert logged[name].item() == pytest.approx(by_hand, rel=1e-4)


def test_reconstruction_of_a_model_with_normalised_targets_is_in_the_units_of_the_image():
    model = SimMIM(backbone=TINY, head=dict(normalize_target=True))
    with torch.no_grad():
        model.head.decoder.weight.zero_()
        model.head.decoder.bias.zero_()  # so that every patch is predicted by its mean
    inputs = torch.randn(1, 3, 64, 64) * 7 + 20
    picture = model.reconstruct(inputs, torch.ones(1, 4, 4, dtype=torch.uint8))
    for i in range(4):
        for j in range(4):
            rows, columns = slice(16 * i, 16 * i + 16), slice(16 * j, 16 * j + 16)
            mean = inputs[0, :, rows, columns].mean()
            assert torch.allclose(picture[0, :, rows, columns], mean, rtol=1e-5)
