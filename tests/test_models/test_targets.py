"""What SimMIMHead predicts, against other implementations."""

import copy
import math
import re

import numpy as np
import pytest
import skimage.data
import skimage.feature
import timm
import torch
import torch.nn.functional as F
from mmpretrain.models.losses import CosineSimilarityLoss, PixelReconstructionLoss
from mmpretrain.models.selfsup.maskfeat import HOGGenerator
from scipy.ndimage import sobel

from helpers.checkpoints import random_weights
from helpers.models import TINY
from helpers.paths import ROOT
from simmim_plugin import ForeachEMA, MaskedBackbone, ReconstructionLoss, SimMIM, SimMIMHead, reconstruction_loss
from simmim_plugin.config import load_config
from simmim_plugin.models.losses import masked_loss, normalize_patches, visible_mean
from simmim_plugin.models.targets import build_target, hog, low_pass

pytestmark = pytest.mark.core


@pytest.fixture
def photos():
    """(2, 3, 160, 192), whole numbers of 0 ... 255, for which sums of gradients are exact."""
    found = (skimage.data.astronaut(), skimage.data.coffee())
    return torch.stack([torch.from_numpy(photo[:160, :192].copy()) for photo in found]).movedim(-1, 1).float()


# HOG


def mmpretrains(images, window):
    generator = HOGGenerator(nbins=9, pool=8, gaussian_window=window)
    generator(images)
    return generator.out.flatten(1, 2)


def test_hog_equals_mmpretrains(photos):
    assert torch.allclose(hog(photos), mmpretrains(photos, 0), atol=1e-6)
    square = photos[..., :160]  # its windows take square images only
    assert torch.allclose(hog(square, window=16), mmpretrains(square, 16), atol=1e-6)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = hog(photos)
    assert inside.dtype == torch.float32 and torch.equal(inside, hog(photos))


def test_hog_of_half_precision_and_of_normalised_images(photos):
    """A factor and an offset of each channel change nothing, but where rounding moves a direction over a border."""
    whole = hog(photos)
    assert torch.equal(hog(photos.bfloat16()), hog(photos.bfloat16().float()))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    noise = torch.rand(photos.shape, generator=torch.Generator().manual_seed(0))  # no direction lies on a border
    moved = (hog((photos + noise - mean) / std) - hog(photos + noise)).abs()
    assert (moved > 1e-4).float().mean() < 1e-3
    assert ((hog((photos - mean) / std) - whole).abs() > 1e-2).float().mean() < 0.05


@pytest.mark.parametrize(('cell', 'bins', 'channels'), [(8, 9, 1), (5, 9, 2), (4, 12, 4)])
def test_hog_equals_scikit_images_with_sobels_gradients(photos, cell, bins, channels, monkeypatch):
    """On transposed images: the first bin there starts at the other axis. Blocks of one cell."""
    monkeypatch.setattr(
        'skimage.feature._hog._hog_channel_gradient', lambda x: [sobel(x, axis, mode='mirror') for axis in (0, 1)]
    )
    images = torch.cat((photos, photos.flip(3)), dim=1)[:1, :channels, :, :160]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = (images + noise)[..., : 160 // cell * cell, : 120 // cell * cell]
    found = hog(images, cell, bins).unflatten(1, (channels, bins))[0].permute(0, 3, 2, 1)  # transposed, bins last
    for channel in range(channels):
        transposed = images[0, channel].T.numpy()
        theirs = skimage.feature.hog(transposed, bins, (cell, cell), (1, 1), block_norm='L2', feature_vector=False)[
            :, :, 0, 0
        ]
        # Blocks are divided by the length + 1e-5, of sums over the area of a cell.
        assert np.allclose(found[channel], theirs, atol=1e-5)


def test_hog_equals_scikit_images_own_on_parabolas():
    """Where the second differences are constant, Sobel's gradients are central differences; inside the image."""
    y, x = torch.meshgrid(torch.arange(48.0).double(), torch.arange(40.0).double(), indexing='ij')
    image = 0.31 * x**2 + 0.173 * x * y - 0.27 * y**2 - 11.3 * x + 7.1 * y
    theirs = skimage.feature.hog(image.T.numpy(), 9, (8, 8), (1, 1), block_norm='L2', feature_vector=False)[:, :, 0, 0]
    found = hog(image[None, None])[0].permute(2, 1, 0)
    assert np.allclose(found[1:-1, 1:-1], theirs[1:-1, 1:-1], atol=1e-5) and theirs[1:-1, 1:-1].std() > 0.1


def test_hog_by_hand():
    """A ramp across has a horizontal gradient: of 4 bins from the vertical, the third. A flat cell has none."""
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    found = hog(torch.cat((ramp, torch.zeros_like(ramp)), dim=1), cell=4, bins=4)
    assert found[0, :, 0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match='cell=3 of hog does not divide images of 4 x 8 px'):
        hog(ramp, cell=3)
    with pytest.raises(ValueError, match='window=16 of hog does not divide images of 4 x 8 px'):
        hog(ramp, cell=4, window=16)


# Low pass


def released(images, radius):
    """The formula of the released code: a circle around (h - 1) / 2 of the shifted spectrum, modulus of the result."""
    height, width = images.shape[2:]
    down, across = (torch.arange(side) - (side - 1) / 2 for side in (height, width))
    kept = down[:, None] ** 2 + across**2 <= radius**2
    return torch.fft.ifft2(torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1)) * kept).abs()


@pytest.mark.parametrize('side', [63, 225])
def test_low_pass_equals_the_released_for_odd_sides(side):
    image = torch.from_numpy(skimage.data.astronaut()[:side, :side].copy()).movedim(-1, 0)[None].double() / 255
    found = low_pass(image, 40)
    assert torch.allclose(found.abs(), released(image, 40 * side / 224), atol=1e-10)
    assert (image - found).std() > 0.02


def test_low_pass_of_even_sides_and_of_waves():
    image = torch.from_numpy(skimage.data.astronaut()[:224, :224].copy()).movedim(-1, 0)[None].double() / 255
    found = low_pass(image, 40)
    assert (found - released(image, 40)).std() < 0.25 * (found - image).std()
    assert torch.allclose(low_pass(3 * image - 5, 40), 3 * found - 5)  # with any mean and std
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(448.0), indexing='ij')
    for wave, kept in (((24, 32), 1), ((24, 33), 0), ((0, 40), 1), ((41, 0), 0)):  # cycles per 224 px: 24, 32 are 40
        image = torch.cos(2 * math.pi * (wave[0] * y + wave[1] * x) / 224)[None, None]
        assert torch.allclose(low_pass(image, 40), kept * image, atol=1e-4)


# The head


def test_loss_of_hog_equals_maskfeats(photos):
    images = photos[..., :160]
    head = random_weights(SimMIMHead(24, 16, target='hog', loss=dict(type='ReconstructionLoss', criterion='l2')))
    features, mask = torch.randn(2, 24, 10, 10), (torch.rand(2, 10, 10) > 0.4).to(torch.uint8)
    found = head.loss(features, images, mask, local=mask)
    # MaskFeat's rows: all values of a patch, in another order, but for each the same in prediction and target.
    rows = F.pixel_unshuffle(mmpretrains(images, 16), 2).flatten(2).mT
    predicted = head.decoder(features.flatten(2).mT)
    theirs = PixelReconstructionLoss('L2')(predicted, rows, mask.flatten(1))
    assert found['loss'].item() == pytest.approx(theirs.item(), rel=1e-5)
    assert found['error_local'].item() == pytest.approx(theirs.item(), rel=1e-5)
    assert tuple(head(features).shape) == (2, 27, 20, 20)


@pytest.mark.parametrize('patch', [8, 14, 32])
def test_masks_finer_and_coarser_than_cells(patch, photos):
    side = {8: 4, 14: 28, 32: 4}[patch]
    images = photos[..., :112, :112] if patch == 14 else photos[..., :128, :192]
    height, width = images.shape[2:]
    head = random_weights(SimMIMHead(6, patch, target=dict(type='hog', bins=5)))
    features = torch.randn(2, 6, height // patch, width // patch)
    mask = (torch.rand(2, height // side, width // side) > 0.5).to(torch.uint8)
    cell = patch // 2
    truth, predicted = hog(images, cell, 5, patch).numpy(), head(features).detach().numpy()
    total = area = 0.0
    for b, i, j in np.ndindex(2, height // cell, width // cell):
        pixels = np.kron(mask[b].numpy(), np.ones((side, side)))[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
        total += pixels.mean() * np.abs(truth[b, :, i, j] - predicted[b, :, i, j]).mean()
        area += pixels.mean()
    assert head.loss(features, images, mask)['loss'].item() == pytest.approx(total / area, rel=1e-4)


def test_names_of_the_normalised_target(photos):
    features, mask = torch.randn(2, 8, 10, 12), torch.ones(2, 10, 12)
    heads = [
        random_weights(SimMIMHead(8, 16, **arguments))
        for arguments in (
            dict(target='normalized_pixels'), dict(normalize_target=True),
            dict(target=dict(type='normalized_pixels'), normalize_target=True),
        )
    ]  # fmt: skip
    losses = {head.loss(features, photos, mask)['loss'].item() for head in heads}
    rows = normalize_patches(F.pixel_unshuffle(photos, 16).movedim(1, -1))[0]
    by_hand = (heads[0].decoder(features.movedim(1, -1)) - rows).abs().mean().item()
    assert len(losses) == 1 and losses.pop() == pytest.approx(by_hand, rel=1e-4)
    assert [*heads[0].state_dict()] == ['decoder.weight', 'decoder.bias']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(target='HOG'), "target='HOG' is unknown; choose one of 'pixels', 'normalized_pixels', 'low_pass', 'ho"),
        (dict(target=3), 'target=3 is unknown'),
        (dict(target='hog', normalize_target=True), "target='hog' contradicts normalize_target=True; leave the latter"),
        (dict(target='pixels', normalize_target=True), "target='pixels' contradicts normalize_target=True"),
        (dict(target='hog', patch_size=7), "target='hog': the patch of 7 px is odd and has no half; give target=dict"),
        (dict(target=dict(type='hog', cell=5)), 'target.cell=5 must divide the patch, 16 px'),
        (dict(target=dict(type='hog', bins=0)), 'target.bins=0 must be a whole number from 1 to 65536; MaskFeat us'),
        (dict(target=dict(type='low_pass', radius=0)), 'target.radius=0 must be a number above 0; PixMIM uses 40'),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f'^{re.escape("SimMIMHead.")}{message}'):
        SimMIMHead(**{**dict(in_channels=8, patch_size=16), **arguments})


def test_odd_patches_with_a_cell(photos):
    head = SimMIMHead(8, 15, target=dict(type='hog', cell=5))
    assert tuple(head(torch.randn(1, 8, 4, 4)).shape) == (1, 27, 12, 12)
    images = photos[:1, :, :60, :60]
    assert head.loss(torch.randn(1, 8, 4, 4), images, torch.ones(1, 4, 4))['loss'].isfinite()


# Features of a teacher


@pytest.fixture
def teacher(tmp_path):
    """Config of a teacher with weights in a file, and timm's model that wrote them."""
    model = random_weights(timm.create_model(
        'vit_tiny_patch16_224', img_size=64, embed_dim=64, depth=2, num_heads=2, num_classes=0, class_token=True
    ))  # fmt: skip
    path = tmp_path / 'teacher.pth'
    torch.save(model.state_dict(), path)
    arch = dict(embed_dims=64, num_layers=2, num_heads=2, feedforward_channels=256)
    config = dict(
        type='SimMIMViT', arch=arch, img_size=64, patch_size=16, use_abs_pos_embed=True, use_shared_rel_pos_bias=False,
        layer_scale_init_value=0.0, drop_path_rate=0.5, init_cfg=dict(type='Pretrained', checkpoint=str(path)),
    )  # fmt: skip
    return config, model.eval()


def with_teacher(config, **head):
    torch.manual_seed(0)
    return SimMIM(TINY, head=dict(target=dict(type='features', teacher=config), **head))


@pytest.mark.parametrize('criterion', ['smooth_l1', 'cosine'])
def test_features_are_timms(teacher, photos, criterion):
    config, theirs = teacher
    model = with_teacher(config, loss=dict(type='ReconstructionLoss', criterion=criterion)).train()
    images = photos[..., :64, :64] / 60 - 2
    mask = torch.zeros(2, 4, 4)
    mask[:, :2] = 1
    mask[0, 3, 3] = 1
    with torch.no_grad():
        tokens = theirs.forward_features(images)[:, 1:]  # (2, 16, 64)
        whitened = (tokens - tokens.mean(-1, keepdim=True)) / (
            tokens.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
    assert torch.allclose(model.head.target(images).flatten(2).mT, whitened, atol=1e-4)
    torch.manual_seed(1)
    loss = model(images, mask, mode='loss')['loss']
    torch.manual_seed(1)
    predicted = model.reconstruct(images, mask).flatten(2).mT
    if criterion == 'cosine':
        expected = CosineSimilarityLoss(shift_factor=1.0)(predicted, whitened, mask.flatten(1))
    else:
        expected = F.smooth_l1_loss(predicted[mask.flatten(1) > 0], whitened[mask.flatten(1) > 0])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_teacher_is_frozen_and_no_part_of_the_model(teacher, photos):
    config, _ = teacher
    model = with_teacher(config).train()
    target = model.head.target
    assert not any('teacher' in name for name in (*model.state_dict(), *dict(model.named_modules())))
    assert not any(part.training for part in target.teacher.modules())
    assert not any(parameter.requires_grad for parameter in target.teacher.parameters())
    assert copy.deepcopy(model).head.target is target and ForeachEMA(model).module.head.target is target
    before = target(photos[..., :64, :64])
    model(photos[..., :64, :64], torch.ones(2, 4, 4), mode='loss')['loss'].backward()
    assert all(parameter.grad is None for parameter in target.teacher.parameters())
    assert model.head.decoder.weight.grad.any() and torch.equal(target(photos[..., :64, :64]), before)
    model.double()  # as to another device
    assert next(target.teacher.parameters()).dtype == torch.float64


def test_any_backbone_may_teach(photos):
    theirs = timm.create_model('resnet10t').eval()
    built = MaskedBackbone(dict(type='timm', name='resnet10t'), img_size=(160, 192))
    built.model.load_state_dict(theirs.state_dict(), strict=False)
    model = SimMIM(TINY, head=dict(patch_size=32, target=dict(type='features', teacher=built))).train()
    expected = theirs.forward_features(photos).movedim(1, -1)
    expected = (expected - expected.mean(-1, keepdim=True)) / expected.std(-1, correction=0, keepdim=True)
    assert torch.allclose(model.head.target(photos).movedim(1, -1), expected, atol=1e-3)


def test_teachers_that_do_not_fit_are_named(teacher):
    config, _ = teacher
    with pytest.raises(ValueError, match='the teacher has no weights; give teacher=dict'):
        SimMIM(TINY, head=dict(target=dict(type='features', teacher=TINY)))
    with pytest.raises(ValueError, match='the teacher has a stride of 16 px, the model a stride of 8 px; they must'):
        SimMIM(TINY | dict(patch_size=8), head=dict(target=dict(type='features', teacher=config)))
    with pytest.raises(ValueError, match='the teacher has images of 3 channels, the model images of 1 channels'):
        SimMIM(TINY | dict(in_channels=1), head=dict(target=dict(type='features', teacher=config)))
    model = with_teacher({**config, 'out_type': 'cls_token'})
    with pytest.raises(ValueError, match=r"features of shape .* are not a map; set its out_type='featmap'"):
        model.head.target(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r'SimMIMHead\.target\.teacher is a Identity without embed_dims'):
        build_target(dict(type='features', teacher=torch.nn.Identity()), 16, 3)


# Everything that uses the head


@pytest.mark.parametrize('name', ['pixels', 'normalized_pixels', 'low_pass', 'hog', 'features'])
@torch.no_grad()
def test_losses_and_baselines(name, teacher, photos):
    target = dict(type=name, teacher=teacher[0]) if name == 'features' else name
    torch.manual_seed(0)
    model = SimMIM(TINY, head=dict(target=target)).eval()
    images, mask = photos[..., :64, :64] / 60 - 2, torch.zeros(2, 4, 4)
    mask[:, 1:3, :2] = 1
    pixels = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    loss = model(images, mask, mode='loss')['loss'].item()
    predicted = model.reconstruct(images, mask)
    assert masked_loss(model, predicted, images, pixels) == pytest.approx(loss, rel=1e-4)
    by_image = model(images, mask, mode='predict')
    assert np.mean([each['loss'].item() for each in by_image]) == pytest.approx(loss, rel=1e-4)
    truth = model.head.target(images)
    assert masked_loss(model, truth, images, pixels) < 1e-6
    side = 64 // truth.shape[2]
    mean = visible_mean(truth, pixels[..., ::side, ::side])
    shown = pixels[..., ::side, ::side].expand_as(truth) == 0
    by_hand = truth[0, 1][shown[0, 1]].mean()
    assert mean[0, 1, 0, 0].item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert masked_loss(model, mean, images, pixels) > 0.01


def test_cosine_by_hand():
    a, b = torch.tensor([[3.0, 4.0]]).view(1, 2, 1, 1), torch.tensor([[4.0, 3.0]]).view(1, 2, 1, 1)
    assert reconstruction_loss(a, b, criterion='cosine').item() == pytest.approx(1 - 24 / 25, rel=1e-4)
    pair = torch.cat((a, a), dim=3), torch.cat((b, -a), dim=3)
    mask = torch.tensor([[[[0.5, 0.25]]]])
    expected = (0.5 * 0.04 + 0.25 * 2) / 0.75
    assert ReconstructionLoss('cosine')(*pair, mask).item() == pytest.approx(expected, rel=1e-4)
    assert ReconstructionLoss('cosine', scope='all')(*pair, mask).item() == pytest.approx(1.02, rel=1e-4)


@pytest.mark.slow
def test_compiled_as_one_graph(teacher, photos):
    images, mask = photos[..., :64, :64] / 60 - 2, torch.ones(2, 4, 4)
    for target in ('low_pass', 'hog', dict(type='features', teacher=teacher[0])):
        torch.manual_seed(0)
        model = SimMIM(TINY, head=dict(target=target))
        plain = model(images, mask, mode='loss')['loss'].item()
        model.compile(backend='aot_eager', fullgraph=True)
        loss = model(images, mask, mode='loss')['loss']
        loss.backward()
        assert loss.item() == pytest.approx(plain, rel=1e-5)
        torch._dynamo.reset()


def test_the_leaf_config_takes_timms_dino(tmp_path, monkeypatch):
    """The teacher of configs/ablations/target_features.py is timm's ordinary ViT, here with fewer blocks."""
    cfg = load_config(str(ROOT / 'configs/ablations/target_features.py'))
    theirs = random_weights(timm.create_model('vit_base_patch16_224.dino', depth=1)).eval()
    (tmp_path / 'work_dirs').mkdir()
    torch.save(theirs.state_dict(), tmp_path / 'work_dirs/teacher.pth')
    monkeypatch.chdir(tmp_path)
    config = cfg.model.head.target.to_dict()
    config['teacher']['arch'] = dict(embed_dims=768, num_layers=1, num_heads=12, feedforward_channels=3072)
    images = torch.randn(1, 3, 224, 224)
    found = build_target(config, 16, 3)(images).flatten(2).mT
    with torch.no_grad():
        tokens = theirs.forward_features(images)[:, 1:]
    expected = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(-1, correction=0, keepdim=True)
    assert (found - expected).abs().max() < 1e-3
