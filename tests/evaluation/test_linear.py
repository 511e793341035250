"""The linear probe against gradient descent, and on features that are odd."""

import numpy as np
import pytest
import torch

from selfie_cli.errors import TrainingError
from selfie_cli.evaluation.linear import held_out_folds, linear_probe


def blobs(num, num_features=6, num_classes=3, spread=1.0, seed=0):
    """Gaussian clouds around random centres; the labels go round the classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num) % num_classes
    return centres[labels] + spread * torch.randn(num, num_features, generator=generator), labels


def every_fifth(num):
    return torch.arange(num) % 5 == 0


def nothing(num):
    return torch.zeros(num, dtype=torch.bool)


def standardised(features):
    return ((features - features.mean(dim=0)) / features.std(dim=0, correction=0)).double().numpy()


def probe(features, labels, unseen, *, held_out, **options):
    """Log probabilities of the rows of `unseen`, and the strength that was chosen."""
    found = linear_probe(features, labels, held_out=[held_out], **options)
    return found.log_probabilities(unseen), found.strength


def gradient_descent(x, labels, num_classes, strength):
    """Accelerated gradient descent in float64, with the gradient written out by hand."""
    target = np.eye(num_classes)[labels]
    weight, bias = np.zeros((num_classes, x.shape[1])), np.zeros(num_classes)
    ahead_w, ahead_b = weight, bias
    for step in range(2000):
        error = (probabilities(x, ahead_w, ahead_b) - target) / len(x)
        new_w = ahead_w - 0.3 * (error.T @ x + strength * ahead_w)
        new_b = ahead_b - 0.3 * error.sum(axis=0)
        momentum = step / (step + 3)
        ahead_w, ahead_b = new_w + momentum * (new_w - weight), new_b + momentum * (new_b - bias)
        weight, bias = new_w, new_b
    return weight, bias


def probabilities(x, weight, bias):
    odds = np.exp(x @ weight.T + bias)
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("strength", [0.01, 1.0])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_reaches_the_minimum_that_another_method_finds(strength, num_classes):
    features, labels = blobs(150, num_classes=num_classes)
    unseen, _ = blobs(40, num_classes=num_classes, seed=1)
    options = {"num_classes": num_classes, "held_out": nothing(150), "strengths": [strength]}
    scores, chosen = probe(features, labels, unseen, **options)
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    x, y = (((rows - mean) / std).double().numpy() for rows in (features, unseen))
    # Of two classes, scikit-learn penalises the one row of weights that tells them apart.
    penalty = strength if num_classes > 2 else 2 * strength
    expected = probabilities(y, *gradient_descent(x, labels.numpy(), num_classes, penalty))
    np.testing.assert_allclose(scores.exp(), expected, atol=2e-3)
    assert chosen == strength


@pytest.mark.parametrize("num_folds", [1, 3])
def test_the_strength_is_the_best_on_all_held_out_rows_and_then_refitted_on_all(num_folds):
    features, labels = blobs(90, num_features=40, spread=1.5)
    folds = [(torch.arange(90) // 3) % 5 == each for each in range(num_folds)]
    strengths = [1.0, 1e-1, 1e-2]
    merits = {}
    x = standardised(features)
    for strength in strengths:  # each on its own, from zero
        right, log_likelihood = 0, 0.0
        for held in (fold.numpy() for fold in folds):
            found = gradient_descent(x[~held], labels.numpy()[~held], 3, strength)
            probability = probabilities(x[held], *found)
            target = labels.numpy()[held]
            right += np.sum(probability.argmax(axis=1) == target)
            log_likelihood += np.log(probability[np.arange(18), target]).sum()
        merits[strength] = (right, log_likelihood)
    best = max(strengths, key=lambda strength: merits[strength])

    chosen = linear_probe(features, labels, num_classes=3, held_out=folds, strengths=strengths)
    assert chosen.strength == best
    refitted, _ = probe(features, labels, features, num_classes=3, held_out=nothing(90), strengths=[best])
    torch.testing.assert_close(chosen.log_probabilities(features), refitted, atol=2e-3, rtol=0)


def test_few_labels_are_all_held_out_once_and_many_only_in_part():
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
    plain, _ = probe(features, labels, unseen, num_classes=3, held_out=every_fifth(100))
    elsewhere = torch.cat([unseen, torch.full((30, 2), 1e6)], dim=1)  # constant in training, not afterwards
    both = torch.cat([features, constant], dim=1)
    padded, _ = probe(both, labels, elsewhere, num_classes=3, held_out=every_fifth(100))
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
    nothing_held = nothing(len(labels))
    fresh, _ = probe(features, labels, features, num_classes=5, held_out=nothing_held, strengths=[strength])
    torch.testing.assert_close(scores.exp(), fresh.exp(), atol=5e-3, rtol=0)


def test_without_features_or_choice_the_answer_is_the_majority():
    labels = torch.tensor([0, 1, 1, 1, 2, 1])
    scores, _ = probe(torch.ones(6, 4), labels, torch.randn(5, 4), num_classes=3, held_out=torch.arange(6) == 1)
    assert scores.argmax(dim=1).tolist() == [1] * 5
    features, _ = blobs(6)
    scores, _ = probe(features, torch.ones(6, dtype=torch.int64), features, num_classes=3, held_out=nothing(6))
    assert scores.argmax(dim=1).tolist() == [1] * 6


def test_one_image_per_class_leaves_no_strength_to_choose():
    features, labels = blobs(3, spread=0.0)
    scores, strength = probe(features, labels, features, num_classes=3, held_out=nothing(3))
    assert strength == 1e-3
    assert scores.argmax(dim=1).tolist() == [0, 1, 2]


def test_refusals():
    features, labels = blobs(10)
    features[4, 2] = torch.inf
    with pytest.raises(TrainingError, match="diverged"):
        probe(features, labels, features, num_classes=3, held_out=every_fifth(10))
