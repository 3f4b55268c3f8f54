"""Judge frozen features by their nearest neighbours: no training, nothing to tune."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

K = 20
TEMPERATURE = 0.07  # as in DINO (arXiv 2104.14294) and its forerunners


@torch.no_grad()
def pooled_features(model: Any, batches: Iterable[Tensor]) -> np.ndarray:
    """Mean over the patch tokens of the last block, nothing masked.

    Args:
        model: A `SimMIM`; it is used in evaluation mode.
        batches: Images, (B, C, H, W) in the units of the stored values.

    Returns:
        (images, width), float32.
    """
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for batch in batches:
        inputs = model.data_preprocessor({'inputs': batch.to(device)})['inputs']
        parts.append(model(inputs)[-1].mean(dim=(2, 3)).float().cpu())
    return torch.cat(parts).numpy()


def knn_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> float:
    """Share of test images, in percent, whose label the k most similar training images vote for.

    Cosine similarity; a neighbour's vote is exp(similarity / temperature).

    Args:
        train: (n, width) features.
        train_labels: (n,).
        test: (m, width).
        test_labels: (m,).
        k: Number of neighbours.
        temperature: The smaller, the more the nearest ones count.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: `k` is not in 1 ... n.
    """
    try:
        from sklearn.neighbors import KNeighborsClassifier
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("k-NN needs scikit-learn: pip install 'simmim_plugin[photos]'") from error
    if not 1 <= k <= len(train):
        raise ValueError(f'k={k} of k-NN is outside 1 ... {len(train)}, the number of training images')
    classifier = KNeighborsClassifier(
        k, metric='cosine', algorithm='brute', weights=lambda distance: np.exp(-distance / temperature)
    )
    return 100 * float(classifier.fit(train, train_labels).score(test, test_labels))
