# Types of the Python interface, for editors and type checkers.
# Written by docs/generate.py. Do not edit.
# fmt: off
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Literal, overload

from PIL import Image
from torch import Tensor, nn

from selfie_cli.commands.demo import Demo
from selfie_cli.commands.doctor import Diagnosis
from selfie_cli.commands.eval import Evaluated
from selfie_cli.commands.export import Exported
from selfie_cli.commands.pretrain import Pretrained
from selfie_cli.commands.pull import Pulled
from selfie_cli.commands.push import Pushed
from selfie_cli.commands.report import Reported
from selfie_cli.commands.similar import Similar
from selfie_cli.comparison.results import Curve, Finetuned
from selfie_cli.errors import SelfieError as SelfieError
from selfie_cli.inference.outputs import Predictions, Vectors, Written

Name = str | PathLike[str]
Names = Name | Iterable[Name]
Numbers = str | float | Iterable[float]
__version__: str

def load(run: Name) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]: ...
def pretrain(
    data: Names = (), *, method: Literal['selfie', 'byol', 'simclr'] = 'selfie', recipe: Literal['best', 'paper'] =
    'best', from_: Name = 'none', backbone: Literal['resnetv2_50', 'resnetv2_18', 'resnetv2_10_w32', 'resnetv2_18_w16',
    'resnet18', 'resnet50'] | None = None, image_size: int | None = None, patch_size: int | None = None, seed: int = 0,
    steps: int | None = None, epochs: float | None = None, budget: Name | None = None, batch_size: int | None = None,
    micro_batch: int | None = None, optimizer: Literal['sgd', 'lars', 'adamw'] | None = None, lr: float | None = None,
    weight_decay: float | None = None, warmup_steps: int | None = None, hidden: int | None = None, width: int | None =
    None, temperature: float | None = None, num_stages: Literal[3, 4] | None = None, num_views: int | None = None,
    view_scale: float | None = None, min_crop: float | None = None, max_crop: float | None = None, jitter: float | None
    = None, blur: float | None = None, solarize: float | None = None, mask_ratio: float | None = None, positions:
    Literal['place', 'row-column'] | None = None, encoder_positions: bool | None = None, final_norm: bool | None = None,
    logit_scale: Literal['dot', 'sqrt', 'cosine'] | None = None, flip: bool | None = None, attraction: float | None =
    None, distortion: float | None = None, tau: float | None = None, data_root: Name = 'data', offline: bool = False,
    max_bad: float = 0.1, store: Name | None = None, store_gb: float | None = None, out: Name | None = None, overwrite:
    bool = False, resume: Name | None = None, log: Literal['tensorboard'] | None = None, report: bool = True,
    save_every: float = 60.0, device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto', precision: Literal['auto', 'fp32',
    'bf16'] = 'auto', workers: int | None = None, compile: Literal['auto', 'on', 'off'] = 'auto', deterministic: bool =
    False, quiet: bool = False,
) -> Pretrained:
    """Pretrain a network on unlabelled images: folders, files, lists, tar shards or named data sets."""
def finetune(
    *, dataset: Name | None = None, frozen: bool = False, backbone: Literal['resnetv2_50', 'resnetv2_18',
    'resnetv2_10_w32', 'resnetv2_18_w16', 'resnet18', 'resnet50'] | None = None, image_size: int | None = None,
    fraction: float = 1.0, from_: Name | None = None, seeds: int = 1, baseline: bool = True, arch: Literal['resnet',
    'hybrid'] = 'resnet', seed: int = 0, steps: int | None = None, epochs: float | None = None, budget: Name | None =
    None, batch_size: int | None = None, micro_batch: int | None = None, lr: Name | None = None, weight_decay: float =
    0.002, warmup_steps: int = 100, min_crop: float = 0.35, check_length: bool = True, data_root: Name = 'data',
    offline: bool = False, max_bad: float = 0.1, store: Name | None = None, store_gb: float | None = None, exclude_seen:
    bool = False, out: Name | None = None, overwrite: bool = False, resume: Name | None = None, log:
    Literal['tensorboard'] | None = None, report: bool = True, save_every: float = 60.0, device: Literal['auto', 'cpu',
    'cuda', 'mps'] = 'auto', precision: Literal['auto', 'fp32', 'bf16'] = 'auto', workers: int | None = None, compile:
    Literal['auto', 'on', 'off'] = 'auto', deterministic: bool = False, quiet: bool = False,
) -> Finetuned:
    """Finetune on a fraction of the labels, and compare with the same network without pretraining."""
@overload
def embed(
    paths: Names = (), *, overwrite: bool = False, strict: bool = False, from_: Name | None = None, out: None = None,
    features: Literal['whole', 'patches', 'pooled'] | None = None, device: Literal['auto', 'cpu', 'cuda', 'mps'] =
    'auto', precision: Literal['auto', 'fp32', 'bf16', 'int8'] = 'auto', workers: int | None = None, compile:
    Literal['auto', 'on', 'off'] = 'auto', batch_size: int | None = None, quiet: bool = False,
) -> Vectors: ...
@overload
def embed(
    paths: Names = (), *, overwrite: bool = False, strict: bool = False, from_: Name | None = None, out: Name, features:
    Literal['whole', 'patches', 'pooled'] | None = None, device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto',
    precision: Literal['auto', 'fp32', 'bf16', 'int8'] = 'auto', workers: int | None = None, compile: Literal['auto',
    'on', 'off'] = 'auto', batch_size: int | None = None, quiet: bool = False,
) -> Written:
    """Compute feature vectors (embeddings) of images, to stdout or a file."""
def evaluate(
    run: Name | None = None, *, dataset: Name | None = None, features: Literal['whole', 'patches', 'pooled'] | None =
    None, k: int = 20, temperature: float = 0.07, seed: int = 0, data_root: Name = 'data', offline: bool = False,
    max_bad: float = 0.1, store: Name | None = None, store_gb: float | None = None, exclude_seen: bool = False, device:
    Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto', precision: Literal['auto', 'fp32', 'bf16'] = 'auto', workers: int |
    None = None, batch_size: int = 128, quiet: bool = False,
) -> Evaluated:
    """Evaluate a run on labelled images: kNN, linear probe, pretext or test accuracy, against the untrained network."""
def demo(
    *, out: Name = 'runs/demo', overwrite: bool = False, seeds: int = 3, quiet: bool = False,
) -> Demo:
    """Run the whole workflow on generated images: offline, in minutes, on a laptop's CPU."""
@overload
def predict(
    run: Name = '', paths: Names = (), *, overwrite: bool = False, strict: bool = False, out: None = None, device:
    Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto', precision: Literal['auto', 'fp32', 'bf16'] = 'auto', workers: int |
    None = None, compile: Literal['auto', 'on', 'off'] = 'auto', batch_size: int | None = None, quiet: bool = False,
) -> Predictions: ...
@overload
def predict(
    run: Name = '', paths: Names = (), *, overwrite: bool = False, strict: bool = False, out: Name, device:
    Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto', precision: Literal['auto', 'fp32', 'bf16'] = 'auto', workers: int |
    None = None, compile: Literal['auto', 'on', 'off'] = 'auto', batch_size: int | None = None, quiet: bool = False,
) -> Written:
    """Classify images with a finetuned run."""
def curve(
    *, dataset: Name | None = None, frozen: bool = False, backbone: Literal['resnetv2_50', 'resnetv2_18',
    'resnetv2_10_w32', 'resnetv2_18_w16', 'resnet18', 'resnet50'] | None = None, image_size: int | None = None, from_:
    Names = (), fractions: Numbers = '0.05,0.2,1', seeds: Numbers = '3', seed: int = 0, steps: int | None = None,
    epochs: float | None = None, budget: Name | None = None, batch_size: int | None = None, micro_batch: int | None =
    None, lr: Name | None = None, weight_decay: float = 0.002, warmup_steps: int = 100, min_crop: float = 0.35,
    check_length: bool = True, data_root: Name = 'data', offline: bool = False, max_bad: float = 0.1, store: Name | None
    = None, store_gb: float | None = None, exclude_seen: bool = False, out: Name | None = None, overwrite: bool = False,
    resume: Name | None = None, log: Literal['tensorboard'] | None = None, report: bool = True, save_every: float =
    60.0, device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto', precision: Literal['auto', 'fp32', 'bf16'] = 'auto',
    workers: int | None = None, compile: Literal['auto', 'on', 'off'] = 'auto', deterministic: bool = False, quiet: bool
    = False,
) -> Curve:
    """Finetune on several fractions of the labels, from one or more runs, and plot accuracy against labels."""
def similar(
    query: Names = (), *, in_: Name | None = None, from_: Name | None = None, top: int = 10, duplicates: bool = False,
    threshold: float | None = None, device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto', precision: Literal['auto',
    'fp32', 'bf16'] = 'auto', workers: int | None = None, quiet: bool = False,
) -> Similar:
    """Search embedded images for those most similar to a photo, or for near-duplicates."""
def doctor(
    data: Names = (), *, time: bool = True, backbone: Literal['resnetv2_50', 'resnetv2_18', 'resnetv2_10_w32',
    'resnetv2_18_w16', 'resnet18', 'resnet50'] | None = None, data_root: Name = 'data', offline: bool = False, max_bad:
    float = 0.0, device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto', precision: Literal['auto', 'fp32', 'bf16'] =
    'auto', workers: int | None = None, quiet: bool = False,
) -> Diagnosis:
    """Check images before training: unreadable, duplicate, tiny and unusual ones, and how long training will take."""
def report(
    run: Name = '', *, dataset: Name | None = None, out: Name | None = None, overwrite: bool = False, images: int | None
    = None, data_root: Name = 'data', offline: bool = False, max_bad: float = 0.1, device: Literal['auto', 'cpu',
    'cuda', 'mps'] = 'auto', precision: Literal['auto', 'fp32', 'bf16'] = 'auto', workers: int | None = None, quiet:
    bool = False,
) -> Reported:
    """Write an HTML page about a run: what the network learned, on real images, against chance and baseline."""
def export(
    run: Name = '', *, to: Literal['timm', 'torchvision', 'onnx', 'safetensors'] | None = None, out: Name | None = None,
    overwrite: bool = False, quiet: bool = False,
) -> Exported:
    """Export a run's network for timm, torchvision, ONNX Runtime or safetensors, and print the code that loads it."""
def push(
    run: Name = '', repo: Name = '', *, private: bool | None = None, revision: Name | None = None, dry_run: bool =
    False, quiet: bool = False,
) -> Pushed:
    """Upload a run to the Hugging Face Hub: weights, config and a model card with the measured results."""
def pull(
    repo: Name = '', *, revision: Name | None = None, out: Name | None = None, overwrite: bool = False, offline: bool =
    False, quiet: bool = False,
) -> Pulled:
    """Download a run from the Hugging Face Hub into a folder, and verify it."""
