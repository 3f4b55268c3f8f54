"""The `simmim` command line. Arguments are parsed before anything heavy is imported, so `--help` is quick."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from simmim_plugin import NO_MMENGINE, __version__
from simmim_plugin.utils.errors import one_line_errors
from simmim_plugin.utils.invocation import note_command

# Name -> module and summary. Each module has a docstring (the description in --help), an EXAMPLE with a {program}
# placeholder, `add_arguments(parser)`, and `run(args)`, which does the heavy imports.
COMMANDS = {
    'quickstart': ('commands.quickstart', 'a first look: a small ViT on photos from Python wheels, minutes on a CPU'),
    'pretrain': ('commands.pretrain', 'pretrain on a folder of images, no config needed'),
    'finetune': ('commands.finetune', 'fine-tune a checkpoint on a folder of classes'),
    'train': ('commands.train', 'train a config: one that pretrain or finetune wrote, or any other'),
    'test': ('commands.test', 'evaluate a checkpoint with its config'),
    'probe': ('commands.probe', 'linear probe and k-NN on labelled images, block by block'),
    'reconstruct': ('commands.reconstruct', 'draw how a model reconstructs masked images'),
    'features': ('commands.extract_features', 'features of a folder of images, as .npz or .parquet'),
    'visualize': ('commands.visualize_features', 'draw patch features, similarity and attention'),
    'sample': ('commands.sample', 'write a small data set to try things with, no download'),
    'demo': ('commands.demo', 'a local web page to try masks and look at features'),
    'browse': ('commands.visualize_masks', 'draw the crops and masks of a config, before training'),
    'curves': ('commands.analyze_logs', 'draw the curves of runs'),
    'statistics': ('commands.compute_mean_std', 'mean and standard deviation of your images'),
    'print-config': ('commands.print_config', 'print a config with everything it inherits'),
    'convert': ('commands.convert_checkpoint', 'checkpoints from and to other projects'),
    'export': ('commands.export_onnx', 'write a backbone as ONNX'),
    'prepare': ('commands.prepare_dataset', 'shrink a folder of large photos once; tar files'),
    'transfer': ('commands.transfer', 'pretrained against from scratch: classification'),
    'transfer-dense': ('commands.transfer_dense', 'pretrained against from scratch: detection and segmentation'),
    'ablate': ('commands.ablate', 'compare several pretrainings by fine-tuning and k-NN'),
    'benchmark': ('benchmark.command', "training speed next to other packages' models and pipelines"),
    'image-sizes': ('benchmark.image_sizes', 'time and memory of the backbone by image size'),
    'doctor': ('commands.doctor', 'versions, devices, and the command that fixes each problem'),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command named by the first argument.

    Args:
        arguments: Name and arguments of the command; None takes `sys.argv`.
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
    """Parse the arguments of a command and run it; an error ends the program with a one-line message.

    Args:
        name: A key of `COMMANDS`.
        program: Program name in help and examples: 'simmim probe', or 'python tools/probe.py'.
        arguments: Arguments of the command; None takes `sys.argv`.
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
    note_command(program, words)
    with one_line_errors():
        command.run(args)


def overview() -> str:
    """Text of `simmim --help`."""
    width = max(map(len, COMMANDS))
    lines = [f'  simmim {name:{width}}  {text}' for name, (_, text) in COMMANDS.items()]
    return '\n'.join(
        ['SimMIM, masked image modelling, for Vision Transformers.', '', *lines, '', 'Each has --help with an example.']
    )
