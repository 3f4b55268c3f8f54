"""The tables in docs/results.md are computed from the results in docs/data."""

import json

import pytest

from helpers.paths import ROOT
from simmim_plugin.experiments import ablation, dense_transfer, report, transfer_tables


@pytest.mark.parametrize(
    ('module', 'name', 'count'),
    [(ablation, 'ablation_masks', 7), (transfer_tables, 'transfer', 14), (dense_transfer, 'transfer_dense', 8)],
)
def test_the_first_table_is_that_of_the_docs(module, name, count):
    results = json.loads((ROOT / 'docs/data' / f'{name}.json').read_text())
    lines = module.table(results).splitlines()[:count]
    assert '\n'.join(lines) in (ROOT / 'docs/results.md').read_text()
    assert len(lines) == count and all(line.startswith('|') for line in lines)


def test_probes_and_trials_are_those_of_the_docs():
    results = json.loads((ROOT / 'docs/data/transfer.json').read_text())
    _, probes, trials = transfer_tables.table(results).split('\n\n')
    docs = (ROOT / 'docs/results.md').read_text()
    assert f'\n{probes}\n' in docs and len(probes.splitlines()) == 2 + 6 * 2
    rows = trials.splitlines()[2:]
    assert len(rows) == 6 and all(f'\n{row}\n' in docs for row in rows)


def test_missing_metrics_are_left_out():
    rows = [
        report.Row(['a'], [dict(x=1.0), dict(x=2.0, seconds=90)]),
        report.Row(['b'], [dict(x=1.0), dict()], [dict(x=0.5), dict(x=3.0)]),
        report.Row(['c'], [dict()]),
    ]
    lines = report.table(['row'], rows, {'x': 'X'}, {'seconds': 'min'}).splitlines()
    assert lines[0] == '| row | X | min |'
    assert lines[2:] == ['| a | 1.5 (1.0 to 2.0) | 1.5 |', '| b | +0.5 (+0.5 to +0.5) |  |', '| c |  |  |']
