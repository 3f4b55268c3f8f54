"""Measure the speed of pretraining next to other packages' models and pipelines, interleaved in one run."""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from simmim_plugin.utils.arguments import multiple, whole
from simmim_plugin.utils.errors import keep_traceback_in
from simmim_plugin.utils.files import check_writable

PARTS = ('step', 'attention', 'patch-embedding', 'input', 'runner', 'end-to-end')
PACKAGES = (
    'torch', 'torchvision', 'timm', 'transformers', 'onedl-mmengine', 'mmengine', 'onedl-mmpretrain', 'mmpretrain',
    'numpy', 'simplejpeg', 'opencv-python-headless', 'pillow',
)  # fmt: skip
EXAMPLE = """examples:
  {program} step --arch small --batch 8                          (two CPU cores: about 6 minutes)
  {program} step attention --arch base --batch 256 --device cuda --steps 10
  {program} input runner end-to-end

Writes results.json, table.md and step.png to OUT. Run nothing else at the same time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('parts', nargs='+', choices=PARTS, metavar='PART', help=f'one or more of {", ".join(PARTS)}')
    parser.add_argument('--arch', choices=('small', 'base', 'large', 'huge'), default='small', help='ViT (small)')
    parser.add_argument('--img-size', type=int, default=224, help='side in px (224)')
    parser.add_argument('--batch', type=int, default=8, help='images per step (8)')
    parser.add_argument('--dtypes', nargs='+', choices=('float32', 'bfloat16'), default=['float32', 'bfloat16'])
    parser.add_argument('--repeats', type=int, default=7, help='repeats; the median is reported (7)')
    parser.add_argument('--steps', type=int, default=1, help='steps per repeat (1)')
    parser.add_argument('--only', nargs='+', default=[], metavar='NAME', help='only models of these names (all)')
    parser.add_argument(
        '--device', choices=('cpu', 'cuda'), default='cpu', help='device of step, attention and patch-embedding (cpu)'
    )
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='CPU threads (all)')
    parser.add_argument('--config', default='configs/simmim_vit-b.py', help='config of input, runner and end-to-end')
    parser.add_argument('--input-batch', type=int, default=256, help='batch size of input (256)')
    parser.add_argument('--images', type=int, default=512, help='JPEGs of end-to-end (512)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='workers of end-to-end (one per core)')
    parser.add_argument(
        '--iterations',
        type=int,
        help='iterations of runner and end-to-end (20; end-to-end: at least eight per worker)',
    )
    parser.add_argument('--amp', action='store_true', help='bfloat16 on CPUs in end-to-end')
    parser.add_argument('--compile', action='store_true', help='compile the model in end-to-end')
    parser.add_argument('--out', default='work_dirs/benchmark', help='folder of the results (work_dirs/benchmark)')


def run(args: argparse.Namespace) -> None:
    """Run the benchmark and write tables and a plot."""
    from simmim_plugin.utils.hardware import hardware

    for name in ('batch', 'repeats', 'steps', 'threads', 'images', 'iterations', 'input_batch'):
        if (value := getattr(args, name)) is not None:
            whole(f'--{name.replace("_", "-")}', value, 1)
    whole('--workers', args.workers, 0)
    multiple('--img-size', args.img_size, 16, 'patches of 16 px')
    check_writable(args.out)
    keep_traceback_in(args.out)
    results: dict[str, Any] = dict(
        hardware=hardware(),
        threads=args.threads,
        command=' '.join(['python', *sys.argv]),
        python=platform.python_version(),
        versions=versions(),
        parts={},
    )
    measure(args, results)


def measure(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Measure the given parts one after another; each result is written before the next part starts."""
    import torch

    from simmim_plugin.benchmark import data, kernels, loop, step

    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device=cuda: PyTorch finds no GPU; use --device=cpu')
    torch.set_num_threads(args.threads)
    parts = results['parts']
    for part in args.parts:
        print(f'{part} ...', file=sys.stderr)
        if part == 'step':
            parts[part] = step.measure_step(
                step.Settings(args.arch, args.img_size, args.batch, args.dtypes, args.repeats, args.steps,
                              args.device, args.only)
            )  # fmt: skip
        elif part in ('attention', 'patch-embedding'):
            measure_kernel = dict(attention=kernels.measure_attention).get(part, kernels.measure_patch_embedding)
            parts[part] = measure_kernel(args.arch, args.img_size, args.batch, args.dtypes, args.repeats, args.device)
        elif part == 'input':
            parts[part] = data.measure_input(args.config, args.input_batch, args.repeats)
        elif part == 'runner':
            parts[part] = loop.measure_runner(args.config, args.iterations or 20, args.repeats)
        else:
            iterations = args.iterations or max(20, 4 * loop.PREFETCH * args.workers)
            parts[part] = loop.measure_end_to_end(
                args.config, args.images, args.batch, args.workers, iterations, args.repeats, args.amp, args.compile
            )
        write(results, Path(args.out))
    print((Path(args.out) / 'table.md').read_text(encoding='utf-8'))


def write(results: dict[str, Any], out: Path) -> None:
    """Write results.json, table.md and the plot."""
    from simmim_plugin.benchmark import report

    (out / 'results.json').write_text(json.dumps(results, indent=1, default=str), encoding='utf-8')
    text = f'{report.tables(results)}\n\n{results["hardware"]}, {results["threads"]} threads. `{results["command"]}`\n'
    (out / 'table.md').write_text(text, encoding='utf-8')
    if 'step' in results['parts']:
        report.plot(results['parts']['step'], results['hardware'], out / 'step.png')


def versions() -> dict[str, str]:
    """Versions of the compared packages, or 'not installed'."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = 'not installed'
    return found
