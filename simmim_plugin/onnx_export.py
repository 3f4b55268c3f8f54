"""Export of the backbone to ONNX, checked against PyTorch in ONNX Runtime."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simmim_plugin.backbone import SimMIMViT
from simmim_plugin.checkpoint import check_fits
from simmim_plugin.checkpoint_file import NOTE, load_file
from simmim_plugin.conversion import backbone_state
from simmim_plugin.pretrained import fit_state
from simmim_plugin.registry import build_part

PROTOBUF_LIMIT = 2**31  # bytes in one .onnx file; larger weights go into a second file
BATCHES = (1, 3)
TOLERANCE = 1e-4  # of the largest output


class _Single(nn.Module):
    """The backbone with its last output alone, not in a tuple."""

    def __init__(self, backbone: SimMIMViT) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), normalised -> see `SimMIMViT`."""
        return self.backbone(images)[-1]


def load_backbone(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, out_type: str | None = None
) -> SimMIMViT:
    """Build the backbone of a checkpoint of this package, pretrained or fine-tuned, without its head.

    Args:
        path: Written by a run here, or by `tools/convert_checkpoint.py --to plugin`.
        size: Height and width in pixels; bias tables and position embedding are interpolated to it once. None: the
            training's.
        out_type: See `SimMIMViT`; None: the training's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint of this package, or an argument does not go with it.
    """
    checkpoint = load_file(path)
    config = (checkpoint.get(NOTE) or {}).get('model', {}).get('backbone')
    if not isinstance(config, dict):
        raise ValueError(
            f'checkpoint {os.fspath(path)!r} carries no config of {NOTE}; make one that does: '
            '`simmim convert SRC DST --to plugin`'
        )
    state = backbone_state(checkpoint)
    plain = {'frozen_stages', 'with_cp', 'init_cfg', 'out_indices'}  # matter in training alone
    config = {name: value for name, value in config.items() if name not in plain}
    grid = build_part(config).grid
    config |= {} if size is None else dict(img_size=list(size))
    config |= {} if out_type is None else dict(out_type=out_type)
    backbone = build_part(config)
    norm = 'fc_norm' if backbone.out_type == 'avg_featmap' else 'norm'
    if f'{norm}.weight' not in state:
        trained = 'avg_featmap' if norm == 'norm' else 'featmap, cls_token or raw'
        raise ValueError(f'--out-type {backbone.out_type} needs {norm}, which this checkpoint has not; use {trained}')
    state.setdefault('mask_token', torch.zeros_like(state['cls_token']))  # has no part without a mask
    fitted = fit_state(backbone, state, grid).state
    check_fits(backbone.state_dict(), fitted, complete=True)
    backbone.load_state_dict(fitted)
    return backbone.eval()


def export_onnx(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    out_type: str | None = None,
    opset: int | None = None,
) -> float:
    """Write the backbone of a checkpoint as ONNX: normalised images in, features out, any batch size, no mask.

    The input is `images`, float32 (B, C, H, W), the output `features`, shaped as `out_type` says.

    Args:
        checkpoint: See `load_backbone`.
        out: The .onnx file. Weights of 2 GB and more go into a second file beside it.
        size: See `load_backbone`.
        out_type: See `load_backbone`.
        opset: Version of ONNX's operators; None: the exporter's own choice.

    Returns:
        The largest difference between ONNX Runtime and PyTorch on random images, batches of 1 and 3.

    Raises:
        ModuleNotFoundError: The packages are not installed; the message names the command.
        ValueError: See `load_backbone`; or the name does not end in .onnx.
        RuntimeError: The outputs differ by more than 1e-4 of the largest; the file is removed.
    """
    if Path(out).suffix != '.onnx':
        raise ValueError(f'OUT {os.fspath(out)!r}: the name must end in .onnx')
    try:
        import onnx  # noqa: F401 (the exporter needs it)
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX export needs {error.name}: pip install 'simmim_plugin[onnx]'", name=error.name
        ) from error
    backbone = load_backbone(checkpoint, size, out_type)
    model = _Single(backbone).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCHES[-1], backbone.in_channels, *backbone.img_size, generator=generator)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        expected = model(images)  # before the export, so that cached indices are made of real tensors
        weights = sum(parameter.nbytes for parameter in model.parameters())
        torch.onnx.export(
            model,
            (images,),
            os.fspath(out),
            input_names=['images'],
            output_names=['features'],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim('batch')},),
            opset_version=opset,
            external_data=weights > 0.9 * PROTOBUF_LIMIT,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(os.fspath(out), providers=['CPUExecutionProvider'])
    difference = max(_difference(session, images[:batch], expected[:batch]) for batch in BATCHES)
    if not difference <= TOLERANCE * expected.abs().max().item():
        os.remove(out)
        raise RuntimeError(f'ONNX Runtime and PyTorch differ by {difference:.3g}; {os.fspath(out)!r} was removed')
    return difference


def _difference(session: Any, images: Tensor, expected: Tensor) -> float:
    (features,) = session.run(None, {'images': images.numpy()})
    return (torch.from_numpy(features) - expected).abs().max().item()
