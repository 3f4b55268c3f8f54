"""Pretrain on a folder of images without writing a config: the command writes it."""

import argparse
from pathlib import Path

from simmim_plugin.commands.options import add_recipe
from simmim_plugin.utils.resources import CONFIGS

EXAMPLE = """example:
  {program} photos/ --arch tiny --out runs/first                        (one CPU)
  {program} photos/ --arch base --epochs 100 --devices 8 --out runs/b   (8 GPUs)

The config is written to OUT/config.py. For settings that have no option here, edit a copy and use `simmim train`."""

SIZES = ('tiny', 'small', 'base', 'large', 'huge')
# Inherited config, side of the images and of the patches in pixels, epochs.
TINY = ('simmim_vit-tiny_folder.py', 64, 8, 60)
OTHERS = ('simmim_vit-b_folder.py', 224, 16, 100)
SMALL_BATCH = 16  # times smaller than the base batch size of the learning rate
FEW_IMAGES = 100

TEXT = '''"""Written by `simmim pretrain`; everything else is inherited.

Command:  {command}
"""

_base_ = {base!r}

data_root = {data!r}
randomness = dict(seed={seed})
model = dict(backbone=dict({arch}img_size={size}, patch_size={patch}))
crop = dict(size={size})
mask = dict(mask_patch_size={unit}, model_patch_size={patch})
train_dataloader = dict(batch_size={batch}, num_workers=None)
optim_wrapper = dict(on_cpu='auto')  # bfloat16 on CPUs that have it
epochs, warmup = {epochs}, {warmup}
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.005, end=warmup, convert_to_iter_based=True),
{then}]
train_cfg = dict(max_epochs=epochs)
custom_hooks = [dict(type='ReconstructionHook', interval={interval}), dict(type='ProgressHook')]
default_hooks = dict(checkpoint=dict(interval={interval}))
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('data', metavar='DATA', nargs='+', help='folder of images, searched recursively, or several')
    parser.add_argument('--arch', default='base', choices=SIZES, help='size of the ViT (base)')
    parser.add_argument('--img-size', type=int, help='side of the crops in pixels (224; tiny: 64)')
    parser.add_argument('--patch-size', type=int, help='side of the patches (16; huge: 14; tiny: 8)')
    add_recipe(parser, '100; tiny: 60; published: 800')


def run(args: argparse.Namespace) -> None:
    """Choose the settings that were not given, print them, write the config, and train.

    Raises:
        FileNotFoundError: There are no images.
        ValueError: A number is out of range.
    """
    import torch

    from simmim_plugin.commands import recipes
    from simmim_plugin.config import load_config
    from simmim_plugin.datasets.image_folder import ImageFolder
    from simmim_plugin.utils.arguments import multiple, whole

    recipes.check_arguments(args)
    out = Path(args.out or f'work_dirs/pretrain_{args.arch}').resolve()
    tiny = args.arch == 'tiny'
    base, size, patch, epochs = TINY if tiny else OTHERS
    if args.arch == 'huge':
        patch = 14
    if args.patch_size is not None:
        patch = args.patch_size
    if args.img_size is not None:
        size = args.img_size
    epochs = args.epochs or epochs
    whole('--patch-size', patch, 1)
    multiple('--img-size', size, patch, 'whole patches of --patch-size')
    data = recipes.data_folders(args)
    images = len(ImageFolder(data))
    values = dict(
        command=recipes.in_docstring(recipes.command_of(out)), base=str(CONFIGS / base), data=data, seed=args.seed,
        arch='' if tiny else f'arch={args.arch!r}, ', size=size, patch=patch, unit=2 * patch, epochs=epochs,
        warmup=max(1, min(10, epochs // 10)), interval=max(1, epochs // 10),
    )  # fmt: skip
    if epochs == values['warmup']:
        values['then'] = ''
    elif tiny:
        values['then'] = "    dict(type='CosineAnnealingLR', begin=warmup, end=epochs, convert_to_iter_based=True),\n"
    else:
        values['then'] = "    dict(type='MultiStepLR', milestones=[max(1, epochs * 7 // 8)], gamma=0.1),\n"
    cfg = load_config(str(CONFIGS / base), {'data_root': data})
    fit = recipes.given_batch(args, out, images)
    if fit is None:
        cfg.model.backbone.update(dict(img_size=size, patch_size=patch, **({} if tiny else {'arch': args.arch})))
        fit = recipes.fitting_batch(cfg, size, images, args.devices, cfg.auto_scale_lr.base_batch_size)
    path = recipes.write_config(TEXT.format(batch=fit.batch, **values), out, args.resume)
    recipes.print_summary(cfg, images, fit, args.devices, epochs)
    total, base_batch = fit.batch * args.devices, cfg.auto_scale_lr.base_batch_size
    if total * SMALL_BATCH < base_batch:
        hint = '' if torch.cuda.is_available() else '; without a GPU, use --arch tiny'
        note = f'a rate stated for batches of {base_batch} is very low for {total}, little may be learned'
        print(f'note:    {note}{hint}')
    if images < FEW_IMAGES:
        print(f'note:    {images} images are few to pretrain on')
    recipes.start(path, args)
