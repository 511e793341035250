"""Networks of runs, rebuilt from config and weights, and their results for pixels in memory."""

import contextlib
import dataclasses
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.overrides import TorchFunctionMode

from selfie_cli import config, schema
from selfie_cli.data.augment import OURS, Preprocessing, plain_view
from selfie_cli.data.splits import permutation
from selfie_cli.errors import DataError, RunError, UsageError, WeightsError, is_out_of_memory
from selfie_cli.files import sha256_of
from selfie_cli.foreign import IMAGENET
from selfie_cli.methods.method import Method
from selfie_cli.models.classifier import Classifier, Encoder
from selfie_cli.models.hybrid import AnyClassifier, Hybrid, PatchEncoder
from selfie_cli.models.lean import for_inference
from selfie_cli.models.portable import from_whole_network
from selfie_cli.models.quantized import quantized
from selfie_cli.recipes import METHODS, cuts_patches, num_stages
from selfie_cli.runs import Run
from selfie_cli.talk import Talk, counted
from selfie_cli.training.distributed import group
from selfie_cli.weights import load_weights, read_tensors, save_weights

Pretrained = Method | Encoder
BATCH = 128
BATCH_NORM_IMAGES = 2048
"""Number of images for batch-norm statistics, which settle within about a thousand."""


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode. `features` names the vectors it returns: whole, patches, pooled or penultimate."""

    module: Pretrained | AnyClassifier
    image_size: int
    features: str
    preprocessing: Preprocessing = OURS

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def storage_size(self) -> int:
        """S, the side of the stored pixels that it takes."""
        return self.preprocessing.storage_size(self.image_size)

    @property
    def width(self) -> int:
        """D, the number of features of a vector."""
        return self.module.encoder.num_features

    @torch.no_grad()
    def vectors(self, pixels: Tensor) -> Tensor:
        """Stored pixels, uint8 [B, S, S, 3], on the network's device -> float32 [B, D]."""
        images, module = plain_view(pixels, self.image_size, self.preprocessing), self.module
        if self.features == "whole":
            return pooled_maps(module, images)
        if self.features == "patches":
            assert isinstance(module, PatchEncoder)
            return module.patch_vectors(images).mean(dim=1).float()
        assert isinstance(module, Classifier | PatchEncoder)
        return module.features(images).float()

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """A classifier's probabilities for stored pixels, uint8 [B, S, S, 3], on its device: float32 [B, C]."""
        scores: Tensor = self.module(plain_view(pixels, self.image_size, self.preprocessing))
        return scores.float().softmax(dim=1)

    def lean(self, dtype: torch.dtype, *, compiled: bool = False) -> "Network":
        """The same network made for inference: see `models.lean.for_inference`."""
        return dataclasses.replace(self, module=for_inference(self.module, dtype, compiled=compiled))

    def in_int8(self, pixels: Tensor) -> "Network":
        """The same network in 8 bits, calibrated on `pixels`, uint8 [N, S, S, 3]: see `models.quantized`."""

        def run(module: Any) -> None:
            network = dataclasses.replace(self, module=module)
            for batch in pixels.split(images_at_once(self.device, self.image_size)):
                network.vectors(batch)

        return dataclasses.replace(self, module=quantized(self.module, run))


def pooled_maps(module: Pretrained | AnyClassifier, images: Tensor) -> Tensor:
    """The encoder over whole images, float [B, 3, s, s], averaged over space: float32 [B, D]."""
    maps: Tensor = module.encoder(images)  # [B, D, h, w]
    return maps.mean(dim=(2, 3)).float()


def build(derived: dict[str, Any]) -> Pretrained | AnyClassifier:
    """A freshly initialized network for the weights that a run keeps. Raises RunError if `derived` is incomplete."""
    with describing(derived):
        if keeps_patches(derived):
            return build_method(derived)
        if derived["method"] != "finetune":
            closed = derived.get("weights", {}).get("final_norm", True)
            stages = {"num_stages": num_stages(derived), "final_norm": closed}
            return Encoder(derived["backbone"], stem=derived["stem"], **stages)
        num_classes = len(derived["classes"])
        if derived.get("arch") == "hybrid":
            own = {"image_size": derived["image_size"], **derived["hybrid"]}
            return Hybrid(derived["backbone"], num_classes=num_classes, **own)
        return Classifier(
            derived["backbone"], stem=derived["stem"], num_classes=num_classes, **derived.get("frozen", {})
        )


def keeps_patches(derived: dict[str, Any]) -> bool:
    """Whether a run keeps the patch network with its attention pooling: only the paper's Selfie does."""
    return derived["method"] == "selfie" and cuts_patches(derived["selfie"])


def build_method(derived: dict[str, Any]) -> Method:
    """A freshly initialized method with everything that trains it. Raises RunError as `build` does.

    Raises UsageError for a method that can be used but no longer trained.
    """
    with describing(derived):
        kind: type[Method] = pkgutil.resolve_name(METHODS[derived["method"]].code)
        method = kind.from_derived(derived)
        method.preprocessing = Preprocessing.of(derived)
        return method


@contextlib.contextmanager
def describing(derived: dict[str, Any]) -> Iterator[None]:
    """Raise RunError if `derived` describes no network, or one of implausible size, or if building it fails.

    Any error in the context counts as an error in the config, unless memory runs out.
    """
    try:
        schema.check_network(derived)
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise RunError(f"the run's config.json does not describe a network of selfie's: {error!r}") from None


def choose_features(derived: dict[str, Any], features: str | None) -> str:
    """Return the features to compute. Raises UsageError if the network has no such features."""
    if features is not None and features not in get_args(config.Features):
        raise UsageError(f"no network has features {features!r}")
    if features is not None and not keeps_patches(derived):
        raise UsageError("--features is for Selfie's --recipe paper; other networks have one kind of vector")
    return "penultimate" if derived["method"] == "finetune" else features or "whole"


class WithoutInitialization(TorchFunctionMode):
    """Skip random initialization: on the meta device, torch would import its compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_module(run: Run) -> Pretrained | AnyClassifier:
    """The run's network with its weights. Raises WeightsError if they do not fit the config."""
    weights, _ = read_tensors(run.weights) if run.is_foreign else load_weights(run.weights)
    if run.derived.get("method") == "selfie" and not keeps_patches(run.derived):
        # Only the patch network of two-view runs of version 1 is used.
        renamed = {name.replace("patch_network.", "encoder.", 1): tensor for name, tensor in weights.items()}
        weights = {name: tensor for name, tensor in renamed.items() if name.startswith("encoder.")}
    with torch.device("meta"), WithoutInitialization():  # a malicious config cannot allocate memory
        module = build(run.derived)
    if run.is_foreign and not isinstance(module, Method):
        weights = from_whole_network(weights, module)
    wanted = module.state_dict()
    unlike = f"{run.weights} does not fit {run.path / 'config.json'}"
    if run.is_foreign:
        unlike = f"{run} does not hold {run.derived['backbone']}; selfie reads {', '.join(IMAGENET)}"
    if others := sorted(weights.keys() ^ wanted.keys()):
        raise WeightsError(f"{unlike}: they differ in {counted(len(others), 'name')}, the first is {others[0]}")
    for name, tensor in weights.items():
        found, expected = (f"{each.dtype} {list(each.shape)}" for each in (tensor, wanted[name]))
        if found != expected:
            raise WeightsError(f"{unlike}: {name} is {found}, not {expected}")
        if not tensor.isfinite().all():
            raise WeightsError(f"{run.weights} is damaged: {name} holds values that are not finite")
    module.load_state_dict(weights, assign=True)
    return module.to(memory_format=torch.channels_last)


def load_network(run: Run, *, features: str | None, device: torch.device) -> Network:
    """The run's network on a device. Raises as `load_module` and `choose_features` do."""
    module = load_module(run).to(device).eval()
    features = choose_features(run.derived, features)
    return Network(module, int(run.derived["image_size"]), features, Preprocessing.of(run.derived))


def estimate_batch_norm(module: nn.Module, forward: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
    """Set the statistics of batch norms to their average over `forward` on some of `pixels`, uint8 [N, S, S, 3].

    Batches are drawn from all images, because these are often sorted by class. The module stays in its mode.
    """
    some = torch.from_numpy(permutation(len(pixels), 0)[:BATCH_NORM_IMAGES])
    device = next(module.parameters()).device
    passes = nn.Module()
    passes.module, passes.forward = module, forward
    passes.training = module.training
    batches = some.tensor_split(-(-len(some) // BATCH))  # of equal size, as each counts alike
    update_bn((pixels[batch].to(device) for batch in batches if len(batch) > 1), passes)


def images_at_once(device: torch.device, image_size: int) -> int:
    """A batch size for inference: on a CPU, activations should stay within a core's caches."""
    return min(256, max(8, 8 * 224**2 // image_size**2)) if device.type == "cpu" else 256


def vectors_of(network: Network, pixels: Tensor, *, batch_size: int, talk: Talk, what: str) -> Tensor:
    """Vectors of stored pixels, uint8 [N, S, S, 3]: float32 [N, D], on the CPU. Autocast to bf16 applies."""
    device = network.device
    coarse = torch.is_autocast_enabled(device.type)
    lean = network.lean(torch.get_autocast_dtype(device.type) if coarse else torch.float32)
    at_once = images_at_once(device, network.image_size) * (torch.get_num_threads() if device.type == "cpu" else 1)
    return in_batches(lean.vectors, pixels, device, min(batch_size, at_once), talk, what)


def class_scores(network: Network, pixels: Tensor, batch_size: int = BATCH) -> Tensor:
    """A classifier's probabilities for stored pixels, uint8 [N, S, S, 3]: float32 [N, C]."""
    return in_batches(network.probabilities, pixels, network.device, batch_size, Talk(), "")


def in_batches(
    compute: Callable[[Tensor], Tensor], pixels: Tensor, device: torch.device, batch_size: int, talk: Talk, what: str
) -> Tensor:
    """The result of `compute` for all images, [N, ...] on the CPU; each process of a job computes a part of it."""
    here = group()
    shared = len(pixels) >= here.world
    mine = pixels.tensor_split(here.world)[here.rank] if shared else pixels
    parts, done = [], 0
    with talk.track(what, len(mine)) as advance:
        for batch in mine.split(batch_size):
            parts.append(compute(batch.to(device)).cpu())
            done += len(batch)
            advance(done, "")
    return torch.cat(here.gather(torch.cat(parts)) if shared else parts)


def save_network(run: Run, weights: dict[str, Tensor], derived: dict[str, Any]) -> None:
    """Write a run's weights, with some of the settings `derived` in the file's header."""
    told = ("method", "recipe", "arch", "backbone", "stem", "image_size", "patch_size", "steps")
    save_weights(run.weights, weights, {key: derived[key] for key in told if key in derived})


def check_classes(classes: list[str], known: list[str]) -> None:
    """Raises DataError if the data set has classes that the network was not trained on."""
    if unknown := [name for name in classes if name not in known]:
        raise DataError(
            f"the network does not know {', '.join(unknown[:5])}: it was taught {', '.join(known[:5])}"
            f"{', ...' * (len(known) > 5)}. Finetune on this data set, or eval the pretrained run"
        )


def provenance(run: Run, features: str, precision: str) -> dict[str, Any]:
    """A description, for files of vectors, of the network that made them."""
    return {
        "run": run.name,
        "from": run.address or str(run.path.resolve()),
        "sha256": sha256_of(run.weights),
        "features": features,
        "image_size": run.derived["image_size"],
        "precision": precision,
    }
