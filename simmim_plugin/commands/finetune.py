"""Fine-tune a checkpoint for classification without writing a config: the command writes it."""

import argparse
from pathlib import Path

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

TEXT = '''"""Written by `simmim finetune`; everything else is inherited.

Command:  {command}
"""

_base_ = {base!r}

data_root = {data!r}
load_from = {checkpoint!r}
randomness = dict(seed={seed})
model = dict(
    data_preprocessor={preprocessor},
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
    parser.add_argument(
        '--checkpoint',
        required=True,
        help='file or folder that `simmim convert` knows, timm:NAME or hf:NAME; the architecture is read from it',
    )
    parser.add_argument('--img-size', type=int, help="side of the crops in pixels (the pretraining's)")
    parser.add_argument(
        '--num-heads', type=int, help='attention heads of weights without bias tables (as published ones)'
    )
    add_recipe(parser, f'100; below {SMALL} px: 20')


def run(args: argparse.Namespace) -> None:
    """Choose the settings that were not given, print them, write the config, and train.

    Raises:
        FileNotFoundError: The checkpoint or the data does not exist.
        ValueError: A number is out of range, or the checkpoint is none of a SimMIMViT.
    """
    from simmim_plugin.checkpoints.start import TABLES, read_start
    from simmim_plugin.commands import recipes
    from simmim_plugin.config import load_config
    from simmim_plugin.datasets.class_names import class_folders
    from simmim_plugin.datasets.image_folder import ImageFolder
    from simmim_plugin.utils.arguments import multiple

    recipes.check_arguments(args)
    out = Path(args.out or 'work_dirs/finetune').resolve()
    data = recipes.data_folders(args)
    for folder in args.data:
        for part in ('train', 'val'):
            if not Path(folder, part).is_dir():
                raise FileNotFoundError(
                    f'DATA {folder!r} has no folder {part}/; it must have train/<class>/ and val/<class>/ with images'
                )
    checkpoint = read_start(args.checkpoint, args.num_heads)
    for line in checkpoint.assumed:
        print(line)
    arch, size, settings = checkpoint.arch, checkpoint.side(args.img_size), dict(checkpoint.settings)
    patch, settings['img_size'] = settings['patch_size'], size
    settings['use_rel_pos_bias'] = any([settings.pop(name) for name in TABLES])  # one per block
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
        checkpoint=checkpoint.source, seed=args.seed, preprocessor=checkpoint.preprocessor, arch=arch,
        settings=settings, width=arch['embed_dims'], crop=crop, resize=resize, center_crop=center_crop, size=size,
        edge=round(size * EDGE), batch=fit.batch, warmup=max(1, epochs // 5), epochs=epochs,
    )  # fmt: skip
    path = recipes.write_config(text, out, args.resume)
    parts = [Path(folder, 'train') for folder in args.data]
    print(f'classes: {len(class_folders(parts))}, the folders of {", ".join(map(str, parts))}')
    recipes.print_summary(cfg, images, fit, args.devices, epochs)
    recipes.start(path, args)
