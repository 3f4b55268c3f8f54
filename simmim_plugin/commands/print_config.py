"""Print a config with all that it inherits, as one Python file; without arguments, list those that come along."""

import argparse
import ast
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simmim_plugin import config
from simmim_plugin.utils import errors, resources

EXAMPLE = """example:
  python tools/print_config.py configs/ablations/ratio_03.py
  python tools/print_config.py configs/simmim_vit-b.py --cfg-options model.backbone.arch=small > mine.py"""


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='config file, or the name of one that comes along (none: list them)')
    parser.add_argument('--path', action='store_true', help='print where its file is instead, to inherit from')
    config.add_cfg_options(parser)
    args = parser.parse_args()
    with errors.one_line_errors():
        if args.config is None:
            for name in resources.shipped_configs():
                docstring = ast.get_docstring(ast.parse((resources.CONFIGS / name).read_text(encoding='utf-8'))) or ''
                print(f'{name:42} {docstring.partition(chr(10))[0]}')
            return
        cfg = config.load_config(args.config, args.cfg_options)
        print(os.path.abspath(cfg.filename) if args.path else cfg.pretty_text, end='\n' if args.path else '')


if __name__ == '__main__':
    main()
