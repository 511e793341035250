"""Selfie (Trinh, Luong, Le 2019, "Selfie: Self-supervised Pretraining for Image Embedding", arXiv 1906.02940).

    B  images      N  patches an image      K  masked ones      D  width      S, s  stored and network's side

Cut the image into patches; hide some; for every hidden place, pick the right patch among all the hidden patches of the
same image. One pass of the patch network serves both sides: visible patches as context, hidden ones as candidates.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfie_cli.data.augment import training_view
from selfie_cli.models import patches
from selfie_cli.models.attention import AttentionPooling, Positions
from selfie_cli.models.resnet import resnet, stem_for


class Selfie(nn.Module):
    """The patch network P, the attention pooling A, the position embeddings, and the loss that trains them."""

    def __init__(
        self,
        *,
        backbone: str,
        image_size: int,
        patch_size: int,
        mask_ratio: float,
        factorized_positions: bool,
        encoder_positions: bool,
        final_norm: bool,
        logit_scale: str,
        flip: bool,
        min_crop: float,
    ) -> None:
        super().__init__()
        if logit_scale not in ("dot", "sqrt", "cosine"):
            raise ValueError(f"logit_scale {logit_scale!r}")
        grid = image_size // patch_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_masked = patches.num_masked(grid * grid, mask_ratio)
        self.encoder_positions = encoder_positions
        self.logit_scale = logit_scale
        self.flip = flip
        self.min_crop = min_crop
        self.patch_network = resnet(backbone, stem=stem_for(patch_size), num_stages=3, final_norm=final_norm)
        width = self.patch_network.num_features
        self.attention_pooling = AttentionPooling(width)
        self.positions = Positions(grid, width, factorized=factorized_positions)
        # The cosine's inverse temperature starts at 10, about what raw products of trained networks come to.
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1))) if logit_scale == "cosine" else None

    @property
    def chance(self) -> float:
        """Pretext accuracy of a guess: 1 / K."""
        return 1 / self.num_masked

    def augment(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, s, s]. Random numbers come from torch's default generator."""
        return training_view(pixels, self.image_size, flip=self.flip, min_crop=self.min_crop)

    def patch_vectors(self, images: Tensor) -> Tensor:
        """P on every patch by itself, averaged over space: float [B, 3, s, s] -> [B, N, D]."""
        cells = patches.cut(images, self.patch_size)  # [B * N, 3, p, p]
        h: Tensor = self.patch_network(cells).mean(dim=(2, 3))  # [B * N, D]
        return h.view(images.shape[0], -1, h.shape[-1])  # [B, N, D]

    def logits(self, images: Tensor, masked: Tensor, visible: Tensor) -> Tensor:
        """Score of every hidden patch for every hidden place (the right one is on the diagonal): [B, K, K].

        images float [B, 3, s, s]; masked [B, K] and visible [B, N - K] are int64 indices of places.
        """
        h = self.patch_vectors(images)  # [B, N, D]
        places = self.positions().expand(h.shape[0], -1, -1)  # [B, N, D]
        context = patches.gather_places(h, visible)  # [B, N - K, D]
        if self.encoder_positions:
            context = context + patches.gather_places(places, visible)
        u = self.attention_pooling(context)  # [B, D]
        v = u.unsqueeze(1) + patches.gather_places(places, masked)  # [B, K, D]
        candidates = patches.gather_places(h, masked)  # [B, K, D]
        if self.log_temperature is not None:
            v, candidates = F.normalize(v, dim=-1), F.normalize(candidates, dim=-1)
            scale = torch.exp(-self.log_temperature)
        else:
            scale = torch.tensor(h.shape[-1] ** -0.5 if self.logit_scale == "sqrt" else 1.0)
        with torch.autocast(h.device.type, enabled=False):  # a raw product of 1024 terms is too coarse in bf16
            products: Tensor = v.float() @ candidates.float().transpose(1, 2)  # [B, K, K]
        return products * scale

    def draw_masks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Places to hide and to see for each image by itself: int64 [B, K] and [B, N - K]."""
        num_patches = (self.image_size // self.patch_size) ** 2
        masked, visible = patches.random_masks(torch.rand(images.shape[0], num_patches), self.num_masked)
        return masked.to(images.device), visible.to(images.device)

    def loss(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross entropy over all hidden places of all images [B, 3, s, s], and the pretext accuracy (0..1).

        Masks are drawn for each image by itself, from torch's default generator.
        """
        logits = self.logits(images, *self.draw_masks(images)).float()
        right = torch.arange(self.num_masked, device=logits.device).expand(logits.shape[0], -1)
        loss = F.cross_entropy(logits.flatten(0, 1), right.flatten())
        accuracy = (logits.detach().argmax(dim=-1) == right).float().mean()
        return loss, {"pretext_accuracy": accuracy}

    def pooled(self, images: Tensor) -> Tensor:
        """The attention-pooled vector u with every patch visible: float [B, 3, s, s] -> [B, D]."""
        h = self.patch_vectors(images)
        u: Tensor = self.attention_pooling(h + self.positions() if self.encoder_positions else h)
        return u
