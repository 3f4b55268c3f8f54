"""Masked tokens alone: what is left out changes neither the loss nor a gradient."""

import pytest
import torch
import torch.nn.functional as F

from helpers.models import TINY
from simmim_plugin import ReconstructionLoss, SimMIM, SimMIMDataPreprocessor, SimMIMHead
from simmim_plugin.models.masks import largest_count, masked_tokens, take

UNEQUAL = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, 0]]], dtype=torch.uint8)


def test_tokens_by_hand():
    assert masked_tokens(UNEQUAL).tolist() == [[0, 3], [2, 0]]  # the second image is filled up with a visible patch
    assert largest_count(UNEQUAL) == 2
    assert masked_tokens(torch.zeros(2, 3, 3)).shape == (2, 1)  # none masked: one visible patch, of weight 0
    x = torch.arange(8.0).reshape(2, 4, 1)
    assert take(x, masked_tokens(UNEQUAL)).flatten().tolist() == [0, 3, 6, 4]


def test_preprocessor_adds_them():
    preprocessor = SimMIMDataPreprocessor([1.0, 2, 3], [1, 1, 1])
    data = preprocessor({'inputs': torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 'mask': UNEQUAL})
    assert torch.equal(data['tokens'], masked_tokens(UNEQUAL))
    assert 'tokens' not in preprocessor({'inputs': torch.zeros(2, 3, 8, 8)})


def model_of(**backbone) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM({**TINY, 'drop_path_rate': 0.3, **backbone}).double()


@pytest.mark.parametrize(
    'backbone',
    [{}, dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True), dict(use_shared_rel_pos_bias=False),
     dict(use_abs_pos_embed=True, layer_scale_init_value=0), dict(window_size=2), dict(with_cp=True),
     dict(out_indices=0)],
)  # fmt: skip
def test_loss_and_gradients_are_those_of_all_tokens(backbone):
    model = model_of(**backbone)
    grid = model.backbone.grid
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'relative_position' in name:
                parameter.normal_()
    mask = (torch.rand(3, *grid) < torch.tensor([0.3, 0.6, 0.9])[:, None, None]).to(torch.uint8)
    images = torch.randn(3, 3, *model.backbone.img_size, dtype=torch.float64)
    results = []
    for alone in (True, False):
        model.zero_grad()
        torch.manual_seed(1)  # drop path
        if alone:
            loss = model(images, mask=mask, mode='loss')['loss']
        else:  # by hand: every token computed and decoded
            prediction = model.head(model.backbone(images, mask)[-1])
            pixels = F.interpolate(mask[:, None].double(), scale_factor=model.backbone.patch_size)
            loss = ((prediction - images).abs() * pixels).sum() / (pixels.sum() + 1e-5) / 3
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (expected, expected_gradients) = results
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-5, atol=1e-10), name


def test_rectangles_and_large_images_too():
    model = model_of(window_size=2, global_blocks=(1,))
    patch = model.backbone.patch_size
    images = torch.randn(2, 3, 3 * patch, 5 * patch, dtype=torch.float64)
    mask = (torch.rand(2, 3, 5) < 0.5).to(torch.uint8)
    model.eval()
    tokens = masked_tokens(mask)
    whole = model.backbone(images, mask)[-1].flatten(2).transpose(1, 2)
    assert torch.allclose(model.backbone.forward_tokens(images, mask, tokens), take(whole, tokens), atol=1e-10)


def test_a_loss_of_whole_images_refuses_tokens():
    head = SimMIMHead(in_channels=4, patch_size=2, loss=ReconstructionLoss(scope='all'))
    with pytest.raises(ValueError, match='leave tokens out'):
        head.loss(torch.zeros(2, 2, 4), torch.zeros(2, 3, 4, 4), UNEQUAL, masked_tokens(UNEQUAL))


def test_only_maps_of_patches_serve():
    with pytest.raises(ValueError, match="out_type='raw'"):
        model_of(out_type='raw').loss(torch.zeros(1, 3, 64, 64).double(), torch.ones(1, 4, 4))


def test_backbones_without_forward_tokens_serve_too():
    model = model_of()
    plain = torch.nn.Module()
    plain.forward = model.backbone.forward
    plain.embed_dims, plain.patch_size, plain.in_channels = 48, 16, 3
    images = torch.randn(2, 3, *model.backbone.img_size, dtype=torch.float64)
    mask = (torch.rand(2, *model.backbone.grid) < 0.5).to(torch.uint8)
    model.eval()
    expected = model.loss(images, mask)['loss'].item()
    assert SimMIM(plain, model.head).eval().loss(images, mask)['loss'].item() == pytest.approx(expected, rel=1e-9)
