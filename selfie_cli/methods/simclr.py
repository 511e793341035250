"""SimCLR (Chen et al. 2020, "A simple framework for contrastive learning of visual representations", arXiv 2002.05709).

    B  images      D  width of the projection      S, s  stored and network's side

Two views of each image. Every view must find its partner among all other views of the batch.
"""

import torch
from torch import Generator, Tensor

from selfie_cli.data.views import both_views, draw_view, random_view
from selfie_cli.methods.contrastive import find_partner, score_views
from selfie_cli.methods.method import Method
from selfie_cli.models.encoder import mlp
from selfie_cli.models.resnet import Stem, resnet


class SimCLR(Method):
    """The encoder, the projector, and the contrastive loss NT-Xent that trains them.

    The batch is part of the task: with micro-batches, a view's negatives are those of its own piece. If `blur` is 1,
    half of the views are blurred. `jitter` is BYOL's: 1 stands for the paper's at strength 0.5, except that the
    saturation then varies by .2, not .4.
    """

    def __init__(
        self,
        *,
        backbone: str,
        image_size: int,
        stem: Stem,
        hidden: int,
        width: int,
        temperature: float,
        min_crop: float,
        jitter: float,
        blur: float,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.temperature = temperature
        self.min_crop = min_crop
        self.jitter = jitter
        self.blur = blur
        self.encoder = resnet(backbone, stem=stem, num_stages=4)
        self.projector = mlp(self.encoder.num_features, hidden, width)

    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """Two views' `ViewDraws`, one after the other."""
        like = {"min_area": self.min_crop, "jitter": self.jitter, "blur": 0.5 * self.blur}
        return *draw_view(num_images, generator, **like), *draw_view(num_images, generator, **like)

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S, 3] -> two views, float32 [B, 3, s, s] each."""
        first, second = both_views(draws)
        blur = self.blur > 0
        return (
            random_view(pixels, first, self.image_size, blur=blur, solarize=False),
            random_view(pixels, second, self.image_size, blur=blur, solarize=False),
        )

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent: cross entropy of each view's partner among the 2 B - 1 other views of the batch.

        Takes two views of the same images, float [B, 3, s, s], in the same order. Logs the share of the views whose
        partner scores highest and `chance`, that share for a guess.
        """
        z = self.embeddings(torch.cat(views))  # [2B, D]
        return find_partner(*score_views(z, z, self.temperature, self.group))

    def embeddings(self, images: Tensor) -> Tensor:
        """The projections: images float [B, 3, s, s] -> [B, D]."""
        maps: Tensor = self.encoder(images)  # [B, F, h, w]
        z: Tensor = self.projector(maps.mean(dim=(2, 3)))
        return z

    def export(self) -> dict[str, Tensor]:
        """The encoder alone, as `models.encoder.Encoder` takes it."""
        return {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
