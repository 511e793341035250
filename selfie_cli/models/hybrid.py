"""Convolution, then attention: the network that Selfie pretrains, and the paper's way to finetune it (Trinh, Luong, Le
2019, section 3.2).

B  images      N  patches per image      D  width of the third stage      C  classes      S  image side in pixels
"""

from typing import Any

from torch import Tensor, nn

from selfie_cli.models.attention import AttentionPooling, Positions
from selfie_cli.models.classifier import Classifier
from selfie_cli.models.patches import encode
from selfie_cli.models.resnet import ResNet, resnet, stem_for


class PatchEncoder(nn.Module):
    """The patch network P, the attention pooling A and the position embeddings.

    If `apart`, P sees each patch by itself, as in the paper; otherwise P sees the whole image, and its feature map is
    averaged within each patch's cell.
    """

    def __init__(
        self,
        backbone: str,
        *,
        image_size: int,
        patch_size: int,
        factorized_positions: bool,
        encoder_positions: bool,
        final_norm: bool,
        apart: bool,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.patch_size = patch_size
        self.encoder_positions = encoder_positions
        self.apart = apart
        self.patch_network = resnet(backbone, stem=stem_for(patch_size), num_stages=3, final_norm=final_norm)
        self.width = self.patch_network.num_features
        self.attention_pooling = AttentionPooling(self.width)
        self.positions = Positions(image_size // patch_size, self.width, factorized=factorized_positions)

    @property
    def encoder(self) -> ResNet:
        return self.patch_network

    def patch_vectors(self, images: Tensor) -> Tensor:
        """P on every patch: float [B, 3, S, S] -> [B, N, D]."""
        return encode(self.patch_network, images, self.patch_size, apart=self.apart)

    def features(self, images: Tensor) -> Tensor:
        """The attention-pooled vector u with every patch visible: float [B, 3, S, S], normalized -> [B, D]."""
        h = self.patch_vectors(images)
        u: Tensor = self.attention_pooling(h + self.positions() if self.encoder_positions else h)
        return u


class Hybrid(PatchEncoder):
    """P, with A in place of a fourth stage, and one linear layer. Its features are Selfie's pooled vectors."""

    def __init__(self, backbone: str, *, num_classes: int, **network: Any) -> None:
        super().__init__(backbone, **network)
        self.positions.requires_grad_(self.encoder_positions)  # unused otherwise
        self.head = nn.Linear(self.width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S], float, normalized -> logits [B, C]."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def take_over(self, pretrained: dict[str, Tensor]) -> None:
        """Load P, A and the positions from a Selfie's state. The head keeps its random weights; tensors that only
        pretraining needs are left out.

        Raises RuntimeError if a tensor is missing or of another shape.
        """
        names = self.state_dict().keys()
        own = {name: tensor for name, tensor in pretrained.items() if name in names}
        missing, _ = self.load_state_dict(own, strict=False)
        if left_out := [name for name in missing if not name.startswith("head.")]:
            raise RuntimeError(f"weights do not fit: missing {left_out[:3]}")


AnyClassifier = Classifier | Hybrid
