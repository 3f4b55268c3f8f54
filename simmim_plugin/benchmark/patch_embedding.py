"""Time of cutting an image into tokens, forward and backward, by way of computing it."""

import functools
from typing import Any

import torch
from timm.layers import PatchEmbed

from simmim_plugin.architecture import ARCHS
from simmim_plugin.benchmark.timing import in_ms, interleaved
from simmim_plugin.patch_embedding import LinearPatchEmbed


def measure_patch_embedding(
    arch: str, img_size: int, batch: int, dtypes: list[str], repeats: int, device: str
) -> dict[str, Any]:
    """Measure the convolution, in both memory formats, and the matrix product.

    Returns:
        `rows` of way, dtype and milliseconds.
    """
    width = ARCHS[arch]['embed_dims']
    images = torch.randn(batch, 3, img_size, img_size, device=device)
    ways = {
        'convolution': (PatchEmbed(None, 16, 3, width).to(device), torch.contiguous_format),
        'convolution, channels last': (
            PatchEmbed(None, 16, 3, width).to(device, memory_format=torch.channels_last), torch.channels_last,
        ),
        'ours (a matrix product under autocast)': (
            LinearPatchEmbed(None, 16, 3, width).to(device), torch.contiguous_format,
        ),
    }  # fmt: skip

    def run(name: str, dtype: str) -> None:
        embed, memory_format = ways[name]
        with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
            tokens = embed(images.contiguous(memory_format=memory_format))
        tokens.sum().backward()
        embed.zero_grad()
        if device != 'cpu':
            torch.cuda.synchronize()

    rows = []
    for dtype in dtypes:
        times = interleaved({name: functools.partial(run, name, dtype) for name in ways}, repeats)
        rows += [dict(way=name, dtype=dtype, **in_ms(time)) for name, time in times.items()]
    return dict(rows=rows)
