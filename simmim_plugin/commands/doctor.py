"""Print installed versions, the hardware, and the command that fixes each problem."""

import argparse
import importlib
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from simmim_plugin import __version__

EXAMPLE = 'example: {program}'
MM = "pip install 'simmim_plugin[mm]'"
ORIGINALS = "pip install 'simmim_plugin[openmmlab]'"  # where these are installed: the forks would overwrite them
# Module -> distributions that may provide it, its purpose, and the command that installs it.
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
    """Versions of the distributions that are installed, by name."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def parts() -> list[tuple[str, str, str, str]]:
    """For each part: module, version or reason why it cannot be used, purpose, and the fixing command or ''."""
    lines = []
    originals = installed(('mmengine', 'mmcv-lite', 'mmcv', 'mmpretrain'))
    for module, (names, purpose, command) in PARTS.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 (any error that importing a package raises is reported)
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
        versions = ', '.join(f'{name} {number}' for name, number in installed(names).items()) or 'installed'
        lines.append((module, versions, purpose, ''))
    return lines


def conflicts() -> list[tuple[str, str]]:
    """Known conflicts between installed packages: description and the command that fixes it."""
    import torch

    found = []
    for module, (names, _, _) in PARTS.items():
        both = installed(names)
        if len(both) > 1:
            keep = next(name for name in names if name in both)
            drop = [name for name in both if name != keep]
            found.append((
                f'{" and ".join(both)} both provide {module} and overwrite each other',
                f'pip uninstall -y {" ".join(drop)}; pip install --force-reinstall --no-deps {keep}=={both[keep]}',
            ))  # fmt: skip
    numbers = installed(('transformers', 'onedl-mmpretrain', 'mmpretrain', 'torch', 'torchvision'))
    pretrain = next((name for name in ('onedl-mmpretrain', 'mmpretrain') if name in numbers), None)
    if pretrain and 'transformers' in numbers:
        try:
            importlib.import_module('mmpretrain.models')
        except Exception as error:  # noqa: BLE001 (it is a TypeError today)
            fix = "pip install 'transformers<5'" if pretrain.startswith('onedl') else 'pip uninstall -y transformers'
            what = f'{pretrain} {numbers[pretrain]} cannot be imported with transformers {numbers["transformers"]}'
            found.append((f'{what} ({error})', fix))
    if 'torchvision' not in numbers:
        found.append(('torchvision is missing', 'pip install torchvision'))
    else:
        try:
            importlib.import_module('torchvision')
        except RuntimeError as error:
            found.append((
                f'torchvision {numbers["torchvision"]} is not built for PyTorch {torch.__version__} ({error})',
                f'pip install --force-reinstall torch==={torch.__version__.split("+")[0]} torchvision',
            ))  # fmt: skip
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def run(args: argparse.Namespace) -> None:
    """Print the report; exit code 1 if a required package is missing or packages conflict."""
    import torch

    from simmim_plugin.utils.hardware import default_workers, hardware, has_bfloat16

    gpus = torch.cuda.device_count()
    print(f'simmim_plugin {__version__}, Python {platform.python_version()}, {hardware()}')
    print(f'GPUs: {", ".join(torch.cuda.get_device_name(i) for i in range(gpus)) if gpus else "none"}')
    print(f'bfloat16 on the CPU: {"yes" if has_bfloat16() else "no"}; data loader workers: {default_workers()}')
    print(f'C++ compiler (for --compile on CPUs): {shutil.which("c++") or "none; install g++"}')
    lines, wrong = parts(), conflicts()
    width = max(len(module) for module, *_ in lines)
    for module, status, purpose, command in lines:
        print(f'  {module:{width}}  {status}  ({purpose})' + (f'\n  {"":{width}}  fix: {command}' if command else ''))
    for what, command in wrong:
        print(f'conflict: {what}\n  fix: {command}')
    if not wrong and not any(command for *_, command in lines):
        print('Nothing is missing. (MMPretrain prints "Could not import OneDL" for a package that is not needed here.)')
    sys.exit(1 if wrong or any(command and module in NEEDED for module, _, _, command in lines) else 0)
