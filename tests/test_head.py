import pytest
import torch
import torch.nn.functional as F

from simmim_plugin import SimMIMHead, reconstruction_loss


def test_loss_of_masked_tokens_equals_loss_of_the_decoded_image():
    torch.manual_seed(0)
    head = SimMIMHead(in_channels=8, patch_size=4, out_channels=5)
    features, target = torch.randn(2, 8, 3, 2, requires_grad=True), torch.randn(2, 5, 12, 8)
    mask = torch.tensor([[[1, 0], [0, 1], [1, 1]], [[0, 0], [1, 0], [0, 0]]])
    pixels = F.interpolate(mask[:, None].float(), scale_factor=4, mode='nearest')
    whole = reconstruction_loss(head(features), target, pixels)
    masked = head.loss(features, target, mask)['loss']
    assert torch.allclose(whole, masked, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(whole, head.parameters()), torch.autograd.grad(masked, head.parameters())):
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


def test_empty_mask_gives_zero():
    head = SimMIMHead(in_channels=8, patch_size=4)
    loss = head.loss(torch.randn(1, 8, 2, 2), torch.randn(1, 3, 8, 8), torch.zeros(1, 2, 2))['loss']
    loss.backward()
    assert loss.item() == 0
