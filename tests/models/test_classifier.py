import pytest
import torch

from selfie_cli.models.classifier import Classifier
from selfie_cli.models.resnet import resnet

SMALL = "resnetv2_18_w16"


def patch_network(name=SMALL, *, stem="3x3", final_norm=True, num_stages=3):
    """A network whose tensors differ from every fresh one's."""
    network = resnet(name, stem=stem, num_stages=num_stages, final_norm=final_norm)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    return network.state_dict()


def taken(before, after):
    """Names of the tensors that changed."""
    return {name for name in before if not before[name].equal(after[name])}


def clone(module):
    return {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}


def test_logits_are_a_linear_layer_on_pooled_features():
    classifier = Classifier(SMALL, stem="3x3", num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = classifier.features(images)
        assert features.shape == (2, 128)
        torch.testing.assert_close(features, classifier.backbone(images).flatten(2).mean(dim=2))
        expected = features @ classifier.head.weight.T + classifier.head.bias
        torch.testing.assert_close(classifier(images), expected)


@pytest.mark.parametrize("name", [SMALL, "resnet18"])
def test_three_stages_are_taken_over_and_the_rest_stays(name):
    state = patch_network(name)
    classifier = Classifier(name, stem="3x3", num_classes=3)
    before = clone(classifier)
    head = classifier.head.weight.clone()
    classifier.take_over(state)
    after = clone(classifier)
    fresh = {key for key in before if key.startswith(("stages.3.", "norm.", "layer4."))}
    opening = {key for key in before if key.startswith("stages.3.blocks.0.norm1.")}
    assert taken(before, after) == (before.keys() - fresh) | opening
    for key, tensor in state.items():
        target = f"stages.3.blocks.0.norm1.{key.removeprefix('norm.')}" if key.startswith("norm.") else key
        assert after[target].equal(tensor), key
    assert classifier.head.weight.equal(head)


def test_the_first_three_stages_see_a_whole_image_as_the_patch_network_does():
    network = resnet(SMALL, stem="3x3", num_stages=3).eval()
    classifier = Classifier(SMALL, stem="3x3", num_classes=3).eval()
    classifier.take_over(network.state_dict())
    seen = []
    classifier.backbone.get_submodule("stages.3.blocks.0.norm1").register_forward_hook(
        lambda module, inputs, output: seen.append(output.relu())
    )
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        classifier(images)
        torch.testing.assert_close(seen[0], network(images))


def test_a_finetuned_backbone_is_taken_over_whole():
    classifier = Classifier(SMALL, stem="3x3", num_classes=3)
    state = patch_network(num_stages=4)
    classifier.take_over(state)
    assert all(tensor.equal(state[key]) for key, tensor in clone(classifier).items())


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(patch_network("resnetv2_18"), id="another width"),
        pytest.param(patch_network(stem="7x7"), id="another stem"),
        pytest.param(patch_network("resnet18"), id="another architecture"),
        pytest.param({}, id="nothing"),
        pytest.param({k: v for k, v in patch_network().items() if k != "stages.1.blocks.0.conv1.weight"}, id="a hole"),
        pytest.param(patch_network() | {"head.weight": torch.zeros(3)}, id="too much"),
    ],
)
def test_what_does_not_fit_is_refused(state):
    with pytest.raises(RuntimeError):
        Classifier(SMALL, stem="3x3", num_classes=3).take_over(state)
