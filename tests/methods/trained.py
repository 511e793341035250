"""A few steps of training on drawn images, and how well an encoder then knows an image again in its other view."""

import torch
import torch.nn.functional as F

from selfie_cli.data import synthetic

NUM_IMAGES = 256
BATCH = 64


def augmented(method, pixels, seed):
    """What `loss` takes, a function of the seed."""
    return method.augment(pixels, *method.draw(len(pixels), torch.Generator().manual_seed(seed)))


def train(method, *, steps):
    """The loss of each step."""
    pixels = torch.from_numpy(synthetic.draw(NUM_IMAGES, seed=0, size=16)[0])
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.03, momentum=0.9)
    losses = []
    torch.manual_seed(4)
    for step in range(steps):
        loss, _ = method.loss(*augmented(method, pixels[torch.randperm(NUM_IMAGES)[:BATCH]], step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / steps)
        losses.append(loss.item())
    return losses


def recognized(method, *, draws=4):
    """Share of the images, none of them trained on, whose other view's features are the nearest; the mean of a few."""
    pixels = torch.from_numpy(synthetic.draw(NUM_IMAGES, seed=1, size=16)[0])
    shares = []
    for seed in range(draws):
        with torch.no_grad():
            (views,) = augmented(method, pixels, 900 + seed)  # all first ones first
            first, second = method.encoder(views[: 2 * NUM_IMAGES]).mean(dim=(2, 3)).chunk(2)
        first, second = (F.normalize(features - features.mean(dim=0), dim=1) for features in (first, second))
        shares.append(((first @ second.T).argmax(dim=1) == torch.arange(NUM_IMAGES)).float().mean().item())
    return sum(shares) / draws
