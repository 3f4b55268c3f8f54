"""Check that the values of segmentation masks are classes of the model."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from torch import nn

from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.distributed import bare_model
from simmim_plugin.utils.runner_protocol import TrainingRunner


@HOOKS.register_module()
class SegLabelHook(Hook):
    """Stop training and evaluation at a mask with a value that is not a class, and name the file.

    Otherwise PyTorch's loss fails with a device-side assert on GPUs, and MMSegmentation's metric is wrong. The check
    runs on the CPU, before the masks are moved to the device. Of a cascade, the last head counts; with test-time
    augmentation, the model inside. A model without `decode_head.num_classes` is left alone.
    """

    def _before_iter(
        self,
        runner: TrainingRunner,
        batch_idx: int,
        data_batch: dict[str, Sequence[Any]] | None = None,
        mode: str = 'train',
    ) -> None:
        """Check the masks of a batch, whatever the mode ('train', 'val' or 'test').

        Raises:
            ValueError: A mask has a value that is neither a class nor the head's `ignore_index`.
        """
        head: Any = getattr(bare_model(runner), 'decode_head', None)
        head = head[-1] if isinstance(head, nn.ModuleList) and len(head) else head
        if not hasattr(head, 'num_classes'):
            return
        given = (data_batch or {}).get('data_samples', ())
        for sample in (sample for item in given for sample in (item if isinstance(item, list | tuple) else [item])):
            if 'gt_sem_seg' not in sample:  # prediction without masks
                continue
            labels = sample.gt_sem_seg.data
            wrong = labels[(labels >= head.num_classes) & (labels != head.ignore_index)]
            if wrong.numel():
                raise ValueError(
                    f'{sample.seg_map_path} has the value {int(wrong.max())}, but decode_head.num_classes='
                    f'{head.num_classes} means 0 ... {head.num_classes - 1} (and {head.ignore_index}: ignored); '
                    'add the missing classes, or reduce_zero_label if the masks count from 1'
                )
