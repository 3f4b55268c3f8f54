"""The patch embedding: a matrix product under autocast, timm's convolution without it."""

import pytest
import torch
from timm.layers import PatchEmbed

from simmim_plugin.models.layers.transformer import LinearPatchEmbed


@pytest.fixture
def embeddings():
    torch.manual_seed(0)
    ours, theirs = (kind(None, 16, 5, 24, strict_img_size=False, dynamic_img_pad=True)
                    for kind in (LinearPatchEmbed, PatchEmbed))  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize('size', [(32, 48), (30, 41)])
def test_product_and_convolution_agree(embeddings, size, monkeypatch):
    ours, theirs = (embedding.double() for embedding in embeddings)
    images = torch.randn(2, 5, *size, dtype=torch.float64)
    expected = theirs(images)
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device: True)  # autocast itself would round
    monkeypatch.setattr(ours.proj, 'forward', None)  # nothing convolves
    tokens = ours(images)
    assert tokens.shape == expected.shape == (2, 6, 24)
    torch.testing.assert_close(tokens, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(tokens)
    (tokens * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.proj.weight.grad, theirs.proj.weight.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.proj.bias.grad, theirs.proj.bias.grad, rtol=1e-10, atol=1e-10)


def test_bfloat16_under_autocast_and_the_very_convolution_without(embeddings):
    ours, theirs = embeddings
    images = torch.randn(2, 5, 32, 48)
    assert torch.equal(ours(images), theirs(images))
    with torch.autocast('cpu', torch.bfloat16):
        tokens = ours(images)
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), theirs(images), rtol=0.02, atol=0.02)
