import types

import numpy as np
import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image
from torch import nn

from helpers.checkpoints import MEAN, PIPELINE, STD, pretrained, random_weights, save
from helpers.models import TINY
from simmim_plugin import SimMIM, SimMIMViT
from simmim_plugin.evaluation.feature_extractor import KINDS, FeatureExtractor

FINETUNED = TINY | dict(out_type='avg_featmap', use_shared_rel_pos_bias=False, use_rel_pos_bias=True)


def normalised(images: torch.Tensor, mean: list = MEAN, std: list = STD) -> torch.Tensor:
    return (images.float() - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def photos(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def backbone_outputs(state: dict, images: torch.Tensor, **kwargs: object) -> tuple[torch.Tensor, ...]:
    """What a backbone with these weights returns by its own `out_type` and `out_indices`."""
    backbone = SimMIMViT(**{key: value for key, value in (TINY | kwargs).items() if key != 'type'}).eval()
    backbone.load_state_dict(state)
    with torch.no_grad():
        return backbone(images)


@pytest.mark.parametrize('shape', [(3, 3, 64, 64), (2, 3, 48, 80)])
def test_features_are_the_outputs_of_the_backbone(tmp_path, shape):
    model = pretrained(tmp_path / 'a.pth')
    extractor = FeatureExtractor(tmp_path / 'a.pth', blocks=[3, 1], kinds=KINDS)
    images = photos(*shape)
    found = extractor(images)
    assert list(found) == list(extractor.names) == [f'block{b}_{kind}' for b in (1, 3) for kind in KINDS]
    state = model.backbone.state_dict()
    maps = backbone_outputs(state, normalised(images), out_type='featmap', out_indices=(0, 2))
    tokens = backbone_outputs(state, normalised(images), out_type='cls_token', out_indices=(0, 2))
    for block, featmap, cls_token in zip((1, 3), maps, tokens, strict=True):
        expected = dict(pooled=featmap.mean(dim=(2, 3)), cls=cls_token, patches=featmap.permute(0, 2, 3, 1))
        for kind in KINDS:
            values = found[f'block{block}_{kind}']
            assert values.dtype == np.float32 and values.shape == expected[kind].shape
            np.testing.assert_allclose(values, expected[kind], rtol=1e-5, atol=1e-5)


def test_keys_of_one_block_are_the_kinds_and_the_last_is_the_default(tmp_path):
    model = pretrained(tmp_path / 'a.pth')
    images = photos(2, 3, 64, 64)
    (last,) = backbone_outputs(model.backbone.state_dict(), normalised(images))
    (first,) = backbone_outputs(model.backbone.state_dict(), normalised(images), out_indices=0)
    assert list(FeatureExtractor(tmp_path / 'a.pth')(images)) == ['pooled']
    default = FeatureExtractor(tmp_path / 'a.pth')(images.numpy())['pooled']
    np.testing.assert_allclose(default, last.mean((2, 3)), rtol=1e-5, atol=1e-5)
    found = FeatureExtractor(tmp_path / 'a.pth', blocks=1)(images.double())['pooled']
    np.testing.assert_allclose(found, first.mean((2, 3)), rtol=1e-5, atol=1e-5)
    extractor = FeatureExtractor(tmp_path / 'a.pth', blocks='all', size=(32, 96), kinds=('patches', 'cls'))
    assert extractor.blocks == (1, 2, 3) and extractor.width == 48 and extractor.size == (32, 96)
    assert extractor.shapes['block2_patches'] == (2, 6, 48) and extractor.shapes['block2_cls'] == (48,)


def test_pooled_features_of_a_fine_tuned_model_are_the_input_of_its_classifier(tmp_path):
    backbone = random_weights(SimMIMViT(**{k: v for k, v in FINETUNED.items() if k != 'type'})).eval()
    model = nn.ModuleDict(dict(backbone=backbone, head=nn.ModuleDict(dict(fc=nn.Linear(48, 10)))))
    start = dict(type='Pretrained', checkpoint='gone.pth', prefix='backbone.')
    path = save(tmp_path / 'a.pth', model, FINETUNED | dict(init_cfg=start), dict(mean=MEAN, std=STD, to_rgb=False))
    images = photos(3, 3, 64, 64)
    with torch.no_grad():
        (expected,) = backbone(normalised(images))
        (raw,) = backbone_outputs(
            {n: v for n, v in backbone.state_dict().items() if not n.startswith('fc_norm')} |
            {'norm.weight': torch.ones(48), 'norm.bias': torch.zeros(48)},
            normalised(images), out_indices=1, use_shared_rel_pos_bias=False, use_rel_pos_bias=True,
        )  # fmt: skip
    found = FeatureExtractor(path, blocks=(2, 3))(images)
    np.testing.assert_allclose(found['block3_pooled'], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found['block2_pooled'], raw.mean((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('channels', [1, 5])
def test_other_channels(tmp_path, channels):
    mean, std = [500.0 + i for i in range(channels)], [200.0 + i for i in range(channels)]
    pipeline = [dict(type='simmim_plugin.LoadImage', channels=channels, dtype='float32')]
    model = pretrained(tmp_path / 'a.pth', mean, std, pipeline, in_channels=channels)
    stored = np.random.default_rng(0).normal(500, 200, (64, 64, channels)).astype(np.float32)
    np.save(tmp_path / 'scene.npy', stored)
    extractor = FeatureExtractor(tmp_path / 'a.pth')
    image = extractor.load(tmp_path / 'scene.npy')
    assert image.shape == (channels, 64, 64) and image.dtype == torch.float32
    (expected,) = backbone_outputs(
        model.backbone.state_dict(), normalised(image[None], mean, std), in_channels=channels
    )
    np.testing.assert_allclose(extractor(image[None])['pooled'], expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r'inputs of shape \(1, 3, 64, 64\) do not fit mean and std'):
        extractor(photos(1, 3, 64, 64))


@pytest.mark.parametrize(
    'size, width, height, cover',
    # 64 * 256 / 224 = 73.1; the other side keeps the proportions, rounded down as torchvision does.
    [(64, 120, 90, (97, 73)), (64, 90, 120, (73, 97)), ((64, 32), 80, 72, (81, 73)), ((32, 64), 40, 72, (73, 131))],
)
def test_images_are_resized_to_256_of_224_and_cropped_as_pil_does_it(tmp_path, size, width, height, cover):
    pretrained(tmp_path / 'a.pth')
    low = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)
    photo.save(tmp_path / 'photo.png')
    extractor = FeatureExtractor(tmp_path / 'a.pth', size=size)
    image = extractor.load(tmp_path / 'photo.png')
    h, w = extractor.size
    assert image.shape == (3, h, w) and image.dtype == torch.uint8
    left, top = round((cover[0] - w) / 2), round((cover[1] - h) / 2)
    expected = np.asarray(photo.resize(cover, Image.Resampling.BICUBIC).crop((left, top, left + w, top + h)))
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected.astype(int)).max() <= 1


def test_a_model_in_training_is_not_changed():
    torch.manual_seed(0)
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=MEAN, std=STD)
    model = random_weights(SimMIM(backbone=TINY | dict(drop_path_rate=0.5), data_preprocessor=preprocessor)).train()
    model.get_submodule('backbone.blocks.1').eval()  # set by the user
    extractor = FeatureExtractor.from_model(model, kinds=KINDS, blocks='all')
    modes = [module.training for module in model.modules()]
    inputs, mask = normalised(photos(2, 3, 64, 64)), torch.ones(2, 4, 4)

    def gradients(between: bool) -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        loss = model.loss(inputs, mask)['loss']
        if between:
            extractor(photos(1, 3, 48, 64))
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert extractor.backbone is model.backbone


def test_images_are_rgb_whatever_the_models_preprocessor_flips():
    """MMPretrain's preprocessor flips BGR to RGB, SimMIM's does not; the features are the same."""
    ours = random_weights(
        SimMIM(backbone=TINY, data_preprocessor=dict(type='SimMIMDataPreprocessor', mean=MEAN, std=STD))
    )
    images, found = photos(2, 3, 64, 64), []
    theirs = ClsDataPreprocessor(mean=MEAN, std=STD, to_rgb=True)
    for preprocessor in (ours.data_preprocessor, theirs):
        model = types.SimpleNamespace(backbone=ours.backbone, data_preprocessor=preprocessor)
        found.append(FeatureExtractor.from_model(model)(images)['pooled'])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert np.abs(FeatureExtractor.from_model(ours)(images.flip(1))['pooled'] - found[0]).max() > 1e-3


@pytest.mark.parametrize('training', [True, False])
def test_a_model_in_memory_gives_the_features_of_its_current_weights(training):
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=MEAN, std=STD)
    model = random_weights(SimMIM(backbone=TINY | dict(drop_path_rate=0.5), data_preprocessor=preprocessor))
    model.train(training)
    extractor = FeatureExtractor.from_model(model)
    images = photos(2, 3, 48, 80)  # resized bias tables must not be cached
    for seed in (1, 2):
        random_weights(model, seed)
        (expected,) = backbone_outputs(model.backbone.state_dict(), normalised(images))
        np.testing.assert_allclose(extractor(images)['pooled'], expected.mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_errors_name_the_argument(tmp_path):
    model = pretrained(tmp_path / 'a.pth')
    path = tmp_path / 'a.pth'
    for arguments, message in (
        (dict(blocks=[4]), r'blocks=\[4\]: the model has blocks 1 \.\.\. 3'),
        (dict(blocks=[]), r'blocks=\[\]: the model has'),
        (dict(kinds=['pooled', 'mean']), "--kinds='mean' is unknown; choose one of 'pooled', 'cls', 'patches'"),
        (dict(kinds=1), '--kinds=1 must be a list of names; choose some of pooled, cls, patches'),
        (dict(kinds=[]), r'--kinds=\(\) must not be empty; choose some of pooled, cls, patches'),
        (dict(size=100), '--size of 100 x 100 px: both sides must be multiples of the patch, 16 px, e.g. 96 x 96'),
        (dict(size=(64, 0)), r'--size=\(64, 0\) must be one side or \(height, width\), in whole pixels'),
        (dict(size=(1, 2, 3)), r'--size=\(1, 2, 3\) must be one side or \(height, width\), in whole pixels'),
        (dict(size=64.0), '--size=64.0 must be one side or'),
        (dict(device=1.0), r'--device 1.0 cannot be used \(.*\); use cpu, or cuda'),
        (dict(device='cuda:77'), '--device cuda:77 cannot be used'),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureExtractor(path, **arguments)
    extractor = FeatureExtractor(path)
    with pytest.raises(ValueError, match=r'images of shape \(3, 64, 64\).*for a single image, give image\[None\]'):
        extractor(photos(3, 64, 64))
    with pytest.raises(ValueError, match='input of 60 x 64 px: both sides must be multiples of the patch, 16 px'):
        extractor(photos(1, 3, 60, 64))
    model.backbone = nn.Identity()
    with pytest.raises(ValueError, match='the backbone of the model is a Identity without embed_dims'):
        FeatureExtractor.from_model(model)


def test_other_checkpoints_are_rejected(tmp_path):
    model = pretrained(tmp_path / 'a.pth')
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'plain.pth')
    with pytest.raises(ValueError, match=r"plain.pth' carries no config of simmim_plugin"):
        FeatureExtractor(tmp_path / 'plain.pth')
    with pytest.raises(FileNotFoundError, match=r"gone.pth' does not exist"):
        FeatureExtractor(tmp_path / 'gone.pth')
    preprocessor = dict(mean=MEAN, std=STD)
    path = save(tmp_path / 'b.pth', model, TINY | dict(patch_size=8), preprocessor)
    with pytest.raises(ValueError, match='the checkpoint has patches of 16 x 16 px and the model of 8 x 8 px'):
        FeatureExtractor(path)
    path = save(tmp_path / 'c.pth', model, dict(type='mmpretrain.VisionTransformer'), preprocessor)
    with pytest.raises(ValueError, match=r"c.pth' holds a model with backbone 'mmpretrain.VisionTransformer', not"):
        FeatureExtractor(path)
    path = save(tmp_path / 'd.pth', model.backbone, TINY, preprocessor)
    with pytest.raises(ValueError, match=r"d.pth' has no weights whose names start with 'backbone.'"):
        FeatureExtractor(path)
    with pytest.raises(ValueError, match=r"e.pth' has no mean and std"):
        FeatureExtractor(save(tmp_path / 'e.pth', model, TINY, None))
    # OpenCV's loader reads blue first; with to_rgb the model sees red first, as here.
    opencv = [dict(type='LoadImageFromFile')]
    images = photos(1, 3, 64, 64)
    path = save(tmp_path / 'f.pth', model, TINY, preprocessor | dict(to_rgb=True), opencv)
    expected = FeatureExtractor(tmp_path / 'a.pth')(images)['pooled']
    np.testing.assert_array_equal(FeatureExtractor(path)(images)['pooled'], expected)
    for to_rgb, pipeline in ((False, opencv), (True, PIPELINE)):
        path = save(tmp_path / 'g.pth', model, TINY, preprocessor | dict(to_rgb=to_rgb), pipeline)
        with pytest.raises(ValueError, match=r"g.pth' was trained on images with blue first"):
            FeatureExtractor(path)
