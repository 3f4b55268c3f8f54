"""Table and plot of a comparison: mean and range over the seeds of each row."""

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from simmim_plugin.utils.files import write_json
from simmim_plugin.utils.hardware import hardware

Runs = Sequence[Mapping[str, Any]]  # one per seed, with the metrics by name


class Row(NamedTuple):
    """A table row: its first cells and its runs; with `minus`, the gain over those runs, seed by seed."""

    labels: Sequence[str]
    runs: Runs
    minus: Runs = ()


def table(head: Sequence[str], rows: Iterable[Row], metrics: Mapping[str, str], seconds: Mapping[str, str]) -> str:
    """Format a Markdown table with one line per row.

    Args:
        head: Titles of the label columns.
        rows: The rows. Metrics that a run lacks are left out; a cell without values is empty.
        metrics: Name in the runs -> title of the column with mean and range over the seeds.
        seconds: Name in the runs -> title of the column with the mean in minutes.
    """
    lines = []
    for labels, runs, minus in rows:
        shown = runs
        if minus:
            shown = [{m: a[m] - b[m] for m in metrics if m in a and m in b} for a, b in zip(runs, minus)]
        cells = [mean_and_range([run[m] for run in shown if m in run], '+' if minus else '') for m in metrics]
        times = ([run[key] / 60 for run in shown if key in run] for key in seconds)
        lines.append([*labels, *cells, *(f'{sum(t) / len(t):.1f}' if t else '' for t in times)])
    return markdown([*head, *metrics.values(), *seconds.values()], lines)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    return '\n'.join([f'| {" | ".join(head)} |', '|---' * len(head) + '|', *(f'| {" | ".join(x)} |' for x in lines)])


def mean_and_range(values: Sequence[float], sign: str = '') -> str:
    """Format a cell as mean (lowest to highest); `sign` '+' also marks positive values; empty without values."""
    if not values:
        return ''
    mean, lowest, highest = (f'{x:{sign}.1f}' for x in (sum(values) / len(values), min(values), max(values)))
    return f'{mean} ({lowest} to {highest})'


def plot(
    rows: Mapping[str, Runs], metrics: Mapping[str, str], size: tuple[float, float], out: Path, colors: int = 1
) -> None:
    """Plot each run as a point and the mean of each row as a line, one panel per metric.

    Args:
        rows: Label -> runs.
        metrics: Name in the runs -> label of the axis.
        size: Size of the figure in inches.
        out: The picture to write.
        colors: Number of colors that the rows cycle through.
    """
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(1, len(metrics), sharey=True)
    for panel, (metric, label) in zip(panels, metrics.items()):
        for i, runs in enumerate(rows.values()):
            if values := [run[metric] for run in runs if metric in run]:
                panel.plot(values, [i] * len(values), 'o', color=f'C{i % colors}', alpha=0.6)
                panel.plot([sum(values) / len(values)] * 2, [i - 0.25, i + 0.25], color='black')
        panel.set_xlabel(label)
        panel.grid(axis='x', alpha=0.3)
    panels[0].set_yticks(range(len(rows)), list(rows))
    panels[0].invert_yaxis()
    figure.savefig(out, dpi=120)


def write_report(
    out: Path, results: Mapping[str, Any], table: Callable[[Any], str], plot: Callable[[Any, Path], None]
) -> None:
    """Write `results.json`, `table.md` with command, hardware and date, and `plot.png`, and print the table."""
    text = (
        f'{table(results)}\n\n'
        'Mean and range (lowest to highest) over the seeds, on the validation images at the end of the training.\n\n'
        f'    {shlex.join(["python", *sys.argv])}\n\n'
        f'{hardware()}, {date.today()}.\n'
    )
    write_json(out / 'results.json', results)
    (out / 'table.md').write_text(text, encoding='utf-8')
    plot(results, out / 'plot.png')
    print(f'{text}\ntable: {out / "table.md"}\nplot:  {out / "plot.png"}')
