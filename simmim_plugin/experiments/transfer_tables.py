"""Rows, tables and plot of the comparison of pretraining with training from scratch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_plugin.experiments import report

ROWS = ('scratch', 'scratch, layer decay', 'pretrained')
PROBED = ('scratch', 'pretrained')  # both kinds of scratch have the same features
ALONE, TRANSFERRED, CONTINUED = 'SimMIM on the target alone', 'transferred', 'transferred and continued'
WITH_INIT = ('scratch', ALONE, TRANSFERRED, CONTINUED)
PROBE_ENDS = {'top1': '', 'balanced': '_balanced'}  # name in the results -> end of the name in those of a probe


def table(results: Mapping[str, Any]) -> str:
    """Markdown tables of the results of `compare`: fine-tuning by row and share of labels, probes by block, and trials.

    Runs of one seed share images, their order and the choice of few labels, so the gain of pretraining is also given
    seed by seed, over the row from scratch that is better on the same validation images; that of `init` over scratch,
    and that of continuing over the weights as they are.
    """
    by_row, rows = results['runs'], []
    for share in next(iter(by_row.values())):
        evaluated = {_percent(share): {row: found[share] for row, found in by_row.items()}}
        if 'rest' in by_row['scratch'][share][0]:
            evaluated[f'{_percent(share)}, evaluated on the other training images'] = {
                row: [{**run, **run['rest']} for run in found[share]] for row, found in by_row.items()
            }
        for labels, found in evaluated.items():
            rows += [report.Row((row, labels, f'{tests[0]["rate"]:g}'), tests) for row, tests in found.items()]
            for row, other in _compared(found):
                rows.append(report.Row((f'{row} minus {other}, by seed', labels, ''), found[row], found[other]))
    metrics = {'top1': 'top-1, %', 'balanced': 'balanced accuracy, %'}
    finetuning = report.table(('start', 'labels', 'learning rate'), rows, metrics, {'seconds': 'minutes'})
    return '\n'.join([finetuning, '', _probe_table(results['probes']), '', _trial_table(results['rates'])])


def _compared(found: Mapping[str, report.Runs]) -> list[tuple[str, str]]:
    """Pairs of rows whose difference is a gain."""
    if CONTINUED in found:
        return [*((row, 'scratch') for row in WITH_INIT[1:]), (CONTINUED, TRANSFERRED)]
    top1 = {row: sum(run['top1'] for run in tests) for row, tests in found.items() if row != 'pretrained'}
    return [('pretrained', max(top1, key=top1.__getitem__))]


def _percent(share: float | str) -> str:
    return f'{100 * float(share):g} %'  # JSON turns the keys into text


def _probe_table(by_row: Mapping[str, report.Runs]) -> str:
    names = [n for n in next(iter(by_row.values()))[0] if n != 'seed' and not n.endswith('_balanced')]
    lines = []
    for name in sorted(names, key=lambda n: n.rsplit('_', 1)[-1]):  # stable: block 2 stays before 10
        keys = [(found, f'{name}{end}') for found in by_row.values() for end in PROBE_ENDS.values()]
        lines.append([name.replace('_pooled_', ', '), *(report.mean_and_range([r[k] for r in f]) for f, k in keys)])
    head = [title for row in by_row for title in (f'{row}: top-1, %', 'balanced, %')]
    return report.markdown(['frozen features', *head], lines)


def _trial_table(by_row: Mapping[str, Mapping[Any, Mapping[Any, float]]]) -> str:
    """Table of the trials; names choices at an end of the grid, where a better rate may lie beyond."""
    grid = sorted({rate for shares in by_row.values() for found in shares.values() for rate in found}, key=float)
    trials = [(row, _percent(share), found) for row, shares in by_row.items() for share, found in shares.items()]
    lines = [[row, labels, *(f'{found[rate]:.1f}' for rate in grid)] for row, labels, found in trials]
    text = report.markdown(['trials, top-1 in %', 'labels', *(f'{float(rate):g}' for rate in grid)], lines)
    edges = (grid[0], grid[-1]) if len(grid) > 1 else ()
    ends = [f'{row} with {labels}' for row, labels, found in trials if max(found, key=found.__getitem__) in edges]
    return f'{text}\n\nAt an end of the rates tried: {", ".join(ends)}. Add rates there.' if ends else text


def plot(results: Mapping[str, Any], out: Path) -> None:
    """Plot top-1 and balanced accuracy by share of labels, one color per row, see `report.plot`."""
    by_row = results['runs']
    shares = next(iter(by_row.values()))
    places = {f'{row}, {_percent(share)} of labels': by_row[row][share] for share in shares for row in by_row}
    metrics = {'top1': 'top-1 on val, %', 'balanced': 'balanced accuracy on val, %'}
    report.plot(places, metrics, (9, 1.6 + 0.5 * len(places)), out, colors=len(by_row))
