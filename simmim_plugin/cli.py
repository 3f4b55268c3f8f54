"""The command line `simmim`: pretraining and fine-tuning without a config, and every tool by a short name."""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from simmim_plugin import __version__
from simmim_plugin.utils.resources import CONFIGS, run_tool

# Name -> what it does, and the module here, or the script in tools/ and its first arguments.
COMMANDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    'quickstart': ('a first look: a small ViT on photos inside wheels, minutes on a processor', 'train.py', (
        str(CONFIGS / 'quickstart.py'),
    )),
    'pretrain': ('pretrain on a folder of images, no config needed', 'simmim_plugin.commands.pretrain', ()),
    'finetune': ('fine-tune a checkpoint on a folder of classes', 'simmim_plugin.commands.finetune', ()),
    'train': ('train a config: what pretrain and finetune write, and any other', 'train.py', ()),
    'test': ('evaluate a checkpoint of a config', 'test.py', ()),
    'probe': ('linear probe and k-NN on labelled images, block by block', 'probe.py', ()),
    'reconstruct': ("draw what a model makes of an image's hidden parts", 'reconstruct.py', ()),
    'features': ('features of a folder of images, as .npz or .parquet', 'extract_features.py', ()),
    'visualize': ('draw patch features, similarity and attention', 'visualize_features.py', ()),
    'sample': ('small data sets to try all this with, no download', 'simmim_plugin.commands.sample', ()),
    'demo': ('a page to try masks on images and look at features', 'simmim_plugin.commands.demo', ()),
    'browse': ('draw the crops and masks of a config, before training', 'visualize_masks.py', ()),
    'curves': ('draw the curves of runs', 'analyze_logs.py', ()),
    'statistics': ('mean and standard deviation of your images', 'compute_mean_std.py', ()),
    'print-config': ('print a config with all it inherits', 'print_config.py', ()),
    'convert': ('checkpoints from and to other projects', 'convert_checkpoint.py', ()),
    'export': ('write a backbone as ONNX', 'export_onnx.py', ()),
    'prepare': ('shrink a folder of large photos once; tar files', 'prepare_dataset.py', ()),
    'transfer': ('what pretraining is worth: classification, against training from scratch', 'transfer.py', ()),
    'transfer-dense': ('the same for detection and segmentation', 'transfer_dense.py', ()),
    'ablate': ('several pretrainings side by side, judged by fine-tuning and k-NN', 'ablate.py', ()),
    'benchmark': ("speed beside other packages' models and pipelines", 'benchmark.py', ()),
    'doctor': ('versions, devices, what is missing and the command that mends it', 'simmim_plugin.commands.doctor', ()),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: Its name and arguments; None: those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ('-h', '--help'):
        print(overview())
        return
    if words[0] == '--version':
        print(f'simmim_plugin {__version__}')
        return
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f'; did you mean {near[0]!r}?' if near else '.'
        sys.exit(f'error: simmim has no command {words[0]!r}{hint} It has: {", ".join(COMMANDS)}')
    _, place, first = COMMANDS[words[0]]
    sys.argv = [f'simmim {words[0]}', *first, *words[1:]]
    if place.endswith('.py'):
        run_tool(place, {f'python tools/{script} ': f'simmim {name} ' for name, (_, script, _) in COMMANDS.items()})
    else:
        import_module(place).main()


def overview() -> str:
    """What `simmim --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f'  simmim {name:{width}}  {text}' for name, (text, _, _) in COMMANDS.items()]
    return '\n'.join(
        ['SimMIM, masked image modelling, for Vision Transformers.', '', *lines, '', 'Each has --help with an example.']
    )
