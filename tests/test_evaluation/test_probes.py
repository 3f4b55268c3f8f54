"""Linear probe and k-NN, against votes counted by hand, scikit-learn by hand and plain torch."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from sklearn import linear_model
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold

from helpers.checkpoints import pretrained
from helpers.labelled import make_labelled
from helpers.processes import gloo_environment
from simmim_plugin.evaluation import probes
from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
from simmim_plugin.evaluation.probes import (
    STRENGTHS,
    Labelled,
    LabelledFolder,
    Score,
    knn_probe,
    linear_probe,
    run_probes,
)


@pytest.fixture
def logged():
    """Messages in MMEngine's log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def noisy(classes: int, each: int, width: int, signal: float, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    means = np.random.default_rng(99).normal(size=(classes, width)) * signal
    features = (means[labels] + rng.normal(size=(len(labels), width))) * np.geomspace(0.01, 100, width) + 7
    return Labelled({'x': features.astype(np.float32)}, labels)


def test_knn_against_votes_counted_by_hand():
    angles = np.deg2rad([0, 10, 40, 90, 100])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [2], [3], [1]]  # lengths do not matter
    train = Labelled({'x': vectors, 'other': -vectors}, np.array([0, 1, 1, 2, 2]))
    angles = np.deg2rad([4, 95, 96])
    test = Labelled({'x': np.stack([np.cos(angles), np.sin(angles)], axis=1)}, np.array([0, 2, 2]))
    # Nearest to 4 degrees: 0, then 10 and 40 of class 1. At a high temperature all votes are equal.
    votes = {t: np.exp(np.cos(np.deg2rad([4, 6, 36])) / t) for t in (0.003, 10.0)}
    assert votes[0.003][0] > votes[0.003][1:].sum() and votes[10.0][0] < votes[10.0][1:].sum()
    assert knn_probe(train, test, 'x', k=3, temperature=0.003) == (100, 100)
    assert knn_probe(train, test, 'x', k=3, temperature=10.0) == pytest.approx((200 / 3, 50))
    assert knn_probe(train, test, 'x', k=1, temperature=10.0) == (100, 100)
    for k in (0, 6, 2.0):
        with pytest.raises(ValueError, match=f'k={k} must be a whole number from 1 to 5; there are 5 training images'):
            knn_probe(train, test, 'x', k=k)
    for temperature in (0, np.nan):
        with pytest.raises(ValueError, match=f'temperature={temperature} must be a number above 0; e.g. 0.07'):
            knn_probe(train, test, 'x', k=3, temperature=temperature)


def test_knn_of_random_features_against_plain_torch():
    train, test = noisy(4, 30, 6, 0.5, seed=0), noisy(4, 50, 6, 0.5, seed=1)
    for k, temperature in ((20, 0.07), (7, 1.0), (120, 0.02)):
        one, other = (torch.nn.functional.normalize(torch.from_numpy(d.features['x']).double()) for d in (test, train))
        similarity, nearest = (one @ other.T).topk(k)
        votes = torch.nn.functional.one_hot(torch.from_numpy(train.labels)[nearest], 4)
        predicted = (votes * (similarity / temperature).exp()[..., None]).sum(dim=1).argmax(dim=1).numpy()
        right = predicted == test.labels
        score = knn_probe(train, test, 'x', k, temperature)
        assert 30 < score.top1 < 95
        assert score.top1 == pytest.approx(100 * right.mean())


def fit_by_hand(train: np.ndarray, labels: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """Normalise, and fit with scikit-learn."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    model = linear_model.LogisticRegression(C=strength, max_iter=1000).fit((train - mean) / std, labels)
    return lambda features: model.predict((features - mean) / std)


def test_linear_probe_against_a_cross_validation_by_hand():
    chosen = set()
    for signal in (0.2, 0.3):
        train, test = noisy(3, 20, 24, signal, seed=2), noisy(3, 1000, 24, signal, seed=3)
        features, labels = train.features['x'].astype(np.float64), train.labels
        means = []
        for strength in STRENGTHS:
            parts = StratifiedKFold(3).split(features, labels)
            shares = [
                (fit_by_hand(features[a], labels[a], strength)(features[b]) == labels[b]).mean() for a, b in parts
            ]
            means.append(np.mean(shares))
        best = STRENGTHS[int(np.argmax(means))]
        chosen.add(best)
        scores = {c: fit_by_hand(features, labels, c)(test.features['x'].astype(np.float64)) for c in STRENGTHS}
        right = {c: (predicted == test.labels).mean() for c, predicted in scores.items()}
        assert all(right[c] != right[best] for c in STRENGTHS if c != best)  # so that the choice shows
        found = linear_probe(train, test, 'x')
        assert found.top1 == pytest.approx(100 * right[best])
        assert found.balanced == pytest.approx(100 * balanced_accuracy_score(test.labels, scores[best]))
    assert len(chosen) == 2


def test_linear_probe_with_fewer_than_three_images_in_a_class_against_plain_torch():
    train, test = noisy(3, 20, 10, 0.5, seed=4), noisy(3, 300, 10, 0.5, seed=5)
    train = Labelled({'x': train.features['x'][18:]}, train.labels[18:])  # two of class 0
    features, labels = torch.from_numpy(train.features['x']).double(), torch.from_numpy(train.labels)
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    weight, bias = torch.zeros(3, 10, dtype=torch.double), torch.zeros(3, dtype=torch.double)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn='strong_wolfe')

    def loss():
        optimizer.zero_grad()
        logits = (features - mean) / std @ weight.T + bias
        value = 0.1 * torch.nn.functional.cross_entropy(logits, labels, reduction='sum') + weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    logits = (torch.from_numpy(test.features['x']).double() - mean) / std @ weight.T + bias
    right = logits.argmax(dim=1).numpy() == test.labels
    assert 40 < 100 * right.mean() < 90
    assert linear_probe(train, test, 'x').top1 == pytest.approx(100 * right.mean(), abs=0.2)


def test_linear_probe_of_separable_features_is_perfect():
    train, test = noisy(4, 12, 16, 20.0, seed=6), noisy(4, 30, 16, 20.0, seed=7)
    assert linear_probe(train, test, 'x') == Score(100, 100)


@pytest.mark.parametrize('few', [True, False])
def test_linear_probe_that_does_not_converge_warns_and_gives_a_score(monkeypatch, few):
    monkeypatch.setattr(probes, 'MAX_ITER', 2)
    train, test = noisy(3, 2 if few else 12, 16, 5.0, seed=6), noisy(3, 30, 16, 5.0, seed=7)
    with pytest.warns(ConvergenceWarning):
        assert linear_probe(train, test, 'x').top1 > 50


def test_folder_of_classes(tmp_path):
    counts = {'cat': 11, 'ant': 4, 'bee': 1}
    root = make_labelled(tmp_path, counts, dict.fromkeys(counts, 2))
    folder = LabelledFolder(root)
    assert folder.classes == ['ant', 'bee', 'cat']
    assert folder.labels['train'].tolist() == [0] * 4 + [1] + [2] * 11
    assert folder.labels['val'].tolist() == [0, 0, 1, 1, 2, 2]
    assert folder.paths['train'] == sorted(str(path) for path in (root / 'train').glob('*/*.png'))
    for split in ('train', 'val'):
        names = [Path(path).parent.name for path in folder.paths[split]]
        assert names == [folder.classes[i] for i in folder.labels[split]]

    few = LabelledFolder(str(root), fraction=0.3)  # 1.2, 0.3 and 3.3, rounded up
    assert few.labels['train'].tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert [Path(p).parent.name for p in few.paths['train']] == [few.classes[i] for i in few.labels['train']]
    assert set(few.paths['train']) < set(folder.paths['train']) and few.paths['val'] == folder.paths['val']
    assert LabelledFolder(root, 0.3).paths == few.paths
    assert LabelledFolder(root, 0.3, seed=1).paths['train'] != few.paths['train']


def test_errors_of_the_folder_name_it(tmp_path):
    root = make_labelled(tmp_path, dict(a=1, b=1), dict(a=1, c=1))
    with pytest.raises(ValueError, match=r"same class folders in both; found \['a', 'b'\] and \['a', 'c'\]"):
        LabelledFolder(root)
    with pytest.raises(ValueError, match=r"data_root='.*train' needs the folders train and val.*found \[\] and \[\]"):
        LabelledFolder(root / 'train')
    for data_root in (None, 1.0):
        with pytest.raises(
            ValueError, match=f'^data_root={data_root} must be the path of a folder with train and val$'
        ):
            LabelledFolder(data_root)
    (root / 'val/c').rename(root / 'val/b')
    for fraction in (0, 1.5, np.nan):
        with pytest.raises(ValueError, match=rf'fraction={fraction} must be a number in \(0, 1\]; 0.1 keeps 10 %'):
            LabelledFolder(root, fraction)
    next((root / 'val/b').iterdir()).unlink()
    with pytest.raises(ValueError, match=r"val/b' holds no image; remove it, or add images"):
        LabelledFolder(root)
    (root / 'val').rename(root / 'test')
    with pytest.raises(ValueError, match=r"found \['a', 'b'\] and \[\]"):
        LabelledFolder(root)


@pytest.fixture
def broken(tmp_path) -> LabelledFolder:
    """13 + 5 images, 5 + 2 of class a; train/a/1.png, the second, cannot be read."""
    root = make_labelled(tmp_path / 'data', dict(a=5, b=8), dict(a=2, b=3))
    (root / 'train/a/1.png').write_bytes(b'no image')
    return LabelledFolder(root)


@pytest.mark.parametrize('batch_size, workers', [(1, 0), (5, 0), (64, 0), (2, 2)])
def test_features_are_in_the_order_of_files_without_unreadable_images(tmp_path, broken, logged, batch_size, workers):
    pretrained(tmp_path / 'a.pth')
    extractor = FeatureExtractor(tmp_path / 'a.pth', blocks=(1, 3))
    state = torch.get_rng_state()
    found = broken.features(extractor, 'train', batch_size, workers)
    assert torch.equal(torch.get_rng_state(), state)  # a training that it is a part of is not changed
    kept = [path for path in broken.paths['train'] if not path.endswith('a/1.png')]
    assert found.labels.tolist() == [0] * 4 + [1] * 8
    expected = extractor(torch.stack([extractor.load(path) for path in kept]))
    assert list(found.features) == ['block1_pooled', 'block3_pooled']
    for name, values in found.features.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)
    named = [line for line in logged if line.startswith('Image skipped: ')]
    assert len(named) == 1 and broken.paths['train'][1] in named[0]
    for path in Path(broken.paths['val'][0]).parents[1].rglob('*.png'):
        path.write_bytes(b'no image')
    with pytest.raises(ValueError, match='no image of val could be read'):
        broken.features(extractor, 'val')
    with pytest.raises(ValueError, match="split='test' is unknown; choose one of 'train', 'val'"):
        broken.features(extractor, 'test')
    with pytest.raises(ValueError, match='batch_size=0 must be a whole number of at least 1'):
        broken.features(extractor, 'val', batch_size=0)


def test_names_and_values_of_the_scores(tmp_path, broken):
    pretrained(tmp_path / 'a.pth')
    one = FeatureExtractor(tmp_path / 'a.pth', blocks=2)
    several = FeatureExtractor(tmp_path / 'a.pth', blocks='all', kinds=['pooled', 'cls'])
    scores = run_probes(one, broken, k=3)
    assert list(scores) == ['knn', 'linear']
    train, val = (broken.features(one, split) for split in ('train', 'val'))
    assert scores['knn'] == knn_probe(train, val, 'pooled', 3)
    assert scores['linear'] == linear_probe(train, val, 'pooled')
    found = run_probes(several, broken, k=3, linear=['block2_pooled'])
    assert found['block2_pooled_knn'] == scores['knn'] and found['block2_pooled_linear'] == scores['linear']
    names = [f'block{b}_{kind}_knn' for b in (1, 2, 3) for kind in ('pooled', 'cls')]
    assert sorted(found) == sorted([*names, 'block2_pooled_linear'])
    assert list(run_probes(one, broken, linear=())) == ['knn']
    # As many neighbours as there are readable training images, where more are asked for.
    assert run_probes(one, broken, k=500, linear=())['knn'] == knn_probe(train, val, 'pooled', 12)


SCRIPT = """
import json, sys
import numpy as np
import torch
from simmim_plugin import FeatureExtractor, LabelledFolder, run_probes

checkpoint, root, out = sys.argv[1:]
torch.distributed.init_process_group('gloo')
rank = torch.distributed.get_rank()
extractor, folder = FeatureExtractor(checkpoint, blocks=[1, 3]), LabelledFolder(root)
found = folder.features(extractor, 'train', batch_size=2)
np.savez(f'{out}_{rank}.npz', labels=found.labels, **found.features)
with open(f'{out}_{rank}.json', 'w') as file:
    json.dump(run_probes(extractor, folder, k=5), file)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_give_the_scores_of_one(tmp_path, broken):
    pretrained(tmp_path / 'a.pth')
    extractor = FeatureExtractor(tmp_path / 'a.pth', blocks=[1, 3])
    root = Path(broken.paths['train'][0]).parents[2]
    (tmp_path / 'script.py').write_text(SCRIPT)
    environment = gloo_environment()
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_port']
    command += [environment['PORT'], tmp_path / 'script.py', tmp_path / 'a.pth', root, tmp_path / 'out']
    result = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    expected, scores = broken.features(extractor, 'train'), run_probes(extractor, broken, k=5)
    for rank in (0, 1):
        found = dict(np.load(tmp_path / f'out_{rank}.npz'))
        assert found.pop('labels').tolist() == expected.labels.tolist()
        assert list(found) == list(expected.features)
        for name, values in found.items():
            np.testing.assert_allclose(values, expected.features[name], rtol=1e-4, atol=1e-5)
        shared = json.loads((tmp_path / f'out_{rank}.json').read_text())
        assert shared == {name: [pytest.approx(value) for value in score] for name, score in scores.items()}
