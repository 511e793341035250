"""Networks for other libraries: with the tensor names of timm and torchvision, and as an ONNX graph."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from selfie_cli.models.classifier import Classifier, Encoder
from selfie_cli.models.hybrid import AnyClassifier, Hybrid
from selfie_cli.models.lean import folded, for_inference
from selfie_cli.models.resnet import FOURTH_NORM, PREACTIVATION, TORCHVISION, ResNet, carried_over, resnet

# Our networks that each library has under the same name and with the same tensors, given a 7x7 stem.
KNOWN_TO = {"timm": ("resnetv2_50", "resnetv2_18", *TORCHVISION), "torchvision": tuple(TORCHVISION)}
OPSET = 18  # torch writes this version without conversion


def why_not(derived: dict[str, Any], library: str) -> str | None:
    """The reason why a library has no network like that of a run's config; None if it has one."""
    backbone, stem = derived.get("backbone"), derived.get("stem")
    if library not in KNOWN_TO:
        return None
    if derived.get("arch") == "hybrid":
        return f"{library} has no network that ends in Selfie's attention pooling"
    if derived.get("frozen", {}).get("num_stages") == 3:
        return f"the classifier sits on three stages, and {library}'s networks have four"
    if backbone not in KNOWN_TO[library]:
        return f"{library} has no {backbone}"
    if stem != "7x7":
        return f"the network begins with a {stem} convolution, for small images, and {library}'s {backbone} with 7x7"
    return None


def as_whole_network(name: str, encoder: ResNet, head: nn.Linear | None) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state of an encoder of three or four stages, with its classifier, under the names of timm's and
    torchvision's whole network; and, sorted, the tensors of that network that `load_state_dict` will report as missing.

    timm's classifier of pre-activation networks is a 1x1 convolution: its weight is [C, F, 1, 1], elsewhere [C, F].
    """
    state = carried_over(encoder.state_dict())
    with torch.device("meta"):  # only the names are needed
        whole = resnet(name, stem="7x7", num_stages=4).state_dict()
    # If a plain dict lacks a batch norm's count of batches, torch starts it at 0 and does not report it.
    missing = sorted(name for name in whole.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    if head is not None:
        layer = "head.fc" if name in PREACTIVATION else "fc"
        weight = head.weight[:, :, None, None] if name in PREACTIVATION else head.weight
        state |= {f"{layer}.weight": weight.detach(), f"{layer}.bias": head.bias.detach()}
    return state, missing


def from_whole_network(state: dict[str, Tensor], module: Encoder | AnyClassifier) -> dict[str, Tensor]:
    """The inverse of `as_whole_network`: rename a whole network's tensors as `module` names them.

    The classifier is left out if `module` has none. A state with our names is returned as it is.
    """
    if isinstance(module, Hybrid) or any(name.startswith("backbone.") for name in state):
        return state
    if f"{FOURTH_NORM}weight" in state and "stages.3.blocks.0.conv1.weight" not in state:
        state = carried_over(state, num_stages=3)
    head, prefix = ("head.", "backbone.") if isinstance(module, Classifier) else (None, "encoder.")
    found = {}
    for name, tensor in state.items():
        if name.startswith(("fc.", "head.fc.")):
            if head is not None:
                found[head + name.rpartition(".")[2]] = tensor.flatten(1) if tensor.ndim == 4 else tensor
        else:
            found[prefix + name] = tensor
    for name in [name for name in found if name.endswith(".running_mean")]:
        found.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return found


class FeaturesAndProbabilities(nn.Module):
    """An encoder's or a classifier's inference in plain operators, its batch norms folded into convolutions."""

    def __init__(self, network: ResNet | AnyClassifier) -> None:
        super().__init__()
        self.network: nn.Module
        if isinstance(network, AnyClassifier):
            self.network, self.outputs = for_inference(network, fused=False), ["features", "probabilities"]
        else:
            self.network, self.outputs = folded(network), ["features"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, s, s], float, normalized -> features [B, D] and, of a classifier, probabilities [B, C]."""
        if not isinstance(self.network, AnyClassifier):
            return (self.network(images).mean(dim=(2, 3)),)
        features = self.network.features(images)
        return features, self.network.head(features).softmax(dim=1)


def as_onnx(network: ResNet | AnyClassifier, *, image_size: int, metadata: dict[str, str], producer: str) -> bytes:
    """An ONNX file, float32: `images` [batch, 3, s, s] -> the outputs of `FeaturesAndProbabilities`, for any batch.

    torch adds the source file of every operator; that is removed. Needs the packages onnx and onnxscript.
    """
    import onnx

    module = FeaturesAndProbabilities(network.eval()).eval()
    example = torch.zeros(2, 3, image_size, image_size)  # with one image, the batch size would be fixed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own future
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=module.outputs,
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    values = (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output)
    for part in (model, graph, *values):
        part.doc_string = ""
        del part.metadata_props[:]
    model.producer_name, _, model.producer_version = producer.partition(" ")
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
