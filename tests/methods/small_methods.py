"""A small one of each method, weights away from where training would start, and views."""

from typing import Any

import torch

from selfie_cli.methods.byol import Byol
from selfie_cli.methods.many_views import ManyViewSelfie
from selfie_cli.methods.selfie import Selfie
from selfie_cli.methods.simclr import SimCLR
from selfie_cli.methods.supervised import Supervised
from selfie_cli.models.classifier import Classifier

BACKBONE = "resnetv2_18_w16"
NETWORK: dict[str, Any] = {"backbone": BACKBONE, "image_size": 32}
VIEWS: dict[str, Any] = {"stem": "3x3", "hidden": 24, "width": 10, "min_crop": 0.3, "jitter": 1.0, "blur": 0.5}
PATCHES: dict[str, Any] = {
    "patch_size": 8,
    "factorized_positions": False,
    "encoder_positions": True,
    "final_norm": True,
    "apart": True,
}
SMALL_VIEWS = {"num_stages": 3, "num_views": 4, "view_scale": 0.5}
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "selfie": (Selfie, {**PATCHES, "mask_ratio": 0.25, "logit_scale": "sqrt", "flip": True}),
    "many-view selfie": (ManyViewSelfie, {**VIEWS, **SMALL_VIEWS, "attraction": 20.0, "distortion": 0.2}),
    "simclr": (SimCLR, {**VIEWS, "temperature": 0.2}),
    "byol": (Byol, {**VIEWS, "tau": 0.9, "solarize": 0.2}),
}


def make_task(name: str, **options: Any) -> Any:
    """A freshly initialized method, or labels to train with: anything that has `draw`, `augment` and `loss`."""
    torch.manual_seed(0)
    if name == "supervised":
        return Supervised(Classifier(BACKBONE, stem="3x3", num_classes=10), image_size=32, min_crop=0.5)
    method, own = METHODS[name]
    return method(**{**NETWORK, **own, **options})


def stirred(module):
    """Vectors and statistics away from their start and a target network's (convolutions start far from zero)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() < 4:
                noise = 0.1 * torch.randn(tensor.shape, generator=generator)
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return module


def views_of(num_views=2, dtype=torch.double):
    """Two or three views of six images."""
    generator = torch.Generator().manual_seed(4)
    view = torch.randn(6, 3, 16, 16, generator=generator, dtype=dtype)
    other = view.flip(3) + 0.5 * torch.randn(view.shape, generator=generator, dtype=dtype) + 0.3
    return [view, other, view.flip(2)][:num_views]


def features(encoder, images):
    """The mean of the maps of each image, naively."""
    return torch.stack([maps.sum(dim=(1, 2)) / maps[0].numel() for maps in encoder(images)])


def augmented(method, pixels, seed):
    """The arguments of `loss`, a function of the seed."""
    return method.augment(pixels, *method.draw(len(pixels), torch.Generator().manual_seed(seed)))


def check_gradients(method, loss, expected, absolute):
    """Check that both losses have the same gradients, but for absolute errors; return the norms of those of `expected`.

    Losses are taken in single precision whatever comes in, which leaves about six digits.
    """
    loss.backward()
    found = {name: parameter.grad for name, parameter in method.named_parameters()}
    method.zero_grad(set_to_none=True)
    expected.backward()
    norms = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            norms[name] = parameter.grad.norm().item()
            assert (found[name] - parameter.grad).norm() < 1e-5 * norms[name] + absolute, name
        else:
            assert found[name] is None
    return norms
