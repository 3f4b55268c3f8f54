"""Print a config with everything it inherits as one Python file, or list the configs of the package."""

import argparse
import ast
import os

from simmim_plugin.commands.options import add_cfg_options
from simmim_plugin.utils import resources

EXAMPLE = """example:
  {program} configs/ablations/ratio_03.py
  {program} configs/simmim_vit-b.py --cfg-options model.backbone.arch=small > mine.py"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('config', nargs='?', help='config file, or name of a config of the package (none: list them)')
    parser.add_argument('--path', action='store_true', help='print the path of its file instead, to inherit from')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Print."""
    if args.config is None:
        for name in resources.shipped_configs():
            docstring = ast.get_docstring(ast.parse((resources.CONFIGS / name).read_text(encoding='utf-8'))) or ''
            print(f'{name:42} {docstring.partition(chr(10))[0]}')
        return
    if args.path:
        print(os.path.abspath(resources.find_config(args.config)))
        return
    from simmim_plugin.config import load_config

    print(load_config(args.config, args.cfg_options).pretty_text, end='')
