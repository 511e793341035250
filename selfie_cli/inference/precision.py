"""The precision in which a job computes: float32, bf16, or 8-bit integers."""

from collections.abc import Callable

import torch
from torch import Tensor

from selfie_cli.errors import UsageError
from selfie_cli.hardware import bf16_pays, has_vnni
from selfie_cli.inference.networks import Network
from selfie_cli.talk import Talk

Compute = Callable[[Network, Tensor], Tensor]
"""Stored pixels, uint8 [B, S, S, 3], on the network's device -> float32 [B, D]: `Network.vectors` or the like."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHORT_JOB = 32
"""Number of images up to which comparing bf16 with float32 would take longer than it saves."""
COMPARED = 8
"""Number of images on which a precision is compared with float32."""
CALIBRATION = 32
"""Number of images from which the ranges of 8-bit integers are taken."""
SAME_DIRECTION = 0.999
"""Lowest cosine to the float32 vectors at which "auto" takes bf16."""
USABLE = 0.99
"""Cosine to the float32 vectors below which int8 gives a warning."""


def with_precision(
    network: Network, compute: Compute, asked: str, num_images: int, first: Callable[[int], Tensor], talk: Talk
) -> tuple[Network, str]:
    """The network prepared for inference, and the name of the precision it computes in.

    `asked` "auto" is bf16 if the hardware has it, the job is long enough, and the first images' vectors stay the same.
    `first` gives the first readable images, as many as asked for at most, uint8 [N, S, S, 3].

    Raises UsageError for int8 on hardware that lacks it.
    """
    if asked in DTYPES:
        return network.lean(DTYPES[asked]), asked
    if asked == "int8":
        if not has_vnni(network.device):
            raise UsageError("--precision int8 needs a CPU with VNNI: leave it out, or take bf16")
        sample = first(CALIBRATION)
        lean = network.in_int8(sample)
        sample = sample[:COMPARED]
        cosine = lowest_cosine(network, lean, compute, sample)
        talk.say(f"precision: int8; the cosine to fp32 is at least {cosine:.6f} on the first {len(sample)} images")
        if cosine < USABLE:
            talk.warn(f"int8 changes this network's vectors notably (cosine {cosine:.4f}): take bf16 or fp32")
        return lean, asked
    if not bf16_pays(network.device) or num_images <= SHORT_JOB:
        return network.lean(torch.float32), "fp32"
    sample = first(COMPARED)
    lean = network.lean(torch.bfloat16)
    cosine = lowest_cosine(network, lean, compute, sample)
    same = cosine >= SAME_DIRECTION
    talk.say(
        f"precision: {'bf16' if same else 'fp32'}; in bf16 the cosine to fp32 is at least {cosine:.6f} on the first "
        f"{len(sample)} images{'' if same else f', below {SAME_DIRECTION}'}"
    )
    return (lean, "bf16") if same else (network.lean(torch.float32), "fp32")


def lowest_cosine(network: Network, lean: Network, compute: Compute, sample: Tensor) -> float:
    """The lowest cosine between two networks' vectors of an image of `sample`, uint8 [N, S, S, 3]."""
    cosines = torch.nn.functional.cosine_similarity(compute(network, sample), compute(lean, sample))
    return cosines.min().item()
