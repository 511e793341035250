"""What pretraining asks of a method. One file a method; the loop and the recipes know no more of it than this."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from selfie_cli.models.resnet import ResNet


class Method(nn.Module, ABC):
    """A network to pretrain with everything that trains it.

    `image_size` is the side in pixels of what `augment` gives. `encoder` is the network that is pretrained: images
    float [B, 3, s, s], normalized -> feature maps [B, D, h, w].
    """

    image_size: int
    encoder: ResNet

    @abstractmethod
    def augment(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Stored pixels, uint8 [B, S, S, 3] -> what `loss` takes. Draws come from torch's default generator."""

    @abstractmethod
    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss, and detached scalars to log.

        Where the method has a pretext accuracy, they hold it as `pretext_accuracy` (0..1), and a guess's as `chance`.
        """

    @abstractmethod
    def embeddings(self, images: Tensor) -> Tensor:
        """What the loss compares, of images float [B, 3, s, s]: [B, D]. If these are all alike, nothing is learnt."""

    def after_step(self, done: float) -> None:
        """Called behind every step of the optimizer; `done` is the share of the training that lies behind, 0..1."""

    def export(self) -> dict[str, Tensor]:
        """The weights that are kept when pretraining ends."""
        return self.state_dict()
