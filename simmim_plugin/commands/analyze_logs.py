"""Plot the curves of one or several runs: training loss, and the loss on the fixed images."""

import argparse

EXAMPLE = """example:
  {program} work_dirs/quickstart --out curve.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work dirs of trainings')
    parser.add_argument('--out', default='curve.png', help='the picture (curve.png)')


def run(args: argparse.Namespace) -> None:
    """Plot the curves."""
    from simmim_plugin.visualization.curves import draw_curves

    draw_curves(args.work_dirs, args.out)
    print(f'picture: {args.out}')
