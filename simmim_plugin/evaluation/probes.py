"""Evaluate frozen features on labelled images by a linear probe and k-NN."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_dist_info, is_main_process
from mmengine.logging import print_log
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from simmim_plugin.datasets.class_names import class_folders
from simmim_plugin.datasets.few_labels import stratified_subset
from simmim_plugin.datasets.image_folder import list_images
from simmim_plugin.evaluation.feature_extractor import FeatureExtractor, SizedImages
from simmim_plugin.utils.arguments import choice, number, whole

K = 20
TEMPERATURE = 0.07  # as in DINO (arXiv 2104.14294) and earlier work
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C, the inverse of the regularisation
FOLDS = 3
MAX_ITER = 300  # of L-BFGS; scikit-learn warns if it does not converge
SPLITS = ('train', 'val')


class Score(NamedTuple):
    """Accuracy on the test images, and its mean over the classes, in percent."""

    top1: float
    balanced: float


class Labelled(NamedTuple):
    """Features by name, each (images, width), and the class of each image, (images,)."""

    features: dict[str, np.ndarray]
    labels: np.ndarray


def knn_probe(train: Labelled, test: Labelled, name: str, k: int = K, temperature: float = TEMPERATURE) -> Score:
    """Classify each test image by a weighted vote of the k most similar training images.

    The similarity is the cosine; a neighbour's vote has the weight exp(similarity / temperature).

    Args:
        train: Features and classes of the training images.
        test: Features and classes of the test images.
        name: Name of the features to use.
        k: Number of neighbours.
        temperature: The smaller, the more the nearest neighbours count.

    Raises:
        ValueError: `k` is not from 1 to the number of training images, or the temperature is not above 0.
    """
    from sklearn.neighbors import KNeighborsClassifier

    count = len(train.labels)
    whole('k', k, 1, count, f'there are {count} training images')
    number('temperature', temperature, 0, hint='e.g. 0.07', ends='()')
    # The distance is 1 - similarity: exp(-distance / t) is exp(similarity / t) up to a common factor.
    classifier = KNeighborsClassifier(k, metric='cosine', algorithm='brute', weights=partial(_votes, t=temperature))
    return _score(classifier.fit(train.features[name], train.labels), test, name)


def _votes(distance: np.ndarray, t: float) -> np.ndarray:
    return np.exp(-distance / t)


def linear_probe(train: Labelled, test: Labelled, name: str) -> Score:
    """Multinomial logistic regression on features standardised like a batch norm without parameters.

    The inverse L2 regularisation is the best of `STRENGTHS` in a 3-fold cross-validation on the training images, or 0.1
    if a class has fewer than three images.

    Args:
        train: Features and classes of the training images.
        test: Features and classes of the test images.
        name: Name of the features to use.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=MAX_ITER))
    if np.bincount(train.labels).min() >= FOLDS:
        model = GridSearchCV(model, dict(logisticregression__C=STRENGTHS), cv=FOLDS)
    model.fit(train.features[name].astype(np.float64), train.labels)
    return _score(model, test, name)


def _score(classifier: Any, test: Labelled, name: str) -> Score:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    predicted = classifier.predict(test.features[name])
    scores = (metric(test.labels, predicted) for metric in (accuracy_score, balanced_accuracy_score))
    return Score(*(100 * float(score) for score in scores))


class LabelledFolder:
    """Images of `data_root`/train and `data_root`/val, each with a folder per class.

    Args:
        data_root: The folder.
        fraction: Fraction of the training images of each class to use, at least one image; see `few_labels`.
        seed: Seed of their choice.

    Raises:
        ValueError: An argument is out of range, there are no classes, those of val and train differ, or a class has no
            images.
    """

    def __init__(self, data_root: str | os.PathLike[str], fraction: float = 1.0, seed: int = 0) -> None:
        if not isinstance(data_root, str | os.PathLike):
            raise ValueError(f'data_root={data_root!r} must be the path of a folder with train and val')
        root = Path(data_root).expanduser()
        found = [class_folders([root / split]) for split in SPLITS]
        if not found[0] or found[0] != found[1]:
            raise ValueError(
                f'data_root={os.fspath(data_root)!r} needs the folders train and val, with the same class folders '
                f'in both; found {found[0]} and {found[1]}'
            )
        number('fraction', fraction, 0, 1, '0.1 keeps 10 % of the labels', ends='(]')
        whole('seed', seed, 0)
        self.classes = found[0]
        self.paths: dict[str, list[str]] = {}
        self.labels: dict[str, np.ndarray] = {}
        for split in SPLITS:
            by_class = [list_images(os.fspath(root / split / name)) for name in self.classes]
            if not all(by_class):
                empty = self.classes[[bool(paths) for paths in by_class].index(False)]
                raise ValueError(f'{os.fspath(root / split / empty)!r} holds no image; remove it, or add images')
            self.paths[split] = [path for paths in by_class for path in paths]
            self.labels[split] = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class])
        if fraction < 1:
            chosen = stratified_subset(self.labels['train'], fraction, seed)
            self.paths['train'] = [self.paths['train'][i] for i in chosen]
            self.labels['train'] = self.labels['train'][chosen]

    def features(
        self, extractor: FeatureExtractor, split: str, batch_size: int = 64, workers: int = 0, progress: bool = False
    ) -> Labelled:
        """Extract the features of a split; the ranks of a distributed run share the work and all get the result.

        Unreadable images are logged and skipped.

        Args:
            extractor: Extractor of 'pooled' or 'cls' features.
            split: 'train' or 'val'.
            batch_size: Images per batch.
            workers: Data loader workers.
            progress: Show a progress bar.

        Raises:
            ValueError: An argument is out of range, or no image could be read.
        """
        choice('split', split, SPLITS)
        whole('batch_size', batch_size, 1)
        whole('workers', workers, 0)
        rank, world = get_dist_info()
        mine = range(rank, len(self.paths[split]), world)
        images = Subset(SizedImages(self.paths[split], extractor.size, extractor.reading), mine)
        # A separate generator: DataLoader would draw from that of the training that this may be a part of.
        loader: DataLoader[Any] = DataLoader(
            images, batch_size, num_workers=workers, collate_fn=SizedImages.collate, generator=torch.Generator()
        )
        numbers: list[int] = []
        parts: list[dict[str, np.ndarray]] = []
        for readable, batch, reasons in tqdm(loader, desc=split, unit='batch', disable=None if progress else True):
            for reason in reasons.values():
                print_log(f'Image skipped: {reason}', 'current', logging.ERROR)
            if readable:
                numbers += readable
                parts.append(extractor(batch))
        gathered = all_gather_object((numbers, parts))
        order = np.argsort([number for found, _ in gathered for number in found], kind='stable')
        kept = sorted(number for found, _ in gathered for number in found)
        joined = [part for _, found in gathered for part in found]
        if not joined:
            raise ValueError(f'no image of {split} could be read')
        features = {name: np.concatenate([part[name] for part in joined])[order] for name in joined[0]}
        return Labelled(features, self.labels[split][kept])


def run_probes(
    extractor: FeatureExtractor,
    folder: LabelledFolder,
    k: int = K,
    temperature: float = TEMPERATURE,
    workers: int = 0,
    progress: bool = False,
    linear: Sequence[str] | None = None,
) -> dict[str, Score]:
    """Run k-NN and the linear probe on each of the extractor's features.

    Args:
        extractor: Extractor of the features.
        folder: The labelled images.
        k: See `knn_probe`; limited to the number of training images.
        temperature: See `knn_probe`.
        workers: Data loader workers.
        progress: Show a progress bar.
        linear: Names of the features for the linear probe; None: all.

    Returns:
        Scores by 'knn' and 'linear', prefixed by the feature's name if there are several: 'block8_pooled_linear'. In a
        distributed run rank 0 computes them, and all ranks get them.
    """
    train, val = (folder.features(extractor, split, workers=workers, progress=progress) for split in SPLITS)
    scores: dict[str, Score] = {}
    for name in extractor.names if is_main_process() else ():
        prefix = f'{name}_' if len(extractor.names) > 1 else ''
        scores[f'{prefix}knn'] = knn_probe(train, val, name, min(k, len(train.labels)), temperature)
        if linear is None or name in linear:
            scores[f'{prefix}linear'] = linear_probe(train, val, name)
    shared = [scores]
    broadcast_object_list(shared)
    return shared[0]
