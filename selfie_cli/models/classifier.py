"""ResNets on whole images: for features, and with a linear classifier for finetuning and predict."""

from torch import Tensor, nn

from selfie_cli.models.resnet import ResNet, Stem, resnet, take_over


class Encoder(nn.Module):
    """Three or four stages on whole images and average pooling: the part of a network on views that a run keeps."""

    def __init__(self, backbone: str, *, stem: Stem, num_stages: int = 4, final_norm: bool = True) -> None:
        super().__init__()
        self.encoder = resnet(backbone, stem=stem, num_stages=num_stages, final_norm=final_norm)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S], float, normalized -> pooled features [B, F]."""
        maps: Tensor = self.encoder(images)  # [B, F, h, w]
        return maps.mean(dim=(2, 3))


class Classifier(nn.Module):
    """Four stages on whole images (three for a frozen encoder of three), average pooling, one linear layer."""

    def __init__(
        self, backbone: str, *, stem: Stem, num_classes: int, num_stages: int = 4, final_norm: bool = True
    ) -> None:
        super().__init__()
        self.backbone = resnet(backbone, stem=stem, num_stages=num_stages, final_norm=final_norm)
        self.head = nn.Linear(self.backbone.num_features, num_classes)

    @property
    def encoder(self) -> ResNet:
        return self.backbone

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S], float, normalized -> pooled features [B, F]."""
        maps: Tensor = self.backbone(images)  # [B, F, h, w]
        return maps.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S], float, normalized -> logits [B, C]."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def take_over(self, pretrained: dict[str, Tensor]) -> None:
        """Start from a pretrained network's stages: see `models.resnet.take_over`, which raises RuntimeError."""
        take_over(self.backbone, pretrained)
