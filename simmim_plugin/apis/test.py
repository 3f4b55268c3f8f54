"""Evaluate a checkpoint on the test data of a config."""

import os
from contextlib import nullcontext
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from simmim_plugin.apis.train import autocast_parts, build_runner
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.engine.optimizers.autocast_optim_wrapper import autocast
from simmim_plugin.engine.runners.mmengine_internals import end_all_workers
from simmim_plugin.evaluation.metrics import BalancedAccuracy, draw_confusion
from simmim_plugin.models.fit import check_fits
from simmim_plugin.utils.configs import fill_in_tta, innermost
from simmim_plugin.utils.distributed import bare_model


def run_test(cfg: Config, checkpoint: str | os.PathLike[str], amp: bool = False, tta: bool = False) -> list[str]:
    """Evaluate a checkpoint on the test data of a config, and draw the confusion matrix.

    Args:
        cfg: Config with `test_dataloader` and `test_evaluator`.
        checkpoint: Checkpoint with all weights of the model.
        amp: bfloat16 autocast; of a detector, in backbone and neck.
        tta: Test-time augmentation by the config's `tta_model` and `tta_pipeline`, see `fill_in_tta`.

    Returns:
        Lines to print: each metric, and the picture of the confusion matrix if `BalancedAccuracy` is one of them.
        Empty on ranks other than 0.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The config has no test data, or the checkpoint is of another model.
    """
    if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
        raise ValueError('the config has no test_dataloader and test_evaluator; use a fine-tuning config')
    state = read(checkpoint).state
    parts = autocast_parts(cfg) if amp else None
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = cfg.auto_scale_lr = None
    cfg.load_from, cfg.resume = None, False
    cfg.runner_type, cfg.strategy = 'Runner', None  # evaluation is never sharded
    if cfg.model.get('backbone'):
        cfg.model.backbone.init_cfg = None  # the checkpoint holds everything
    if tta:
        _augment(cfg)
    lines = []
    runner = build_runner(cfg)
    model = bare_model(runner)
    check_fits(model.state_dict(), state)
    model.load_state_dict(state)
    if tta and getattr(model, 'with_mask', False):
        model.roi_head.mask_head = None  # MMDetection cannot merge masks
        lines.append("segm: not evaluated, as MMDetection's TTA merges boxes alone")
    with autocast(model, parts) if amp else nullcontext():
        scores = runner.test()
    end_all_workers(runner)
    if not is_main_process():
        return []
    lines += [f'{name}: {round(value, 2) if isinstance(value, float) else value}' for name, value in scores.items()]
    for metric in runner.test_evaluator.metrics:
        if isinstance(metric, BalancedAccuracy) and metric.confusion is not None:
            path = Path(cfg.work_dir) / 'confusion_matrix.png'
            classes = (metric.dataset_meta or {}).get('classes') or range(len(metric.confusion))
            draw_confusion(metric.confusion, [str(name) for name in classes], path)
            lines.append(f'picture: {path}')
    return lines


def _augment(cfg: Config) -> None:
    """Wrap the model for test-time augmentation; of a detector, boxes alone are evaluated then."""
    fill_in_tta(cfg)
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise ValueError(
            f'--tta needs tta_model and tta_pipeline in the config; default_scope={cfg.get("default_scope")!r} or the '
            'pipeline of its test data has no default'
        )
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    innermost(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    for metric in evaluators:
        if 'segm' in metric.get('metric', ()):
            metric.metric = 'bbox'
