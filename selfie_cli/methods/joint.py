"""The base class of methods that compare several random views of each image.

B  images      V  views per image      F, D  width of the encoder's features and of the projection
S, s  stored side and side of a view, in pixels
"""

import torch
from torch import Generator, Tensor, nn

from selfie_cli.data.views import View, ViewDraws
from selfie_cli.methods.method import Method
from selfie_cli.models.resnet import ResNet, Stem, resnet


class JointEmbedding(Method):
    """An encoder that is trained behind a projector.

    `num_stages` is the number of stages of the encoder, 3 or 4. `view_scale` is the side of a view relative to the
    image's. `augmentation` has the fields of `View`; a tuple gives a value to each view in turn. Each parameter is a
    setting in a run's config.
    """

    def __init__(
        self,
        *,
        backbone: str,
        image_size: int,
        stem: Stem,
        num_stages: int = 4,
        num_views: int = 2,
        view_scale: float = 1.0,
        hidden: int,
        width: int,
        **augmentation: float | tuple[float, ...],
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.view_size = max(1, round(image_size * view_scale))
        each = {name: value if isinstance(value, tuple) else (value,) for name, value in augmentation.items()}
        self.views = [
            View(**{name: values[view % len(values)] for name, values in each.items()}) for view in range(num_views)
        ]
        self.encoder = resnet(backbone, stem=stem, num_stages=num_stages)
        self.projector = mlp(self.encoder.num_features, hidden, width)

    @property
    def num_views(self) -> int:
        """V."""
        return len(self.views)

    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw the fields of `ViewDraws`, each [B, V, ...]."""
        drawn = [view.draw(num_images, generator) for view in self.views]
        return tuple(torch.stack(field, dim=1) for field in zip(*drawn, strict=True))

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor]:
        """uint8 [B, S, S, 3] -> the views, float32 [V * B, 3, s, s]: the first view of every image, then the second."""
        views = [
            view.apply(pixels, ViewDraws(*(field[:, index] for field in draws)), self.view_size, self.preprocessing)
            for index, view in enumerate(self.views)
        ]
        return (torch.cat(views),)  # [V * B, 3, s, s]

    def embeddings(self, images: Tensor) -> Tensor:
        """The projections: images float [B, 3, s, s] -> [B, D]."""
        return projection(self.encoder, self.projector, images)

    def export(self) -> dict[str, Tensor]:
        """The encoder only, as `models.classifier.Encoder` takes it."""
        return {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}


def mlp(width_in: int, hidden: int, width: int) -> nn.Sequential:
    """The two layers of a projector or predictor: [B, width_in] -> [B, width]. The second one has no bias."""
    return nn.Sequential(
        nn.Linear(width_in, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width, bias=False)
    )


def projection(encoder: ResNet, projector: nn.Module, images: Tensor) -> Tensor:
    maps: Tensor = encoder(images)  # [B, F, h, w]
    vectors: Tensor = projector(maps.mean(dim=(2, 3)))  # [B, D]
    return vectors
