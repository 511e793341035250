"""The interface of a pretraining method. The training loop and the commands use nothing else of a method."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Generator, Tensor, nn

from selfie_cli.data.augment import OURS, Preprocessing
from selfie_cli.models.resnet import ResNet, take_over
from selfie_cli.training.distributed import Group


class Method(nn.Module, ABC):
    """A network to pretrain, with everything that trains it.

    image_size: side of the images that `augment` gives, in pixels. encoder: the network that is pretrained, from images
    float [B, 3, s, s], normalized, to feature maps [B, D, h, w]. compares_images: whether the loss compares the images
    of a batch with each other; then the batch and its batch-norm statistics are part of the task. group: the processes
    whose images make a batch together.
    """

    image_size: int
    encoder: ResNet
    compares_images = True
    group = Group()
    preprocessing: Preprocessing = OURS

    @classmethod
    def from_derived(cls, derived: dict[str, Any]) -> "Method":
        """Build the method, freshly initialized, from the `derived` section of a run's config."""
        network = {name: derived[name] for name in ("backbone", "image_size", "stem")}
        return cls(**network, **derived[derived["method"]])

    @abstractmethod
    def draw(self, num_images: int, generator: Generator) -> tuple[Tensor, ...]:
        """Draw the random numbers of a step: tensors on the CPU, one row per image."""

    @abstractmethod
    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, ...]:
        """Stored pixels, uint8 [B, S, S, 3], and the rows that `draw` gave for them -> the arguments of `loss`."""

    @abstractmethod
    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss, and detached scalars to log. It draws no random numbers but dropout's, so it can be compiled.

        If the method has a pretext accuracy, it is logged as `pretext_accuracy` (0..1), that of a guess as `chance`.
        """

    @abstractmethod
    def embeddings(self, images: Tensor) -> Tensor:
        """The vectors that the loss compares, for images float [B, 3, s, s]: [B, D]. A collapse makes all alike."""

    def start_from(self, encoder: dict[str, Tensor]) -> None:
        """Load a pretrained encoder's state: see `models.resnet.take_over`, which raises RuntimeError."""
        take_over(self.encoder, encoder)

    def after_step(self, done: float) -> None:
        """Called after each step of the optimizer; `done` is the finished share of the training, 0..1."""

    def export(self) -> dict[str, Tensor]:
        """The weights that are kept when pretraining ends."""
        return self.state_dict()
