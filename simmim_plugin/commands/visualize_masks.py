"""Draw the masks of a pretraining config over its own data, and measure them: see a recipe before paying for it."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin import config
from simmim_plugin.utils import errors

EXAMPLE = """example:
  python tools/visualize_masks.py configs/simmim_vit-b_folder.py --cfg-options data_root=/path/to/images
  python tools/visualize_masks.py configs/ablations/mask_simultaneous.py --photos --out masks.png

AvgDist is the mean distance of a masked pixel to the nearest visible one."""


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='pretraining config')
    parser.add_argument('--out', default='masks.png', help='the picture (masks.png)')
    parser.add_argument('--rows', type=int, default=4, help='rows of the picture, two crops each (4)')
    parser.add_argument('--masks', type=int, default=64, help='masks that are measured (64)')
    parser.add_argument('--seed', type=int, default=0, help='of images, crops and masks (0)')
    parser.add_argument(
        '--photos', action='store_true', help='photos inside the scikit-image wheel instead of the data of the config'
    )
    config.add_cfg_options(parser)
    args = parser.parse_args()
    with errors.one_line_errors():
        from simmim_plugin.visualization.mask_sheet import draw_masks

        cfg = config.load_config(args.config, args.cfg_options)
        print(draw_masks(cfg, args.out, args.rows, args.masks, args.seed, args.photos))
        for hook in cfg.get('custom_hooks', []):
            if str(hook.get('type')).endswith('MaskRatioHook'):
                argument = hook.get('argument', 'mask_ratio')
                print(f'(with the ratios of the config; in training MaskRatioHook ramps {argument} from {hook.start})')
        print(f'picture: {args.out}')


if __name__ == '__main__':
    main()
