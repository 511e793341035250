"""Small methods on views, away from where training would start, and views for them."""

import torch

from selfie_cli.methods.byol import Byol
from selfie_cli.methods.many_views import ManyViewSelfie
from selfie_cli.methods.simclr import SimCLR

TAU = 0.9
SMALL = {"backbone": "resnetv2_18_w16", "image_size": 16, "stem": "3x3", "hidden": 24, "width": 10}
VIEWS = {"min_crop": 0.3, "jitter": 1.0, "blur": 0.0}


def maker(method, **own):
    """A function of options that makes a small method, freshly initialized."""

    def make(**options):
        torch.manual_seed(0)
        return method(**(SMALL | VIEWS | own | options))

    return make


make_byol = maker(Byol, tau=TAU, solarize=0.0)
make_simclr = maker(SimCLR, temperature=0.5)
make_many_views = maker(ManyViewSelfie, attraction=20.0, distortion=0.2)
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
