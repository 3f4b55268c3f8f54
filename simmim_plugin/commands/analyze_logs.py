"""Draw the curves of a run, or compare several: training loss, and the loss on the fixed images."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin.utils import errors

EXAMPLE = """example:
  python tools/analyze_logs.py work_dirs/quickstart --out curve.png"""


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='folders that training wrote')
    parser.add_argument('--out', default='curve.png', help='the picture (curve.png)')
    args = parser.parse_args()
    with errors.one_line_errors():
        from simmim_plugin.visualization.curves import draw_curves

        draw_curves(args.work_dirs, args.out)
        print(f'picture: {args.out}')


if __name__ == '__main__':
    main()
