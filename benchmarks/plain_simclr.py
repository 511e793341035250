"""SimCLR in plain PyTorch: torchvision's transforms and ResNet-50, a DataLoader, NT-Xent, fp32.

    python benchmarks/plain_simclr.py PHOTOS --batch-size 32 --steps 4

Prints the seconds of each step, waiting for data included, as a JSON list. The script uses no code of selfie.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms


class TwoViews(Dataset[tuple[Tensor, Tensor]]):
    """Two random views of each image in a folder."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([transforms.GaussianBlur(23, (0.1, 2.0))], p=0.5),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), self.transform(image)


def nt_xent(z: Tensor, temperature: float = 0.1) -> Tensor:
    z = F.normalize(z, dim=1)
    scores = z @ z.T / temperature
    scores.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z)).roll(len(z) // 2)
    return F.cross_entropy(scores, partner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    a = parser.parse_args()
    network = models.resnet50()
    network.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(
        TwoViews(a.photos), batch_size=a.batch_size, shuffle=True, num_workers=a.workers, drop_last=True
    )
    times = [time.perf_counter()]
    while len(times) <= a.steps:
        for first, second in loader:
            loss = nt_xent(network(torch.cat([first, second])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter())
            if len(times) > a.steps:
                break
    print(json.dumps([after - before for before, after in itertools.pairwise(times)]))


if __name__ == "__main__":
    main()
