"""Fine-tune a checkpoint for classification without writing a config: the command writes it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_plugin.commands.options import add_recipe
from simmim_plugin.utils.resources import CONFIGS

EXAMPLE = """example:
  {program} flowers/ --checkpoint runs/first/epoch_60.pth --out runs/flowers

DATA has train/ and val/, each with a folder per class. The config is written to OUT/config.py. For few labels,
other data or other recipes, edit a copy and use `simmim train`. Detection and segmentation: configs/detection and
configs/segmentation."""
SMALL = 128  # px; smaller images get crops and flips only, as in vit-tiny_folder.py
# Is it small? -> inherited config, epochs, and the names of the size arguments of its crop, resize and center_crop.
RECIPES = {
    True: ('finetune/vit-tiny_folder.py', 20, ('size', 'size', 'size')),
    False: ('finetune/vit-b_folder.py', 100, ('scale', 'scale', 'crop_size')),
}
EDGE = 256 / 224  # shorter side of a test image / side of its crop
DEFAULTS = dict(
    arch='base', img_size=224, patch_size=16, in_channels=3, layer_scale_init_value=0.1, use_abs_pos_embed=False,
    use_shared_rel_pos_bias=True, use_rel_pos_bias=False,
)  # of SimMIMViT  # fmt: skip

TEXT = '''"""Written by `simmim finetune`; everything else is inherited.

Command:  {command}
"""

_base_ = {base!r}

data_root = {data!r}
load_from = {checkpoint!r}
randomness = dict(seed={seed})
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{arch}), **{settings}),
    head=dict(in_channels={width}),
)
crop = dict({crop}={size})
resize = dict({resize}={edge})
center_crop = dict({center_crop}={size})
train_dataloader = dict(batch_size={batch}, num_workers=None)
val_dataloader = dict(num_workers=None)
test_dataloader = val_dataloader
optim_wrapper = dict(on_cpu='auto')  # bfloat16 on CPUs that have it
epochs, warmup = {epochs}, {warmup}
param_scheduler = [
    dict(
        type='simmim_plugin.WarmupCosineLR', warmup=warmup, end=epochs, floor_ratio=2e-4, convert_to_iter_based=True
    )
]
train_cfg = dict(max_epochs=epochs)
custom_hooks = [dict(type='simmim_plugin.ProgressHook')]
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('data', metavar='DATA', nargs='+', help='folder with train/ and val/, or several')
    parser.add_argument('--checkpoint', required=True, help='pretraining checkpoint; its architecture is read from it')
    parser.add_argument('--img-size', type=int, help="side of the crops in pixels (the pretraining's)")
    add_recipe(parser, f'100; below {SMALL} px: 20')


def run(args: argparse.Namespace) -> None:
    """Choose the settings that were not given, print them, write the config, and train.

    Raises:
        FileNotFoundError: The checkpoint or the data does not exist.
        ValueError: A number is out of range, or the checkpoint is not of this package.
    """
    from simmim_plugin.checkpoints.saved import read
    from simmim_plugin.commands import recipes
    from simmim_plugin.config import load_config
    from simmim_plugin.datasets.class_names import class_folders
    from simmim_plugin.datasets.image_folder import ImageFolder
    from simmim_plugin.utils.arguments import multiple
    from simmim_plugin.utils.configs import type_name

    recipes.check_arguments(args)
    out = Path(args.out or 'work_dirs/finetune').resolve()
    data = recipes.data_folders(args)
    for folder in args.data:
        for part in ('train', 'val'):
            if not Path(folder, part).is_dir():
                raise FileNotFoundError(
                    f'DATA {folder!r} has no folder {part}/; it must have train/<class>/ and val/<class>/ with images'
                )
    backbone = read(args.checkpoint).backbone  # data from elsewhere, which is written into a program below
    if (kind := type_name(backbone)) != 'SimMIMViT':
        raise ValueError(
            f'checkpoint {args.checkpoint!r} holds a {kind}, for which `simmim finetune` has no recipe; write a config '
            '(docs/backbones.md)'
        )
    if (channels := backbone.get('in_channels', 3)) != 3:
        raise ValueError(
            f'checkpoint {args.checkpoint!r}: in_channels={channels!r}, images of as many channels, for which '
            '`simmim finetune` has no recipe; write a config (docs/finetune.md)'
        )
    arch, settings = settings_of(backbone, args.checkpoint)
    patch, size = settings['patch_size'], args.img_size
    if size is None:
        size, width = settings['img_size']
        if size != width:
            raise ValueError(
                f'{args.checkpoint!r} was trained at {size} x {width} px (height x width); give one side by --img-size'
            )
    settings['img_size'] = size
    multiple('--img-size', size, patch, 'whole patches of the checkpoint')
    recipe, epochs, (crop, resize, center_crop) = RECIPES[size < SMALL]
    epochs = args.epochs or epochs
    cfg = load_config(str(CONFIGS / recipe), {'data_root': data})
    images = len(ImageFolder(data, data_prefix='train'))
    fit = recipes.given_batch(args, out, images)
    if fit is None:
        cfg.model.backbone = dict(cfg.model.backbone, arch=arch, **settings)
        fit = recipes.fitting_batch(cfg, size, images, args.devices, cfg.auto_scale_lr.base_batch_size)
    text = TEXT.format(
        command=recipes.in_docstring(recipes.command_of(out)), base=str(CONFIGS / recipe), data=data,
        checkpoint=str(Path(args.checkpoint).resolve()), seed=args.seed, arch=arch, settings=settings,
        width=arch['embed_dims'], crop=crop, resize=resize, center_crop=center_crop, size=size,
        edge=round(size * EDGE), batch=fit.batch, warmup=max(1, epochs // 5), epochs=epochs,
    )  # fmt: skip
    path = recipes.write_config(text, out, args.resume)
    parts = [Path(folder, 'train') for folder in args.data]
    print(f'classes: {len(class_folders(parts))}, the folders of {", ".join(map(str, parts))}')
    recipes.print_summary(cfg, images, fit, args.devices, epochs)
    recipes.start(path, args)


def settings_of(backbone: Mapping[str, Any], checkpoint: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Architecture and further arguments of the backbone of a checkpoint for its fine-tuning, each of them checked.

    Raises:
        ValueError: A value is of another type or out of range; the message names the checkpoint.
    """
    from simmim_plugin.models.layers.architecture import ARCH_KEYS, arch_settings
    from simmim_plugin.utils.arguments import flag, number, sides, whole

    value = {**DEFAULTS, **backbone}
    try:
        arch = dict(zip(ARCH_KEYS, arch_settings(value['arch'])))
        settings = dict(
            img_size=sides('img_size', value['img_size']),
            patch_size=whole('patch_size', value['patch_size'], 1),
            layer_scale_init_value=number('layer_scale_init_value', value['layer_scale_init_value'], 0),
            use_abs_pos_embed=flag('use_abs_pos_embed', value['use_abs_pos_embed']),
        )
        tables = [flag(name, value[name]) for name in ('use_shared_rel_pos_bias', 'use_rel_pos_bias')]
    except ValueError as error:
        raise ValueError(f'checkpoint {checkpoint!r}: {error}') from error
    return arch, {**settings, 'use_rel_pos_bias': any(tables)}
