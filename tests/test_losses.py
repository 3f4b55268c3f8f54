import pytest
import torch

from simmim_plugin import ReconstructionLoss, reconstruction_loss


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
