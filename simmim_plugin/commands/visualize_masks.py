"""Draw the masks of a pretraining config over its own data, and measure them, before you train."""

import argparse

from simmim_plugin.commands.options import add_cfg_options

EXAMPLE = """example:
  {program} configs/simmim_vit-b_folder.py --cfg-options data_root=/path/to/images
  {program} configs/ablations/mask_simultaneous.py --photos --out masks.png

AvgDist is the mean distance of a masked pixel to the nearest visible one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('config', help='pretraining config')
    parser.add_argument('--out', default='masks.png', help='the picture (masks.png)')
    parser.add_argument('--rows', type=int, default=4, help='rows of the picture, with two crops each (4)')
    parser.add_argument('--masks', type=int, default=64, help='masks to measure (64)')
    parser.add_argument('--seed', type=int, default=0, help='seed of images, crops and masks (0)')
    parser.add_argument(
        '--photos', action='store_true', help='use photos of the scikit-image wheel, not the data of the config'
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Draw the masks and print their statistics."""
    from simmim_plugin.config import load_config
    from simmim_plugin.visualization.mask_sheet import draw_masks

    cfg = load_config(args.config, args.cfg_options)
    print(draw_masks(cfg, args.out, args.rows, args.masks, args.seed, args.photos))
    for hook in cfg.get('custom_hooks', []):
        if str(hook.get('type')).endswith('MaskRatioHook'):
            argument = hook.get('argument', 'mask_ratio')
            print(f'(with the ratios of the config; in training MaskRatioHook ramps {argument} from {hook.start})')
    print(f'picture: {args.out}')
