"""Options shared by several commands. Standard library only, so that `--help` is quick."""

import argparse
import ast
from collections.abc import Sequence
from typing import Any

from simmim_plugin.utils.resources import CONFIGS


class _Options(argparse.Action):
    """MMEngine's KEY=VALUE parser, imported only when needed, with a message for words that are not KEY=VALUE.

    MMEngine's drops the spaces of a value. Here a value with spaces, such as a path, is kept, or is what Python makes
    of it: `[0.9, 0.95]`.
    """

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *args: Any) -> None:
        if wrong := [value for value in values if '=' not in value]:
            parser.error(f'--cfg-options needs KEY=VALUE, got {wrong[0]!r}')
        from mmengine.config import DictAction

        DictAction(self.option_strings, self.dest)(parser, namespace, values, *args)
        options = getattr(namespace, self.dest)
        for key, _, text in (value.partition('=') for value in values):
            if ' ' not in text.strip():
                continue
            try:
                options[key] = ast.literal_eval(text.strip())
            except (SyntaxError, ValueError):  # words; in brackets, MMEngine's list of words
                options[key] = options[key] if text.strip()[0] in '[(' else text


def add_cfg_options(parser: argparse.ArgumentParser, what: str = 'config values') -> None:
    """Add MMEngine's `--cfg-options KEY=VALUE ...`; `what` names the overridden values in the help."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=_Options, default={}, metavar='KEY=VALUE', help=f'override {what}'
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the options that launchers set for each rank of a distributed run."""
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='set by the scripts')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def add_max_bytes(parser: argparse.ArgumentParser) -> None:
    """Add `--max-bytes`."""
    parser.add_argument('--max-bytes', type=int, metavar='N', help='largest size of a decoded image (2**29: 512 MiB)')


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument('--device', default='cpu', help='cpu, cuda, ... (cpu)')


def add_recipe(parser: argparse.ArgumentParser, epochs: str) -> None:
    """Add the options shared by pretrain and finetune; `epochs` is the default shown in the help."""
    parser.add_argument('--epochs', type=int, help=f'epochs to train ({epochs})')
    parser.add_argument('--devices', type=int, help='GPUs, or processes on a machine without GPUs (all GPUs, or 1)')
    parser.add_argument('--batch-size', type=int, help='images per device and step (as many as fit)')
    parser.add_argument('--out', help='folder of config, logs, checkpoints and pictures')
    parser.add_argument('--seed', type=int, default=0, help='seed of the run (0)')
    parser.add_argument('--resume', action='store_true', help='continue from the last checkpoint in --out')
    parser.add_argument('--dry-run', action='store_true', help='only write the config and print what would run')


def add_comparison(
    parser: argparse.ArgumentParser,
    out: str,
    data: str = 'folder with train/ and val/, each with a folder per class',
    seeds: Sequence[int] = (0, 1, 2),
) -> None:
    """Add the options shared by all comparisons of many runs.

    Args:
        parser: Parser of the command.
        out: Default output folder.
        data: Description of `--data-root`.
        seeds: Default seeds.
    """
    parser.add_argument('--data-root', required=True, help=data)
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=list(seeds), help=f'seeds ({" ".join(map(str, seeds))})'
    )
    parser.add_argument('--out', default=out, help=f'output folder ({out})')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast, also on CPUs')
    parser.add_argument('--jobs', type=int, default=1, help='parallel runs; they share the cores (1)')


def add_pretraining(parser: argparse.ArgumentParser, config: str, options_for: str) -> None:
    """Add `--pretrain`, with a default from configs/, and the `--cfg-options` that apply to it."""
    parser.add_argument('--pretrain', default=str(CONFIGS / config), help=f'pretraining config (configs/{config})')
    add_cfg_options(parser, options_for)
