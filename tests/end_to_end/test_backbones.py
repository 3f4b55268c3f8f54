"""The table of docs/backbones.md: what can be done with which backbone, one test per column."""

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_state_dict
from safetensors.torch import load_file
from torch import Tensor

from helpers.backbones import BACKBONES, FAST, library_map, library_model, randomise
from helpers.checkpoints import MEAN, STD
from helpers.commands import SIMMIM, TOOLS, run
from helpers.labelled import make_labelled
from helpers.models import assert_close
from helpers.paths import ROOT
from simmim_plugin import FeatureExtractor, LabelledFolder, SimMIM, SimMIMOptimWrapperConstructor, run_probes
from simmim_plugin.apis.explorer import Explorer
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.loading import fit_checkpoint
from simmim_plugin.config import load_config
from simmim_plugin.registry import DATASETS, build_part

EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
WITHOUT_LAYERS = ('hf-convnext', 'hf-resnet', 'mmpretrain-resnet', 'mmpretrain-timm')
IMAGES = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def pretrained(path: Any, name: str, unit: int | None = None, **arguments: Any) -> Any:
    """A pretraining checkpoint with random weights, and its model."""
    parts: dict[str, Any] = dict(
        backbone=dict(type='MaskedBackbone', **BACKBONES[name], **arguments),
        data_preprocessor=dict(type='SimMIMDataPreprocessor', mean=MEAN, std=STD),
    )
    model = randomise(SimMIM(**parts))
    patch = model.backbone.patch_size
    pipeline = [
        dict(type='LoadImage'),
        dict(type='SimMIMMaskGenerator', mask_ratio=0.5, mask_patch_size=unit or patch, model_patch_size=unit or patch),
    ]
    note = dict(model=dict(type='SimMIM', **parts), pipeline=pipeline)
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note}, path)
    return model


def images_for(backbone: Any) -> Tensor:
    return IMAGES[..., : backbone.img_size[0], : backbone.img_size[1]]


def expected_map(name: str, backbone: Any, images: Tensor) -> Tensor:
    """What the library's own model makes of normalised images."""
    theirs = library_model(name)
    theirs.load_state_dict(backbone.model.state_dict())
    return library_map(name, theirs, images, images.shape[2] // backbone.patch_size)


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize('name', EACH)
@torch.no_grad()
def test_features_and_probes(name, tmp_path):
    backbone = pretrained(tmp_path / 'a.pth', name).backbone
    images = images_for(backbone)
    extractor = FeatureExtractor(tmp_path / 'a.pth', kinds=('pooled', 'patches'))
    found = extractor(images)
    expected = expected_map(name, backbone, normalised(images))
    assert_close(torch.from_numpy(found['patches']), expected.permute(0, 2, 3, 1).numpy())
    assert_close(torch.from_numpy(found['pooled']), expected.mean((2, 3)).numpy())
    every = FeatureExtractor(tmp_path / 'a.pth', blocks='all', kinds=('patches',))
    assert {key: value.shape[1:] for key, value in every(images).items()} == every.shapes
    if not backbone.has_class_token:
        with pytest.raises(ValueError, match='this model has no class token'):
            FeatureExtractor(tmp_path / 'a.pth', kinds=('cls',))
    probe(tmp_path)


def probe(folder: Any) -> None:
    """k-NN and linear probe of the features of a.pth in the folder."""
    images = make_labelled(folder / 'data', dict(a=4, b=4), dict(a=2, b=2), side=64)
    with torch.enable_grad():
        scores = run_probes(FeatureExtractor(folder / 'a.pth'), LabelledFolder(images), k=3)
    assert set(scores) == {'knn', 'linear'}


@torch.no_grad()
def test_features_of_the_last_layer_that_is_trained(tmp_path):
    model = pretrained(tmp_path / 'a.pth', 'timm-resnet', out_indices=2)  # not the stage behind it
    images = images_for(model.backbone)
    found = FeatureExtractor(tmp_path / 'a.pth', kinds='patches')(images)['patches']
    assert_close(torch.from_numpy(found), model.backbone(normalised(images))[-1].permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def test_features_of_the_published_swin(tmp_path):
    arch = dict(embed_dims=16, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2])
    windows = dict(stage_cfgs=dict(block_cfgs=dict(window_size=2)))
    backbone = dict(type='mmpretrain.SimMIMSwinTransformer', arch=arch, img_size=64, **windows)
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=MEAN, std=STD)
    head = dict(in_channels=128, patch_size=32, out_channels=3)
    model: Any = randomise(SimMIM(backbone=backbone, head=head, data_preprocessor=preprocessor))
    note = dict(model=dict(type='SimMIM', backbone=backbone, data_preprocessor=preprocessor), pipeline=[])
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note}, tmp_path / 'a.pth')
    expected = model.backbone(normalised(IMAGES), None)[-1]
    found = FeatureExtractor(tmp_path / 'a.pth', kinds='patches')(IMAGES)['patches']
    assert_close(torch.from_numpy(found), expected.permute(0, 2, 3, 1).numpy())
    probe(tmp_path)


@pytest.mark.parametrize('name', EACH)
def test_fine_tuning_as_a_classifier(name, tmp_path):
    source = pretrained(tmp_path / 'a.pth', name)
    init_default_scope('mmpretrain')
    model: Any = MODELS.build(
        dict(
            _scope_='mmpretrain',
            type='ImageClassifier',
            data_preprocessor=dict(mean=MEAN, std=STD, num_classes=3, to_rgb=False),
            backbone=dict(type='simmim_plugin.MaskedBackbone', **BACKBONES[name]),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=source.backbone.embed_dims),
        )
    )
    fitted: Any = fit_checkpoint(model, torch.load(tmp_path / 'a.pth'))
    assert {'head.decoder.weight', 'head.decoder.bias'} == set(fitted.skipped)
    load_state_dict(model, fitted.state, strict=False)
    model.eval()
    images = normalised(images_for(source.backbone))
    with torch.no_grad():
        pooled = expected_map(name, source.backbone, images).mean((2, 3))
        assert_close(model(images), F.linear(pooled, model.head.fc.weight, model.head.fc.bias).numpy())
        assert_close(
            torch.from_numpy(FeatureExtractor.from_model(model)(images_for(source.backbone))['pooled']), pooled
        )
    constructor = SimMIMOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0)), dict(layer_decay_rate=0.5)
    )
    if name in WITHOUT_LAYERS:
        with pytest.raises(ValueError, match=r'does not say what its layers are .*; leave layer_decay_rate out'):
            constructor(model)
    else:
        scales = {id(p): g['lr_scale'] for g in constructor(model).optimizer.param_groups for p in g['params']}
        assert scales[id(model.head.fc.weight)] == 1
        first = next(iter(model.backbone.model.parameters()))
        assert scales[id(first)] == scales[id(model.backbone.mask_token)] == min(scales.values()) < 0.3


@pytest.mark.parametrize('name', EACH)
def test_detection(name, tmp_path):
    """RetinaNet: stages with a feature pyramid network, a ViT with the pyramid of ViTDet."""
    pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")
    source = pretrained(tmp_path / 'a.pth', name)
    shapes = source.backbone.layer_shapes
    stages = [i for i, (_, stride) in enumerate(shapes) if stride >= 8] if len(set(shapes)) > 1 else [-1]
    neck: dict[str, Any] = dict(type='FPN', in_channels=[shapes[i][0] for i in stages], out_channels=16, num_outs=3)
    if stages == [-1]:
        neck = dict(type='simmim_plugin.SimpleFeaturePyramid', in_channels=48, out_channels=16, num_outs=3)
        neck['start_level'] = 1
    init_default_scope('mmdet')
    anchors = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=[8, 16, 32])
    coder = dict(type='DeltaXYWHBBoxCoder')
    head = dict(type='RetinaHead', num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1)
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
    model: Any = MODELS.build(
        dict(
            _scope_='mmdet',
            type='RetinaNet',
            backbone=dict(type='simmim_plugin.MaskedBackbone', **{**BACKBONES[name], 'out_indices': stages}),
            neck=neck,
            bbox_head=dict(**head, anchor_generator=anchors, bbox_coder=coder, loss_bbox=dict(type='L1Loss')),
            train_cfg=dict(assigner=assigner, allowed_border=-1, pos_weight=-1),
        )
    )
    load_state_dict(model, fit_checkpoint(model, torch.load(tmp_path / 'a.pth')).state, strict=False)
    images = normalised(images_for(source.backbone))
    model.eval()
    with torch.no_grad():
        last = model.backbone(images)[-1]
        assert_close(last, expected_map(name, source.backbone, images).numpy())
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    size = tuple(images.shape[2:])
    boxes = InstanceData(bboxes=torch.tensor([[4.0, 4, 30, 40]]), labels=torch.tensor([1]))
    info = dict(img_shape=size, pad_shape=size, ori_shape=size, batch_input_shape=size)
    samples = [DetDataSample(gt_instances=boxes.clone(), metainfo=info) for _ in images]
    model.train()
    losses = model.loss(images, samples)
    sum(sum(each) for each in losses.values()).backward()
    lost = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert lost == []


@pytest.mark.parametrize('name', EACH)
@torch.no_grad()
def test_conversion_to_the_names_of_the_library(name, tmp_path):
    source = pretrained(tmp_path / 'a.pth', name).backbone
    report = convert_file(tmp_path / 'a.pth', tmp_path / 'b.safetensors', 'backbone')
    state = load_file(tmp_path / 'b.safetensors')
    assert report.tensors == len(state)
    theirs = library_model(name)
    getattr(theirs, 'timm_model', theirs).load_state_dict(state)
    images = normalised(images_for(source))
    assert_close(library_map(name, theirs, images, images.shape[2] // source.patch_size), source(images)[0].numpy())
    with pytest.raises(ValueError, match=r'^--img-size, --in-channels: SRC holds a MaskedBackbone, whose weights are'):
        convert_file(tmp_path / 'a.pth', tmp_path / 'c.pth', 'backbone', img_size=(13, 13), in_channels=5)
    with pytest.raises(ValueError, match=r'--to timm: SRC holds a MaskedBackbone; --to backbone writes'):
        convert_file(tmp_path / 'a.pth', tmp_path / 'c.pth', 'timm')


@pytest.mark.parametrize(('name', 'unit'), [('timm-convnext', 16), ('timm-vit', None)])
def test_commands(name, unit, tmp_path):
    pretrained(tmp_path / 'a.pth', name, unit)
    folder = make_labelled(tmp_path / 'data', dict(a=4, b=4), dict(a=2, b=2), side=64)
    photo = folder / 'val/a/0.png'
    for words in (
        ['reconstruct', tmp_path / 'a.pth', photo, '--out', tmp_path / 'r.png'],
        ['visualize', tmp_path / 'a.pth', photo, '--out', tmp_path / 'v.png'],
        ['features', tmp_path / 'a.pth', folder, '--out', tmp_path / 'f.npz'],
        ['convert', tmp_path / 'a.pth', tmp_path / 'c.pth', '--to', 'backbone'],
    ):
        run(*SIMMIM, *words, cwd=tmp_path)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ('r.png', 'v.png', 'f.npz', 'c.pth'))
    explorer = Explorer(tmp_path / 'a.pth')  # of `simmim demo`
    masks = explorer.training_masks()
    found = explorer.reconstruct(explorer.read(photo), explorer.random_masks(masks['local'], masks['global']))
    assert 0.3 < found.hidden < 0.7
    side = 64 // explorer.patch_size
    assert {x.shape[:2] for x in explorer.features(explorer.read(photo))} == {(side, side)}


CONFIGS = {'simmim_resnet50_folder': 32, 'simmim_eva02-s_folder': 14}  # -> stride in pixels


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
@torch.no_grad()
def test_configs_are_consistent(name, image_folder):
    cfg = load_config(str(ROOT / f'configs/{name}.py'), {'data_root': str(image_folder)})
    model: Any = build_part(cfg.model)
    init_default_scope('simmim_plugin')
    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert model.head.patch_size == model.backbone.patch_size == CONFIGS[name]
    assert sample['mask'].shape == (224 // CONFIGS[name], 224 // CONFIGS[name])
    data = model.data_preprocessor(dict(inputs=sample['inputs'][None], mask=sample['mask'][None]))
    assert 0.3 < model(data['inputs'], data['mask'], mode='loss')['loss'] < 3


LEAF = """_base_ = {base!r}
data_root = {data!r}
model = dict(backbone=dict(model=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), img_size=64))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(interval=1))
train_cfg = dict(max_epochs=2)
param_scheduler = [dict(type='simmim_plugin.WarmupCosineLR', warmup=1, end=2, convert_to_iter_based=True)]
"""
PRETRAIN = """
crop = dict(size=64)
custom_hooks = [
    dict(type='ProbeHook', data_root={folder!r}, interval=1, k=3, workers=0),
    dict(type='ReconstructionHook', interval=1, num_images=2, num_measured=4),
]
"""
FINETUNE = """
load_from = {checkpoint!r}
model['head'] = dict(in_channels=32)
crop, resize, center_crop = dict(scale=64), dict(scale=73), dict(crop_size=64)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
"""


@pytest.mark.slow
def test_pretrain_probe_and_fine_tune_with_configs(tmp_path):
    """The trainings themselves, tiny: hooks, checkpoints, probes during training, fine-tuning from the result."""
    data = make_labelled(tmp_path / 'data', dict(a=6, b=6), dict(a=3, b=3), side=64)

    def train(name: str, base: str, folder: Any, more: str) -> str:
        text = LEAF.format(base=str(ROOT / f'configs/{base}.py'), data=str(folder)) + more
        (tmp_path / f'{name}.py').write_text(text)
        return run(sys.executable, TOOLS / 'train.py', tmp_path / f'{name}.py', '--work-dir', tmp_path / name)

    output = train('pretrain', 'simmim_convnext-t_folder', data / 'train', PRETRAIN.format(folder=str(data)))
    assert 'Probes, epoch 2' in output
    assert list(tmp_path.glob('pretrain/reconstructions/*.png'))
    checkpoint = str(tmp_path / 'pretrain/epoch_2.pth')
    output = train('finetune', 'finetune/convnext-t_folder', data, FINETUNE.format(checkpoint=checkpoint))
    assert 'Skipped, not in the model: head.decoder.weight, head.decoder.bias' in output
    assert 'accuracy/top1' in output
    assert FeatureExtractor(tmp_path / 'finetune/epoch_2.pth')(IMAGES)['pooled'].shape == (2, 32)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['finetune', 'data', '--checkpoint', 'a.pth'],
            'holds a MaskedBackbone, for which this command has no recipe; write a config',
        ),
        (['export', 'a.pth', 'b.onnx'], 'holds a MaskedBackbone; ONNX export is for SimMIMViT'),
    ],
)
def test_commands_that_are_for_our_vit(words, message, tmp_path):
    pretrained(tmp_path / 'a.pth', 'timm-vit')
    make_labelled(tmp_path / 'data', dict(a=1, b=1), dict(a=1, b=1))
    assert message in run(*SIMMIM, *words, cwd=tmp_path, ok=False)
