"""Pretrain a small ViT on photos from Python wheels, with a picture of its reconstructions: a first look."""

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
