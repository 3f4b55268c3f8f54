"""Every config of detection and segmentation builds its model."""

import pytest
from mmengine.registry import MODELS, init_default_scope

from helpers.paths import ROOT
from simmim_plugin.config import load_config
from simmim_plugin.utils.meta import on_meta

CONFIGS = [path for kind in ('detection', 'segmentation') for path in sorted((ROOT / 'configs' / kind).glob('*.py'))]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path):
    cfg = load_config(str(path))
    if cfg.default_scope == 'mmdet':
        pytest.importorskip('mmcv.ops', reason="MMDetection needs MMCV's operators: make setup-test builds them")
    init_default_scope(cfg.default_scope)
    parts = cfg.model.get('roi_head', cfg.model)
    for name in ('bbox_head', 'mask_head', 'decode_head', 'auxiliary_head'):
        head = parts.get(name) or {}
        if head.get('num_classes', 0) is None:  # those of the data
            head.num_classes = 3
    with on_meta():
        model = MODELS.build(cfg.model)
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    if cfg.default_scope == 'mmdet':
        levels = model.rpn_head if 'roi_head' in cfg.model else model.bbox_head
        assert len(levels.prior_generator.strides) == cfg.model.neck.get('num_outs', 5)
    else:
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
