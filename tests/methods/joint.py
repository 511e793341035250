"""Small methods on views, away from where training would start, and views for them."""

import torch

from selfie_cli.methods.byol import Byol
from selfie_cli.methods.many_views import ManyViewSelfie
from selfie_cli.methods.simclr import SimCLR

TAU = 0.9
SMALL = {"backbone": "resnetv2_18_w16", "image_size": 16, "stem": "3x3", "hidden": 24, "width": 10}
VIEWS = {"min_crop": 0.3, "jitter": 1.0, "blur": 0.0}


def make_byol(**options):
    torch.manual_seed(0)
    return Byol(**(SMALL | VIEWS | {"tau": TAU, "solarize": 0.0} | options))


def make_simclr(**options):
    torch.manual_seed(0)
    return SimCLR(**(SMALL | VIEWS | {"temperature": 0.5} | options))


def make_many_views(**options):
    torch.manual_seed(0)
    return ManyViewSelfie(**(SMALL | VIEWS | {"attraction": 20.0, "distortion": 0.2} | options))


MAKERS = {"byol": make_byol, "simclr": make_simclr, "many views": make_many_views}


def stirred(method):
    """Every parameter away from its start and from its counterpart's in a target network."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method


def two_views(num_images=6, dtype=torch.double):
    generator = torch.Generator().manual_seed(2)
    view = torch.randn(num_images, 3, 16, 16, generator=generator, dtype=dtype)
    return view, view.flip(3) + 0.5 * torch.randn(view.shape, generator=generator, dtype=dtype) + 0.3


def gradients_of(method, loss):
    """By parameter; the method's own are gone afterwards."""
    loss.backward()
    found = {name: parameter.grad for name, parameter in method.named_parameters()}
    method.zero_grad(set_to_none=True)
    return found
