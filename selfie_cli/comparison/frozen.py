"""Linear classifiers on frozen features: each image goes through a network once, for all shares and seeds."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from selfie_cli.comparison.arms import Arm
from selfie_cli.comparison.compare import Comparison, Design, write_labels
from selfie_cli.comparison.labels import Data, Share, take
from selfie_cli.comparison.results import ArmResult
from selfie_cli.comparison.statistics import make_arm_result, make_point
from selfie_cli.data.batches import step_seed
from selfie_cli.evaluation.linear import LinearProbe, held_out_folds, linear_probe
from selfie_cli.evaluation.metrics import topk_accuracy
from selfie_cli.inference import networks
from selfie_cli.inference.networks import Network, vectors_of
from selfie_cli.models.hybrid import AnyClassifier
from selfie_cli.runs import Run
from selfie_cli.talk import Talk
from selfie_cli.training.distributed import group
from selfie_cli.training.hardware import precisions
from selfie_cli.training.step import autocast


def compare_frozen(
    design: Design, data: Data, shares: list[Share], *, device: torch.device, precision: str, run: Run, talk: Talk
) -> Comparison:
    """Fit a linear probe for each arm, share and seed. The kept one and its network become the run's own."""
    results: list[list[ArmResult]] = [[] for _ in shares]
    rows = np.unique(np.concatenate([subset for share in shares for subset in share.subsets.values()]))
    labelled, test = take(data.train, rows), data.test
    for arm in design.arms:
        network = frozen_network(arm, data.train.pixels, seed=shares[0].seeds[0], device=device)
        with autocast(device, precisions(device, precision)[0])():
            before, after = (
                vectors_of(network, part.pixels, batch_size=networks.BATCH, talk=talk, what=f"{arm.name}: {what}")
                for what, part in (("labelled images", labelled), ("test images", test))
            )
        for share, found in zip(shares, results, strict=True):
            probes, accuracies = [], []
            for seed, subset in share.subsets.items():
                mine = torch.from_numpy(np.searchsorted(rows, subset))
                labels = labelled.labels[mine]
                folds = held_out_folds(labels, seed)
                probes.append(linear_probe(before[mine], labels, num_classes=len(data.classes), held_out=folds))
                accuracies.append(topk_accuracy(probes[-1].log_probabilities(after), test.labels))
                talk.say(f"{share.percent}, seed {seed}, {arm.name}: {accuracies[-1]:.1%}")
            result = make_arm_result(arm.name, None, accuracies, arm.called)
            found.append(dataclasses.replace(result, strengths=[probe.strength for probe in probes]))
        if arm.name == design.kept.name and group().first:
            save(network, probes[0], run)  # of the last share, which has the most labels
    points = []
    for share, arms in zip(shares, results, strict=True):
        write_labels(run, data, share)
        points.append(
            make_point(
                fraction=share.fraction,
                num_labels=share.num_labels,
                steps=0,
                seeds=share.seeds,
                rates=[],
                arms=arms,
                pairs=design.pairs,
                frozen=True,
            )
        )
    return Comparison(run=run, data=data, points=points, kept=None, device=device)


def frozen_network(arm: Arm, pixels: Tensor, *, seed: int, device: torch.device) -> Network:
    """An arm's network, untrained without a state. `pixels`, uint8 [N, S, S, 3], set its batch-norm statistics."""
    torch.manual_seed(step_seed(seed, 0))
    module = arm.make().to(device).eval()
    if arm.state is not None:
        module.encoder.load_state_dict(arm.state)
    network = Network(module, arm.shape["image_size"], "penultimate", arm.preprocessing)
    networks.estimate_batch_norm(module, network.vectors, pixels)
    return network


def save(network: Network, probe: LinearProbe, run: Run) -> None:
    """Write the network with the probe as its classifier."""
    module = network.module
    assert isinstance(module, AnyClassifier)
    module.head.load_state_dict({"weight": probe.weight, "bias": probe.bias})
    networks.save_classifier(run, module, run.derived)
