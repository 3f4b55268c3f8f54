"""Extract the features of a folder of images to one .npz or .parquet file, resumable after an interruption."""

import hashlib
import importlib.util
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from simmim_plugin.datasets.image_folder import list_images
from simmim_plugin.evaluation.feature_extractor import FeatureExtractor, SizedImages
from simmim_plugin.utils.arguments import choice, whole
from simmim_plugin.utils.files import PART_SUFFIX, read_json, whole_file, write_json

SUFFIXES = ('.npz', '.parquet')
DTYPES = ('float32', 'float16')
PART_IMAGES, PART_BYTES = 1024, 64 * 2**20  # progress is saved after either; a row group is no larger
SETTINGS, JOINED = 'settings.json', 'joined'
LOG_SECONDS = 30  # between updates of the progress bar in a log file


class Extracted(NamedTuple):
    """Result of `extract_folder`: number of images written, and 'path: reason' of each unreadable one."""

    images: int
    unreadable: list[str]


def extract_folder(
    extractor: FeatureExtractor,
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    batch_size: int = 64,
    workers: int = 2,
    dtype: str = 'float32',
) -> Extracted:
    """Write the features of all images below a folder, sorted by path.

    Features are appended to files in `OUT.parts`, and progress is saved there after every 1024 images or 64 MB. After
    an interruption the same call resumes from the last save. At the end they are joined into one file, which needs
    the disk space of all features twice. Unreadable images are skipped and listed in `OUT.unreadable.txt`.

    A .npz file holds one array per name of the extractor, `(images, *shape)`, and `files`, the paths below the folder,
    with forward slashes. A .parquet file holds a column `file` and one list of fixed size per name, patches flattened;
    the schema's metadata `shapes` is JSON of their shapes.

    Args:
        extractor: Extractor of the features.
        folder: Folder of images, searched recursively.
        out: The file to write, .npz or .parquet. It must not exist.
        batch_size: Images per batch.
        workers: Data loader workers; 0: read images in this process.
        dtype: Data type of the stored features, 'float32' or 'float16'.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: There is no such folder.
        ModuleNotFoundError: .parquet needs pyarrow, which is not installed.
        ValueError: An argument is out of range, no image could be read, or `OUT.parts` belongs to another extraction.
    """
    out, folder = os.fspath(out), os.fspath(folder)
    check_arguments(out, batch_size, workers, dtype)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'FOLDER {folder!r} is not a folder (from {os.getcwd()})')
    paths = list_images(folder)
    if not paths:
        raise ValueError(f'FOLDER {folder!r} holds no image')
    files = [_relative(path, folder) for path in paths]
    settings = dict(
        **(extractor.source or {}),
        folder=os.path.realpath(folder),
        files=f'{len(files)} with hash {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}',
        kinds=list(extractor.kinds),
        blocks=list(extractor.blocks),
        size=list(extractor.size),
        dtype=dtype,
    )
    image_bytes = sum(map(math.prod, extractor.shapes.values())) * np.dtype(dtype).itemsize
    part_images = min(PART_IMAGES, max(1, PART_BYTES // image_bytes))
    parts = Path(f'{out}.parts')
    unreadable = _compute(extractor, paths, parts, settings, part_images, batch_size, workers)
    kept = np.delete(np.array(files), list(unreadable))
    arrays: dict[str, Any] = {
        name: np.memmap(parts / f'{name}.bin', dtype, 'r', shape=(len(kept), *shape))
        for name, shape in extractor.shapes.items()
    }
    with whole_file(parts / JOINED) as joined:
        if out.lower().endswith('.npz'):
            with open(joined, 'wb') as file:  # given a name, NumPy would add .npz
                np.savez(file, files=kept, **arrays)
        else:
            _write_parquet(joined, kept, arrays, part_images)
    list_path = f'{out}.unreadable.txt'
    if unreadable:
        with open(list_path, 'w', encoding='utf-8', errors='backslashreplace') as lines:
            lines.writelines(f'{reason}\n' for reason in unreadable.values())
    elif os.path.exists(list_path):  # left by an earlier file of this name
        os.remove(list_path)
    os.replace(parts / JOINED, out)
    shutil.rmtree(parts)
    return Extracted(len(kept), list(unreadable.values()))


def check_arguments(out: str, batch_size: int, workers: int, dtype: str) -> None:
    """Check arguments of `extract_folder` before any work; raises the same errors."""
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in SUFFIXES:
        raise ValueError(f'--out {out}: features are written as {" or ".join(SUFFIXES)}')
    if os.path.lexists(out):
        raise FileExistsError(f'--out {out} exists already; remove it, or give another name')
    if suffix == '.parquet' and importlib.util.find_spec('pyarrow') is None:
        raise ModuleNotFoundError(f"--out {out} needs pyarrow: pip install 'simmim_plugin[parquet]'", name='pyarrow')
    whole('--batch-size', batch_size, 1)
    whole('--workers', workers, 0)
    choice('--dtype', dtype, DTYPES)


def _relative(path: str, folder: str) -> str:
    """Path below the folder, with forward slashes; bytes that are not UTF-8 are escaped."""
    name = os.path.relpath(path, folder).replace(os.sep, '/')
    return name.encode('utf-8', 'backslashreplace').decode()


def _resume(parts: Path, settings: Mapping[str, Any], resumable: bool) -> tuple[int, dict[int, str]]:
    """Number of images finished by an earlier run with these settings, and the reasons of unreadable ones."""
    other = 'remove this folder, or give another --out'
    parts.mkdir(parents=True, exist_ok=True)
    old = read_json(parts / SETTINGS)
    if not old and any(not name.endswith(PART_SUFFIX) for name in os.listdir(parts)):
        raise ValueError(f'{parts} exists, but does not hold parts of features; {other}')
    if not old.get('done'):
        write_json(parts / SETTINGS, settings)
        return 0, {}
    if not resumable:
        raise ValueError(f'{parts} exists; an extraction from a model in memory cannot be resumed; {other}')
    changed = [f'{key} was {old.get(key)}, is {value}' for key, value in settings.items() if old.get(key) != value]
    if changed:
        raise ValueError(f'{parts} belongs to an extraction with other settings ({"; ".join(changed)}); {other}')
    return old['done'], {int(number): reason for number, reason in old['unreadable'].items()}


def _compute(
    extractor: FeatureExtractor,
    paths: Sequence[str],
    parts: Path,
    settings: Mapping[str, Any],
    part_images: int,
    batch_size: int,
    workers: int,
) -> dict[int, str]:
    """Append features to one file per name, and save the number of finished images after each sync to disk.

    Files rather than memory maps: when the disk is full, writing to a map kills the process.

    Returns:
        Reasons of the unreadable images, by index.
    """
    done, unreadable = _resume(parts, settings, resumable=extractor.source is not None)
    if done:
        print(f'resuming after {done} of {len(paths)} images, saved in {parts}')
    saved, dtype = done, np.dtype(settings['dtype'])
    dataset = Subset(SizedImages(paths, extractor.size, extractor.reading), range(done, len(paths)))
    loader: DataLoader[Any] = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=SizedImages.collate)
    seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    progress = tqdm(total=len(paths), initial=done, unit='image', mininterval=seconds, maxinterval=LOG_SECONDS)
    with progress, ExitStack() as stack:
        stored = {}
        for name, shape in extractor.shapes.items():
            stored[name] = stack.enter_context(open(parts / f'{name}.bin', 'r+b' if done else 'wb'))
            stored[name].seek((done - len(unreadable)) * math.prod(shape) * dtype.itemsize)
        for _, images, reasons in loader:
            for name, values in extractor(images).items() if len(images) else ():
                stored[name].write(_as_dtype(values, dtype, name).data)
            for reason in reasons.values():
                tqdm.write(f'skipped: {reason}', file=sys.stderr)
            progress.update(len(images) + len(reasons))
            unreadable |= reasons
            done += len(images) + len(reasons)
            if done < min(saved + part_images, len(paths)):
                continue
            if len(unreadable) == done:
                first = next(iter(unreadable.values()))
                raise ValueError(f'not one of the first {done} images could be read; the first: {first}')
            for file in stored.values():
                file.flush()
                os.fsync(file.fileno())
            write_json(parts / SETTINGS, {**settings, 'done': done, 'unreadable': unreadable})
            saved = done
    return unreadable


def _as_dtype(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    if dtype == np.float16 and (largest := np.abs(values).max()) > np.finfo(np.float16).max:
        raise ValueError(f'--dtype float16 cannot hold {name}, which reaches {largest:.3g}; use --dtype float32')
    return np.ascontiguousarray(values, dtype)


def _write_parquet(path: Path, files: np.ndarray, arrays: Mapping[str, np.ndarray], rows: int) -> None:
    """Write row groups of `rows` images, read from the memory maps one at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {'file': pa.array(files.tolist(), pa.string())}
    for name, values in arrays.items():
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), math.prod(values.shape[1:]))
    shapes = {name: values.shape[1:] for name, values in arrays.items()}
    table = pa.table(columns, metadata={'shapes': json.dumps(shapes)})
    parquet.write_table(table, path, row_group_size=rows, use_dictionary=False)
