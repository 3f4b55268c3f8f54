"""Table and plot of a comparison with training from scratch, see transfer.py."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from simmim_plugin.utils.files import write_json
from simmim_plugin.utils.hardware import hardware


def table(results: Mapping[str, Any]) -> str:
    """Markdown: fine-tuning by row and share of labels, then probes by block; mean and range over the seeds.

    Runs of one seed share images, their order and the choice of few labels, so what pretraining adds is also told seed
    by seed: against the row from scratch that is better on the same validation images.
    """
    lines = [
        '| start | labels | learning rate | top-1, % | balanced accuracy, % | minutes |',
        '|---|---|---|---|---|---|',
    ]
    by_row = results['runs']
    for share in next(iter(by_row.values())):
        kinds = ['val', 'rest'] if 'rest' in by_row['pretrained'][share][0] else ['val']
        for kind in kinds:
            judged = {row: [run['rest'] if kind == 'rest' else run for run in by_row[row][share]] for row in by_row}
            labels = f'{100 * float(share):g} %' + (', judged on the other training images' if kind == 'rest' else '')
            for row, runs in by_row.items():
                cells = [mean_and_range([run[metric] for run in judged[row]]) for metric in METRICS]
                minutes = sum(run['seconds'] for run in runs[share]) / len(runs[share]) / 60
                lines.append(f'| {row} | {labels} | {runs[share][0]["rate"]:g} | {" | ".join(cells)} | {minutes:.1f} |')
            best = max((r for r in by_row if r != 'pretrained'), key=lambda r: sum(run['top1'] for run in judged[r]))
            pairs = list(zip(judged['pretrained'], judged[best]))
            cells = [mean_and_range([a[metric] - b[metric] for a, b in pairs], '+') for metric in METRICS]
            lines.append(f'| pretrained minus {best}, by seed | {labels} |  | {" | ".join(cells)} |  |')
    probes = results['probes']
    names = [n for n in next(iter(probes.values()))[0] if n != 'seed' and not n.endswith('_balanced')]
    lines += ['', '| frozen features | ' + ' | '.join(f'{row}: top-1, % | balanced, %' for row in probes) + ' |']
    lines.append('|---|' + '---|---|' * len(probes))
    for name in sorted(names, key=lambda n: n.rsplit('_', 1)[-1]):  # blocks stay in their order: 2 before 10
        cells = [
            mean_and_range([run[n] for run in runs]) for runs in probes.values() for n in (name, f'{name}_balanced')
        ]
        lines.append(f'| {name.replace("_pooled_", ", ")} | {" | ".join(cells)} |')
    return '\n'.join([*lines, '', *_trials(results['rates'])])


def _trials(by_row: Mapping[str, Mapping[float, Mapping[float, float]]]) -> list[str]:
    """How the learning rates were chosen; a choice at an end of the grid is told, since a better one may lie beyond."""
    grid = sorted({rate for shares in by_row.values() for found in shares.values() for rate in found}, key=float)
    lines = [f'| trials, top-1 in % | labels | {" | ".join(f"{float(rate):g}" for rate in grid)} |']
    lines.append('|---' * (2 + len(grid)) + '|')
    ends = []
    for row, shares in by_row.items():
        for share, found in shares.items():
            labels = f'{100 * float(share):g} %'  # read from JSON it is text
            lines.append(f'| {row} | {labels} | {" | ".join(f"{found[rate]:.1f}" for rate in grid)} |')
            if len(grid) > 1 and max(found, key=found.__getitem__) in (grid[0], grid[-1]):
                ends.append(f'{row} with {labels}')
    return [*lines, '', f'At an end of the rates tried: {", ".join(ends)}. Add rates there.'] if ends else lines


def plot(results: Mapping[str, Any], out: Path) -> None:
    """Draw every run as a point and each row's mean as a line: top-1 and balanced accuracy by share of labels."""
    shares = list(next(iter(results['runs'].values())))
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(shares) * len(results['runs'])), layout='constrained')
    panels = figure.subplots(1, len(METRICS), sharey=True)
    places = [(share, row) for share in shares for row in results['runs']]
    for panel, metric, label in zip(panels, METRICS, ('top-1 on val, %', 'balanced accuracy on val, %')):
        for i, (share, row) in enumerate(places):
            values = [run[metric] for run in results['runs'][row][share]]
            colour = f'C{list(results["runs"]).index(row)}'
            panel.plot(values, [i] * len(values), 'o', color=colour, alpha=0.6)
            panel.plot([sum(values) / len(values)] * 2, [i - 0.25, i + 0.25], color='black')
        panel.set_xlabel(label)
        panel.grid(axis='x', alpha=0.3)
    panels[0].set_yticks(range(len(places)), [f'{row}, {100 * float(share):g} % of labels' for share, row in places])
    panels[0].invert_yaxis()
    figure.savefig(out, dpi=120)


def mean_and_range(values: Sequence[float], sign: str = '') -> str:
    """Cell of a table: mean (lowest to highest), with `sign` '+' also where positive; empty without values."""
    if not values:
        return ''
    mean, lowest, highest = (f'{x:{sign}.1f}' for x in (sum(values) / len(values), min(values), max(values)))
    return f'{mean} ({lowest} to {highest})'


def write_report(out: Path, results: Mapping[str, Any], table: str, plot: Callable[[Path], None]) -> None:
    """Write `results.json`, `table.md` with command, hardware and date, and `plot.png`, and print the table."""
    text = (
        f'{table}\n\n'
        'Mean and range (lowest to highest) over the seeds, on the validation images at the end of the training.\n\n'
        f'    {shlex.join(["python", *sys.argv])}\n\n'
        f'{hardware()}, {date.today()}.\n'
    )
    write_json(out / 'results.json', results)
    (out / 'table.md').write_text(text, encoding='utf-8')
    plot(out / 'plot.png')
    print(f'{text}\ntable: {out / "table.md"}\nplot:  {out / "plot.png"}')


METRICS = {'top1': 'accuracy/top1', 'balanced': 'accuracy/balanced'}
