"""SimMIMViT in MMSegmentation: our configs, and a stock one with the backbone swapped."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from PIL import Image

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
from simmim_plugin.engine.optimizers.layer_decay_constructor import SimMIMOptimWrapperConstructor

CROP = (64, 64)
DEEPER = ARCH | dict(num_layers=4)  # MMSegmentation's Feature2Pyramid needs four maps
TINY = {
    **TINY_VIT,
    'model.backbone.img_size': 64,
    'model.data_preprocessor.size': CROP,
    'model.test_cfg.crop_size': CROP,
    'model.test_cfg.stride': (40, 40),
    'jitter.scale': (128, 64),
    'crop.crop_size': CROP,
    'resize.scale': (128, 72),
}


def build(cfg):
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def batch(height: int, width: int, classes: int) -> dict:
    from mmseg.structures import SegDataSample

    torch.manual_seed(1)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, height, width)))
        samples.append(sample)
    return dict(
        inputs=[torch.randint(0, 255, (3, height, width), dtype=torch.uint8) for _ in range(2)], data_samples=samples
    )


def test_the_backbone_swapped_into_a_stock_config(tmp_path):
    """The checkpoint is loaded; loss, gradients, and prediction on sides that are no multiples of the patch."""
    import mmseg

    theirs = save_pretraining(tmp_path / 'vit-b.pth', arch=DEEPER)
    replaced = {
        '/path/to/mmsegmentation': str(Path(mmseg.__file__).parent / '.mim'),
        "arch='base', img_size=512, out_indices=(3, 5, 7, 11)": f'arch={DEEPER}, img_size=64, out_indices=(0, 1, 2, 3)',
        "'vit-b.pth'": repr(str(tmp_path / 'vit-b.pth')),
        '768': '32',
    }
    (tmp_path / 'swapped.py').write_text(swapped_config('segmentation.md', replaced))
    cfg = load_config(str(tmp_path / 'swapped.py'), {'model.data_preprocessor.size': CROP})
    for part in ('neck', 'decode_head', 'auxiliary_head'):
        cfg.model[part].norm_cfg = dict(type='BN')  # SyncBN is for GPUs
    cfg.model.decode_head.channels = 32
    model = build(cfg)
    assert_loaded(theirs, model.state_dict())
    losses = model(**model.data_preprocessor(batch(64, 64, 150), True), mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(batch(70, 90, 150), False), mode='predict')
    assert [f.pred_sem_seg.data.shape for f in found] == [(1, 70, 90)] * 2


def tiny(**backbone):
    """A tiny model of our config for UPerNet."""
    cfg = load_config(config('segmentation/upernet_vit-b_ade20k.py'))
    cfg.model.backbone.update(arch=DEEPER, img_size=64, out_indices=(0, 1, 2, 3), **backbone)
    cfg.model.neck.embed_dim = 32
    cfg.model.decode_head.update(in_channels=[32] * 4, channels=32)
    cfg.model.auxiliary_head.update(in_channels=32, channels=16)
    cfg.model.data_preprocessor.size = CROP
    return build(cfg)


def test_recomputing_activations_changes_no_gradient():
    """With drop path, whose random choice is the same in both passes."""
    gradients, calls = [], []
    for with_cp in (False, True):
        model = tiny(with_cp=with_cp, drop_path_rate=0.5)
        calls.append(count_calls(model.backbone.blocks[1].mlp))
        torch.manual_seed(2)
        losses = model(**model.data_preprocessor(batch(64, 64, 150), True), mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        gradients.append({n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None})
    assert [len(found) for found in calls] == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][name], atol=1e-5 * value.abs().max().item()), name


def test_drop_path_acts_only_in_training():
    model = tiny(drop_path_rate=0.5)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        trained = [model.train().backbone(image)[-1] for _ in range(8)]
        evaluated = [model.eval().backbone(image)[-1] for _ in range(2)]
    assert any(not torch.equal(trained[0], other) for other in trained) and torch.equal(*evaluated)


def test_the_pyramid_of_one_map_and_windows():
    """SimpleFeaturePyramid under UPerNet, over a backbone with windows that do not divide the image."""
    cfg = load_config(config('segmentation/upernet_vit-b_ade20k.py'))
    cfg.model.backbone.update(arch=ARCH, img_size=64, window_size=4, global_blocks=(2,), out_indices=(2,))
    cfg.model.neck = dict(type='simmim_plugin.SimpleFeaturePyramid', in_channels=32, out_channels=32, num_outs=4)
    cfg.model.decode_head.update(in_channels=[32] * 4, channels=32)
    cfg.model.auxiliary_head.update(in_channels=32, channels=16)
    cfg.model.data_preprocessor.size = (80, 112)
    model = build(cfg)
    losses = model(**model.data_preprocessor(batch(80, 112, 150), True), mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_frozen_blocks_and_layer_decay():
    model = tiny(frozen_stages=2).train()
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith(('blocks.2.', 'blocks.3.', 'norm')) for n in trained)
    constructor = SimMIMOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=1.0)), dict(layer_decay_rate=0.5))
    rate = {id(p): group['lr'] for group in constructor(model).optimizer.param_groups for p in group['params']}
    wanted = {'backbone.blocks.2.': 0.25, 'backbone.blocks.3.': 0.5}  # of 6 layers
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rate[id(parameter)] == wanted.get(name[:18], 1.0), name


def test_a_checkpoint_of_another_width_is_rejected(tmp_path):
    save_pretraining(tmp_path / 'wide.pth', arch=DEEPER | dict(embed_dims=48))
    with pytest.raises(ValueError, match='the checkpoint is of another architecture'):
        tiny(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'wide.pth')))


@pytest.mark.parametrize(('name', 'width'), [('upernet_vit-b', 768), ('upernet_vit-s', 384), ('linear_vit-b', 768)])
def test_our_configs_build(name, width):
    model = build(load_config(config(f'segmentation/{name}_ade20k.py')))
    assert model.backbone.embed_dims == width and model.decode_head.num_classes == 150
    trained = {n.split('.')[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == ({'decode_head'} if 'linear' in name else {'backbone', 'neck', 'decode_head', 'auxiliary_head'})


def test_a_batch_of_images_gives_the_logits_of_each_image():
    cfg = load_config(config('segmentation/linear_vit-b_ade20k.py'), {
        'model.backbone.img_size': 64, 'model.backbone.out_indices': [2], 'model.backbone.frozen_stages': 0,
        'model.decode_head.in_channels': 32, 'model.decode_head.channels': 32, 'model.test_cfg.crop_size': CROP,
        'model.test_cfg.stride': (40, 40),
    })  # fmt: skip
    cfg.model.backbone.arch = ARCH
    model = build(cfg).eval()
    images = torch.randn(3, 3, 64, 80)
    places = [dict(img_shape=(64, 80), ori_shape=(64, 80))] * 3
    with torch.no_grad():
        together = model.encode_decode(images, places)
        alone = torch.cat([model.encode_decode(image[None], places[:1]) for image in images])
    assert together.shape == (3, 150, 64, 80) and torch.allclose(together, alone, atol=1e-5)


def test_classes_of_own_masks(tmp_path):
    data, name = make_dense(tmp_path / 'data', dict(train=2, valid=1)), config('segmentation/upernet_vit-b_folder.py')
    cfg = load_config(name, {'data_root': str(data)})
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 3
    assert cfg.val_dataloader.dataset.metainfo.classes == ['background', *NAMES]
    cfg = load_config(name, {'data_root': str(data), 'classes': ['a', 'b', 'c', 'd']})
    assert cfg.model.decode_head.num_classes == 4 and cfg.train_dataloader.dataset.metainfo.classes[3] == 'd'


@pytest.mark.slow
def test_train_test_and_infer(tmp_path):
    data = make_dense(tmp_path / 'data', dict(train=4, valid=2), side=80)
    save_pretraining(tmp_path / 'pretrained.pth', arch=DEEPER)
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f'_base_ = {config("segmentation/upernet_vit-b_folder.py")!r}\n'
        f'data_root = {str(data)!r}\n'
        f'model = dict(backbone=dict(arch={DEEPER | dict(_delete_=True)}, img_size=64, out_indices=(0, 1, 2, 3)),\n'
        '    neck=dict(embed_dim=32), decode_head=dict(in_channels=[32] * 4, channels=32),\n'
        '    auxiliary_head=dict(in_channels=32, channels=16))\n'
    )
    given = {key: value for key, value in TINY.items() if not key.startswith('model.backbone')}
    given |= {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 2}
    options = [f'{key}={str(value).replace(" ", "")}' for key, value in given.items()]
    work = tmp_path / 'work'
    command = [sys.executable, ROOT / 'tools/train.py', leaf, '--work-dir', work, '--cfg-options', *options]
    loading = [*command, f'load_from={tmp_path / "pretrained.pth"}']
    log = run(*loading)
    # 4 blocks of 16 tensors with their tables, patch embedding (2), cls and mask token, final norm (2).
    assert 'Loaded 70 tensors of load_from' in log and 'mIoU' in log
    assert 'Skipped, not in the model: head.decoder.weight, head.decoder.bias' in log
    assert load_file(work / 'iter_2.pth')['state_dict']['decode_head.conv_seg.weight'].shape[0] == 3

    command[1] = ROOT / 'tools/test.py'
    command.insert(3, work / 'iter_2.pth')
    assert 'mIoU' in run(*command)

    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(str(work / 'leaf.py'), str(work / 'iter_2.pth'), device='cpu')
    found = inferencer(np.full((70, 90, 3), 120, np.uint8), show=False)['predictions']
    assert found.shape == (70, 90) and found.max() < 3

    mask = np.asarray(Image.open(data / 'masks/train/0.png')).copy()
    mask[np.random.default_rng(0).random(mask.shape) < 0.5] = 7  # so that every crop has some
    for path in (data / 'masks/train').iterdir():
        Image.fromarray(mask).save(path)
    command = [sys.executable, ROOT / 'tools/train.py', leaf, '--work-dir', tmp_path / 'bad', '--cfg-options', *options]
    printed = run(*command, ok=False)
    fault = 'has the value 7, but decode_head.num_classes=3 means 0 ... 2 (and 255'
    assert 'train/' in printed and fault in printed

    Image.fromarray(mask).save(data / 'masks/valid/0.png')  # the metric would silently be wrong
    command = [sys.executable, ROOT / 'tools/test.py', leaf, work / 'iter_2.pth', '--cfg-options', *options]
    printed = run(*command, ok=False)
    assert 'valid/0.png' in printed and fault in printed
