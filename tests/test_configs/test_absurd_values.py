"""Absurd values of our settings, by --cfg-options: each is refused in one line that names setting and value."""

import argparse
import copy
import inspect
import math
import shutil
from typing import Any

import pytest
from mmengine.registry import TRANSFORMS, Registry, init_default_scope
from torch import nn
from torch.optim import SGD

from helpers.paths import ROOT
from simmim_plugin import registry as registries
from simmim_plugin.apis.settings import check_settings
from simmim_plugin.commands.options import add_cfg_options
from simmim_plugin.config import apply_options, load_config
from simmim_plugin.datasets.tar_shards import write_shards
from simmim_plugin.registry import (
    DATASETS,
    HOOKS,
    LOG_PROCESSORS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    WEIGHT_INITIALIZERS,
    build_part,
)

VALUES = ('nan', 'inf', '-1', '0', '1.5', '512.', 'abc', 'None', 'True', '(16,16)', '[1,abc]', '{1:1}', '')
NUMBERS = {'0', '1.5', '512.'}  # of at least 0
WORDS = {'abc', '{1:1}', ''}
# Setting -> those of the values that are right.
BACKBONE = {
    'arch': set(), 'arch.embed_dims': set(), 'arch.num_layers': set(), 'arch.num_heads': set(),
    'arch.feedforward_channels': set(), 'img_size': {'(16,16)'}, 'patch_size': set(), 'in_channels': set(),
    'drop_path_rate': {'0'}, 'layer_scale_init_value': NUMBERS, 'use_shared_rel_pos_bias': {'True'},
    'use_rel_pos_bias': set(), 'use_abs_pos_embed': {'True'}, 'out_type': set(), 'out_indices': {'-1', '0'},
    'frozen_stages': {'-1', '0'}, 'window_size': {'0'}, 'global_blocks': set(), 'dynamic_img_pad': {'True'},
    'with_cp': {'True'}, 'init_cut': {'1.5', '512.'}, 'init_cfg': {'None'}, 'num_registers': {'0'},
    'norm_eps': {'1.5', '512.'}, 'table_interpolation': set(),
}  # fmt: skip
HEAD = {
    'num_layers': set(), 'normalize_target': {'True'}, 'target': {'None'}, 'loss': {'None'}, 'init_cfg': {'None'},
    'in_channels': set(), 'patch_size': set(), 'out_channels': set(),
    'loss.criterion': set(), 'loss.scope': set(), 'loss.frequency_weight': NUMBERS,
    'loss.loss_weight': {*NUMBERS, '-1'},
}  # fmt: skip
OTHERS = {
    'model.backbone': set(), 'model.head': {'None'}, 'model.data_preprocessor': {'None'}, 'model.init_cfg': {'None'},
    'model.data_preprocessor.mean': set(), 'model.data_preprocessor.std': set(),
    'model.data_preprocessor.non_blocking': {'True'},
    'load.channels': set(), 'load.dtype': set(), 'load.keep': {'0'}, 'load.defer': {'True'},
    'load.max_bytes': set(), 'load.nodata': {*NUMBERS, '-1', 'nan', 'None'}, 'load.array_order': set(),
    'crop.size': {'(16,16)'}, 'crop.scale': set(), 'crop.ratio': {'(16,16)'}, 'crop.interpolation': set(),
    'flip.p': {'0'}, 'mask.mask_ratio': {'0', 'None'}, 'mask.mask_patch_size': {'None'},
    'mask.model_patch_size': set(), 'mask.input_size': {'None', '(16,16)'}, 'mask.adapt': {'None'},
    'mask.local': {'None'}, 'mask.global_': {'None'},
    'train_dataloader.dataset.max_bad_ratio': {'0'}, 'train_dataloader.dataset.suffixes': set(),
    'train_dataloader.dataset.ann_file': {'None', ''}, 'train_dataloader.dataset.data_prefix': {'None', ''},
    'train_dataloader.dataset.pipeline': set(),
    'optim_wrapper.on_cpu': {'True'}, 'optim_wrapper.parts': {'None'}, 'optim_wrapper.skip_nonfinite': {'True'},
    'custom_hooks.0.interval': set(), 'custom_hooks.0.num_images': set(), 'custom_hooks.0.num_measured': set(),
    'custom_hooks.0.seed': {'0'}, 'custom_hooks.0.by_epoch': {'True'},
    'custom_hooks.0.dataset': {'None'}, 'custom_hooks.0.out_dir': {'None', 'abc', '{1:1}'},
    'default_hooks.faults.interval': {'None'}, 'default_hooks.faults.max_in_a_row': set(),
    'default_hooks.faults.spike': {'1.5', '512.'}, 'default_hooks.faults.window': set(),
    'default_hooks.interrupt.signals': set(), 'default_hooks.checkpoint.interval': {'-1', '0'},
    'default_hooks.checkpoint.max_keep_ckpts': {'-1', '0'}, 'default_hooks.checkpoint.new_blocks': {'0'},
}  # fmt: skip
# Settings of MMEngine that users set through our configs.
SETTINGS = {
    'train_cfg.max_epochs': set(), 'train_cfg.val_interval': set(), 'train_dataloader.batch_size': set(),
    'optim_wrapper.accumulative_counts': set(), 'default_hooks.logger.interval': set(),
    'auto_scale_lr.base_batch_size': set(),
    'train_dataloader.num_workers': {'0', 'None'}, 'randomness.seed': {'0', 'None'},
    'optim_wrapper.clip_grad.max_norm': {'inf', '1.5', '512.'}, 'optim_wrapper.optimizer.lr': NUMBERS,
    'optim_wrapper.optimizer.weight_decay': NUMBERS,
    'param_scheduler.0.start_factor': {'0'}, 'param_scheduler.0.end': {'1.5', '512.'},
    'param_scheduler.1.begin': NUMBERS,
}  # fmt: skip
# What the config above has not: `dict(type=..., **PARTS[...])`; {images} is a folder.
PARTS: dict[str, dict[str, Any]] = {
    'FewLabels': dict(fraction=0.5, dataset=dict(type='ClassFolders', data_root='{images}')),
    'TarShards': dict(data_root='{images}'),
    'MaskRatioHook': dict(start=0.5),
    'ImageSizeHook': dict(sizes={0: 32}),
    'ProbeHook': dict(data_root='{images}'),
    'WarmupCosineLR': dict(warmup=1, end=6, convert_to_iter_based=True),
    'CompileHook': {},
    'PretrainedViT': dict(checkpoint='a.pth'),
    'SimMIMLogProcessor': {},
}
PARTS_GRID = {
    'FewLabels.fraction': set(), 'FewLabels.seed': {'0'}, 'FewLabels.rest': {'True'}, 'FewLabels.dataset': set(),
    'TarShards.max_bad_ratio': {'0'}, 'TarShards.suffixes': set(), 'TarShards.data_root': set(),
    'ImageSizeHook.sizes': set(), 'ImageSizeHook.by_epoch': {'True'},
    'MaskRatioHook.start': {'0'}, 'MaskRatioHook.end': {'0', 'None'}, 'MaskRatioHook.argument': set(),
    'MaskRatioHook.begin': {'0'}, 'MaskRatioHook.until': {'None'}, 'MaskRatioHook.schedule': set(),
    'ProbeHook.interval': set(), 'ProbeHook.blocks': {'None', '(16,16)'}, 'ProbeHook.linear': {'True'},
    'ProbeHook.k': set(), 'ProbeHook.temperature': {'1.5', '512.'}, 'ProbeHook.fraction': set(),
    'ProbeHook.workers': {'0'}, 'ProbeHook.data_root': set(),
    'WarmupCosineLR.warmup': {'0', '1.5'}, 'WarmupCosineLR.end': {'1.5', '512.'},
    'WarmupCosineLR.floor_ratio': {'0'}, 'WarmupCosineLR.start_ratio': {'0', 'None'},
    'CompileHook.mode': {'None', *WORDS}, 'CompileHook.backend': WORDS, 'CompileHook.fullgraph': {'None', 'True'},
    'PretrainedViT.checkpoint': {'abc', '{1:1}'}, 'PretrainedViT.prefix': {'None', *WORDS},
    'PretrainedViT.adapt_channels': {'None'}, 'SimMIMLogProcessor.mean_pattern': WORDS,
}  # fmt: skip
GRID = {
    **{f'model.backbone.{key}': right for key, right in BACKBONE.items()},
    **{f'model.head.{key}': right for key, right in HEAD.items()},
    **OTHERS,
    **SETTINGS,
    **PARTS_GRID,
}
LOCAL = {'mask.mask_ratio': None, 'mask.mask_patch_size': None}
ALSO = {'mask.local': LOCAL, 'mask.global_': LOCAL, 'mask.input_size': {'mask.mask_patch_size': 8}}


@pytest.fixture(scope='module')
def config():
    small = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16)
    options = {f'model.backbone.arch.{name}': value for name, value in small.items()}
    return load_config(str(ROOT / 'configs/simmim_vit-tiny_folder.py'), options)


def parsed(option):
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    return parser.parse_args(['--cfg-options', option]).cfg_options


def build(cfg, key, images):
    """Build what a setting is of."""
    init_default_scope('simmim_plugin')
    top, *rest = key.split('.')
    if key in SETTINGS:
        check_settings(cfg)
    elif top in PARTS:
        build_alone(cfg[top], images)
    elif top == 'model':
        build_part(cfg.model)
    elif top in ('load', 'crop', 'flip', 'mask'):
        TRANSFORMS.build(cfg[top])
    elif top == 'train_dataloader':
        DATASETS.build({**cfg.train_dataloader.dataset, 'data_root': str(images)})
    elif top == 'optim_wrapper':
        wrapper = {name: value for name, value in cfg.optim_wrapper.items() if name in ('type', rest[0])}
        OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=SGD(nn.Linear(1, 1).parameters(), lr=1)))
    else:
        HOOKS.build(cfg.custom_hooks[0] if top == 'custom_hooks' else cfg.default_hooks[rest[0]])


def build_alone(part, images):
    part = {name: str(images) if value == '{images}' else value for name, value in part.items()}
    if 'dataset' in part and part['dataset'] == PARTS['FewLabels']['dataset']:
        part['dataset'] = {**part['dataset'], 'data_root': str(images)}
    if part['type'] == 'WarmupCosineLR':
        optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1)
        PARAM_SCHEDULERS.build(part, default_args=dict(optimizer=optimizer, epoch_length=3))
    else:
        next(registry for registry in (HOOKS, DATASETS, WEIGHT_INITIALIZERS, LOG_PROCESSORS)
             if part['type'] in registry).build(part)  # fmt: skip


@pytest.fixture
def folder(image_folder, tmp_path):
    """Images in train/ and val/ with two classes, and in tar files."""
    write_shards(image_folder, tmp_path, 1)
    for split in ('train', 'val'):
        shutil.copytree(image_folder, tmp_path / split)
    return tmp_path


def shown(value):
    """How a message may show a value: as a whole, the wrong one of a list, or the end of a path."""
    items = list(value) if isinstance(value, list | tuple) else list(value.items()) if isinstance(value, dict) else []
    return [repr(value), *map(repr, items), *([f'/{value}'] if value and isinstance(value, str) else [])]


@pytest.mark.parametrize('key', GRID)
def test_it_is_refused_by_name(key, config, folder, monkeypatch):
    monkeypatch.chdir(folder / 'train')  # some values are names of folders
    for text in VALUES:
        cfg, options = copy.deepcopy(config), parsed(f'{key}={text}')
        (value,) = options.values()
        try:
            if (top := key.split('.')[0]) in PARTS:
                cfg.merge_from_dict({top: dict(PARTS[top], type=top), **options})
            else:
                apply_options(cfg, ALSO.get(key, {}) | options)
            build(cfg, key, folder)
        except (ValueError, FileNotFoundError) as error:
            words = str(error).removeprefix(f'class `{type(error).__name__}` in ')
            assert text not in GRID[key], words
            assert '\n' not in words and f'{key.split(".")[-1]}' in words, words
            assert any(form in words for form in shown(value)), words
        else:
            assert text in GRID[key], f'{key}={text} is accepted'


def test_the_values_are_parsed_as_they_look():
    assert parsed('a=512.') == {'a': 512.0} and parsed('a=(16,16)') == {'a': (16, 16)} and parsed('a=') == {'a': ''}
    assert math.isnan(parsed('a=nan')['a']) and parsed('a=[1,abc]') == {'a': [1, 'abc']} and parsed('a=0')['a'] == 0


# Arguments that are no settings, or that have tests of their own.
ELSEWHERE = {
    'ClassFolders.extensions', 'Features.teacher', 'FixedSample.grid', 'FixedSample.length', 'HOG.bins', 'HOG.cell',
    'LowPass.radius', 'HeldOutLoss.collect_device',
    'HeldOutLoss.collect_dir', 'MLflowVisBackend.exp_name', 'MLflowVisBackend.save_dir',
    'MLflowVisBackend.tracking_uri', 'MaskedBackbone.mask_at', 'MaskedBackbone.model',
    'ResumableTrainLoop.dataloader', 'ResumableTrainLoop.dynamic_intervals', 'ResumableTrainLoop.runner',
    'ResumableTrainLoop.val_begin', 'ShardedStrategy.layers',
    'SimMIMOptimWrapperConstructor.optim_wrapper_cfg', 'SimMIMOptimWrapperConstructor.paramwise_cfg',
    'SimpleFeaturePyramid.num_outs', 'SimpleFeaturePyramid.start_level', 'WarmupCosineLR.optimizer',
}  # fmt: skip


def test_every_setting_is_in_the_grid():
    settings = {key.rpartition('.')[2] for key in GRID}
    left = set()
    for registry in vars(registries).values():
        if not isinstance(registry, Registry):
            continue
        registry.import_from_location()
        for kind in registry.module_dict.values():
            if inspect.isclass(kind) and kind.__module__.startswith('simmim_plugin'):
                _, *names = inspect.signature(kind.__init__).parameters
                left |= {f'{kind.__name__}.{name}' for name in names if name not in {*settings, 'args', 'kwargs'}}
    assert not left - ELSEWHERE
