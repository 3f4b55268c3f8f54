"""The published fine-tuning recipe as a config, and that it runs on a folder of classes."""

import json
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image

from helpers.commands import run
from helpers.paths import ROOT
from simmim_plugin.apis.train import build_runner
from simmim_plugin.config import fill_in_data, load_config
from simmim_plugin.utils.arguments import sides
from simmim_plugin.utils.meta import on_meta

FINETUNE = ROOT / 'configs' / 'finetune'


@pytest.fixture
def classes_folder(tmp_path):
    """Two classes of six and three JPEGs, train/ and val/."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 3)):
        for name in ('cat', 'dog'):
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            for i in range(count):
                low = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
                image = Image.fromarray(low).resize((80, 72), Image.Resampling.BICUBIC)
                image.save(tmp_path / 'data' / split / name / f'{i}.jpg')
    return tmp_path / 'data'


def test_the_recipe_has_the_published_numbers():
    """Values of arXiv 2111.09886 and its reference implementation, fine-tuning of ViT-B."""
    cfg = load_config(str(FINETUNE / 'vit-b_in1k.py'))
    backbone, head = cfg.model.backbone, cfg.model.head
    assert (backbone.arch, backbone.img_size, backbone.patch_size, backbone.drop_path_rate) == ('base', 224, 16, 0.1)
    assert backbone.use_rel_pos_bias and not backbone.use_shared_rel_pos_bias and backbone.out_type == 'avg_featmap'
    assert (head.num_classes, head.loss.label_smooth_val) == (1000, 0.1)
    assert {a.type: a.alpha for a in cfg.model.train_cfg.augments} == {'Mixup': 0.8, 'CutMix': 1.0}
    wrapper = cfg.optim_wrapper
    published = dict(lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    assert dict(wrapper.optimizer) == dict(type='AdamW', fused=True, **published)  # fused: the same numbers
    assert wrapper.clip_grad == dict(max_norm=5.0) and wrapper.paramwise_cfg == dict(layer_decay_rate=0.65)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 2048
    _, crop, flip, augment, erase, _ = cfg.train_pipeline
    assert (crop.scale, crop.interpolation, flip.prob) == (224, 'bicubic', 0.5)
    assert (augment.magnitude_level, augment.magnitude_std, augment.num_policies) == (9, 0.5, 2)  # rand-m9-mstd0.5
    assert augment.policies == 'timm_increasing'  # inc1
    assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
    _, resize, centre, _ = cfg.test_pipeline
    assert (resize.scale, resize.interpolation, centre.crop_size) == (256, 'bicubic', 224)


def test_initialisation_of_classifier_and_backbone():
    cfg = load_config(str(FINETUNE / 'vit-s_in1k.py'))
    cfg.model.backbone.arch = dict(embed_dims=384, num_layers=2, num_heads=6, feedforward_channels=1536)
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    weight = model.head.fc.weight
    assert weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.01) and not model.head.fc.bias.any()
    assert model.backbone.blocks[0].attn.qkv.weight.std().item() == pytest.approx(
        0.02, rel=0.01
    )  # cut at +-2, not 0.02


def test_label_smoothing_and_mixing_give_timms_targets():
    """mixup(lam) of smoothed one-hot targets, against timm's own."""
    from timm.data.mixup import mixup_target
    from timm.loss import SoftTargetCrossEntropy

    cfg = load_config(str(FINETUNE / 'vit-b_in1k.py'))
    init_default_scope('mmpretrain')
    loss = MODELS.build({**cfg.model.head.loss, 'num_classes': 7})
    scores, labels = torch.randn(4, 7), torch.tensor([0, 3, 6, 2])
    one_hot = torch.nn.functional.one_hot(labels, 7).float()
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    expected = SoftTargetCrossEntropy()(scores, mixup_target(labels, 7, 0.3, 0.1))
    torch.testing.assert_close(loss(scores, mixed), expected, rtol=1e-5, atol=1e-6)


FINETUNE_SMALL = ROOT / 'configs/ablations/_base_/finetune_small.py'


@pytest.mark.parametrize('path', [*sorted(FINETUNE.glob('*.py')), FINETUNE_SMALL], ids=lambda path: path.stem)
def test_every_config_builds_its_model_and_pipelines(path):
    cfg = load_config(str(path))
    if cfg.model.head.num_classes is None:
        cfg.model.head.num_classes = 3
    init_default_scope('mmpretrain')
    with on_meta():
        model = MODELS.build(cfg.model)
    widths = getattr(model.backbone, 'num_features', [model.backbone.embed_dims])  # of Swin's stages
    assert model.head.fc.in_features == widths[-1]
    dataset = cfg.train_dataloader.dataset
    dataset = dataset.get('dataset', dataset)
    for transform in (*dataset.pipeline, *cfg.val_dataloader.dataset.pipeline):
        TRANSFORMS.build(transform)
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    for loader in (cfg.train_dataloader, cfg.val_dataloader):  # without it every process sees all images
        assert loader.sampler.type == 'DefaultSampler' and loader.collate_fn.type == 'default_collate'
    size = sides('img_size', cfg.model.backbone.img_size)[0]
    crops = [t.get('size', t.get('scale')) for t in dataset.pipeline if t.type.endswith('RandomResizedCrop')]
    centres = [t.get('crop_size', t.get('size')) for t in cfg.val_dataloader.dataset.pipeline if 'CenterCrop' in t.type]
    assert crops == [size]
    assert centres == ([] if size == 32 else [size])  # validation images of 32 px are not cropped


def test_classes_come_from_the_folders(classes_folder):
    cfg = load_config(str(FINETUNE / 'vit-b_folder.py'), {'data_root': str(classes_folder)})
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == 2
    assert cfg.val_evaluator[0].topk == [1] and cfg.test_evaluator[0].topk == [1]  # there are no five classes
    (classes_folder / 'val' / 'dog').rename(classes_folder / 'val' / 'wolf')
    with pytest.raises(
        ValueError, match=r"val' must have the classes cat, dog as in the training data, found cat, wolf"
    ):
        load_config(str(FINETUNE / 'vit-b_folder.py'), {'data_root': str(classes_folder)})
    with pytest.raises(ValueError, match=r'must have a folder per class, found none'):
        load_config(str(FINETUNE / 'vit-b_folder.py'), {'data_root': str(classes_folder / 'train' / 'cat')})
    fill_in_data(load_config(str(FINETUNE / 'vit-b_folder.py')))  # no data_root yet: nothing to look at


@pytest.mark.slow
def test_the_linear_probe_trains_the_classifier_alone(classes_folder, tmp_path):
    folder = load_config(str(FINETUNE / 'vit-b_folder.py'), {'data_root': str(classes_folder)})
    cfg = load_config(str(ROOT / 'configs/linear_probe/vit-b_in1k.py'))
    arch = dict(embed_dims=48, num_layers=12, num_heads=4, feedforward_channels=96)
    cfg.model.backbone.arch, cfg.model.neck[1].input_features, cfg.model.head.in_channels = arch, 48, 48
    cfg.model.head.num_classes = 2
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
    pipeline = cfg.train_pipeline
    cfg.train_dataloader.dataset = {**folder.train_dataloader.dataset, 'pipeline': pipeline}
    cfg.val_dataloader.dataset = folder.val_dataloader.dataset
    cfg.val_evaluator, cfg.test_dataloader = folder.val_evaluator, None
    cfg.test_evaluator = cfg.test_cfg = None
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir = str(tmp_path / 'run')
    cfg.load_from = None
    runner = build_runner(cfg)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    assert cfg.model.backbone.out_indices == 7  # block 8 of 12
    moved = {name for name, value in runner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in moved if name.startswith('backbone')} == set()
    assert {'head.fc.weight', 'neck.1.bn.running_mean'} <= moved


@pytest.mark.slow
def test_the_recipe_trains_a_small_model(classes_folder, tmp_path):
    log = run(
        sys.executable, ROOT / 'tools/train.py', FINETUNE / 'vit-b_folder.py', '--work-dir', tmp_path / 'run',
        '--cfg-options', f'data_root={classes_folder}', 'model.backbone.arch=small', 'model.head.in_channels=384',
        'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', 'val_dataloader.persistent_workers=False',
        'train_cfg.max_epochs=1', 'param_scheduler.0.end=2', 'param_scheduler.0.warmup=1',
        'default_hooks.logger.interval=1',
    )  # fmt: skip
    assert 'layer decay 0.65 over 14 layers' in log
    lines = [json.loads(line) for line in next((tmp_path / 'run').glob('*/vis_data/scalars.json')).open()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 3 and all(np.isfinite(losses))
    # For a total batch of 4: floor 2.5e-7 / 512 * 4, and 0.65^13 of 1.25e-3 / 512 * 4 for layer 0, the first group.
    floor, rate = 2.5e-7 / 512 * 4, 0.65**13 * 1.25e-3 / 512 * 4
    rates = [line['lr'] for line in lines if 'loss' in line]
    assert rates == pytest.approx([floor + (rate - floor) * i / 3 for i in range(3)], rel=1e-4)
    assert {'accuracy/top1', 'accuracy/balanced'} <= {key for line in lines for key in line}
