"""Parameter groups: layer-wise learning rate decay, and no weight decay for biases, norms and embeddings."""

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS
from torch import nn

from simmim_plugin.models.simmim import SimMIM
from simmim_plugin.registry import OPTIM_WRAPPER_CONSTRUCTORS
from simmim_plugin.utils.arguments import keys, names, number

# Name endings of parameters without weight decay whatever their shape.
NO_DECAY_NAMES = ('cls_token', 'reg_token', 'pos_embed')


def has_decay(name: str, parameter: nn.Parameter, no_decay: Sequence[str] = ()) -> bool:
    """Whether a parameter has weight decay, as in the reference.

    1-D parameters (norms, biases, LayerScale), the class token, registers, a position embedding and what ends in one of
    the names `no_decay` have none. The mask token and the relative position bias tables have it.
    """
    return parameter.ndim > 1 and not name.endswith((*NO_DECAY_NAMES, *no_decay))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SimMIMOptimWrapperConstructor:
    """Parameter groups with and without weight decay (see `has_decay`), and by layer with layer decay.

    Works with models of MMPretrain, MMDetection, MMSegmentation and plain ones: the submodule with
    `get_layer_depth(name)`, the backbone, gives the layer of its parameters; all others have the full rate. MMEngine's
    own constructors make one group per parameter, so that the optimiser cannot update many tensors at once.

    Args:
        optim_wrapper_cfg: Config of the optimiser wrapper, with `optimizer`.
        paramwise_cfg: None, or a dict of `layer_decay_rate` and `no_decay`. `layer_decay_rate=0.65`: the rate of layer
            i of L is lr * 0.65 ** (L - 1 - i), where layer 0 is everything before the blocks, layer i + 1 is block i,
            and L - 1 the rest (the fine-tuning of ViT-B in arXiv 2111.09886). In SimMIM, the mask token is of the rest,
            too: weights that pretraining continues from have none. Each group has a `layer_id` and an `lr_scale`.
            `no_decay=['mask_token']`: endings of names of further parameters without weight decay.

    Raises:
        ValueError: `paramwise_cfg` has other keys, or the rate is not in (0, 1].
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        hint = "for MMEngine's other options set optim_wrapper.constructor='DefaultOptimWrapperConstructor'"
        options = ['layer_decay_rate', 'no_decay']
        given = {} if paramwise_cfg is None else keys('paramwise_cfg', paramwise_cfg, [], options, hint)
        self.no_decay = names('paramwise_cfg.no_decay', given.get('no_decay', ()))
        rate = given.get('layer_decay_rate', 1.0)
        self.layer_decay_rate = number('layer_decay_rate', rate, 0, 1, 'the published value is 0.65', ends='(]')
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build optimiser and wrapper for the parameters that have gradients.

        Raises:
            ValueError: There is a layer decay, and no submodule has `get_layer_depth`.
        """
        cfg = {'type': 'OptimWrapper', **self.optim_wrapper_cfg}
        optimizer = dict(cfg.pop('optimizer'))
        groups: dict[tuple[int | None, bool], list[nn.Parameter]] = {}
        layers = self._layers(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = (layers.of(name) if layers else None, has_decay(name, parameter, self.no_decay))
                groups.setdefault(key, []).append(parameter)
        settings: list[dict[str, Any]] = []
        for (layer, decayed), parameters in sorted(groups.items(), key=lambda item: (item[0][0] or 0, not item[0][1])):
            group: dict[str, Any] = dict(params=parameters)
            if layer is not None and layers:
                scale = self.layer_decay_rate ** (layers.count - 1 - layer)
                group.update(lr=optimizer['lr'] * scale, lr_scale=scale, layer_id=layer)
            settings.append(group if decayed else {**group, 'weight_decay': 0.0})
        counts = [sum(len(p) for (_, decayed), p in groups.items() if decayed is wanted) for wanted in (True, False)]
        decay = f'; layer decay {self.layer_decay_rate} over {layers.count} layers' if layers else ''
        print_log(f'Weight decay on {counts[0]} tensors, none on {counts[1]}{decay}', 'current')
        built = OPTIMIZERS.build({**optimizer, 'params': settings})
        return ROOT_OPTIM_WRAPPERS.build(cfg, default_args=dict(optimizer=built))

    def _layers(self, model: nn.Module) -> '_Layers | None':
        if self.layer_decay_rate == 1:
            return None
        for name, module in model.named_modules():
            # MMPretrain's classifiers also have this method, which calls the backbone's.
            if hasattr(module, 'get_layer_depth') and not hasattr(module, 'backbone'):
                pretraining = any(isinstance(part, SimMIM) for part in model.modules())
                return _Layers(module, f'{name}.' if name else '', ('mask_token',) if pretraining else ())
        raise ValueError(
            f'layer_decay_rate={self.layer_decay_rate}: no part of {type(model).__name__} has get_layer_depth; use a '
            'backbone with it, such as SimMIMViT, or leave layer_decay_rate out'
        )


class _Layers:
    """Layer of each parameter of a model: the backbone's own, and the last one for all others and the new ones."""

    def __init__(self, backbone: Any, prefix: str, new: tuple[str, ...]) -> None:
        self.backbone, self.prefix, self.new = backbone, prefix, new
        self.count: int = backbone.get_layer_depth('')[1]

    def of(self, name: str) -> int:
        if not name.startswith(self.prefix) or name.endswith(self.new):
            return self.count - 1
        layer: int = self.backbone.get_layer_depth(name, self.prefix)[0]
        return layer
