"""Cross entropy on labels, for finetuning and its baseline."""

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from selfie_cli.data.augment import OURS, Preprocessing, draw_crops, training_view


class Supervised:
    """A `classifier`, images float [B, 3, s, s] -> logits [B, C], to train on images of `image_size` with labels."""

    def __init__(
        self, classifier: nn.Module, *, image_size: int, min_crop: float, preprocessing: Preprocessing = OURS
    ) -> None:
        self.classifier = classifier
        self.image_size = image_size
        self.min_crop = min_crop
        self.preprocessing = preprocessing

    def draw(self, num_images: int, generator: Generator) -> Tensor:
        """See `draw_crops`."""
        return draw_crops(num_images, self.image_size, generator, flip=True, min_crop=self.min_crop)

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S, 3], labels int64 [B] and draws -> images float32 [B, 3, s, s], and the labels."""
        labels, crops = draws
        return training_view(pixels, crops, self.image_size, self.preprocessing), labels

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean cross entropy of images [B, 3, s, s] and labels [B]; logs the training accuracy."""
        images, labels = views
        logits = self.classifier(images).float()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels), {"train_accuracy": accuracy}
