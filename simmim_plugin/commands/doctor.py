"""Print what is installed, what the machine has, and the command that fixes what is wrong."""

import argparse
import importlib
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from simmim_plugin import __version__

EXAMPLE = 'example: {program}'
MM = "pip install 'simmim_plugin[mm]'"
ORIGINALS = "pip install 'simmim_plugin[openmmlab]'"  # where some are: the forks would overwrite them
# Module -> distributions that may bring it, what it is for, and what installs it.
PARTS = {
    'mmengine': (('onedl-mmengine', 'mmengine'), 'everything', MM),
    'mmcv': (('onedl-mmcv', 'mmcv', 'mmcv-lite'), 'MMPretrain, MMDetection, MMSegmentation', MM),
    'mmpretrain': (('onedl-mmpretrain', 'mmpretrain'), 'pretraining and classification', MM),
    'mmdet': (('onedl-mmdetection', 'mmdet'), 'detection', "pip install 'simmim_plugin[det]'"),
    'mmseg': (('onedl-mmsegmentation', 'mmsegmentation'), 'segmentation', "pip install 'simmim_plugin[seg]'"),
    'mmcv.ops': ((), "MMDetection: MMCV's compiled operators", (
        'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv==2.3.6 '
        '(15 to 22 minutes on two cores; FORCE_CUDA=1 for GPUs)'
    )),
    'skimage': (('scikit-image',), 'the quickstart', "pip install 'simmim_plugin[photos]'"),
    'transformers': (('transformers',), 'Hugging Face checkpoints', "pip install 'simmim_plugin[hf]'"),
    'pyarrow': (('pyarrow',), 'features as .parquet', "pip install 'simmim_plugin[parquet]'"),
    'onnxscript': (('onnxscript',), 'ONNX export', "pip install 'simmim_plugin[onnx]'"),
    'gradio': (('gradio',), 'the demo page', "pip install 'simmim_plugin[demo]'"),
}  # fmt: skip
NEEDED = ('mmengine', 'mmcv', 'mmpretrain')


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def parts() -> list[tuple[str, str, str, str]]:
    """(module, what is installed or why it cannot be used, what for, the command that fixes it or '') of each part."""
    lines = []
    originals = installed(('mmengine', 'mmcv-lite', 'mmcv', 'mmpretrain'))
    for module, (names, purpose, command) in PARTS.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 (whatever a package raises while it is imported is told)
            reason = 'not installed' if isinstance(error, ModuleNotFoundError) and not installed(names) else str(error)
            lines.append(
                (
                    module,
                    reason.splitlines()[0] if reason else type(error).__name__,
                    purpose,
                    ORIGINALS if originals and command == MM else command,
                )
            )
            continue
        told = ', '.join(f'{name} {number}' for name, number in installed(names).items()) or 'there'
        lines.append((module, told, purpose, ''))
    return lines


def conflicts() -> list[tuple[str, str]]:
    """(what does not go together, the command that fixes it) of the known ones."""
    import torch

    found = []
    for module, (names, _, _) in PARTS.items():
        both = installed(names)
        if len(both) > 1:
            keep = next(name for name in names if name in both)
            drop = [name for name in both if name != keep]
            found.append((
                f'{" and ".join(both)} both bring {module} and overwrite each other',
                f'pip uninstall -y {" ".join(drop)}; pip install --force-reinstall --no-deps {keep}=={both[keep]}',
            ))  # fmt: skip
    numbers = installed(('transformers', 'onedl-mmpretrain', 'mmpretrain', 'torch', 'torchvision'))
    pretrain = next((name for name in ('onedl-mmpretrain', 'mmpretrain') if name in numbers), None)
    if pretrain and 'transformers' in numbers:
        try:
            importlib.import_module('mmpretrain.models')
        except Exception as error:  # noqa: BLE001 (it is a TypeError today)
            mend = "pip install 'transformers<5'" if pretrain.startswith('onedl') else 'pip uninstall -y transformers'
            told = f'{pretrain} {numbers[pretrain]} cannot be imported beside transformers {numbers["transformers"]}'
            found.append((f'{told} ({error})', mend))
    if 'torchvision' not in numbers:
        found.append(('torchvision is missing', 'pip install torchvision'))
    else:
        try:
            importlib.import_module('torchvision')
        except RuntimeError as error:
            found.append((
                f'torchvision {numbers["torchvision"]} is of another PyTorch than {torch.__version__} ({error})',
                f'pip install --force-reinstall torch==={torch.__version__.split("+")[0]} torchvision',
            ))  # fmt: skip
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> None:
    """Print it; exit code 1 if something that is needed is missing or does not go together."""
    import torch

    from simmim_plugin.utils.hardware import default_workers, hardware, has_bfloat16

    gpus = torch.cuda.device_count()
    print(f'simmim_plugin {__version__}, Python {platform.python_version()}, {hardware()}')
    print(f'GPUs: {", ".join(torch.cuda.get_device_name(i) for i in range(gpus)) if gpus else "none"}')
    print(
        f'bfloat16 on the processor: {"yes" if has_bfloat16() else "no"}; workers of a data loader: {default_workers()}'
    )
    print(f'C++ compiler (for --compile on processors): {shutil.which("c++") or "none; install g++"}')
    lines, wrong = parts(), conflicts()
    width = max(len(module) for module, *_ in lines)
    for module, told, purpose, command in lines:
        print(f'  {module:{width}}  {told}  ({purpose})' + (f'\n  {"":{width}}  mend: {command}' if command else ''))
    for what, command in wrong:
        print(f'conflict: {what}\n  mend: {command}')
    if not wrong and not any(command for *_, command in lines):
        print('Nothing is missing. (MMPretrain prints "Could not import OneDL" for a package that is of no use here.)')
    sys.exit(1 if wrong or any(command and module in NEEDED for module, _, _, command in lines) else 0)
