import numpy as np
import pytest
import torch
from conftest import TINY

from simmim_plugin import SimMIM
from simmim_plugin.knn import knn_accuracy, pooled_features


def test_against_votes_counted_by_hand():
    angles = np.deg2rad([0, 10, 40, 90, 100])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [2], [3], [1]]  # lengths do not matter
    labels = np.array([0, 1, 1, 2, 2])
    angles = np.deg2rad([4, 95])
    test = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Nearest to 4 degrees: 0, then 10 and 40 of class 1. A high temperature counts heads, a low one the nearest alone.
    votes = {t: np.exp(np.cos(np.deg2rad([4, 6, 36])) / t) for t in (0.003, 10.0)}
    assert votes[0.003][0] > votes[0.003][1:].sum() and votes[10.0][0] < votes[10.0][1:].sum()
    assert knn_accuracy(train, labels, test, np.array([0, 2]), k=3, temperature=0.003) == 100
    assert knn_accuracy(train, labels, test, np.array([0, 2]), k=3, temperature=10.0) == 50
    with pytest.raises(ValueError, match=r'k=6 of k-NN is outside 1 \.\.\. 5'):
        knn_accuracy(train, labels, test, np.array([0, 2]), k=6)


def test_features_are_the_mean_of_the_patch_tokens_of_normalised_images():
    torch.manual_seed(0)
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=[100.0] * 3, std=[50.0] * 3)
    model = SimMIM(backbone=TINY, data_preprocessor=preprocessor)
    images = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8)
    found = pooled_features(model, images.split(2))
    with torch.no_grad():
        tokens = model.backbone((images.float() - 100) / 50)[0].flatten(2)
    np.testing.assert_allclose(found, tokens.mean(dim=2).numpy(), rtol=1e-5, atol=1e-6)
