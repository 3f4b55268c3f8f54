import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from helpers.checkpoints import pretrained
from helpers.paths import ROOT
from simmim_plugin import FeatureExtractor, SimMIM, cli, extract_folder
from simmim_plugin.apis import extract_features

# The 12 images of image_folder; in batches of 3, progress is saved after 6 and 12, with PART_IMAGES = 5.
FILES = sorted(f'part{i % 2}/{i:02}.jpg' for i in range(12))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract_features, 'PART_IMAGES', 5)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    pretrained(tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


class Calls:
    """Record the batch size of each call of an extractor, and raise at a chosen call."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.broken = 0

    def fail_at(self, call: int) -> None:
        """Reset the record, and raise at this call; 0: never."""
        self.made, self.broken = [], call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    record, compute = Calls(), FeatureExtractor.__call__

    def counted(self: FeatureExtractor, images: torch.Tensor) -> dict[str, np.ndarray]:
        if len(record.made) + 1 == record.broken:
            raise RuntimeError('power cut')
        record.made.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(FeatureExtractor, '__call__', counted)
    return record


def by_hand(extractor: FeatureExtractor, folder: Path, name: str) -> np.ndarray:
    """Features of the images one by one, in the order of `FILES`."""
    return np.concatenate([extractor(extractor.load(folder / file)[None])[name] for file in FILES])


@pytest.mark.parametrize('workers', [0, 2])
def test_npz_holds_the_features_of_all_images_in_order(image_folder, checkpoint, tmp_path, workers):
    extractor = FeatureExtractor(checkpoint, size=(64, 32), blocks=(1, 3), kinds=('pooled', 'patches'))
    out = tmp_path / 'new' / 'features.npz'
    done = extract_folder(extractor, image_folder, out, batch_size=3, workers=workers)
    assert done == (12, [])
    with np.load(out) as arrays:
        assert arrays['files'].tolist() == FILES
        assert set(arrays.files) == {'files', *extractor.names}
        for name in extractor.names:
            assert arrays[name].dtype == np.float32 and arrays[name].shape == (12, *extractor.shapes[name])
            np.testing.assert_allclose(arrays[name], by_hand(extractor, image_folder, name), rtol=1e-5, atol=1e-5)
    assert zipfile.ZipFile(out).testzip() is None  # the checksums are right
    assert os.listdir(out.parent) == ['features.npz']


def test_parquet_holds_the_same_in_row_groups(image_folder, checkpoint, tmp_path):
    extractor = FeatureExtractor(checkpoint, kinds=('pooled', 'patches'))
    for dtype, tolerance in (('float32', 1e-5), ('float16', 1e-3)):
        out = tmp_path / f'{dtype}.parquet'
        extract_folder(extractor, image_folder, out, batch_size=3, workers=0, dtype=dtype)
        file = pq.ParquetFile(out)
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [5, 5, 2]
        table = file.read()
        assert table['file'].to_pylist() == FILES
        shapes = json.loads(table.schema.metadata[b'shapes'])
        assert shapes == dict(pooled=[48], patches=[4, 4, 48])
        for name, shape in shapes.items():
            kind = table.schema.field(name).type
            assert str(kind.value_type) == dict(float32='float', float16='halffloat')[dtype]
            assert kind.list_size == np.prod(shape)
            values = table[name].combine_chunks().flatten().to_numpy().reshape(-1, *shape)
            expected = by_hand(extractor, image_folder, name)
            np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('suffix', ['npz', 'parquet'])
def test_an_interrupted_run_resumes_from_the_last_save(image_folder, checkpoint, tmp_path, calls, capsys, suffix):
    def extract(name: str) -> bytes:
        out = tmp_path / f'{name}.{suffix}'
        extract_folder(FeatureExtractor(checkpoint, kinds=('pooled', 'cls')), image_folder, out, 3, workers=0)
        return out.read_bytes()

    (image_folder / FILES[1]).write_bytes(b'nothing')  # an image without a row
    complete = extract('complete')
    assert calls.made == [2, 3, 3, 3] and 'resuming' not in capsys.readouterr().out
    calls.fail_at(4)  # 9 images are done, of which 6 are saved
    with pytest.raises(RuntimeError, match='power cut'):
        extract('broken')
    assert calls.made == [2, 3, 3]
    parts = tmp_path / f'broken.{suffix}.parts'
    assert sorted(os.listdir(parts)) == ['cls.bin', 'pooled.bin', 'settings.json']
    assert not (tmp_path / f'broken.{suffix}').exists()
    calls.fail_at(0)
    assert extract('broken') == complete
    assert calls.made == [3, 3]
    assert f'resuming after 6 of 12 images, saved in {parts}' in capsys.readouterr().out
    assert not parts.exists()


def test_after_an_interrupted_join_nothing_is_computed_again(image_folder, checkpoint, tmp_path, calls, monkeypatch):
    extractor, out = FeatureExtractor(checkpoint), tmp_path / 'a.npz'
    extract_folder(extractor, image_folder, tmp_path / 'complete.npz', workers=0)

    def interrupted(file: BinaryIO, **arrays: np.ndarray) -> None:
        file.write(b'half')
        raise OSError('disk full')

    with monkeypatch.context() as patch:
        patch.setattr(np, 'savez', interrupted)
        with pytest.raises(OSError, match='disk full'):
            extract_folder(extractor, image_folder, out, workers=0)
    assert not out.exists()
    calls.fail_at(0)
    extract_folder(extractor, image_folder, out, workers=0)
    assert calls.made == [] and out.read_bytes() == (tmp_path / 'complete.npz').read_bytes()


def test_a_full_disk_is_an_error_and_what_was_saved_is_kept(image_folder, checkpoint, tmp_path):
    """The real write fails, by a limit of the process, in the second half of the patches."""
    extractor, out = FeatureExtractor(checkpoint, kinds=['patches']), tmp_path / 'a.npz'
    extract_folder(extractor, image_folder, tmp_path / 'complete.npz', 3, workers=0)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 4 * 4 * 48 * 4, limits[1]))
        with pytest.raises(OSError, match='File too large'):
            extract_folder(extractor, image_folder, out, 3, workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert json.loads((tmp_path / 'a.npz.parts/settings.json').read_text())['done'] == 6
    extract_folder(extractor, image_folder, out, 3, workers=0)
    assert out.read_bytes() == (tmp_path / 'complete.npz').read_bytes()


KILLED = """
import os, signal, sys
from simmim_plugin import FeatureExtractor
from simmim_plugin.apis import extract_features
extract_features.PART_IMAGES = 5
checkpoint, folder, out = sys.argv[1:]
seen, compute = [], FeatureExtractor.__call__
def call(self, images):
    seen.append(len(images))
    if sum(seen) > 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, images)
FeatureExtractor.__call__ = call
extract_features.extract_folder(FeatureExtractor(checkpoint), folder, out, 3, workers=2)
"""


@pytest.mark.slow
def test_a_killed_process_keeps_what_it_saved(image_folder, checkpoint, tmp_path, calls):
    out = tmp_path / 'killed.npz'
    command = [sys.executable, '-c', KILLED, str(checkpoint), str(image_folder), str(out)]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=120).returncode == -signal.SIGKILL
    assert json.loads(Path(f'{out}.parts/settings.json').read_text())['done'] == 6
    extractor = FeatureExtractor(checkpoint)
    extract_folder(extractor, image_folder, out, 3, workers=0)
    assert calls.made == [3, 3]
    with np.load(out) as arrays:
        assert arrays['files'].tolist() == FILES
        expected = by_hand(extractor, image_folder, 'pooled')
        np.testing.assert_allclose(arrays['pooled'], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('suffix', ['npz', 'parquet'])
def test_unreadable_images_are_skipped_and_named(image_folder, checkpoint, tmp_path, capsys, suffix):
    bad = FILES[5:10] + FILES[11:]  # a full batch, and some of others
    for file in bad:
        (image_folder / file).write_bytes((image_folder / file).read_bytes()[:100])
    out = tmp_path / f'a.{suffix}'
    done = extract_folder(FeatureExtractor(checkpoint), image_folder, out, 3, workers=2)
    assert done.images == 6 and len(done.unreadable) == 6
    listed = Path(f'{out}.unreadable.txt').read_text(encoding='utf-8').splitlines()
    assert listed == done.unreadable
    for line, file in zip(listed, bad, strict=True):
        assert line.startswith(f'{image_folder / file}: ')
    good = FILES[:5] + FILES[10:11]
    found = np.load(out)['files'].tolist() if suffix == 'npz' else pq.read_table(out)['file'].to_pylist()
    assert found == good
    assert capsys.readouterr().err.count('skipped: ') == 6


def test_if_no_image_can_be_read_it_stops_and_can_be_repeated(image_folder, checkpoint, tmp_path):
    originals = {file: (image_folder / file).read_bytes() for file in FILES}
    for file in FILES:
        (image_folder / file).write_bytes(b'nothing')
    out = tmp_path / 'a.npz'
    with pytest.raises(ValueError, match=r'not one of the first 5 images could be read; the first: .*part0/00.jpg: '):
        extract_folder(FeatureExtractor(checkpoint), image_folder, out, batch_size=5, workers=0)
    for file, content in originals.items():
        (image_folder / file).write_bytes(content)
    assert extract_folder(FeatureExtractor(checkpoint, size=32), image_folder, out, workers=0).images == 12


def test_parts_of_another_extraction_are_not_used(image_folder, checkpoint, tmp_path, calls):
    out = tmp_path / 'a.npz'
    calls.fail_at(3)
    with pytest.raises(RuntimeError, match='power cut'):
        extract_folder(FeatureExtractor(checkpoint), image_folder, out, 5, workers=0)
    calls.fail_at(0)

    def rejected(message: str, extractor: FeatureExtractor | None = None, **kwargs: str) -> None:
        with pytest.raises(ValueError, match=f'a.npz.parts .*{message}.*remove this folder, or give another --out'):
            extract_folder(extractor or FeatureExtractor(checkpoint), image_folder, out, 5, workers=0, **kwargs)

    rejected('dtype was float32, is float16', dtype='float16')
    rejected(r"kinds was \['pooled'\], is \['cls'\]", FeatureExtractor(checkpoint, kinds=['cls']))
    rejected(r'blocks was \[3\], is \[2\]', FeatureExtractor(checkpoint, blocks=[2]))
    rejected(r'size was \[64, 64\], is \[32, 32\]', FeatureExtractor(checkpoint, size=32))
    pretrained(tmp_path / 'b.pth')
    rejected('checkpoint was .*/a.pth, is .*/b.pth', FeatureExtractor(tmp_path / 'b.pth'))
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)
    model = SimMIM(backbone=FeatureExtractor(checkpoint).backbone, data_preprocessor=preprocessor)
    rejected('model in memory cannot be resumed', FeatureExtractor.from_model(model))
    (image_folder / FILES[4]).rename(image_folder / 'part0' / 'renamed.jpg')
    rejected('files was 12 with hash .*, is 12 with hash')
    assert calls.made == []
    os.remove(tmp_path / 'a.npz.parts' / 'settings.json')
    rejected('does not hold parts')


def test_parts_stay_below_a_number_of_bytes(image_folder, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_features, 'PART_BYTES', 4 * 4 * 48 * 4 * 4 - 1)  # not quite four maps
    extract_folder(FeatureExtractor(checkpoint, kinds=['patches']), image_folder, tmp_path / 'a.parquet', workers=0)
    file = pq.ParquetFile(tmp_path / 'a.parquet')
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3, 3, 3]


def test_float16_rejects_values_beyond_its_range(image_folder, tmp_path):
    model = pretrained(tmp_path / 'a.pth')
    state = torch.load(tmp_path / 'a.pth', weights_only=True)
    state['state_dict']['backbone.norm.bias'] = torch.full_like(model.backbone.norm.bias, 1e5)
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'--dtype float16 cannot hold pooled, which reaches 1e\+05; use --dtype'):
        extract_folder(FeatureExtractor(tmp_path / 'a.pth'), image_folder, tmp_path / 'a.npz', dtype='float16')


def test_wrong_arguments_are_named_before_any_work(image_folder, checkpoint, tmp_path, monkeypatch):
    extractor = FeatureExtractor(checkpoint)
    (tmp_path / 'old.npz').write_bytes(b'precious')
    for error, message, folder, out, kwargs in (
        (ValueError, r'--out .*a.csv: features are written as .npz or .parquet', image_folder, 'a.csv', {}),
        (FileExistsError, r'--out .*old.npz exists already', image_folder, 'old.npz', {}),
        (FileNotFoundError, r'FOLDER .*gone. is not a folder', tmp_path / 'gone', 'a.npz', {}),
        (ValueError, '--batch-size=0 must be a whole number of at least 1', image_folder, 'a.npz', dict(batch_size=0)),
        (ValueError, '--workers=-1 must be a whole number of at least 0', image_folder, 'a.npz', dict(workers=-1)),
        (ValueError, "--dtype='int8' is unknown; choose one of 'float32'", image_folder, 'a.npz', dict(dtype='int8')),
    ):
        with pytest.raises(error, match=message):
            extract_folder(extractor, folder, tmp_path / out, **kwargs)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'FOLDER .*empty. holds no image'):
        extract_folder(extractor, tmp_path / 'empty', tmp_path / 'a.npz')
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'pyarrow' else find(name))
    with pytest.raises(ModuleNotFoundError, match=r"needs pyarrow: pip install 'simmim_plugin\[parquet\]'"):
        extract_folder(extractor, image_folder, tmp_path / 'a.parquet')
    assert (tmp_path / 'old.npz').read_bytes() == b'precious'
    assert not list(tmp_path.glob('*.parts'))


def test_command_line(image_folder, checkpoint, tmp_path, monkeypatch, capsys):
    def run(*words: object) -> None:
        cli.main(['features', *map(str, words)])

    (image_folder / FILES[2]).write_bytes(b'nothing')
    out = tmp_path / 'a.npz'
    run(checkpoint, image_folder, '--out', out, '--kinds', 'cls', 'pooled', '--blocks', '1', '3', '--size', '64', '32',
        '--batch-size', '2', '--workers', '0', '--dtype', 'float16')  # fmt: skip
    printed = capsys.readouterr().out
    assert f'1 images could not be read, see {out}.unreadable.txt' in printed
    assert f'features of 11 images: {out}' in printed
    with np.load(out) as arrays:
        assert arrays['block3_cls'].shape == (11, 48) and arrays['block1_pooled'].dtype == np.float16
        assert arrays['files'].tolist() == FILES[:2] + FILES[3:]
    for words, message in (
        ((tmp_path / 'gone.pth', image_folder, '--out', out), r'error: --out .*a.npz exists already'),
        ((tmp_path / 'gone.pth', image_folder, '--out', 'b.npz'), r"error: checkpoint '.*gone.pth' does not exist"),
        ((checkpoint, image_folder, '--out', 'b.npz', '--blocks', '0'), r'error: blocks=\[0\]: the model has blocks'),
        ((checkpoint, image_folder, '--out', 'b.npz', '--blocks', 'x'), r"error: blocks=\['x'\]: the model has"),
        ((checkpoint, image_folder, '--out', 'b.npz', '--size', '9'), 'error: --size of 9 x 9 px: both sides must be'),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*words)
    monkeypatch.setattr(FeatureExtractor, '__call__', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit, match='interrupted; the same command resumes it'):
        run(checkpoint, image_folder, '--out', tmp_path / 'b.npz', '--workers', '0')
