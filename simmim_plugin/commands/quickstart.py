"""A first look: pretrain a small ViT on photos inside wheels, with a picture of what it reconstructs."""

import argparse

from simmim_plugin.commands import train
from simmim_plugin.utils.resources import CONFIGS

EXAMPLE = """example:
  {program} --work-dir runs/look"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.set_defaults(config=str(CONFIGS / 'quickstart.py'))
    train.add_options(parser)


run = train.run
