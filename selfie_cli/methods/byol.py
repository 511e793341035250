"""BYOL (Grill et al. 2020, "Bootstrap your own latent: a new approach to self-supervised learning", arXiv 2006.07733).

    B  images      D  width of the projection      S, s  stored and network's side

Two views of each image. The online network predicts from either view what the target network, a slowly moving average
of it, makes of the other one.
"""

import copy
import math
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from selfie_cli.data.views import both_views, draw_view, random_view
from selfie_cli.methods.method import Method
from selfie_cli.models.encoder import mlp
from selfie_cli.models.resnet import ResNet, Stem, resnet


class Byol(Method):
    """The online encoder, projector and predictor, and the target's own encoder and projector.

    The views are those of the paper's appendix B if `jitter` and `blur` are 1 and `solarize` is 0.2: `blur` is the
    share of the first views that are blurred (a tenth of it of the second), `solarize` that of the second views that
    are solarized. `tau` is where the target's decay starts. With micro-batches, batch norm sees a piece at a time.
    """

    def __init__(
        self,
        *,
        backbone: str,
        image_size: int,
        stem: Stem,
        hidden: int,
        width: int,
        tau: float,
        min_crop: float,
        jitter: float,
        blur: float,
        solarize: float,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.tau = tau
        self.min_crop = min_crop
        self.jitter = jitter
        self.blur = blur
        self.solarize = solarize
        self.encoder = resnet(backbone, stem=stem, num_stages=4)
        self.projector = mlp(self.encoder.num_features, hidden, width)
        self.predictor = mlp(width, hidden, width)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """Two views' `ViewDraws`, one after the other."""
        like = {"min_area": self.min_crop, "jitter": self.jitter}
        first = draw_view(num_images, generator, **like, blur=self.blur)
        return *first, *draw_view(num_images, generator, **like, blur=0.1 * self.blur, solarize=self.solarize)

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S, 3] -> two views, float32 [B, 3, s, s] each."""
        first, second = both_views(draws)
        blur = self.blur > 0
        return (
            random_view(pixels, first, self.image_size, blur=blur, solarize=False),
            random_view(pixels, second, self.image_size, blur=blur, solarize=self.solarize > 0),
        )

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """2 - 2 cos(prediction, target), its mean over the images, summed over both directions: 0..8.

        Takes two views of the same images, float [B, 3, s, s], in the same order; logs the mean `cosine`.
        """
        view1, view2 = views
        # One pass for each view, as the authors do it: batch norm's statistics are of one kind of view at a time.
        prediction1 = self.predictor(projection(self.encoder, self.projector, view1))  # [B, D]
        prediction2 = self.predictor(projection(self.encoder, self.projector, view2))  # [B, D]
        with torch.no_grad():
            target1 = projection(self.target_encoder, self.target_projector, view1)  # [B, D]
            target2 = projection(self.target_encoder, self.target_projector, view2)  # [B, D]
        # In float32 under autocast, too: near 1, where it ends up, a cosine has no more than three digits in bf16.
        cosine1 = F.cosine_similarity(prediction1.float(), target2.float()).mean()
        cosine2 = F.cosine_similarity(prediction2.float(), target1.float()).mean()
        cosine = (cosine1 + cosine2) / 2
        return 4 - 4 * cosine, {"cosine": cosine.detach()}

    def embeddings(self, images: Tensor) -> Tensor:
        """The online projections: images float [B, 3, s, s] -> [B, D]."""
        return projection(self.encoder, self.projector, images)

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Move the target towards the online network by 1 - tau, which falls from its base to 0 on a cosine.

        Parameters only. The target normalizes by its batch, as in the authors' code, so the statistics that its batch
        norms gather on the way are used nowhere; they stay its own, since an average of weights would not have them.
        """
        share = (1 - self.tau) * (math.cos(math.pi * done) + 1) / 2
        online = chain(self.encoder.parameters(), self.projector.parameters())
        target = chain(self.target_encoder.parameters(), self.target_projector.parameters())
        torch._foreach_lerp_(list(target), list(online), share)

    def export(self) -> dict[str, Tensor]:
        """The online encoder alone, as `models.encoder.Encoder` takes it."""
        return {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}


def projection(encoder: ResNet, projector: nn.Module, view: Tensor) -> Tensor:
    maps: Tensor = encoder(view)  # [B, F, h, w]
    vectors: Tensor = projector(maps.mean(dim=(2, 3)))  # [B, D]
    return vectors
