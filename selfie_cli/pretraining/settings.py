"""Settings of a pretraining that do not depend on the machine: the given options, else the recipe's values."""

import statistics
from typing import Any

from selfie_cli.config import PretrainOptions
from selfie_cli.data.batches import IMAGE_ORDER
from selfie_cli.data.sources import Source
from selfie_cli.errors import DataError, UnreadableImage, UsageError
from selfie_cli.models.resnet import TORCHVISION, stem_for
from selfie_cli.option import as_typed, options_of
from selfie_cli.recipes import cuts_patches, num_stages, recipe_values, trained_by
from selfie_cli.schema import MOST_PATCHES
from selfie_cli.training.distributed import group


def derive(options: PretrainOptions, source: Source, origin: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings that rebuild the network and train it: what was asked, else what the recipe says.

    `origin` is the `derived` section in the config of the run whose weights the encoder starts from: its network is
    kept, with all of its stages. The image size may differ, as nothing in the encoder depends on it.

    Raises UsageError if sizes do not fit each other, or an option has no meaning for the method.
    """
    origin = origin or {}
    image_size = options.image_size or origin.get("image_size") or suggested_size(source)
    backbone = origin.get("backbone") or options.backbone or "resnetv2_50"
    values = recipe_values(options.method, options.recipe, image_size)
    if origin and "num_stages" in values:
        values["num_stages"] = max(values["num_stages"], num_stages(origin))
    values["batch_size"] = batch_size = batch_size_for(options, values, len(source))
    if values.pop("lr_per_256_images", False):
        values["lr"] *= batch_size / 256
    if epochs := values.pop("warmup_epochs", None):
        values["warmup_steps"] = round(epochs * len(source) / batch_size)
    for one in options_of(PretrainOptions):
        asked = getattr(options, one.name)
        if not one.field.metadata["recipe"] or asked is None:
            continue
        given = as_typed(one.field, asked)
        if one.name not in values:
            raise UsageError(
                f"{given} has no meaning for --method {options.method} with --recipe {options.recipe} "
                f"at {image_size} px: leave it out"
            )
        if one.name == "final_norm" and backbone in TORCHVISION:
            raise UsageError(f"{given} has no meaning for --backbone {backbone}, which ends in a ReLU: leave it out")
        values[one.name] = asked
    if "max_crop" in values and values["min_crop"] > values["max_crop"]:
        raise UsageError(
            f"--min-crop {values['min_crop']:g} is more than --max-crop {values['max_crop']:g}: give both, or neither"
        )
    training = {name: values.pop(name) for name in ("batch_size", "optimizer", "lr", "weight_decay", "warmup_steps")}
    if "positions" in values:
        values["factorized_positions"] = values.pop("positions") == "row-column"
    cut = cuts_patches(values)
    patch_size = patch_size_for(options, image_size, origin, cut=cut)
    return {
        "method": options.method,
        "recipe": options.recipe,
        "backbone": backbone,
        "stem": origin.get("stem") or stem_for(patch_size),
        "image_size": image_size,
        **({"patch_size": patch_size} if cut else {}),
        **training,
        "image_order": IMAGE_ORDER,
        options.method: values,
        **({"pretrained_by": trained_by(origin)} if origin else {}),
        **({"preprocessing": origin["preprocessing"]} if "preprocessing" in origin else {}),
    }


def batch_size_for(options: PretrainOptions, values: dict[str, Any], num_images: int) -> int:
    """The batch size asked for, or the recipe's, rounded down to equal parts for all processes.

    If the method compares images, no image may be in a batch twice.

    Raises UsageError if the size asked for exceeds the number of images, or there are too few images to compare.
    """
    world = group().world
    usual = int(values["batch_size"])
    if cuts_patches(values):
        return options.batch_size or max(1, usual // world) * world
    if num_images < 2 * world:
        few = "one image" if world == 1 else f"{num_images} images for {world} processes"
        raise UsageError(f"{few}: this method compares images. Give it more, or use --recipe paper")
    if options.batch_size is not None and options.batch_size > num_images:
        raise UsageError(
            f"--batch-size {options.batch_size} is more than there are images ({num_images}), and this method tells "
            "the images of a batch from each other: leave it out, or choose a smaller one"
        )
    return options.batch_size or max(2, min(usual, num_images) // world) * world


def patch_size_for(options: PretrainOptions, image_size: int, origin: dict[str, Any], *, cut: bool) -> int:
    """The patch size; if images are not `cut` into patches, the one whose stem suits them.

    Raises UsageError if it cuts the image unevenly or too finely, is asked for although there are no patches, or needs
    another stem than the origin's.
    """
    stem = origin.get("stem") or stem_for(8 if image_size <= 64 else 32)
    patch_size = options.patch_size or origin.get("patch_size") or (8 if stem == "3x3" else 32)
    if not cut:
        if options.patch_size:
            raise UsageError(
                f"--patch-size has no meaning for --method {options.method} with --recipe {options.recipe}: "
                "leave it out"
            )
        return patch_size
    if origin and stem_for(patch_size) != stem:
        allowed = "less than 32 px" if stem == "3x3" else "32 px or more"
        raise UsageError(f"--patch-size {patch_size} conflicts with --from, whose stem takes patches of {allowed}")
    if image_size % patch_size or image_size // patch_size < 2:
        raise UsageError(
            f"--image-size {image_size} cannot be cut into patches of {patch_size} px: it must be a multiple of "
            f"--patch-size, at least twice as large (32 with 8, 224 with 32)"
        )
    if image_size // patch_size > MOST_PATCHES:
        raise UsageError(
            f"--image-size {image_size} has {image_size // patch_size} patches of {patch_size} px along a side, more "
            f"than {MOST_PATCHES}: choose a larger --patch-size"
        )
    return patch_size


def suggested_size(source: Source) -> int:
    """32, 64 or 224 px, from the median short side of up to 64 images spread over the source."""
    sides = []
    for index in range(0, len(source), -(-len(source) // 64)):
        try:
            with source.open(index) as image:
                sides.append(min(image.size))
        except UnreadableImage:
            continue
    if not sides:
        raise DataError(f"none of the sampled images can be read, the first is {source.names[0]}")
    median = statistics.median(sides)
    return 32 if median <= 48 else 64 if median <= 128 else 224
