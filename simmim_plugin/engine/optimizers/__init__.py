"""Mixed precision and parameter groups."""

from simmim_plugin.engine.optimizers import autocast_optim_wrapper, layer_decay_constructor  # noqa: F401 (registered)
