import copy

import pytest
import torch

from selfie_cli.models.classifier import Classifier
from selfie_cli.models.resnet import resnet

SMALL = "resnetv2_18_w16"


def patch_network(name=SMALL, *, stem="3x3", num_stages=3):
    """A network whose tensors differ from every fresh one's."""
    state = resnet(name, stem=stem, num_stages=num_stages).state_dict()
    return {key: tensor + 1 for key, tensor in state.items()}


@pytest.mark.parametrize(("name", "num_stages"), [(SMALL, 3), (SMALL, 4), ("resnet18", 3)])
def test_stages_are_taken_over_and_the_rest_stays(name, num_stages):
    state = patch_network(name, num_stages=num_stages)
    classifier = Classifier(name, stem="3x3", num_classes=3)
    before = copy.deepcopy(classifier.state_dict())
    classifier.take_over(state)
    after = classifier.state_dict()
    opening = "stages.3.blocks.0.norm1." if num_stages == 3 else "norm."  # the norm after three is in the fourth
    targets = {
        f"backbone.{opening + key[5:] if key.startswith('norm.') else key}": tensor for key, tensor in state.items()
    }
    assert all(after[key].equal(targets.get(key, before[key])) for key in after)
    left = after.keys() - targets.keys() - {"head.weight", "head.bias"}
    assert bool(left) == (num_stages == 3)
    assert all(key.startswith(("backbone.stages.3.", "backbone.norm.", "backbone.layer4.")) for key in left)


HOLE = {key: tensor for key, tensor in patch_network().items() if key != "stages.1.blocks.0.conv1.weight"}
ANOTHER = (patch_network("resnetv2_18"), patch_network(stem="7x7"), patch_network("resnet18"))


@pytest.mark.parametrize("state", [*ANOTHER, {}, HOLE, patch_network() | {"head.weight": torch.zeros(3)}])
def test_what_does_not_fit_is_refused(state):
    with pytest.raises(RuntimeError):
        Classifier(SMALL, stem="3x3", num_classes=3).take_over(state)
