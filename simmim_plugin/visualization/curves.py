"""Plot loss curves of training runs from the scalars that MMEngine's visualizer logged."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use('Agg')


def read_scalars(work_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the scalars logged by all runs in a work dir, in the order of their iterations.

    The names of the runs' folders are times, of a clock that may have been wrong. A line that a killed process left
    unfinished is left out.

    Raises:
        FileNotFoundError: Nothing was logged there.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(
            f'{os.fspath(work_dir)!r} holds no */vis_data/scalars.json; give the work dir of a training'
        )
    lines = [line for file in files for text in file.read_bytes().split(b'\n') if (line := _whole_line(text))]
    return sorted(lines, key=lambda line: line.get('iter', line.get('step', 0)))  # equal ones in the order of the runs


def _whole_line(text: bytes) -> dict[str, Any]:
    """Scalars of a line; {} for an unfinished one."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def draw_curves(work_dirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Plot the training loss over epochs, the held-out loss, and that of the fixed images with its visible mean.

    Args:
        work_dirs: Work dirs of trainings, one colour each.
        out: Image file to write.
    """
    figure, axis = plt.subplots(figsize=(8, 4.5), layout='constrained')
    for i, work_dir in enumerate(work_dirs):
        lines, name, color = read_scalars(work_dir), Path(work_dir).name, f'C{i}'
        training = [line for line in lines if 'loss' in line]
        # A resumed run logs some iterations again: keep the last entry of each.
        by_iteration = {line['iter']: line for line in training}
        iterations = sorted(by_iteration)
        # The quotient is largest at the end of an epoch; iteration-based runs have no epochs.
        per_epoch = max((line['iter'] / line['epoch'] for line in training if line.get('epoch')), default=1)
        axis.plot(
            [it / per_epoch for it in iterations],
            [by_iteration[it]['loss'] for it in iterations],
            color, alpha=0.6, label=f'{name}: training',
        )  # fmt: skip
        held_out = {line['step']: line['held_out/loss'] for line in lines if 'held_out/loss' in line}
        if held_out:
            axis.plot(*zip(*sorted(held_out.items())), f'{color}s:', label=f'{name}: held out')
        fixed = {line['step']: line for line in lines if 'fixed/loss' in line}
        steps = sorted(fixed)
        axis.plot(steps, [fixed[s]['fixed/loss'] for s in steps], f'{color}o-', label=f'{name}: fixed images')
        if steps:
            mean = fixed[steps[-1]]['fixed/loss_visible_mean']
            axis.axhline(mean, color=color, ls='--', label=f'{name}: their visible mean')
    axis.set(xlabel='epoch (iteration, for runs without epochs)', ylabel='reconstruction loss (normalised units)')
    axis.grid(alpha=0.3)
    axis.legend()
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)
