"""Scalars of runs that were killed, and of runs whose folders are named by a clock that was wrong."""

import json

import pytest
from PIL import Image

from simmim_plugin.experiments.runs import last_scalar
from simmim_plugin.visualization.curves import draw_curves, read_scalars

# What MMEngine's visualiser writes: a training line per interval, a validation line per epoch.
FIRST = [
    dict(loss=1.0, iter=1, epoch=1, step=1),
    dict(loss=0.8, iter=2, epoch=1, step=2),
    {'accuracy/top1': 10.0, 'step': 1},
]
SECOND = [
    dict(loss=0.7, iter=3, epoch=2, step=3),
    dict(loss=0.5, iter=4, epoch=2, step=4),
    {'accuracy/top1': 30.0, 'step': 2},
]


def write(work_dir, name, lines, end='\n'):
    file = work_dir / name / 'vis_data/scalars.json'
    file.parent.mkdir(parents=True)
    file.write_bytes(
        ('\n'.join(json.dumps(line) for line in lines)).encode() + (end if isinstance(end, bytes) else end.encode())
    )


@pytest.mark.parametrize('names', [('20260101_000000', '20260102_000000'), ('20990101_000000', '20260102_000000')])
def test_a_clock_that_was_ahead_does_not_matter(names, tmp_path):
    write(tmp_path, names[0], FIRST)
    write(tmp_path, names[1], SECOND)
    assert last_scalar(tmp_path, 'accuracy/top1') == 30.0
    assert last_scalar(tmp_path, 'loss') == 0.5
    assert [line['loss'] for line in read_scalars(tmp_path) if 'loss' in line] == [1.0, 0.8, 0.7, 0.5]


@pytest.mark.parametrize('cut', ['\n{"loss": 0.3, "it', '\n{', '\n17', '\n\x00\x00\x00\x00', b'\n{"name": "\xc3'])
def test_a_cut_line_is_left_out(cut, tmp_path):
    """A process was killed, or the disk was full, while it wrote the line; another run goes on in a file of its own."""
    write(tmp_path, 'a', FIRST, cut)
    write(tmp_path, 'b', SECOND)
    assert len(read_scalars(tmp_path)) == 6
    assert last_scalar(tmp_path, 'loss') == 0.5
    draw_curves([tmp_path], tmp_path / 'curves.png')
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.size == (880, 495)


def test_a_line_that_was_written_after_a_cut_one_counts(tmp_path):
    write(tmp_path, 'a', FIRST, '\n{"loss": 0.3, "it\n' + json.dumps(SECOND[0]) + '\n')
    assert [line['loss'] for line in read_scalars(tmp_path) if 'loss' in line] == [1.0, 0.8, 0.7]
