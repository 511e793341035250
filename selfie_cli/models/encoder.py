"""The network that methods on views pretrain."""

from torch import Tensor, nn

from selfie_cli.models.resnet import Stem, resnet


class Encoder(nn.Module):
    """Three or four stages on whole images and average pooling: the part that a run on views keeps."""

    def __init__(self, backbone: str, *, stem: Stem, num_stages: int = 4, final_norm: bool = True) -> None:
        super().__init__()
        self.encoder = resnet(backbone, stem=stem, num_stages=num_stages, final_norm=final_norm)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S], float, normalized -> pooled features [B, F]."""
        maps: Tensor = self.encoder(images)  # [B, F, h, w]
        return maps.mean(dim=(2, 3))
