"""Export a backbone to ONNX, and check ONNX Runtime's outputs against PyTorch's."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simmim_plugin.checkpoints.loading import build_backbone, read
from simmim_plugin.models.vit import SimMIMViT
from simmim_plugin.utils.arguments import whole

PROTOBUF_LIMIT = 2**31  # bytes in one .onnx file; larger weights go into a second file
BATCHES = (1, 3)
TOLERANCE = 1e-4  # relative to the largest output


class _Single(nn.Module):
    """The backbone, returning its last output instead of a tuple."""

    def __init__(self, backbone: SimMIMViT) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), normalised -> see `SimMIMViT`."""
        return self.backbone(images)[-1]


def export_onnx(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    out_type: str | None = None,
    opset: int | None = None,
) -> float:
    """Export the backbone of a checkpoint to ONNX: from normalised images to features, any batch size, no mask.

    The input is `images`, float32 (B, C, H, W), the output `features`, shaped as `out_type` says.

    Args:
        checkpoint: From a run of this package, or from `simmim convert SRC DST --to plugin`.
        out: The .onnx file. Weights of 2 GB and more are written to a second file next to it.
        size: Image height and width in pixels, to which bias tables and position embedding are interpolated once.
            None: those of the training.
        out_type: See `SimMIMViT`; None: that of the training.
        opset: ONNX operator set; None: the exporter's default.

    Returns:
        The largest difference between ONNX Runtime and PyTorch on random images, batches of 1 and 3.

    Raises:
        ModuleNotFoundError: The packages are not installed; the message names the command.
        ValueError: See `build_backbone`; or the name does not end in .onnx.
        RuntimeError: The outputs differ by more than 1e-4 of the largest one; the file is removed.
    """
    if Path(out).suffix != '.onnx':
        raise ValueError(f'OUT {os.fspath(out)!r}: the name must end in .onnx')
    if opset is not None:
        whole('opset', opset, 1, hint="None is the exporter's default")
    try:
        import onnx  # noqa: F401 (the exporter needs it)
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX export needs {error.name}: pip install 'simmim_plugin[onnx]'", name=error.name
        ) from error
    changes: dict[str, Any] = dict(img_size=size, out_type=out_type)
    backbone = build_backbone(read(checkpoint), **{k: value for k, value in changes.items() if value is not None})
    model = _Single(backbone).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCHES[-1], backbone.in_channels, *backbone.img_size, generator=generator)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        expected = model(images)  # before the export, so that cached indices are real tensors
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
