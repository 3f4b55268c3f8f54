"""Measure time and memory of a training step of the backbone by image size, attention and recomputing."""

import argparse
import itertools
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GLOBAL_BLOCKS = {'small': (2, 5, 8, 11), 'base': (2, 5, 8, 11), 'large': (5, 11, 17, 23)}
MODES = {  # name -> window_size, with_cp
    'windows': (14, False),
    'windows, recomputing': (14, True),
    'global': (0, False),
    'global, recomputing': (0, True),
}
EXAMPLE = """example:
  {program} --arch base --sizes 512 800 1024 --memory-limit 20

Forward and backward pass of one image, each line in its own process. 'windows' is attention within windows of 14 x 14
tokens except for four global blocks, as in configs/detection. Memory is in addition to the weights of the model: on a
GPU the memory that PyTorch allocates, on a CPU the growth of the process."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument('--arch', choices=GLOBAL_BLOCKS, default='base', help='ViT with patches of 16 px (base)')
    parser.add_argument('--sizes', type=int, nargs='+', default=[512, 800, 1024], help='sides in px (512 800 1024)')
    parser.add_argument('--repeats', type=int, default=3, help='steps after the first one; the median is printed (3)')
    parser.add_argument('--memory-limit', type=float, default=0, metavar='GIB', help='memory limit per line (0: none)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda (cpu)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')


def run(args: argparse.Namespace) -> None:
    """Measure line by line and print a table."""
    from simmim_plugin.utils.arguments import multiple, number, whole
    from simmim_plugin.utils.hardware import hardware

    whole('--repeats', args.repeats, 1)
    for size in args.sizes:
        multiple('--sizes', size, 16, 'patches of 16 px')
    number('--memory-limit', args.memory_limit, 0, hint='0 sets none')
    if args.memory_limit and args.device != 'cpu':
        raise ValueError(f'--memory-limit={args.memory_limit:g} needs --device=cpu, got {args.device}; leave it out')
    print('| image, px | attention | seconds | memory, GiB |\n|---|---|---|---|', flush=True)
    for size, mode in itertools.product(args.sizes, MODES):
        found = in_own_process(measure, args.arch, size, mode, args.repeats, args.device, args.amp,
                               args.memory_limit)  # fmt: skip
        cells = f'more than {args.memory_limit:g} GiB |' if found is None else f'{found[0]:.2f} | {found[1]:.2f}'
        print(f'| {size} | {mode} | {cells} |', flush=True)
    kind = 'bfloat16 autocast' if args.amp else 'float32'
    print(f'\nViT-{args.arch}, one image, forward and backward, {kind}. {hardware()}.')


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process, so that its memory can be measured.

    Raises:
        RuntimeError: The process died.
    """
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f'the process of {args} died (exit code {process.exitcode}); see --memory-limit') from None
    process.join()
    if isinstance(result, Exception):
        raise result
    return result


def _send(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send(function(*args))
    except Exception as error:  # noqa: BLE001 (the waiting process raises it again)
        pipe.send(error)


def measure(
    arch: str, size: int, mode: str, repeats: int, device: str, amp: bool, limit: float
) -> tuple[float, float] | None:
    """Median seconds of a step, and GiB; None if it needs more than the limit."""
    import torch

    from simmim_plugin import SimMIMViT

    window, with_cp = MODES[mode]
    torch.manual_seed(0)
    model = SimMIMViT(
        arch=arch, img_size=224, use_shared_rel_pos_bias=False, use_rel_pos_bias=True, window_size=window,
        global_blocks=GLOBAL_BLOCKS[arch] if window else (), with_cp=with_cp, out_type='featmap',
    ).train().to(device)  # fmt: skip
    image = torch.randn(1, 3, size, size, device=device)
    on_gpu = device.startswith('cuda')
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else _peak_memory()
    if limit:
        total = _status('VmData') + int(limit * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (total, total))
    times = []
    try:
        for _ in range(1 + repeats):
            start = time.perf_counter()
            with torch.autocast(device.split(':', maxsplit=1)[0], torch.bfloat16, enabled=amp):
                loss = model(image)[-1].float().square().mean()
            loss.backward()
            model.zero_grad(set_to_none=True)
            if on_gpu:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    except (RuntimeError, MemoryError) as error:
        if limit and any(word in str(error) for word in ('memory', 'bad_alloc', 'could not create')):
            return None
        raise
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _peak_memory()
    return sorted(times[1:])[repeats // 2], (peak - before) / 2**30


def _peak_memory() -> int:
    return _status('VmHWM')  # not ru_maxrss, which a process inherits from the one that started it


def _status(name: str) -> int:
    """Bytes that Linux gives for this process."""
    (line,) = [x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith(f'{name}:')]
    return int(line.split()[1]) * 1024
