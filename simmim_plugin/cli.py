"""The command line `simmim`. It parses before anything heavy is imported, so that `--help` is quick."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from simmim_plugin import NO_MMENGINE, __version__
from simmim_plugin.utils.errors import one_line_errors

# Name -> module, and what it does. A module has a docstring, an EXAMPLE that names the {program},
# `add_arguments(parser)`, and `run(args)`, which imports what is heavy.
COMMANDS = {
    'quickstart': ('commands.quickstart', 'a first look: a small ViT on photos inside wheels, minutes on a CPU'),
    'pretrain': ('commands.pretrain', 'pretrain on a folder of images, no config needed'),
    'finetune': ('commands.finetune', 'fine-tune a checkpoint on a folder of classes'),
    'train': ('commands.train', 'train a config: what pretrain and finetune write, and any other'),
    'test': ('commands.test', 'evaluate a checkpoint of a config'),
    'probe': ('commands.probe', 'linear probe and k-NN on labelled images, block by block'),
    'reconstruct': ('commands.reconstruct', "draw what a model makes of an image's hidden parts"),
    'features': ('commands.extract_features', 'features of a folder of images, as .npz or .parquet'),
    'visualize': ('commands.visualize_features', 'draw patch features, similarity and attention'),
    'sample': ('commands.sample', 'small data sets to try all this with, no download'),
    'demo': ('commands.demo', 'a page to try masks on images and look at features'),
    'browse': ('commands.visualize_masks', 'draw the crops and masks of a config, before training'),
    'curves': ('commands.analyze_logs', 'draw the curves of runs'),
    'statistics': ('commands.compute_mean_std', 'mean and standard deviation of your images'),
    'print-config': ('commands.print_config', 'print a config with all it inherits'),
    'convert': ('commands.convert_checkpoint', 'checkpoints from and to other projects'),
    'export': ('commands.export_onnx', 'write a backbone as ONNX'),
    'prepare': ('commands.prepare_dataset', 'shrink a folder of large photos once; tar files'),
    'transfer': ('commands.transfer', 'what pretraining is worth: classification, against training from scratch'),
    'transfer-dense': ('commands.transfer_dense', 'the same for detection and segmentation'),
    'ablate': ('commands.ablate', 'several pretrainings side by side, judged by fine-tuning and k-NN'),
    'benchmark': ('benchmark.command', "speed next to other packages' models and pipelines"),
    'image-sizes': ('benchmark.image_sizes', 'time and memory of the backbone by image size'),
    'doctor': ('commands.doctor', 'versions, devices, what is missing and the command that fixes it'),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names.

    Args:
        arguments: Its name and arguments; None: those of the process.
    """
    name, *words = (sys.argv[1:] if arguments is None else arguments) or ['--help']
    if name in ('-h', '--help'):
        print(overview())
    elif name == '--version':
        print(f'simmim_plugin {__version__}')
    elif name in COMMANDS:
        run_command(name, f'simmim {name}', words)
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f'; did you mean {near[0]!r}?' if near else '.'
        sys.exit(f'error: simmim has no command {name!r}{hint} It has: {", ".join(COMMANDS)}')


def run_command(name: str, program: str, arguments: Sequence[str] | None = None) -> None:
    """Parse a command's arguments and run it; an error ends the program with one line.

    Args:
        name: Of `COMMANDS`.
        program: What its help and examples call it: 'simmim probe', or 'python tools/probe.py'.
        arguments: None: those of the process.
    """
    command = import_module(f'simmim_plugin.{COMMANDS[name][0]}')
    parser = argparse.ArgumentParser(
        prog=program,
        description=command.__doc__,
        epilog=command.EXAMPLE.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if name != 'doctor' and not {'-h', '--help'} & set(words) and find_spec('mmengine') is None:
        sys.exit(f'error: {NO_MMENGINE}')
    args = parser.parse_args(words)
    with one_line_errors():
        command.run(args)


def overview() -> str:
    """What `simmim --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f'  simmim {name:{width}}  {text}' for name, (_, text) in COMMANDS.items()]
    return '\n'.join(
        ['SimMIM, masked image modelling, for Vision Transformers.', '', *lines, '', 'Each has --help with an example.']
    )
