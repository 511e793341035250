"""A few steps of training on drawn images, and how well an encoder then knows an image again in its other view."""

import torch
import torch.nn.functional as F

from selfie_cli.data import synthetic

NUM_IMAGES = 256
BATCH = 64


def train(method, *, steps):
    """The loss of each step."""
    pixels = torch.from_numpy(synthetic.draw(NUM_IMAGES, seed=0, size=16)[0])
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.03, momentum=0.9)
    losses = []
    torch.manual_seed(4)
    for step in range(steps):
        loss, _ = method.loss(*method.augment(pixels[torch.randperm(NUM_IMAGES)[:BATCH]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / steps)
        losses.append(loss.item())
    return losses


def recognized(method):
    """Share of the images, none of them trained on, whose other view's features are the nearest."""
    pixels = torch.from_numpy(synthetic.draw(NUM_IMAGES, seed=1, size=16)[0])
    torch.manual_seed(9)
    with torch.no_grad():
        views = torch.cat([each for each in method.augment(pixels) if each.dim() == 4])  # all first ones first
        first, second = method.encoder(views).mean(dim=(2, 3)).chunk(2)
    first, second = (F.normalize(features - features.mean(dim=0), dim=1) for features in (first, second))
    return ((first @ second.T).argmax(dim=1) == torch.arange(NUM_IMAGES)).float().mean().item()
