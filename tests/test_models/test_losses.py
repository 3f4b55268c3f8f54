import cmath
import math

import numpy as np
import pytest
import torch

from simmim_plugin import ReconstructionLoss, focal_frequency_loss, normalize_patches, reconstruction_loss

pytestmark = pytest.mark.core


def hand_example():
    """Two images of 1 x 3 pixels and two channels; errors 1, 2, 3 in one channel of each image, 0 in the other."""
    target = torch.zeros(2, 2, 1, 3)
    prediction = target.clone()
    prediction[:, 0, 0] = torch.tensor([[1.0, -2.0, 3.0], [1.0, 2.0, -3.0]])
    mask = torch.tensor([[[[1, 0, 0]]], [[[0, 1, 1]]]])
    return prediction, target, mask


@pytest.mark.parametrize(
    ('criterion', 'masked', 'everywhere'),
    [
        ('l1', (1 + 2 + 3) / 3 / 2, 12 / 6 / 2),
        ('l2', (1 + 4 + 9) / 3 / 2, 28 / 6 / 2),
        ('smooth_l1', (0.5 + 1.5 + 2.5) / 3 / 2, 9 / 6 / 2),
    ],
)
def test_against_a_calculation_by_hand(criterion, masked, everywhere):
    prediction, target, mask = hand_example()
    assert reconstruction_loss(prediction, target, mask, criterion).item() == pytest.approx(masked, rel=1e-5)
    assert reconstruction_loss(prediction, target, None, criterion).item() == pytest.approx(everywhere, rel=1e-5)
    assert ReconstructionLoss(criterion, loss_weight=2)(prediction, target, mask).item() == pytest.approx(
        2 * masked, rel=1e-5
    )


def test_mean_is_over_the_batch_not_per_image():
    prediction, target, mask = hand_example()
    per_image = [reconstruction_loss(prediction[i : i + 1], target[i : i + 1], mask[i : i + 1]).item() for i in (0, 1)]
    assert reconstruction_loss(prediction, target, mask).item() != pytest.approx(sum(per_image) / 2, rel=1e-3)


@pytest.mark.parametrize('criterion', ['l1', 'l2', 'smooth_l1'])
def test_empty_mask_gives_zero(criterion):
    prediction = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = reconstruction_loss(prediction, torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4), criterion)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None and not prediction.grad.any()
    empty = torch.zeros(0, 3, 16)
    assert reconstruction_loss(empty, empty, None, criterion).item() == 0


def test_bfloat16_prediction_is_compared_in_float32():
    prediction, target, mask = hand_example()
    loss = reconstruction_loss(prediction.bfloat16(), target, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1.0, rel=1e-5)


def test_gradient():
    torch.manual_seed(0)
    prediction = torch.randn(2, 2, 3, 3, dtype=torch.double, requires_grad=True)
    target = torch.randn(2, 2, 3, 3, dtype=torch.double)
    mask = (torch.rand(2, 1, 3, 3) < 0.5).double()
    for criterion in ('l1', 'l2', 'smooth_l1'):
        assert torch.autograd.gradcheck(lambda p, c=criterion: reconstruction_loss(p, target, mask, c), prediction)


def test_wrong_arguments_are_named():
    image = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"criterion='huber'.*'l1'"):
        ReconstructionLoss('huber')
    with pytest.raises(ValueError, match=r'same shape, got \(1, 3, 4, 4\) and \(1, 3, 4, 5\)'):
        reconstruction_loss(image, torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r'mask must be \(B, 1'):
        reconstruction_loss(image, image, torch.zeros(1, 4, 4))


# Scopes and terms


@pytest.mark.parametrize('criterion', ['l1', 'l2', 'smooth_l1'])
@pytest.mark.parametrize('scope', ['masked', 'all'])
def test_criterion_and_scope_by_hand(criterion, scope):
    """One image of 2 x 2 px and three channels; the errors are written out, two pixels are masked."""
    errors = [[[0.5, -1.0], [2.0, 0.0]], [[0.0, 0.25], [-3.0, 1.5]], [[-0.75, 0.0], [1.0, -0.5]]]
    of = dict(l1=abs, l2=lambda x: x * x, smooth_l1=lambda x: x * x / 2 if abs(x) < 1 else abs(x) - 0.5)[criterion]
    pixels = [(0, 1), (1, 0)] if scope == 'masked' else [(0, 0), (0, 1), (1, 0), (1, 1)]
    by_hand = sum(of(errors[c][i][j]) for c in range(3) for i, j in pixels) / len(pixels) / 3
    target = torch.arange(12.0).reshape(1, 3, 2, 2)
    mask = torch.tensor([[[[0, 1], [1, 0]]]], dtype=torch.uint8)
    loss = ReconstructionLoss(criterion, scope)(target + torch.tensor([errors]), target, mask)
    assert loss.item() == pytest.approx(by_hand, rel=2e-5)
    # No mask: every pixel counts, whatever the scope.
    everywhere = sum(of(errors[c][i][j]) for c in range(3) for i in (0, 1) for j in (0, 1)) / 12
    assert ReconstructionLoss(criterion, scope)(target + torch.tensor([errors]), target).item() == pytest.approx(
        everywhere, rel=2e-5
    )


def test_squared_error_of_all_pixels_is_the_formula_of_simultaneous_masking():
    rng = np.random.default_rng(0)
    x, p = rng.normal(size=(2, 4, 6, 3)), rng.normal(size=(2, 4, 6, 3))
    formula = np.mean([((x[i] - p[i]) ** 2).sum() / (4 * 6 * 3) for i in range(2)])
    prediction, target = (torch.from_numpy(array).permute(0, 3, 1, 2).float() for array in (p, x))
    mask = torch.zeros(2, 1, 4, 6)
    assert ReconstructionLoss('l2', 'all')(prediction, target, mask).item() == pytest.approx(formula, rel=1e-5)


@pytest.mark.parametrize('criterion', ['l1', 'l2', 'smooth_l1'])
@pytest.mark.parametrize('scope', ['masked', 'all'])
def test_gradient_of_each_criterion_and_scope(criterion, scope):
    torch.manual_seed(0)
    prediction = torch.randn(2, 3, 4, 3, dtype=torch.double, requires_grad=True)
    target = torch.randn(2, 3, 4, 3, dtype=torch.double)
    mask = (torch.rand(2, 1, 4, 3) < 0.5).double()
    module = ReconstructionLoss(criterion, scope, loss_weight=0.7)
    assert torch.autograd.gradcheck(lambda p: module(p, target, mask), prediction)
    gradient = torch.autograd.grad(module(prediction, target, mask), prediction)[0]
    counted = gradient.abs().sum(1, keepdim=True) > 0
    assert torch.equal(counted, mask.bool() if scope == 'masked' else torch.ones_like(counted))


@pytest.mark.parametrize('arguments', [('l1', 'masked'), ('l2', 'all'), ('smooth_l1', 'masked', 0.1)])
def test_half_precision_is_compared_in_float32(arguments):
    torch.manual_seed(0)
    target = torch.randn(2, 3, 8, 8)
    prediction = torch.randn(2, 3, 8, 8).bfloat16()
    mask = (torch.rand(2, 1, 8, 8) < 0.5).to(torch.uint8)
    module = ReconstructionLoss(*arguments)
    loss = module(prediction, target, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(module(prediction.double(), target.double(), mask).item(), rel=1e-5)


# Patches normalised by themselves


def test_normalised_patches_against_numpy():
    values = np.random.default_rng(0).normal(3, 5, (2, 3, 4, 12))
    patches, mean, std = normalize_patches(torch.from_numpy(values))
    deviation = np.sqrt(values.var(-1, ddof=1, keepdims=True) + 1e-6)
    assert np.allclose(mean.numpy(), values.mean(-1, keepdims=True)) and np.allclose(std.numpy(), deviation)
    assert np.allclose(patches.numpy(), (values - values.mean(-1, keepdims=True)) / deviation)
    assert np.allclose((patches * std + mean).numpy(), values)


def test_normalised_patch_by_hand_and_a_flat_one():
    patches, mean, std = normalize_patches(torch.tensor([[1.0, 2.0, 3.0, 4.0], [7.0, 7.0, 7.0, 7.0]]))
    step = 1 / math.sqrt(5 / 3)  # the variance of 1, 2, 3, 4 is (2.25 + 0.25) * 2 / 3
    assert patches[0].tolist() == pytest.approx([-1.5 * step, -0.5 * step, 0.5 * step, 1.5 * step], rel=1e-5)
    assert patches[1].tolist() == [0, 0, 0, 0] and mean.flatten().tolist() == [2.5, 7]
    assert std.flatten().tolist() == pytest.approx([math.sqrt(5 / 3), 1e-3], rel=1e-5)


# Focal frequency loss


def spectrum_by_sums(image: list[list[float]]) -> list[list[complex]]:
    """Orthonormal discrete Fourier transform, by its definition."""
    h, w = len(image), len(image[0])
    return [
        [
            sum(image[y][x] * cmath.exp(-2j * cmath.pi * (u * y / h + v * x / w)) for y in range(h) for x in range(w))
            / math.sqrt(h * w)
            for v in range(w)
        ]
        for u in range(h)
    ]


def focal_frequency_by_sums(error: torch.Tensor, alpha: float) -> float:
    """Frequency by frequency, as arXiv 2012.12821, eq. 7 and 8."""
    terms = []
    for image in error.tolist():
        for channel in image:
            distances = [abs(value) for row in spectrum_by_sums(channel) for value in row]
            largest = max(d**alpha for d in distances)
            terms += [(d**alpha / largest if largest else 0) * d**2 for d in distances]
    return sum(terms) / len(terms)


@pytest.mark.parametrize('alpha', [0.5, 1, 2])
def test_focal_frequency_loss_by_sums(alpha):
    torch.manual_seed(0)
    error = torch.randn(2, 2, 2, 3, dtype=torch.double)
    error[1, 1] = 0  # a channel without an error
    loss = focal_frequency_loss(error, alpha) if alpha != 1 else focal_frequency_loss(error)
    assert loss.item() == pytest.approx(focal_frequency_by_sums(error, alpha), rel=1e-9)


def test_focal_frequency_loss_by_hand():
    # 1 x 2 px with errors 3 and 1: spectrum 4 / sqrt(2), 2 / sqrt(2); weights 1 and 1/2; mean of 8 and 2 / 2.
    assert focal_frequency_loss(torch.tensor([[[[3.0, 1.0]]]])).item() == pytest.approx(4.5, rel=1e-6)
    # Weight 1 everywhere: the mean squared error (Parseval).
    error = torch.tensor([[[[3.0, 1.0]]]])
    assert focal_frequency_loss(error, weight=torch.ones(1, 1, 1, 2)).item() == pytest.approx(5, rel=1e-6)


def test_no_gradient_flows_through_the_weight():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 3, 4, 5))
    spectrum = np.fft.fft2(values, norm='ortho')
    weight = np.abs(spectrum) / np.abs(spectrum).max(axis=(-2, -1), keepdims=True)
    # d/dx of mean(w |F x|^2) for a constant w is 2 / n Re F*(w F x).
    by_hand = 2 / values.size * np.fft.ifft2(weight * spectrum, norm='ortho').real
    error = torch.from_numpy(values).requires_grad_()
    (gradient,) = torch.autograd.grad(focal_frequency_loss(error), error)
    assert np.allclose(gradient.numpy(), by_hand, rtol=1e-9, atol=1e-12)
    (given,) = torch.autograd.grad(focal_frequency_loss(error, weight=torch.from_numpy(weight)), error)
    assert torch.allclose(given, gradient)


def test_gradient_of_the_focal_frequency_loss():
    torch.manual_seed(0)
    error = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    weight = torch.rand(1, 2, 3, 4, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda e: focal_frequency_loss(e, weight=weight), error)


@pytest.mark.parametrize('alpha', [0, 1, 2])
def test_no_error_gives_zero_and_a_gradient_of_zero(alpha):
    error = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = focal_frequency_loss(error, alpha)
    loss.backward()
    assert loss.item() == 0 and not error.grad.any()


@pytest.mark.parametrize('scope', ['masked', 'all'])
def test_frequency_term_is_added_over_the_pixels_that_count(scope):
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 2, 4, 3), torch.randn(2, 2, 4, 3)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]]).repeat(2, 1, 1, 1)
    error = prediction - target
    kept = error * mask if scope == 'masked' else error
    pixels = mask.sum().item() if scope == 'masked' else 24
    by_hand = kept.abs().sum().item() / pixels / 2 + 0.1 * focal_frequency_by_sums(kept, 1)
    module = ReconstructionLoss('l1', scope, frequency_weight=0.1, loss_weight=3)
    assert module(prediction, target, mask).item() == pytest.approx(3 * by_hand, rel=2e-5)
    without = ReconstructionLoss('l1', scope, frequency_weight=0.0)(prediction, target, mask)
    assert without.item() == pytest.approx(kept.abs().sum().item() / pixels / 2, rel=2e-5)


def test_wrong_scope_and_weight_are_named():
    with pytest.raises(ValueError, match=r"scope='visible' is unknown; choose one of 'masked', 'all'"):
        ReconstructionLoss(scope='visible')
    with pytest.raises(ValueError, match=r'frequency_weight=-0.1 must be a number of at least 0; A2MIM uses 0.1'):
        ReconstructionLoss(frequency_weight=-0.1)
    with pytest.raises(ValueError, match='loss_weight=nan must be a number; 1 is the default'):
        ReconstructionLoss(loss_weight=float('nan'))
