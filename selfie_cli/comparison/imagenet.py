"""The usual yardstick: torchvision's ImageNet weights. Theirs are pickles; the Hub has the same ones as safetensors."""

from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from selfie_cli import hub
from selfie_cli.comparison.arms import Arm
from selfie_cli.errors import WeightsError
from selfie_cli.models.resnet import resnet
from selfie_cli.recipes import PRETRAININGS
from selfie_cli.talk import Talk

IMAGENET = {"pretraining": "imagenet", "pretrained_by": PRETRAININGS["imagenet"]}


def imagenet_arm(shape: dict[str, Any], *, offline: bool, talk: Talk) -> Arm:
    """An arm beside networks of `shape`: torchvision's network that is about as large."""
    network = "resnet50" if shape["backbone"].endswith("50") else "resnet18"
    return Arm(
        name=f"imagenet-{network}",
        shape={**shape, **IMAGENET, "backbone": network, "stem": "7x7"},
        state=imagenet_weights(network, offline=offline, talk=talk),
    )


def imagenet_weights(network: str, *, offline: bool, talk: Talk) -> dict[str, Tensor]:
    """The state of torchvision's resnet18 or resnet50 with a 7x7 stem, without its last layer.

    Raises HubError if they cannot be fetched, or are not there with `offline`; WeightsError if they do not fit.
    """
    file = hub.fetch(hub.Address(f"timm/{network}.tv_in1k"), "model.safetensors", offline=offline, talk=talk)
    address = hub.Address(f"timm/{network}.tv_in1k").at(file)
    talk.say(f"ImageNet weights: {address}, torchvision's")
    try:
        tensors = safetensors.torch.load_file(file)
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
        for name in [name for name in state if name.endswith("running_mean")]:
            state.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
        resnet(network, stem="7x7", num_stages=4).load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise WeightsError(f"{address} does not hold torchvision's {network}: {reason}") from None
    return state
