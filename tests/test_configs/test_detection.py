"""SimMIMViT in MMDetection: our configs, and stock ones with the backbone swapped."""

import json
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from helpers.commands import run
from helpers.dense import (
    ARCH,
    NAMES,
    TINY_VIT,
    assert_loaded,
    config,
    count_calls,
    make_dense,
    save_pretraining,
    swapped_config,
)
from helpers.paths import ROOT
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.config import load_config
from simmim_plugin.engine.optimizers.autocast_optim_wrapper import AutocastOptimWrapper
from simmim_plugin.engine.optimizers.layer_decay_constructor import SimMIMOptimWrapperConstructor

pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")

SIZE = (96, 96)
TINY = {
    **TINY_VIT,
    'model.backbone.window_size': 4,
    'model.backbone.global_blocks': [1],
    'model.neck.in_channels': 32,
    'jitter.scale': SIZE,
    'crop.crop_size': SIZE,
    'pad.size': SIZE,
    'resize.scale': SIZE,
}
STOCK = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'


def write_swapped(folder, stock=STOCK, start=''):
    """The config of the guide, tiny, from a stock config of MMDetection."""
    save_pretraining(folder / 'vit-b.pth')
    replaced = {
        STOCK: stock,
        "arch='base'": f'arch={ARCH}, img_size=64',
        'window_size=14, global_blocks=(2, 5, 8, 11)': 'window_size=4, global_blocks=(2,)',
        "'vit-b.pth'": repr(str(folder / 'vit-b.pth')),
        'in_channels=768': f'in_channels=32{start}',
    }
    (folder / 'swapped.py').write_text(swapped_config('detection.md', replaced))
    return str(folder / 'swapped.py')


def build(cfg):
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def total(losses) -> torch.Tensor:
    return sum(
        part.sum() for name, value in losses.items() if 'loss' in name
        for part in (value if isinstance(value, list) else [value])
    )  # fmt: skip


@pytest.mark.parametrize(
    ('stock', 'start', 'masks'),
    [
        (STOCK, '', True),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', ', start_level=1', False),
    ],
)
def test_the_backbone_swapped_into_a_stock_config(tmp_path, stock, start, masks):
    """The checkpoint is loaded; images of several, non-square sizes in a padded batch: loss, gradients, prediction."""
    from mmdet.testing import demo_mm_inputs

    model = build(load_config(write_swapped(tmp_path, stock, start)))
    assert_loaded(save_pretraining(tmp_path / 'vit-b.pth'), model.state_dict())
    sizes = [[3, 96, 128], [3, 90, 70]]
    batch = demo_mm_inputs(2, sizes, num_items=[3, 2], num_classes=80, use_box_type=True, with_mask=masks)
    total(model(**model.data_preprocessor(batch, True), mode='loss')).backward()
    without = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert not without
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(batch, False), mode='predict')
    assert len(found) == 2 and found[0].pred_instances.bboxes.shape[1] == 4
    assert not masks or found[0].pred_instances.masks.shape[1:] == (96, 128)


@pytest.fixture
def swapped(tmp_path):
    """A tiny Mask R-CNN of MMDetection's config, and images of one size with what is on them."""

    def make(**backbone):
        from mmdet.testing import demo_mm_inputs

        cfg = load_config(write_swapped(tmp_path))
        cfg.model.backbone.update(backbone)
        sizes = [[3, 64, 96], [3, 64, 96]]
        batch = demo_mm_inputs(2, sizes, num_items=[3, 2], num_classes=80, use_box_type=True, with_mask=True)
        return build(cfg), batch

    return make


def test_a_step_with_bfloat16_in_backbone_and_neck(swapped):
    """MMCV's operators receive float32."""
    model, batch = swapped()
    wrapper = AutocastOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3), on_cpu=True, parts=('backbone', 'neck')
    )
    seen = set()
    model.neck.levels[0][0].register_forward_hook(lambda *args: seen.add(args[-1].dtype))
    model.roi_head.bbox_roi_extractor.register_forward_hook(lambda *args: seen.add(args[-1].dtype))
    losses = model.train_step(batch, wrapper)
    assert seen == {torch.bfloat16, torch.float32} and losses['loss'].isfinite()


def test_a_batch_of_images_gives_the_features_of_each_image(swapped):
    model, _ = swapped()
    model.eval()
    images = torch.randn(3, 3, 48, 64)  # a grid of 3 x 4, less than a window of 4 x 4 in height
    with torch.no_grad():
        together = model.extract_feat(images)
        alone = zip(*(model.extract_feat(image[None]) for image in images))
    for level, (joined, single) in enumerate(zip(together, alone)):
        assert torch.allclose(joined, torch.cat(single), atol=1e-5), level
    assert [tuple(x.shape[2:]) for x in together] == [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]


def test_predictions_of_a_batch_are_those_of_each_image(swapped):
    """Boxes, scores and masks of Mask R-CNN, with 50 boxes an image."""
    model, batch = swapped()
    model.eval()
    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=50)
    with torch.no_grad():
        together = model(**model.data_preprocessor(batch, False), mode='predict')
        alone = []
        for inputs, sample in zip(batch['inputs'], batch['data_samples']):
            one = dict(inputs=[inputs], data_samples=[sample])
            alone += model(**model.data_preprocessor(one, False), mode='predict')
    for one, other in zip(together, alone, strict=True):
        joined, single = one.pred_instances, other.pred_instances
        assert len(joined) == 50 and torch.equal(joined.labels, single.labels)
        assert torch.allclose(joined.scores, single.scores, atol=1e-5)
        assert torch.allclose(joined.bboxes, single.bboxes, atol=1e-2)
        assert (joined.masks != single.masks).float().mean() < 1e-3


def test_recomputing_activations_changes_no_gradient(swapped):
    """With drop path, whose random choice is the same in both passes."""
    gradients, calls = [], []
    for with_cp in (False, True):
        model, batch = swapped(with_cp=with_cp, drop_path_rate=0.5)
        calls.append(count_calls(model.backbone.blocks[1].mlp))
        torch.manual_seed(1)
        total(model(**model.data_preprocessor(batch, True), mode='loss')).backward()
        gradients.append({n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None})
    assert [len(found) for found in calls] == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][name], atol=1e-5 * value.abs().max().item()), name


def test_drop_path_acts_only_in_training(swapped):
    model, _ = swapped(drop_path_rate=0.5)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        trained = [model.train().backbone(image)[0] for _ in range(8)]
        evaluated = [model.eval().backbone(image)[0] for _ in range(2)]
    assert any(not torch.equal(trained[0], other) for other in trained) and torch.equal(*evaluated)


def test_frozen_blocks_and_layer_decay(swapped):
    model, _ = swapped(frozen_stages=2)
    trained = {n for n, p in model.train().backbone.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith(('blocks.2.', 'norm')) for n in trained)
    wrapper = SimMIMOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=1.0)), dict(layer_decay_rate=0.5)
    )(model)  # fmt: skip
    rate = {id(p): group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # of 5 layers: the patch embedding, three blocks, the rest
            assert rate[id(parameter)] == (0.5 if name.startswith('backbone.blocks.2.') else 1.0), name
    assert len(rate) == sum(p.requires_grad for p in model.parameters())


def test_a_checkpoint_of_another_width_is_rejected(swapped, tmp_path):
    save_pretraining(tmp_path / 'wide.pth', arch=ARCH | dict(embed_dims=48))
    with pytest.raises(ValueError, match='the checkpoint is of another architecture'):
        swapped(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'wide.pth')))


@pytest.mark.parametrize(
    ('name', 'width', 'classes'),
    [('mask-rcnn_vit-b_coco', 768, 80), ('mask-rcnn_vit-s_coco', 384, 80), ('retinanet_vit-b_coco', 768, 80)],
)
def test_our_configs_build(name, width, classes):
    cfg = load_config(config(f'detection/{name}.py'))
    model = build(cfg)
    assert model.backbone.embed_dims == width and [b.window_size for b in model.backbone.blocks] == [14, 14, 0] * 4
    head = model.roi_head.bbox_head if 'mask' in name else model.bbox_head
    assert head.num_classes == classes
    assert cfg.val_evaluator.ann_file == 'data/coco/annotations/instances_val2017.json'


def test_classes_of_own_data(tmp_path):
    data = make_dense(tmp_path / 'data', dict(train=2, valid=1))
    cfg = load_config(config('detection/mask-rcnn_vit-b_folder.py'), {'data_root': str(data)})
    assert cfg.train_dataloader.dataset.metainfo.classes == list(NAMES) == cfg.val_dataloader.dataset.metainfo.classes
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    with pytest.raises(ValueError, match=r"bbox_head.num_classes=3, but .*train.json' has 2 classes: square, bar"):
        load_config(
            config('detection/mask-rcnn_vit-b_folder.py'),
            {'data_root': str(data), 'model.roi_head.bbox_head.num_classes': 3},
        )


def test_file_names_of_a_leaf(tmp_path):
    """As docs/detection.md says, including the last line: the evaluation reads those files."""
    data = make_dense(tmp_path / 'data', dict(train=2, valid=1))
    for part in ('train', 'valid'):
        (data / f'annotations/{part}.json').rename(data / f'{part}_boxes.json')
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f'_base_ = {config("detection/mask-rcnn_vit-b_folder.py")!r}\n'
        f'data_root = {str(data)!r}\n'
        "train_dataloader = dict(dataset=dict(ann_file='train_boxes.json'))\n"
        "val_dataloader = dict(dataset=dict(ann_file='valid_boxes.json'))\n"
        'test_dataloader = val_dataloader\n'
    )
    cfg = load_config(str(leaf))
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(data / 'valid_boxes.json')


@pytest.mark.slow
def test_train_test_and_infer(tmp_path):
    """Through the runner: the full pretrained backbone is loaded, and inference accepts the checkpoint."""
    data = make_dense(tmp_path / 'data', dict(train=4, valid=2))
    theirs = save_pretraining(tmp_path / 'pretrained.pth')
    options = [
        f'{key}={str(value).replace(" ", "")}'
        for key, value in {
            **TINY, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, 'optim_wrapper.optimizer.lr': 0.0,
            'auto_scale_lr.enable': False, 'default_hooks.checkpoint.interval': 1,
        }.items() if key != 'model.backbone.arch'
    ]  # fmt: skip
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f'_base_ = {config("detection/mask-rcnn_vit-b_folder.py")!r}\n'
        f'data_root = {str(data)!r}\n'
        f'model = dict(backbone=dict(arch={ARCH | dict(_delete_=True)}))\n'
    )
    work = tmp_path / 'work'
    command = [sys.executable, ROOT / 'tools/train.py', leaf, '--work-dir', work, '--cfg-options', *options]
    log = run(*command, f'load_from={tmp_path / "pretrained.pth"}')
    assert_loaded(theirs, load_file(work / 'epoch_1.pth')['state_dict'])  # unchanged at a rate of 0
    assert 'Skipped, not in the model: head.decoder.weight, head.decoder.bias' in log
    assert 'bbox_mAP' in log and 'segm_mAP' in log

    command[1] = ROOT / 'tools/test.py'
    command.insert(3, work / 'epoch_1.pth')
    command.insert(4, '--amp')
    assert 'coco/segm_mAP' in run(*command)

    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(str(work / 'leaf.py'), str(work / 'epoch_1.pth'), device='cpu', show_progress=False)
    photo = np.full((80, 130, 3), 120, np.uint8)
    (found,) = inferencer([photo], no_save_vis=True)['predictions']
    assert set(found) >= {'labels', 'scores', 'bboxes'} and json.dumps(found['labels'])
