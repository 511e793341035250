"""What pretraining asks of a method. One file a method; the loop and the recipes know no more of it than this."""

from abc import ABC, abstractmethod

from torch import Generator, Tensor, nn

from selfie_cli.models.resnet import ResNet
from selfie_cli.training.distributed import Group


class Method(nn.Module, ABC):
    """A network to pretrain with everything that trains it.

    `image_size` is the side in pixels of what `augment` gives. `encoder` is the network that is pretrained: images
    float [B, 3, s, s], normalized -> feature maps [B, D, h, w]. `compares_images` says that the loss tells the images
    of a batch from each other: then the batch, and what batch norm makes of it, are part of the task. `group` are the
    processes whose images make a batch together.
    """

    image_size: int
    encoder: ResNet
    compares_images = True
    group = Group()

    @abstractmethod
    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """The random numbers of a step: tensors on the CPU, a row an image."""

    @abstractmethod
    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, ...]:
        """Stored pixels, uint8 [B, S, S, 3], and what was drawn for these images -> what `loss` takes."""

    @abstractmethod
    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss, and detached scalars to log. Draws nothing but dropout, so it can be compiled.

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
