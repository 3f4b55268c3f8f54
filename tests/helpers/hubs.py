"""A cache of huggingface_hub, and no network."""

import functools
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest


def empty_cache(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Look up models in `folder` alone; whoever asks for a network fails."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError('no network')

    lookup = functools.partial(huggingface_hub.try_to_load_from_cache, cache_dir=folder)
    patch.setattr(huggingface_hub, 'try_to_load_from_cache', lookup)
    patch.setattr(urllib.request, 'urlopen', no_network)
    patch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    return folder


def snapshot(cache: Path, name: str) -> Path:
    """The folder of a model in a cache, as huggingface_hub lays it out."""
    model, commit = cache / f'models--{name.replace("/", "--")}', 'a' * 40
    (model / 'refs').mkdir(parents=True)
    (model / 'refs/main').write_text(commit)
    (model / 'snapshots' / commit).mkdir(parents=True)
    return model / 'snapshots' / commit
