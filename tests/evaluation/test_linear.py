"""The linear probe against the definition of its minimum, and on features that are odd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from selfie_cli.errors import TrainingError
from selfie_cli.evaluation import linear
from selfie_cli.evaluation.linear import held_out_folds, linear_probe


def blobs(num, num_features=6, num_classes=3, spread=1.0, seed=0):
    """Gaussian clouds around random centres; the labels go round the classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num) % num_classes
    return centres[labels] + spread * torch.randn(num, num_features, generator=generator), labels


def every_fifth(num):
    return torch.arange(num) % 5 == 0


def standardised(features):
    return (features - features.mean(dim=0)) / features.std(dim=0, correction=0)


def probe(features, labels, unseen, *, held_out=None, num_classes=3, **options):
    """Log probabilities of the rows of `unseen`, and the strength that was chosen."""
    masks = [] if held_out is None else [held_out]
    found = linear_probe(features, labels, num_classes=num_classes, held_out=masks, **options)
    return found.log_probabilities(unseen), found.strength


@pytest.mark.parametrize("strength", [0.01, 1.0])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_at_the_minimum_the_gradient_is_zero(strength, num_classes):
    features, labels = blobs(150, num_classes=num_classes)
    found = linear_probe(features, labels, num_classes=num_classes, held_out=[], strengths=[strength])
    assert found.strength == strength
    error = found.log_probabilities(features).exp() - F.one_hot(labels, num_classes)
    weight = found.weight * features.std(dim=0, correction=0)  # of standardised features, which are penalised
    gradient = error.T @ standardised(features) / 150 + strength * weight
    # Of two classes, scikit-learn penalises the one row of weights that tells them apart.
    assert gradient[num_classes == 2 :].abs().max() < 1e-4
    assert error.mean(dim=0).abs().max() < 1e-4


@pytest.mark.parametrize("num_folds", [1, 3])
def test_the_strength_is_the_best_on_all_held_out_rows_and_then_refitted_on_all(num_folds):
    features, labels = blobs(90, num_features=40, spread=1.5, seed=1)  # of which the folds alone choose others
    folds = [(torch.arange(90) // 3) % 5 == each for each in range(num_folds)]
    x, y = standardised(features), labels.numpy()
    merits = {}
    for strength in (1.0, 1e-1, 1e-2):  # each on its own, from zero
        right, log_likelihood = 0, 0.0
        for held in folds:
            model = LogisticRegression(C=1 / (strength * int((~held).sum())), max_iter=1000, tol=1e-8)
            probability = model.fit(x[~held], y[~held]).predict_proba(x[held])
            right += np.sum(probability.argmax(axis=1) == y[held])
            log_likelihood += np.log(probability[np.arange(18), y[held]]).sum()
        merits[strength] = (right, log_likelihood)
    best = max(merits, key=lambda strength: merits[strength])

    chosen = linear_probe(features, labels, num_classes=3, held_out=folds, strengths=list(merits))
    assert chosen.strength == best
    refitted, _ = probe(features, labels, features, strengths=[best])
    torch.testing.assert_close(chosen.log_probabilities(features), refitted, atol=2e-3, rtol=0)


def test_few_labels_are_all_held_out_once_and_many_only_in_part(monkeypatch):
    monkeypatch.setattr(linear, "NUM_FOLDS", 5)
    labels = torch.tensor([0] * 10 + [1] * 7 + [2])
    folds = torch.stack(held_out_folds(labels, seed=3))
    assert folds.sum(dim=0).tolist() == [1] * 17 + [0]  # not the only image of a class
    assert folds[:, :10].sum(dim=1).tolist() == [2] * 5
    assert set(folds[:, 10:17].sum(dim=1).tolist()) == {1, 2}
    assert not torch.stack(held_out_folds(labels, seed=4)).equal(folds)
    [only] = held_out_folds(torch.arange(2500) % 10, seed=0)
    assert only.sum() == 500


def test_constant_features_count_for_nothing():
    features, labels = blobs(100)
    unseen, _ = blobs(30, seed=1)
    constant = torch.full((100, 2), 0.1)
    constant[::2, 0] = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))  # the last digit is rounding
    constant[:, 1] = 0
    plain, _ = probe(features, labels, unseen, held_out=every_fifth(100))
    elsewhere = torch.cat([unseen, torch.full((30, 2), 1e6)], dim=1)  # constant in training, not afterwards
    padded, _ = probe(torch.cat([features, constant], dim=1), labels, elsewhere, held_out=every_fifth(100))
    torch.testing.assert_close(padded, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("hide_it", [False, True])
def test_a_class_with_one_image_and_a_class_with_none(hide_it):
    features, labels = blobs(41, num_classes=4, spread=0.1)
    keep = (labels != 3) | (torch.arange(41) == 3)
    features, labels = features[keep], labels[keep]
    held_out = (every_fifth(len(labels)) & (labels != 3)) | ((labels == 3) & hide_it)
    scores, strength = probe(features, labels, features, num_classes=5, held_out=held_out)
    assert scores.isfinite().all()
    assert scores.argmax(dim=1).ne(4).all()
    fresh, _ = probe(features, labels, features, num_classes=5, strengths=[strength])
    torch.testing.assert_close(scores.exp(), fresh.exp(), atol=5e-3, rtol=0)


def test_where_there_is_nothing_to_choose():
    features, labels = torch.ones(6, 4), torch.tensor([0, 1, 1, 1, 2, 1])
    scores, _ = probe(features, labels, torch.randn(5, 4), held_out=torch.arange(6) == 1)
    assert scores.argmax(dim=1).tolist() == [1] * 5  # the majority
    scores, _ = probe(blobs(6)[0], labels.clamp(1, 1), blobs(6)[0], held_out=torch.zeros(6, dtype=torch.bool))
    assert scores.argmax(dim=1).tolist() == [1] * 6
    features, labels = blobs(3, spread=0.0)  # one image per class
    scores, strength = probe(features, labels, features, held_out=torch.zeros(3, dtype=torch.bool))
    assert (strength, scores.argmax(dim=1).tolist()) == (1e-3, [0, 1, 2])
    features[1, 2] = torch.inf
    with pytest.raises(TrainingError, match="diverged"):
        probe(features, labels, features)
