"""Selfie (Trinh, Luong, Le 2019, "Selfie: Self-supervised Pretraining for Image Embedding", arXiv 1906.02940).

    B  images      N  patches per image      K  masked ones      D  width      S, s  stored and network's side

Cut the image into patches; hide some; for every hidden place, pick the right patch among all the hidden patches of the
same image. One pass of the patch network serves both sides: visible patches as context, hidden ones as candidates.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from selfie_cli.data.augment import draw_crops, training_view
from selfie_cli.errors import UsageError
from selfie_cli.methods.many_views import ManyViewSelfie
from selfie_cli.methods.method import Method
from selfie_cli.models import patches
from selfie_cli.models.hybrid import PatchEncoder


class Selfie(PatchEncoder, Method):  # type: ignore[override]
    """A `PatchEncoder` that sees the visible patches and must tell the masked ones apart."""

    compares_images = False

    def __init__(
        self, *, mask_ratio: float, logit_scale: str, flip: bool, min_crop: float = 1.0, **network: Any
    ) -> None:
        super().__init__(**network)
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.num_masked = patches.num_masked(self.num_patches, mask_ratio)
        self.logit_scale = logit_scale
        self.flip = flip
        self.min_crop = min_crop
        # The cosine's inverse temperature starts at 10, about what raw products of trained networks come to.
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1))) if logit_scale == "cosine" else None

    @classmethod
    def from_derived(cls, derived: dict[str, Any]) -> Method:
        """Build the paper's Selfie, or the one over many small views.

        Raise UsageError for the two-view recipe of earlier versions, which can be used but no longer trained.
        """
        values = dict(derived["selfie"])
        views = values.pop("views", None)
        if views is None:
            return ManyViewSelfie.from_derived(derived)
        if views != 1:
            raise UsageError(
                "this run's recipe, two views with a softmax, is no longer trained here: resume it with the selfie-cli "
                "that wrote it, or start a new run"
            )
        return cls(**{name: derived[name] for name in ("backbone", "image_size", "patch_size")}, **values)

    def context(self, h: Tensor, visible: Tensor) -> Tensor:
        """The context u [B, D]: the output of A for the patch vectors h [B, N, D] at `visible`, int64 [B, N - K]."""
        seen = patches.gather_places(h, visible)  # [B, N - K, D]
        if self.encoder_positions:
            seen = seen + patches.gather_places(self.positions()[None], visible)
        u: Tensor = self.attention_pooling(seen)
        return u

    def draw_masks(self, num_masks: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw random places to hide and to see: int64 [M, K] and [M, N - K]."""
        return patches.random_masks(torch.rand(num_masks, self.num_patches, generator=generator), self.num_masked)

    @property
    def chance(self) -> float:
        """Pretext accuracy of a guess: 1 / K."""
        return 1 / self.num_masked

    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw the crops of `draw_crops` and the places of `draw_masks`."""
        crops = draw_crops(num_images, self.image_size, generator, flip=self.flip, min_crop=self.min_crop)
        return crops, *self.draw_masks(num_images, generator)

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [B, S, S, 3] -> float32 [B, 3, s, s], and the places to hide and to see."""
        crops, masked, visible = draws
        return training_view(pixels, crops, self.image_size, self.preprocessing), masked, visible

    def logits(self, images: Tensor, masked: Tensor, visible: Tensor) -> Tensor:
        """Score of every hidden patch for every hidden place (the right one is on the diagonal): [B, K, K].

        images float [B, 3, s, s]; masked [B, K] and visible [B, N - K] are int64 indices of places.
        """
        h = self.patch_vectors(images)  # [B, N, D]
        u = self.context(h, visible)  # [B, D]
        v = u.unsqueeze(1) + patches.gather_places(self.positions()[None], masked)  # [B, K, D]
        candidates = patches.gather_places(h, masked)  # [B, K, D]
        if self.log_temperature is not None:
            v, candidates = F.normalize(v, dim=-1), F.normalize(candidates, dim=-1)
            scale: Tensor | float = torch.exp(-self.log_temperature)
        else:
            scale = h.shape[-1] ** -0.5 if self.logit_scale == "sqrt" else 1.0
        with torch.autocast(h.device.type, enabled=False):  # a raw product of 1024 terms is too coarse in bf16
            products: Tensor = v.float() @ candidates.float().transpose(1, 2)  # [B, K, K]
        return products * scale

    def embeddings(self, images: Tensor) -> Tensor:
        """The candidates, averaged over all patches: images float [B, 3, s, s] -> [B, D]."""
        return self.patch_vectors(images).mean(dim=1)

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross entropy over all hidden places of all images; logs the share of right picks."""
        logits = self.logits(*views).float()
        right = torch.arange(self.num_masked, device=logits.device).expand(logits.shape[0], -1)
        loss = F.cross_entropy(logits.flatten(0, 1), right.flatten())
        accuracy = (logits.detach().argmax(dim=-1) == right).float().mean()
        return loss, {"pretext_accuracy": accuracy, "chance": torch.full_like(accuracy, self.chance)}
