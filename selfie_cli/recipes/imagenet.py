"""The usual yardstick: torchvision's ImageNet weights. Theirs are pickles; the Hub has the same ones as safetensors."""

from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from selfie_cli.errors import WeightsError
from selfie_cli.models.resnet import resnet
from selfie_cli.recipes.cells import Arm
from selfie_cli.talk import Talk

SIZES = {"resnet18": "47 MB", "resnet50": "102 MB"}


def imagenet_arm(shape: dict[str, Any], *, offline: bool, talk: Talk) -> Arm:
    """An arm beside networks of `shape`: torchvision's network that is about as large."""
    network = "resnet50" if shape["backbone"].endswith("50") else "resnet18"
    return Arm(
        name=f"imagenet-{network}",
        shape={**shape, "pretraining": "imagenet", "backbone": network, "stem": "7x7"},
        state=imagenet_weights(network, offline=offline, talk=talk),
    )


def imagenet_weights(network: str, *, offline: bool, talk: Talk) -> dict[str, Tensor]:
    """The state of torchvision's resnet18 or resnet50 with a 7x7 stem, without its last layer.

    Raises WeightsError if they cannot be fetched, are not there with `offline`, or do not fit.
    """
    import huggingface_hub
    from huggingface_hub.constants import ENDPOINT

    repository = f"timm/{network}.tv_in1k"
    host = ENDPOINT.partition("://")[2]
    if not offline:
        talk.say(f"taking {repository} (about {SIZES[network]}, torchvision's ImageNet weights) from {host}")
    try:
        file = huggingface_hub.hf_hub_download(
            repository, "model.safetensors", revision="main", local_files_only=offline
        )
    except Exception as error:  # the client raises its own errors, those of its HTTP library and of the system
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"{repository} could not be taken from {host} ({reason}): check the connection"
        if offline:
            what = f"{repository} is not in the Hub's cache here: run once without --offline"
        raise WeightsError(f"{what}, or leave --compare imagenet out") from error
    try:
        tensors = safetensors.torch.load_file(file)
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
        for name in [name for name in state if name.endswith("running_mean")]:
            state.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
        resnet(network, stem="7x7", num_stages=4).load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise WeightsError(f"{file} does not hold torchvision's {network}: {reason}") from None
    return state
