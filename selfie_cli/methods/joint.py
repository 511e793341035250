"""What BYOL and SimCLR have in common: two views of each image, and an encoder that is trained behind a projector.

B  images      F, D  width of the encoder's features and of the projection      S, s  stored and network's side
"""

from torch import Generator, Tensor, nn

from selfie_cli.data.views import both_views, draw_view, random_view
from selfie_cli.methods.method import Method
from selfie_cli.models.encoder import mlp
from selfie_cli.models.resnet import ResNet, Stem, resnet


class JointEmbedding(Method):
    """`blur` and `solarize` are the shares of the first views, and of the second ones, to which that is done."""

    def __init__(
        self,
        *,
        backbone: str,
        image_size: int,
        stem: Stem,
        hidden: int,
        width: int,
        min_crop: float,
        jitter: float,
        blur: tuple[float, float],
        solarize: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.views = [
            {"min_area": min_crop, "jitter": jitter, "blur": blurred, "solarize": solarized}
            for blurred, solarized in zip(blur, solarize, strict=True)
        ]
        self.encoder = resnet(backbone, stem=stem, num_stages=4)
        self.projector = mlp(self.encoder.num_features, hidden, width)

    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """Two views' `ViewDraws`, one after the other."""
        first, second = (draw_view(num_images, generator, **view) for view in self.views)
        return *first, *second

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, S, S, 3] -> two views, float32 [B, 3, s, s] each."""
        return tuple(
            random_view(pixels, drawn, self.image_size, blur=view["blur"] > 0, solarize=view["solarize"] > 0)
            for view, drawn in zip(self.views, both_views(draws), strict=True)
        )

    def embeddings(self, images: Tensor) -> Tensor:
        """The projections: images float [B, 3, s, s] -> [B, D]."""
        return projection(self.encoder, self.projector, images)

    def export(self) -> dict[str, Tensor]:
        """The encoder alone, as `models.encoder.Encoder` takes it."""
        return {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}


def projection(encoder: ResNet, projector: nn.Module, images: Tensor) -> Tensor:
    maps: Tensor = encoder(images)  # [B, F, h, w]
    vectors: Tensor = projector(maps.mean(dim=(2, 3)))  # [B, D]
    return vectors
