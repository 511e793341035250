"""Selfie (Trinh, Luong, Le 2019, "Selfie: Self-supervised Pretraining for Image Embedding", arXiv 1906.02940).

    B  images      N  patches an image      K  masked ones      D  width      S, s  stored and network's side

Cut the image into patches; hide some; for every hidden place, pick the right patch among all the hidden patches of the
same image. One pass of the patch network serves both sides: visible patches as context, hidden ones as candidates.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from selfie_cli.data.augment import draw_crops, training_view
from selfie_cli.data.views import ViewDraws, both_views, draw_view, random_view
from selfie_cli.methods.contrastive import find_partner, score_views
from selfie_cli.methods.method import Method
from selfie_cli.models import patches
from selfie_cli.models.encoder import mlp
from selfie_cli.models.hybrid import PatchEncoder


class SelfieNetwork(PatchEncoder, Method):  # type: ignore[override]
    """A `PatchEncoder` that is shown some of the patches, and has to say what the masked ones are."""

    def __init__(self, *, mask_ratio: float, **network: Any) -> None:
        super().__init__(**network)
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.num_masked = patches.num_masked(self.num_patches, mask_ratio)

    def context(self, h: Tensor, visible: Tensor) -> Tensor:
        """u, what A makes of the visible ones of the patch vectors h [B, N, D], int64 [B, N - K]: [B, D]."""
        seen = patches.gather_places(h, visible)  # [B, N - K, D]
        if self.encoder_positions:
            seen = seen + patches.gather_places(self.places(h), visible)
        u: Tensor = self.attention_pooling(seen)
        return u

    def places(self, h: Tensor) -> Tensor:
        """The position embeddings beside patch vectors h [B, N, D]: [B, N, D]."""
        return self.positions().expand(h.shape[0], -1, -1)  # type: ignore[no-any-return]

    def draw_masks(self, num_masks: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Places to hide and to see, each time drawn anew: int64 [M, K] and [M, N - K]."""
        return patches.random_masks(torch.rand(num_masks, self.num_patches, generator=generator), self.num_masked)


class Selfie(SelfieNetwork):
    """The paper's loss: one view, distractors from the same image."""

    compares_images = False

    def __init__(self, *, logit_scale: str, flip: bool, min_crop: float = 1.0, **network: Any) -> None:
        if logit_scale not in ("dot", "sqrt", "cosine"):
            raise ValueError(f"logit_scale {logit_scale!r}")
        super().__init__(**network)
        self.logit_scale = logit_scale
        self.flip = flip
        self.min_crop = min_crop
        # The cosine's inverse temperature starts at 10, about what raw products of trained networks come to.
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1))) if logit_scale == "cosine" else None

    @property
    def chance(self) -> float:
        """Pretext accuracy of a guess: 1 / K."""
        return 1 / self.num_masked

    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """What `draw_crops` gives, and the places to hide and to see."""
        crops = draw_crops(num_images, self.image_size, generator, flip=self.flip, min_crop=self.min_crop)
        return crops, *self.draw_masks(num_images, generator)

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [B, S, S, 3] -> float32 [B, 3, s, s], and the places to hide and to see as they were drawn."""
        crops, masked, visible = draws
        return training_view(pixels, crops, self.image_size), masked, visible

    def logits(self, images: Tensor, masked: Tensor, visible: Tensor) -> Tensor:
        """Score of every hidden patch for every hidden place (the right one is on the diagonal): [B, K, K].

        images float [B, 3, s, s]; masked [B, K] and visible [B, N - K] are int64 indices of places.
        """
        h = self.patch_vectors(images)  # [B, N, D]
        u = self.context(h, visible)  # [B, D]
        v = u.unsqueeze(1) + patches.gather_places(self.places(h), masked)  # [B, K, D]
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
        """Candidates, their mean over patches: images float [B, 3, s, s] -> [B, D]."""
        return self.patch_vectors(images).mean(dim=1)

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross entropy over all hidden places of all images; logs the share that is picked right.

        Takes what `augment` gives.
        """
        logits = self.logits(*views).float()
        right = torch.arange(self.num_masked, device=logits.device).expand(logits.shape[0], -1)
        loss = F.cross_entropy(logits.flatten(0, 1), right.flatten())
        accuracy = (logits.detach().argmax(dim=-1) == right).float().mean()
        return loss, {"pretext_accuracy": accuracy, "chance": torch.full_like(accuracy, self.chance)}


class TwoViewSelfie(SelfieNetwork):
    """The hole is another view of the image, and the distractors are all other images.

    From some cells of one view, and from where the other view lies relative to it, A's output must pick that view among
    all views of the batch. The paper's game has answers that need no notion of what is seen (a colour, a texture
    carried on); here they differ between the views, and what they have in common is the object. Views are smaller than
    the image by `view_scale`: a step costs its square, and objects, enlarged by cropping, keep the size that they have
    in whole images (Touvron et al. 2019, "Fixing the train-test resolution discrepancy", arXiv 1906.06423).

    The batch is part of the task: with micro-batches, the distractors are those of the piece.
    """

    def __init__(
        self,
        *,
        hidden: int,
        width: int,
        temperature: float,
        view_scale: float,
        min_crop: float,
        jitter: float,
        blur: float,
        **network: Any,
    ) -> None:
        super().__init__(**network)
        self.positions.requires_grad_(self.encoder_positions)  # or they take no part
        grid = self.image_size // self.patch_size
        # The cells of a view are as many as the image's patches, so its side is a multiple of theirs.
        self.cell_size = max(1, round(self.image_size * view_scale / grid))
        self.view_size = grid * self.cell_size
        self.temperature = temperature
        self.min_crop = min_crop
        self.jitter = jitter
        self.blur = blur
        d = self.width
        self.place = nn.Sequential(nn.Linear(5, 64), nn.GELU(), nn.Linear(64, d))
        self.query_head = mlp(d, hidden, width)
        self.candidate_head = mlp(d, hidden, width)

    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """Two views' `ViewDraws`, one after the other, and the cells of each that make the context."""
        like = {"min_area": self.min_crop, "jitter": self.jitter, "blur": 0.5 * self.blur}
        draws = *draw_view(num_images, generator, **like), *draw_view(num_images, generator, **like)
        _, visible = self.draw_masks(2 * num_images, generator)
        return *draws, *visible.chunk(2)

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [B, S, S, 3] -> both views of all images, float32 [2B, 3, s, s], first all first ones; the boxes that
        they show, [2B, 4]; and the cells that make their contexts, int64 [2B, N - K]."""
        both = ViewDraws(*(torch.cat(pair) for pair in zip(*both_views(draws), strict=True)))
        views = random_view(torch.cat([pixels, pixels]), both, self.view_size, blur=self.blur > 0, solarize=False)
        return views, both.boxes, torch.cat(draws[-2:])

    def logits(self, views: Tensor, boxes: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Score of each view (column) for being what the context of each view (row) asks for: [2B, 2B].

        Takes what `augment` gives, returns what `score_views` does.
        """
        num_images = len(views) // 2
        h = patches.encode(self.patch_network, views, self.cell_size, apart=self.apart)  # [2B, N, D]
        u = self.context(h, visible) + patches.gather_places(h, visible).mean(dim=1)  # [2B, D]
        place = relative_place(boxes, boxes.roll(num_images, dims=0))  # [2B, 5]
        v = self.query_head(u + self.place(place))  # [2B, E]
        return score_views(v, self.candidate_head(h.mean(dim=1)), self.temperature, self.group)

    def embeddings(self, images: Tensor) -> Tensor:
        """Candidates: images float [B, 3, s, s] -> [B, E]."""
        candidates: Tensor = self.candidate_head(self.patch_vectors(images).mean(dim=1))
        return candidates

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross entropy of the other view of the same image among all other views of the batch.

        Takes what `augment` gives; logs the share of the contexts that score the right view highest, and a guess's.
        """
        return find_partner(*self.logits(*views))


def relative_place(context: Tensor, target: Tensor) -> Tensor:
    """Where boxes lie in the frame of others, [B, 4] each as `draw_boxes` has them: [B, 5].

    Centre x and y in halves of the context's side, mirrored with it; the logarithm of how much wider and higher the
    target is; and 1 if both are mirrored or neither, else -1.
    """
    centre = (target[:, :2] - context[:, :2]) / context[:, 2:]
    scale = target[:, 2:] / context[:, 2:]
    return torch.cat([centre, scale.abs().log(), scale[:, :1].sign()], dim=1)
