"""Weights by name, `timm:NAME` and `hf:NAME`: these libraries download them, or find them in their cache."""

import os
import urllib.error
import urllib.request
from typing import Any

from torch import Tensor, nn

from simmim_plugin.checkpoints.families import ANY_BACKBONE

HUBS = ('timm:', 'hf:')
HF_FILES = ('config.json', 'preprocessor_config.json')
HF_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
SECONDS = 10  # to wait for an answer of the hub


def is_named(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint is given as a name in a hub, not as a path."""
    return os.fspath(path).startswith(HUBS)


def from_timm(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a pretrained model of timm, and what it says of itself, as a config of ours.

    Args:
        name: As in `timm.list_pretrained()`, such as 'vit_base_patch16_224.augreg_in21k'.

    Raises:
        ValueError: timm has no such model or no weights for it, or it is a ViT with another activation than GELU.
        FileNotFoundError: It is not in the cache, and cannot be downloaded.
    """
    import timm
    from huggingface_hub import try_to_load_from_cache
    from timm.models.beit import Beit
    from timm.models.vision_transformer import VisionTransformer

    known = timm.get_pretrained_cfg(name)
    if known is None or not timm.is_model_pretrained(name):
        raise ValueError(f'timm has no pretrained model {name!r}; timm.list_pretrained("*vit*") names those it has')
    found = (try_to_load_from_cache(known.hf_hub_id, file) for file in HF_WEIGHTS) if known.hf_hub_id else ()
    cached = next((path for path in found if isinstance(path, str)), None)
    if cached is None:
        command = f'python -c "import timm; timm.create_model({name!r}, pretrained=True)"'
        _check_network(f'timm:{name}', command, 'copy its cache, HF_HOME (~/.cache/huggingface), to this machine')
    overlay = None if cached is None else dict(file=cached, custom_load=False)
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError) as error:
        raise ValueError(_failed('timm', name, error)) from error
    note: dict[str, Any] = {}
    if isinstance(model, VisionTransformer | Beit) and hasattr(model.blocks[0], 'mlp'):  # others: known by their names
        block: Any = model.blocks[0]
        if (kind := type(block).__name__) != 'Block':  # same names, other places of the norms
            raise ValueError(f'the blocks of {name!r} are {kind} of timm, those of SimMIMViT Block; {ANY_BACKBONE}')
        if not isinstance(block.mlp.act, nn.GELU):
            raise ValueError(f'the MLPs of {name!r} have {type(block.mlp.act).__name__}, those of SimMIMViT have GELU')
        size, (patch, _) = model.patch_embed.img_size, model.patch_embed.patch_size
        note['backbone'] = dict(img_size=size, patch_size=patch, arch=dict(num_heads=block.attn.num_heads))
        note['backbone']['norm_eps'] = block.norm1.eps
    mean, std = ([255 * value for value in model.pretrained_cfg[key]] for key in ('mean', 'std'))
    note['data_preprocessor'] = dict(mean=mean, std=std)
    return model.state_dict(), note


def from_hf(name: str) -> str:
    """Folder in the cache of huggingface_hub with the configs and the weights of a model of the Hugging Face Hub.

    Args:
        name: Its id, such as 'facebook/dinov2-base'.

    Raises:
        ValueError: There is no such model, or it has no weights in one file.
        FileNotFoundError: It is not in the cache, and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    def cached() -> str | None:
        paths = (try_to_load_from_cache(name, file) for file in HF_WEIGHTS)
        return next((path for path in paths if isinstance(path, str)), None)

    try:
        weights = cached()
    except HFValidationError as error:
        raise ValueError(f'{name!r} is no name of a model of the Hugging Face Hub: {error}') from error
    if weights is None:
        _check_network(f'hf:{name}', f'hf download {name} --local-dir FOLDER', 'give FOLDER on this machine')
        for file in (*HF_FILES, *HF_WEIGHTS):
            if cached() is None:  # one file of weights is enough
                try:
                    hf_hub_download(name, file)
                except EntryNotFoundError as error:
                    if isinstance(error, LocalEntryNotFoundError):  # the download failed
                        raise ValueError(_failed('huggingface_hub', name, error)) from error
                except OSError as error:
                    raise ValueError(_failed('huggingface_hub', name, error)) from error
        weights = cached()
    if weights is None:
        raise ValueError(f'the model {name!r} of the Hugging Face Hub has neither {" nor ".join(HF_WEIGHTS)}')
    return os.path.dirname(weights)


def _failed(library: str, name: str, error: Exception) -> str:
    return f'{library} cannot load the model {name!r}: {str(error).strip().splitlines()[0]}'


def _check_network(name: str, command: str, then: str) -> None:
    """Raise FileNotFoundError if the hub does not answer: the libraries would try again for minutes."""
    from huggingface_hub import constants

    reason = 'HF_HUB_OFFLINE is set'
    if not constants.HF_HUB_OFFLINE:
        try:
            request = urllib.request.Request(constants.ENDPOINT, method='HEAD')
            urllib.request.urlopen(request, timeout=SECONDS).close()
            return
        except urllib.error.HTTPError:  # an answer
            return
        except OSError as error:
            reason = f'{constants.ENDPOINT} does not answer: {getattr(error, "reason", error)}'
    raise FileNotFoundError(
        f'{name} is not in the cache here and cannot be downloaded ({reason}). Where there is a network: {command}; '
        f'then {then}'
    )
