"""Pretrain on a folder of images without writing a config: the command writes it."""

import argparse
import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simmim_plugin.commands.options import add_recipe
from simmim_plugin.utils.resources import CONFIGS

EXAMPLE = """example:
  {program} photos/ --arch tiny --out runs/first                        (one CPU)
  {program} photos/ --arch base --epochs 100 --devices 8 --out runs/b   (8 GPUs)
  {program} photos/ --init timm:vit_base_patch16_224.mae --out runs/c   (continue from weights that exist)

The config is written to OUT/config.py. For settings that have no option here, edit a copy and use `simmim train`."""

SIZES = ('tiny', 'small', 'base', 'large', 'huge')
# Inherited config, side of the images and of the patches in pixels, epochs.
TINY = ('simmim_vit-tiny_folder.py', 64, 8, 60)
OTHERS = ('simmim_vit-b_folder.py', 224, 16, 100)
# With --init, below SMALL px or not -> inherited config, epochs.
CONTINUED = {True: ('simmim_vit-tiny_continue.py', 30), False: ('simmim_vit-b_continue.py', 50)}
SMALL = 128
SMALL_BATCH = 16  # times smaller than the base batch size of the learning rate
FEW_IMAGES = 100

TEXT = '''"""Written by `simmim pretrain`; everything else is inherited.

Command:  {command}
"""

_base_ = {base!r}

data_root = {data!r}
load_from = {init!r}
randomness = dict(seed={seed})
model = dict(
    data_preprocessor={preprocessor},
    backbone={backbone},
)
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
    parser.add_argument('--arch', choices=SIZES, help="size of the ViT (base; with --init: the checkpoint's)")
    parser.add_argument(
        '--img-size', type=int, help="side of the crops in pixels (224; tiny: 64; with --init: the checkpoint's)"
    )
    parser.add_argument(
        '--patch-size', type=int, help="side of the patches (16; huge: 14; tiny: 8; with --init: the checkpoint's)"
    )
    parser.add_argument(
        '--init',
        metavar='CHECKPOINT',
        help='continue from these weights: a file or folder that `simmim convert` knows, timm:NAME or hf:NAME; the '
        'architecture is read from it',
    )
    parser.add_argument(
        '--rel-pos-bias',
        action='store_true',
        help='with --init: add relative position bias tables, of zeros, to weights that have none',
    )
    parser.add_argument(
        '--num-heads', type=int, help='with --init: attention heads of weights without bias tables (as published ones)'
    )
    add_recipe(
        parser,
        f'100; tiny: 60; more of few images, for 5,000 iterations; with --init: 50, below {SMALL} px 30; published: '
        '800',
    )


def run(args: argparse.Namespace) -> None:
    """Choose the settings that were not given, print them, write the config, and train.

    Raises:
        FileNotFoundError: There are no images, or there is no such checkpoint.
        ValueError: A number is out of range, the checkpoint is none of a SimMIMViT, or an option contradicts it.
    """
    import torch

    from simmim_plugin.commands import recipes
    from simmim_plugin.config import load_config
    from simmim_plugin.datasets.image_folder import ImageFolder
    from simmim_plugin.utils.arguments import choice, multiple, whole

    recipes.check_arguments(args)
    out, tiny = out_of(args), choice('--arch', args.arch, (None, *SIZES)) == 'tiny'
    base, size, patch, epochs = TINY if tiny else OTHERS
    preprocessor: dict[str, Any] = {}
    backbone: dict[str, Any] = {} if tiny else dict(arch=args.arch or 'base')
    source = None
    if args.arch == 'huge':
        patch = 14
    if args.init is not None:
        source, size, preprocessor, backbone = _continued(args, out)
        patch, (base, epochs) = backbone['patch_size'], CONTINUED[(args.img_size or size) < SMALL]
    elif args.rel_pos_bias or args.num_heads is not None:
        option = '--rel-pos-bias' if args.rel_pos_bias else f'--num-heads {args.num_heads}'
        raise ValueError(f'{option} is for --init; a ViT from scratch has the tables, and the heads of --arch')
    patch = patch if args.patch_size is None else args.patch_size
    size = size if args.img_size is None else args.img_size
    whole('--patch-size', patch, 1)
    multiple('--img-size', size, patch, 'whole patches of --patch-size')
    backbone |= dict(img_size=size, patch_size=patch)
    data = recipes.data_folders(args)
    images = len(ImageFolder(data))
    values = dict(
        command=recipes.in_docstring(recipes.command_of(out)), base=str(CONFIGS / base), data=data, seed=args.seed,
        init=source, preprocessor=preprocessor, backbone=backbone, size=size, patch=patch, unit=2 * patch,
    )  # fmt: skip
    cfg = load_config(str(CONFIGS / base), {'data_root': data})
    fit = recipes.given_batch(args, out, images)
    if fit is None:
        cfg.merge_from_dict(copy.deepcopy(dict(model=dict(backbone=backbone))))  # it removes _delete_
        fit = recipes.fitting_batch(cfg, size, images, args.devices, cfg.auto_scale_lr.base_batch_size)
    total, base_batch = fit.batch * args.devices, cfg.auto_scale_lr.base_batch_size
    usual = epochs if source else recipes.enough_epochs(epochs, images, total)
    epochs = args.epochs or recipes.written_epochs(args, out) or usual
    values |= dict(epochs=epochs, warmup=max(1, min(10, epochs // 10)), interval=max(1, epochs // 10))
    values['then'] = _after_warmup(epochs > values['warmup'], bool(tiny or source))
    path = recipes.write_config(TEXT.format(batch=fit.batch, **values), out, args.resume)
    recipes.print_summary(cfg, images, fit, args.devices, epochs)
    if total * SMALL_BATCH < base_batch:
        hint = '' if torch.cuda.is_available() else '; without a GPU, use --arch tiny'
        note = f'a rate stated for batches of {base_batch} is very low for {total}, little may be learned'
        print(f'note:    {note}{hint}')
    if images < FEW_IMAGES:
        print(f'note:    {images} images are few to pretrain on')
    recipes.start(path, args)


def _after_warmup(more: bool, cosine: bool) -> str:
    """Lines of the schedule behind the warm-up, if there is more."""
    if not more:
        return ''
    if cosine:
        return "    dict(type='CosineAnnealingLR', begin=warmup, end=epochs, convert_to_iter_based=True),\n"
    return "    dict(type='MultiStepLR', milestones=[max(1, epochs * 7 // 8)], gamma=0.1),\n"


def out_of(args: argparse.Namespace) -> Path:
    """The output folder, absolute."""
    name = 'continue' if args.init else f'pretrain_{args.arch or "base"}'
    return Path(args.out or f'work_dirs/{name}').resolve()


def _continued(args: argparse.Namespace, out: Path) -> tuple[str, int, dict[str, Any], dict[str, Any]]:
    """Of the checkpoint to continue from: path or name, side of its images, config of preprocessor and backbone."""
    from simmim_plugin.checkpoints.start import TABLES, read_start
    from simmim_plugin.commands.recipes import written_start
    from simmim_plugin.config import load_config
    from simmim_plugin.models.layers.architecture import ARCHS

    start = written_start(args, out) or read_start(args.init, args.num_heads)
    start.check_heads(args.num_heads)  # of a training to resume
    for line in start.assumed:
        print(line)
    if args.arch is not None:
        tiny = load_config(str(CONFIGS / TINY[0])).model.backbone.arch
        found = next((name for name, arch in {'tiny': tiny, **ARCHS}.items() if arch == start.arch), None)
        if found != args.arch:
            its = found or ', '.join(f'{name}={value}' for name, value in start.arch.items())
            raise ValueError(f'--arch {args.arch}: {args.init!r} is of another size ({its}); leave --arch out')
    if args.patch_size not in (None, start.settings['patch_size']):
        raise ValueError(
            f'--patch-size {args.patch_size}: {args.init!r} has patches of {start.settings["patch_size"]} px; leave it '
            f'out, or convert the weights first: `simmim convert SRC DST --to plugin --patch-size {args.patch_size}`'
        )
    settings = dict(start.settings)
    if args.rel_pos_bias and not start.resumed:
        if any(settings[name] for name in TABLES):
            raise ValueError(f'--rel-pos-bias: {args.init!r} has relative position bias tables; leave it out')
        settings['use_shared_rel_pos_bias'] = True
    backbone = {'arch': {'_delete_': True, **start.arch}, **settings}
    return start.source, start.side(args.img_size), start.preprocessor, backbone


def pretrain(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], **options: Any) -> Path:
    """Pretrain as `simmim pretrain` does: the same options, by their names with underscores.

    Args:
        data: Folder of images, or several.
        options: Such as `out='runs/a', arch='tiny', epochs=60`, or `init='timm:vit_base_patch16_224.mae'`. One process
            trains: `devices` is 1.

    Returns:
        The output folder, with config, checkpoints and logs.

    Raises:
        TypeError: There is no such option.
        FileNotFoundError: See `run`.
        ValueError: See `run`; or there are several devices, which need the command line.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    folders = [os.fspath(path) for path in ([data] if isinstance(data, str | os.PathLike) else data)]
    args = parser.parse_args(folders)
    names = [name for name in vars(args) if name != 'data']
    if unknown := [name for name in options if name not in names]:
        raise TypeError(f'pretrain() has no option {unknown[0]!r}; it has {", ".join(names)}')
    vars(args).update({'devices': 1, **options})
    if args.devices != 1:
        raise ValueError(f'devices={args.devices!r} must be 1 in Python; for several, use `simmim pretrain --devices`')
    for name in ('init', 'out'):
        if isinstance(getattr(args, name), os.PathLike):
            setattr(args, name, os.fspath(getattr(args, name)))
    run(args)
    return out_of(args)
