"""Export a backbone or a classifier to ONNX, and check ONNX Runtime's outputs against PyTorch's."""

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from simmim_plugin.checkpoints.loading import build_backbone
from simmim_plugin.checkpoints.saved import Saved, read
from simmim_plugin.models.layers.relative_position import MOST_LISTED, Grid, listed_axis_weights
from simmim_plugin.models.vit import SimMIMViT
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.configs import type_name

PROTOBUF_LIMIT = 2**31  # bytes in one .onnx file; larger weights go into a second file
BATCHES = (1, 3)
SIZES = ((2, 3), (9, 4))  # in patches
TOLERANCE = 1e-4  # relative to the largest output


class _Single(nn.Module):
    """The backbone, returning its last output instead of a tuple, and the classifier if there is one."""

    def __init__(self, backbone: SimMIMViT, classifier: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), normalised -> see `SimMIMViT`; with a classifier (B, classes), before the softmax."""
        features: Tensor = self.backbone(images)[-1]
        return features if self.classifier is None else self.classifier(features)


def classifier_of(saved: Saved) -> nn.Linear | None:
    """The linear layer of a fine-tuned classifier; None for other models and those with a neck (linear probes)."""
    weight, bias = saved.state.get('head.fc.weight'), saved.state.get('head.fc.bias')
    if weight is None or bias is None or any(name.startswith('neck.') for name in saved.state):
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict(dict(weight=weight, bias=bias))
    return layer


def export_onnx(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    out_type: str | None = None,
    opset: int | None = None,
    any_size: bool = False,
) -> float:
    """Export a checkpoint to ONNX: from normalised images to features or logits, any batch size, no mask.

    The input is `images`, float32 (B, C, H, W). The output of a classifier with a linear head is `logits`,
    (B, classes), before the softmax. That of other models, and with `out_type`, is `features` of the backbone, shaped
    as `out_type` says: necks and heads of detectors and segmenters are not exported.

    Args:
        checkpoint: From a run of this package, or from `simmim convert SRC DST --to plugin`.
        out: The .onnx file. Weights of 2 GB and more are written to a second file next to it.
        size: Image height and width in pixels, to which bias tables and position embedding are interpolated once.
            None: those of the training.
        out_type: Features, see `SimMIMViT`; None: logits of a classifier, else the features of the training.
        opset: ONNX operator set; None: the exporter's default.
        any_size: Let the file take any height and width of 2 to 128 patches; bias tables are interpolated in it.

    Returns:
        The largest difference between ONNX Runtime and PyTorch on random images, batches of 1 and 3; with `any_size`,
        also of other heights and widths.

    Raises:
        ModuleNotFoundError: The packages are not installed; the message names the command.
        ValueError: See `build_backbone`; the name does not end in .onnx; or the model has attention windows or a
            position embedding, and `any_size` is asked for.
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
    saved = read(checkpoint)
    if (kind := type_name(saved.backbone)) != 'SimMIMViT':
        raise ValueError(f'checkpoint {saved.path!r} holds a {kind}; ONNX export is for SimMIMViT')
    backbone = build_backbone(saved, **{k: value for k, value in changes.items() if value is not None})
    classifier = classifier_of(saved) if out_type is None else None
    if any_size and (any(backbone.window_sizes) or backbone.pos_embed is not None):
        why = 'attention windows' if any(backbone.window_sizes) else 'a position embedding'
        raise ValueError(f'--any-size: the model has {why}, which ONNX takes at one size only; give --size instead')
    output = 'features' if classifier is None else 'logits'
    exported = {'backbone'} if classifier is None else {'backbone', 'head'}
    left = sorted({name.split('.')[0] for name in saved.state} - exported)
    print_log(f'Output: {output}' + (f' of the backbone; not exported: {", ".join(left)}' if left else ''))
    model = _Single(backbone, classifier).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCHES[-1], backbone.in_channels, *backbone.img_size, generator=generator)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        expected = model(images)  # before the export, so that cached indices are real tensors
        dynamic: dict[int, Any] = {0: torch.export.Dim('batch')}
        if any_size:
            for axis, name in ((2, 'height'), (3, 'width')):
                listed_axis_weights(backbone.grid[axis - 2])
                dynamic[axis] = backbone.patch_size * torch.export.Dim(name, min=2, max=MOST_LISTED)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        torch.onnx.export(
            model,
            (images if not any_size else _resized(images, backbone, (5, 7)),),  # sides that are equal would stay so
            os.fspath(out),
            input_names=['images'],
            output_names=[output],
            dynamo=True,
            dynamic_shapes=(dynamic,),
            opset_version=opset,
            external_data=weights > 0.9 * PROTOBUF_LIMIT,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(os.fspath(out), providers=['CPUExecutionProvider'])
    difference = max(_difference(session, images[:batch], expected[:batch]) for batch in BATCHES)
    scale = expected.abs().max().item()
    for patches in SIZES if any_size else ():
        others = _resized(images, backbone, patches)
        with torch.no_grad():
            expected = model(others)
        difference = max(difference, _difference(session, others, expected))
        scale = min(scale, expected.abs().max().item())
    if not difference <= TOLERANCE * scale:
        os.remove(out)
        raise RuntimeError(f'ONNX Runtime and PyTorch differ by {difference:.3g}; {os.fspath(out)!r} was removed')
    return difference


def _resized(images: Tensor, backbone: SimMIMViT, patches: Grid) -> Tensor:
    height, width = (side * backbone.patch_size for side in patches)
    return nn.functional.interpolate(images, (height, width), mode='nearest')


def _difference(session: Any, images: Tensor, expected: Tensor) -> float:
    (output,) = session.run(None, {'images': images.numpy()})
    return (torch.from_numpy(output) - expected).abs().max().item()
