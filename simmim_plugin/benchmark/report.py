"""Tables and a plot of the results of the benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PLAIN = 'plain eager'


def tables(results: Mapping[str, Any]) -> str:
    """Markdown tables of every measured part."""
    writers = {
        'step': _step, 'attention': _attention, 'patch-embedding': _patch_embedding, 'input': _input,
        'runner': _runner, 'end-to-end': _end_to_end,
    }  # fmt: skip
    return '\n\n'.join(writers[part](found) for part, found in results['parts'].items())


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f'| {" | ".join(header)} |', '|---' * len(header) + '|']
    return '\n'.join([*lines, *(f'| {" | ".join(str(cell) for cell in row)} |' for row in rows)])


def _time(row: Mapping[str, float], unit: str = 'ms', factor: float = 1.0, digits: int = 1) -> str:
    values = [f'{factor * row[name]:.{digits}f}' for name in (unit, f'{unit}_min', f'{unit}_max')]
    return f'{values[0]} ({values[1]} to {values[2]})'


def _plain_times(found: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the plain version by dtype."""
    return {row['dtype']: row['seconds'] for row in found['rows'] if row['name'] == PLAIN}


def _step(found: Mapping[str, Any]) -> str:
    settings, plain = found['settings'], _plain_times(found)
    header = [
        'step', 'dtype', 'ms, median (range)', 'images/s', 'times plain', 'times plain float32', 'GFLOP/image',
        'of matmul rate', 'operators', 'graphs, breaks', 'saved, MB/image', 'peak, GB',
    ]  # fmt: skip
    rows = []
    for row in found['rows']:
        ratios = [
            f'{plain[dtype] / row["seconds"]:.2f}' if dtype in plain else '' for dtype in (row['dtype'], 'float32')
        ]
        rows.append([
            row['name'], row['dtype'], _time(row, 'seconds', 1000), f'{row["images_per_second"]:.1f}', *ratios,
            f'{row["flops_per_image"] / 1e9:.1f}', f'{100 * row["share_of_matmul"]:.0f} %', row['operators'] or '',
            '' if row['graphs'] is None else f'{row["graphs"]}, {row["breaks"]}',
            f'{row["saved_bytes"] / settings["batch"] / 1e6:.1f}',
            '' if row['peak_bytes'] is None else f'{row["peak_bytes"] / 1e9:.1f}',
        ])  # fmt: skip
    rates = ', '.join(f'{dtype} {rate / 1e9:,.0f} GFLOP/s' for dtype, rate in found['matmul_flops'].items())
    lines = [
        f'ViT-{settings["arch"]}, {settings["img_size"]} px, batch {settings["batch"]}, {settings["device"]}; '
        f'large matrix products: {rates}.',
        '',
        _table(header, rows),
    ]
    return '\n'.join(lines + _skipped(found))


def _attention(found: Mapping[str, Any]) -> str:
    rows = [[row['kernel'], row['dtype'], _time(row, digits=2)] for row in found['rows']]
    return _table(['attention, forward and backward', 'dtype', 'ms, median (range)'], rows)


def _patch_embedding(found: Mapping[str, Any]) -> str:
    rows = [[row['way'], row['dtype'], _time(row)] for row in found['rows']]
    return _table(['patch embedding, forward and backward', 'dtype', 'ms, median (range)'], rows)


def _input(found: Mapping[str, Any]) -> str:
    rows = [
        [f'{row["size"][0]} x {row["size"][1]}', row['pipeline'], _time(row, digits=2),
         f'{row["faster_than_reference"]:.2f}']
        for row in found['per_image']
    ]  # fmt: skip
    images = _table(['JPEG', 'pipeline', 'ms per image on one core, median (range)', 'times torchvision'], rows)
    batches = [[row['what'], _time(row)] for row in found['per_batch']]
    return '\n'.join([images, '', _table(['batch', 'ms, median (range)'], batches), *_skipped(found)])


def _runner(found: Mapping[str, Any]) -> str:
    rows = [[row['name'], _time(row, digits=2)] for row in found['rows']]
    return _table(['iteration', 'ms, median of the turns (range)'], rows)


def _end_to_end(found: Mapping[str, Any]) -> str:
    header = ['batch', 'workers', 'run, ms, median (range)', 'step alone', 'run, images/s', 'share of the step (range)']
    shares = [f'{100 * found[f"share_of_step{end}"]:.0f} %' for end in ('', '_min', '_max')]
    row = [
        found['batch'], found['workers'], *(_time(found[name], 'seconds', 1000) for name in ('run', 'step')),
        f'{found["batch"] / found["run"]["seconds"]:.1f}', f'{shares[0]} ({shares[1]} to {shares[2]})',
    ]  # fmt: skip
    return _table(header, [row])


def _skipped(found: Mapping[str, Any]) -> list[str]:
    return [f'\nSkipped: {name} ({why}).' for name, why in found['skipped'].items()]


def plot(found: Mapping[str, Any], title: str, out: str | Path) -> None:
    """Draw images per second of each step, with the range of the repeats."""
    rows = found['rows']
    figure = Figure(figsize=(9, 1.5 + 0.32 * len(rows)), layout='constrained')
    axis = figure.subplots()
    batch, dtypes = found['settings']['batch'], list(found['matmul_flops'])
    for i, row in enumerate(rows):
        rate, low, high = (batch / row[key] for key in ('seconds', 'seconds_max', 'seconds_min'))
        colour = f'C{dtypes.index(row["dtype"])}'
        axis.barh(i, rate, color=colour, alpha=1 if row['name'].startswith('ours') else 0.45)
        axis.plot([low, high], [i, i], color='black', linewidth=1.2)
    axis.set_yticks(range(len(rows)), [f'{row["name"]}, {row["dtype"]}' for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel('images per second, training step; lines: range of the repeats')
    axis.set_title(title, fontsize=9)
    axis.grid(axis='x', alpha=0.3)
    figure.savefig(out, dpi=110)
