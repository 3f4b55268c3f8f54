"""Time attention and patch embedding against other implementations."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor

from simmim_plugin.benchmark.timing import in_ms, interleaved
from simmim_plugin.models.layers.architecture import ARCHS
from simmim_plugin.models.layers.relative_position import bias_from_table, table_rows
from simmim_plugin.models.layers.transformer import LinearPatchEmbed, attend

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention written out, with the softmax in float32 as under autocast."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    return scores.float().softmax(-1).to(v.dtype) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The kernel that PyTorch chooses, with the bias."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def without_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The kernel that PyTorch chooses without a bias."""
    return F.scaled_dot_product_attention(q, k, v)


def flex() -> Kernel:
    """Compiled flex attention with the bias added by `score_mod`; for GPUs."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return compiled(q, k, v, score_mod=lambda score, b, h, i, j: score + bias[h, i, j])

    return kernel


def measure_attention(
    arch: str, img_size: int, batch: int, dtypes: list[str], repeats: int, device: str
) -> dict[str, Any]:
    """Measure all kernels in each dtype.

    Returns:
        `rows` of kernel, dtype and milliseconds.
    """
    sizes = ARCHS[arch]
    grid = (img_size // 16,) * 2
    heads, depth = sizes['num_heads'], sizes['embed_dims'] // sizes['num_heads']
    kernels: dict[str, Kernel] = {
        'ours (attend)': attend, 'written out': written_out, 'scaled_dot_product_attention': fused,
        'scaled_dot_product_attention without a bias': without_bias,
    }  # fmt: skip
    if device != 'cpu':  # on CPUs flex attention has no backward pass
        kernels['flex_attention'] = flex()
    rows = []
    for name in dtypes:
        dtype = getattr(torch, name)
        table = torch.randn(table_rows(grid), heads, device=device, requires_grad=True)
        shape = (batch, heads, grid[0] * grid[1] + 1, depth)
        q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

        def run(kernel: Kernel) -> None:
            bias = bias_from_table(table, grid, dtype=dtype)  # noqa: B023 (called within the loop)
            kernel(q, k, v, bias).sum().backward()  # noqa: B023
            if device != 'cpu':
                torch.cuda.synchronize()

        tasks = {key: functools.partial(run, kernel) for key, kernel in kernels.items()}
        times = interleaved(tasks, repeats)
        rows += [dict(kernel=key, dtype=name, **in_ms(time)) for key, time in times.items()]
    return dict(rows=rows)


def measure_patch_embedding(
    arch: str, img_size: int, batch: int, dtypes: list[str], repeats: int, device: str
) -> dict[str, Any]:
    """Measure the convolution in both memory formats, and the matrix product.

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
