"""Balanced accuracy and the confusion matrix of classification."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from simmim_plugin import BalancedAccuracy
from simmim_plugin.evaluation.metrics import draw_confusion


def samples(truth: list[int], predicted: list[int], classes: int) -> list[dict]:
    """What MMPretrain's classifiers give for a batch; the scores of other classes are random."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for one, other in zip(truth, predicted, strict=True):
        scores = torch.rand(classes, generator=generator)
        scores[other] = 1.5
        found.append(dict(gt_label=torch.tensor([one]), pred_score=scores, pred_label=torch.tensor([other])))
    return found


def evaluate(metric: BalancedAccuracy, truth: list[int], predicted: list[int], classes: int) -> dict:
    """In batches of three."""
    found = samples(truth, predicted, classes)
    for i in range(0, len(found), 3):
        metric.process(None, found[i : i + 3])
    return metric.evaluate(len(found))


def test_counts_by_hand_with_a_class_without_images():
    metric = BalancedAccuracy()
    # Class 0: 3 of 4, class 1: 1 of 2, class 2: none there, class 3: 0 of 1.
    truth, predicted = [0, 0, 1, 0, 3, 0, 1], [0, 2, 1, 0, 0, 0, 3]
    assert evaluate(metric, truth, predicted, 4) == {'accuracy/balanced': pytest.approx(100 * (3 / 4 + 1 / 2) / 3)}
    assert metric.confusion.tolist() == [[3, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    # The next evaluation starts from zero.
    assert evaluate(metric, [1, 1], [1, 0], 2) == {'accuracy/balanced': 50.0}
    assert metric.confusion.tolist() == [[0, 0], [1, 1]]


def test_against_scikit_learn_through_the_evaluator_of_a_run():
    rng = np.random.default_rng(0)
    truth = rng.choice(7, 200, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02]).tolist()
    predicted = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 7, 200)).tolist()
    evaluator = Evaluator([dict(type='simmim_plugin.BalancedAccuracy')])
    evaluator.process(samples(truth, predicted, 7))
    found = evaluator.evaluate(200)['accuracy/balanced']
    assert found == pytest.approx(100 * balanced_accuracy_score(truth, predicted))
    assert abs(found - 100 * np.mean(np.equal(truth, predicted))) > 1
    expected = [[sum((t, p) == (i, j) for t, p in zip(truth, predicted)) for j in range(7)] for i in range(7)]
    assert evaluator.metrics[0].confusion.tolist() == expected


@pytest.mark.parametrize('classes', [2, 12, 41])
def test_picture_of_the_confusion(tmp_path, classes):
    out = tmp_path / 'new' / 'confusion.png'
    names = [f'class {i}' for i in range(classes)]
    draw_confusion(np.eye(classes, dtype=int) * 5, names, out)
    diagonal = np.asarray(Image.open(out).convert('RGB')).astype(int)
    draw_confusion(np.zeros((classes, classes), dtype=int), names, out)
    empty = np.asarray(Image.open(out).convert('RGB')).astype(int)
    assert min(diagonal.shape[:2]) > 300 and diagonal.shape == empty.shape
    # Dark blue in one of `classes` cells: a fraction of 1 rather than 0. Names and colour bar are the same.
    blue = (diagonal[..., 2] - diagonal[..., 0] > 60) & (empty.min(axis=2) > 240)
    rows, columns = np.flatnonzero(blue.any(axis=1)), np.flatnonzero(blue.any(axis=0))
    area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    assert blue.sum() / area == pytest.approx(1 / classes, rel=0.35)
    assert blue[rows[0] : rows[0] + 3, columns[0] : columns[0] + 3].mean() > 0.5  # from above left
    changed = np.abs(diagonal - empty).max(axis=2) > 30
    assert changed[: rows[0] - 3].sum() == changed[rows[-1] + 4 :].sum() == 0
