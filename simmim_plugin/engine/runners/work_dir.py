"""Checkpoints in a work dir: which one a training resumes from, and whose they are."""

import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.utils.files import printable

LAST = 'last_checkpoint'  # MMEngine's name of the file in the work dir that names the last checkpoint
RUN_ID = 'run_id'  # in `meta` of a checkpoint: drawn when a training starts, kept when it is resumed
DAMAGED = 'damaged'


def newest_checkpoint(folder: str | os.PathLike[str], work_dir: str | os.PathLike[str] | None = None) -> str | None:
    """The checkpoint of a folder to resume from: the one that was written last.

    `last_checkpoint` in the work dir names it. If that one is damaged, or there is no such file, it is the intact one
    of the same run with the most iterations. Checkpoints without a run id, which earlier versions and other hooks
    write, count as one run. What is skipped is logged: damaged checkpoints, those of other runs, and what is none (a
    folder, a pipe, a file of another project).

    Args:
        folder: Folder of the checkpoints.
        work_dir: Folder of `last_checkpoint`; `folder` by default.

    Returns:
        Its path; None if the folder has none.

    Raises:
        ValueError: All checkpoints are damaged, or they are of several runs and `last_checkpoint` does not tell which.
    """
    found, skipped = _survey(Path(folder))
    last = Path(folder, _last_name(Path(work_dir or folder, LAST)))
    ours = [path for path in found if last in found and run_of(found[path]) == run_of(found[last])]

    def order(path: Path) -> tuple[bool, int, float]:
        return path == last, found[path]['meta']['iter'], found[path]['written']

    chosen = None
    for path in sorted(ours or found, key=order, reverse=True):
        if is_intact(path):
            chosen = path
            break
        if path.exists():  # else a training that runs here removed it: that is reported when the folder is locked
            skipped[path] = DAMAGED
    if chosen is not None:
        others = [path for path in found if path not in skipped and run_of(found[path]) != run_of(found[chosen])]
        if not ours and any(is_intact(path) for path in others):
            raise ValueError(
                f'{printable(folder)} holds checkpoints of several runs, e.g. {chosen.name} and {others[0].name}, and '
                f'{LAST} does not tell which is to go on; say which: --resume PATH'
            )
        skipped |= dict.fromkeys(others, 'of another run')
    elif damaged := [printable(path) for path, reason in skipped.items() if reason == DAMAGED]:
        which = 'no checkpoint of this run' if ours else 'no checkpoint'
        raise ValueError(
            f'{which} in {printable(folder)} can be read; damaged: {", ".join(damaged)}. Remove them to start from '
            'scratch, or choose another --work-dir'
        )
    for path, reason in skipped.items():
        print_log(f'{printable(path)} is {reason} and skipped', 'current', logging.WARNING)
    return None if chosen is None else str(chosen)


def _survey(folder: Path) -> tuple[dict[Path, Any], dict[Path, str]]:
    """`meta` of the checkpoints of a folder, and what else is named like a checkpoint with the reason to skip it."""
    found, skipped = {}, {}
    for path in sorted(folder.glob('*.pth')):
        try:
            checkpoint, written = load_file(path), path.stat().st_mtime
        except FileNotFoundError:  # a folder, a pipe, or a link to nothing
            skipped[path] = 'not a file'
            continue
        except ValueError:
            skipped[path] = DAMAGED
            continue
        is_training = isinstance(checkpoint, Mapping) and 'optimizer' in checkpoint
        if is_training and is_resumable(checkpoint):
            found[path] = dict(meta=checkpoint['meta'], written=written)
        elif is_training or has_own_name(path.name):  # else it holds weights only
            skipped[path] = 'not a checkpoint to resume from'
    return found, skipped


def _last_name(path: Path) -> str:
    """Name without folder of the checkpoint in `last_checkpoint`: the work dir may have been moved or copied."""
    if not path.is_file():
        return ''
    with path.open('rb') as file:
        return os.path.basename(os.fsdecode(file.read(10_000)).strip())


def is_intact(path: str | os.PathLike[str]) -> bool:
    """Whether the checksums of a file of `torch.save` match its bytes, which PyTorch does not verify on loading."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # noqa: BLE001 (zipfile raises anything from EOFError to NotImplementedError for damaged files)
        return False


def is_resumable(checkpoint: Any) -> bool:
    """Whether a checkpoint says where in a training it was written."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    counts = [meta.get(name) for name in ('epoch', 'iter')] if isinstance(meta, Mapping) else [None]
    return all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)


def run_of(checkpoint: Mapping[str, Any]) -> str | None:
    """The id of the run that wrote a checkpoint; None if it has none."""
    meta = checkpoint.get('meta')
    run = meta.get(RUN_ID) if isinstance(meta, Mapping) else None
    return run if isinstance(run, str) else None


def has_own_name(name: Any, template: str | None = None, best: bool = False) -> bool:
    """Whether this is the name of a checkpoint, such as `epoch_3.pth` or `iter_40.pth`, without a folder.

    Args:
        name: The name.
        template: Another form of the name, with `{}` for the number.
        best: Whether `best_<metric>_` before it is allowed.
    """
    forms = [re.escape(form) for form in ('epoch_{}.pth', 'iter_{}.pth', template) if form]
    numbered = '|'.join(re.sub(r'\\\{[^}]*\\\}', '[0-9]+', form) for form in forms)
    return isinstance(name, str) and bool(re.fullmatch(rf'{"(best_[^/]+_)?" * best}({numbered})', name))


def checkpoint_folder(cfg: Config) -> str:
    """Folder of a training's checkpoints: the work dir, or one of that name in `default_hooks.checkpoint.out_dir`."""
    out_dir = _checkpoint_hook(cfg).get('out_dir')
    if out_dir is None or out_dir == os.path.abspath(cfg.work_dir) or '://' in str(out_dir):
        return str(cfg.work_dir)
    return os.path.join(out_dir, os.path.basename(str(cfg.work_dir).rstrip('/')))


def check_work_dir(cfg: Config) -> None:
    """Reject a start that would write among the checkpoints of another run.

    Raises:
        ValueError: There are some; the message names the first.
    """
    folder = checkpoint_folder(cfg)
    template = _checkpoint_hook(cfg).get('filename_tmpl')
    others = [path for path in sorted(Path(folder).glob('*')) if has_own_name(path.name, template)]
    source = cfg.get('load_from') if cfg.get('resume') else None
    if source is not None and os.path.realpath(os.path.dirname(source)) == os.path.realpath(folder):
        return
    if source is not None and others:
        run = run_of(load_file(source))
        others = [path for path in others if _run_of_file(path, run) != run]
    if others:
        raise ValueError(
            f'{printable(folder)} holds checkpoints of another training ({printable(others[0].name)} ...): continue '
            'that with --resume, choose another --work-dir (simmim: --out), or move them away'
        )


def _run_of_file(path: Path, default: str | None) -> str | None:
    try:
        return run_of(load_file(path))
    except (ValueError, FileNotFoundError):  # damaged: perhaps the reason for a resume from a copy
        return default


def _checkpoint_hook(cfg: Config) -> Mapping[str, Any]:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}
