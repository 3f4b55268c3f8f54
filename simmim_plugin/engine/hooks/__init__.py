"""Hooks of a training run."""

from simmim_plugin.engine.hooks import (  # noqa: F401 (registered)
    checkpoint_hook,
    compile_hook,
    fault_hook,
    interrupt_hook,
    iteration_seed_hook,
    mask_ratio_hook,
    progress_hook,
    reconstruction_hook,
    runtime_info_hook,
    seg_label_hook,
)
