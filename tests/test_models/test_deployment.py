"""PyTorch's ways to run a model elsewhere: compiled, exported, quantised, traced; each computes what the model does."""

import pytest
import torch
from torch import Tensor, nn

from helpers.models import TINY
from simmim_plugin import SimMIMViT

SIZES = ((64, 64), (96, 64), (80, 112))  # the first is that of the tables
KINDS = {'shared': dict(num_registers=2), 'own': dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True)}
WINDOWS = {**KINDS, 'windows': dict(window_size=3, num_registers=2)}


class Last(nn.Module):
    """The last feature map."""

    def __init__(self, **changes) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = SimMIMViT(**{**{name: value for name, value in TINY.items() if name != 'type'}, **changes}).eval()
        for parameter in self.vit.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x)[-1]


def assert_same(run, model, sizes=SIZES, tolerance=1e-5):
    with torch.no_grad():
        for size in sizes:
            images = torch.randn(2, 3, *size)
            expected = model(images)
            assert (run(images) - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_one_compiled_graph_without_gradients_at_three_sizes(mode):
    model = Last()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    with mode():
        for size in SIZES:
            images = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_one_exported_program_for_any_height_and_width(kind):
    model = Last(**KINDS[kind])
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ('batch', 'height', 'width'))
    shapes = ({0: batch, 2: 16 * height, 3: 16 * width},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 3, 80, 112),), dynamic_shapes=shapes)
    assert_same(program.module(), model, (*SIZES, (32, 160)))


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
@pytest.mark.parametrize('kind', WINDOWS)
def test_dynamic_quantisation_to_8_bits(kind):
    model = Last(**WINDOWS[kind])
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert 'Quantized' in type(quantised.vit.blocks[0].attn.qkv).__name__ + repr(quantised.vit.blocks[0].attn.qkv)
    assert_same(quantised, model, tolerance=0.01)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
@pytest.mark.parametrize('kind', WINDOWS)
def test_a_trace_is_for_its_size(kind):
    model = Last(**WINDOWS[kind])
    with torch.no_grad():
        trace = torch.jit.trace(model, torch.randn(2, 3, 96, 64))
    assert_same(trace, model, [(96, 64)])
