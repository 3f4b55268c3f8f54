"""Metrics that MMPretrain lacks: held-out loss of pretraining, balanced accuracy, the confusion matrix as a picture."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from simmim_plugin.registry import METRICS


@METRICS.register_module()
class BalancedAccuracy(BaseMetric):
    """Mean of the per-class recall, in percent (scikit-learn's `balanced_accuracy_score`).

    Rare and frequent classes have the same weight; classes without images are ignored. The confusion matrix of the last
    evaluation is kept as `confusion`, (classes, classes) counts with the true classes in rows.

    Args:
        kwargs: See `mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'accuracy'

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.confusion: np.ndarray | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the true and the predicted class of each image."""
        for sample in data_samples:
            scores = sample['pred_score']
            self.results.append((int(sample['gt_label'].item()), int(scores.argmax()), scores.numel()))

    def compute_metrics(self, results: list[tuple[int, int, int]]) -> dict[str, float]:
        """Return `{'balanced': percent}`, logged as `accuracy/balanced`."""
        from sklearn.metrics import balanced_accuracy_score, confusion_matrix

        truth, predicted = np.array(results)[:, :2].T
        self.confusion = confusion_matrix(truth, predicted, labels=range(results[0][2]))
        return {'balanced': 100 * float(balanced_accuracy_score(truth, predicted))}


@METRICS.register_module()
class HeldOutLoss(BaseMetric):
    """Mean over images of what `SimMIM` computes in mode 'predict': its training loss, and errors of single masks.

    Logged as `held_out/loss`, `held_out/error_local` ...; `IterationSeedHook` keeps crops and masks the same each time.

    Args:
        kwargs: See `mmengine.evaluator.BaseMetric`.
    """

    default_prefix = 'held_out'

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, torch.Tensor]]) -> None:
        """Keep the values of each image."""
        names = list(data_samples[0])
        values = torch.stack([torch.stack([sample[name] for name in names]) for sample in data_samples])
        self.results += [dict(zip(names, row)) for row in values.tolist()]

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Return the mean of each value."""
        return {name: float(np.mean([values[name] for values in results])) for name in results[0]}


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], out: str | os.PathLike[str]) -> None:
    """Draw a confusion matrix: counts as numbers, the fraction of the true class as colour.

    Args:
        matrix: (classes, classes) counts, true classes in rows.
        classes: Names of the classes.
        out: The picture to write.
    """
    from matplotlib.figure import Figure

    n = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.45 * n, 24)
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(image, label='fraction of the true class', shrink=0.8)
    axes.set(xlabel='predicted', ylabel='true')
    axes.set_xticks(range(n), classes, rotation=60, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(n), classes)
    for i, j in np.argwhere(matrix) if n <= 40 else ():
        axes.text(j, i, str(matrix[i, j]), ha='center', va='center', color='white' if shares[i, j] > 0.5 else 'black')
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
