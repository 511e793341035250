"""Cross entropy on labels: what finetuning and its baseline train with."""

import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from selfie_cli.data.augment import draw_crops, training_view
from selfie_cli.models.hybrid import AnyClassifier


class Supervised(nn.Module):
    """A `classifier`, images float [B, 3, s, s] -> logits [B, C], to train on images of `image_size` with labels.

    With a `decay`, an exponential moving average of its weights and batch-norm statistics is kept, to be `judged`.
    """

    def __init__(self, classifier: AnyClassifier, *, image_size: int, min_crop: float, decay: float = 0.0) -> None:
        super().__init__()
        self.classifier = classifier
        self.average: AveragedModel | None = None
        if decay:
            update = get_ema_multi_avg_fn(decay)
            self.average = AveragedModel(classifier, multi_avg_fn=update, use_buffers=True).requires_grad_(False)
        self.image_size = image_size
        self.min_crop = min_crop

    @property
    def judged(self) -> AnyClassifier:
        judged: AnyClassifier = self.classifier if self.average is None else self.average.module  # type: ignore[assignment]
        return judged

    def after_step(self, done: float) -> None:
        if self.average is not None:
            self.average.update_parameters(self.classifier)

    def draw(self, num_images: int, generator: Generator) -> Tensor:
        """What `draw_crops` gives."""
        return draw_crops(num_images, self.image_size, generator, flip=True, min_crop=self.min_crop)

    def augment(self, pixels: Tensor, *draws: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S, 3], labels int64 [B] and what was drawn -> images float32 [B, 3, s, s], and the labels."""
        labels, crops = draws
        return training_view(pixels, crops, self.image_size), labels

    def loss(self, *views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean cross entropy of images [B, 3, s, s] and labels [B]; logs the share that is classified right."""
        images, labels = views
        logits = self.classifier(images).float()
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels), {"train_accuracy": accuracy}
