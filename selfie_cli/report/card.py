"""The model card of a run, README.md on the Hub: what was measured, how it was made and is used, what is not known."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from selfie_cli.data.named import NAMED
from selfie_cli.pretraining import called, num_stages
from selfie_cli.talk import printable

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

ARMS = ("supervised", "selfie", "byol", "simclr", "finetune", "hybrid", "hybrid-selfie")
PAPERS = {
    "Selfie over many": "2304.03977",
    "Selfie": "1906.02940",
    "BYOL": "2006.07733",
    "SimCLR": "2002.05709",
}
"""On arXiv, by how the words for a pretraining begin."""


def model_card(
    address: str,
    *,
    config: dict[str, Any],
    command: str,
    results: dict[str, Any] | None,
    evaluations: list[dict[str, Any]],
    in_timm: bool,
) -> str:
    """The whole file.

    Args:
        address: hf://owner/name[@revision].
        config: the run's, as it is published; command: what made it.
        results: its results.json; evaluations: its eval-*.json. Names in them are shown if everybody knows them.
        in_timm: whether timm has the network.
    """
    from huggingface_hub import ModelCard, ModelCardData

    repo = address.removeprefix("hf://").partition("@")[0]
    derived, data, name = config["derived"], config.get("data", {}), repo.partition("/")[2]
    classes = derived.get("classes")
    if results is not None:
        results = {**results, "named": config["asked"].get("dataset") is not None}
    method = derived.get("pretraining", derived["method"])
    points = [] if results is None else results.get("points", [results])
    measured = [score for each in evaluations for score in scores(each)]
    if results is not None and points[-1]["arms"]:
        arm = points[-1]["arms"][min(1, len(points[-1]["arms"]) - 1) if config["verb"] == "curve" else -1]
        what = f"accuracy, seed {points[-1]['seeds'][0]}, finetuned on {points[-1]['num_labels']} labels"
        measured.append(score(results, what, arm["accuracies"][0]))
    bases = [each["path"].removeprefix("hf://").partition("@")[0] for each in config.get("from", []) if each["path"]]
    card_data = ModelCardData(
        model_name=name,
        library_name="selfie-cli",
        pipeline_tag="image-classification" if classes else "image-feature-extraction",
        tags=["selfie", "self-supervised-learning", method, derived["backbone"]],
        metrics=["accuracy"] if measured else None,
        base_model=[each for each in bases if "/" in each] or None,
        eval_results=measured or None,
    )
    parts = [
        f"# {escaped(name)}",
        f"A network for images{f' of {len(classes)} classes' if classes else ''}, made with "
        "[selfie](https://github.com/selfie-cli/selfie-cli). This card was written by `selfie push` from what the "
        "program measured; nobody has added to it yet.",
        table(["", ""], [row for row in facts(config, credited(derived)) if row[1] not in ("", "None")]),
    ]
    if classes:
        parts.append("Classes: " + ", ".join(escaped(each) for each in classes) + ".")
    parts.append("## Results")
    if not measured:
        parts.append(f"None have been measured. `selfie eval {address} --dataset FOLDER` measures them on your images.")
    if evaluations:
        head = ["test images", "accuracy in %", "this network", "the same, untrained", "guessing"]
        parts.append(table(head, [row for each in evaluations for row in judged(each)]))
        for each in evaluations:
            if each["num_seen"]:
                parts.append(
                    f"{each['num_seen']:,} of {told(each)} were among the images of pretraining, or near-copies were."
                )
    if results is not None:
        compared = [row for point in points for row in arms_of(point)]
        parts.append(f"Finetuned, and tested on {told(results)}; ± is the standard deviation over seeds:")
        head = [
            "labels",
            "steps",
            "seeds",
            "started from",
            "accuracy in %",
            "paired gain in points",
            "half of the steps",
        ]
        parts.append(table(head, compared))
        named = [(arm_name(index, arm), arm.get("called")) for index, arm in enumerate(points[-1]["arms"])]
        if words := [f"{name}: {escaped(called)}" for name, called in named if called]:
            parts.append("What pretrained them: " + "; ".join(words) + ".")
        if any("still rising" in row[-1] for row in compared):
            parts.append("**Not converged**: where accuracy was still rising, a gain may be one of speed.")
        if seen := data.get("seen_test_images"):
            left_out = ", and were left out" if config["asked"].get("exclude_seen") else ""
            parts.append(f"{seen:,} test images were among those of pretraining, or near-copies of them{left_out}.")
        parts.append("The published weights are one network of these, that of the first seed and the most labels.")
    parts += ["## How it was made", f"```sh\n{command}\n```"]
    parts.append(
        "Names of local files are left out. What is told of the images: "
        + ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in data.items())
        + ". The fingerprint is a hash of their names. Versions: "
        + ", ".join(f"{key} {value}" for key, value in config["versions"].items())
        + "."
    )
    parts += ["## How to use it", *usage(address, name, derived, in_timm=in_timm), "## What is not known"]
    parts.append(
        "- The licence: none has been chosen here. Ask the owner before you use the weights.\n"
        "- What the images show, where they come from and what they leave out, beyond the above.\n"
        "- How it does on images of another kind, and whether it treats people in them alike: measure it on yours.\n"
        "- How results vary over seeds of pretraining: it was trained once."
    )
    return str(ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def credited(derived: dict[str, Any]) -> str:
    """What pretrained it, in words, with its paper."""
    words = escaped(called(derived))
    paper = next((f", arXiv:{paper}" for name, paper in PAPERS.items() if called(derived).startswith(name)), "")
    return words + paper


def escaped(text: str) -> str:
    """Text from a file as plain words in Markdown: nothing in it is a link, code or HTML, or ends a line or a cell."""
    plain = printable(text)
    html = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return re.sub(r"[!-/:-@\[-`{-~]", lambda found: html.get(found[0], f"\\{found[0]}"), plain)


def known(name: Any) -> str | None:
    """A public data set's name. Any other may tell what nobody should know; a folder may be called like one."""
    return name if name in NAMED else None


def set_of(found: dict[str, Any]) -> str | None:
    """The name of the data set of results, if it was asked for by a name that everybody knows."""
    return known(found["dataset"]) if found.get("named") else None


def told(found: dict[str, Any]) -> str:
    count = f"{found['num_test']:,} test image{'s' * (found['num_test'] != 1)}"
    return f"{count} of {set_of(found) or 'a set that is not named'}"


def score(found: dict[str, Any], metric: str, value: float) -> "EvalResult":
    from huggingface_hub import EvalResult

    name = set_of(found)
    return EvalResult(
        task_type="image-classification",
        dataset_type=name or "imagefolder",
        dataset_name=name or told(found),
        dataset_config=None if name else told(found),  # results of two sets without a name stay apart
        dataset_split="test",
        metric_type="accuracy",
        metric_name=metric,
        metric_value=round(value, 4),
    )


def scores(found: dict[str, Any]) -> list["EvalResult"]:
    """What an evaluation says of the network itself; what stands beside it belongs to other networks."""
    kind = f"k {found['k']}, temperature {found['temperature']:g}"
    listed = [
        score(found, f"accuracy of kNN ({kind})", found["trained"]["knn"]),
        score(found, "accuracy of a linear probe", found["trained"]["linear"]),
    ]
    if found["classified"]:
        listed.append(score(found, "accuracy", found["classified"]["top1"]))
    return listed


def judged(found: dict[str, Any]) -> Iterable[list[str]]:
    of, trained, untrained = told(found), found["trained"], found["untrained"]
    guess, chance = percent(found["majority"]), percent(found["chance"])
    knn = f"kNN, k {found['k']}, temperature {found['temperature']:g}, {found['num_train']:,} images"
    yield [of, knn, percent(trained["knn"]), percent(untrained["knn"]), guess]
    yield [of, "linear probe", percent(trained["linear"]), percent(untrained["linear"]), guess]
    for key, name in (("pretext_accuracy", "cropped as in training"), ("pretext_accuracy_plain", "plain images")):
        if trained[key] is not None:
            yield [of, f"pretext task, {name}", percent(trained[key]), percent(untrained[key]), chance]
    if found["classified"]:
        yield [of, "its own classes", percent(found["classified"]["top1"]), "", guess]


def arms_of(point: dict[str, Any]) -> Iterable[list[str]]:
    gains = {gain["arm"]: gain for gain in reversed(point["comparisons"])}
    seeds = ", ".join(map(str, point["seeds"]))
    for index, arm in enumerate(point["arms"]):
        spread = "" if arm["std"] is None else f" ± {100 * arm['std']:.1f}"
        gain, text = gains.get(arm["name"]), ""
        if gain:
            text = f"{100 * gain['mean']:+.1f} over {gain['baseline']}"
            if gain["interval"]:
                low, high = gain["interval"]
                text += f", 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
        labels = f"{point['num_labels']:,} ({100 * point['fraction']:.3g} %)"
        length = (arm.get("convergence") or {}).get("words", "not checked")
        yield [labels, f"{point['steps']:,}", seeds, arm_name(index, arm), percent(arm["mean"]) + spread, text, length]


def arm_name(index: int, arm: dict[str, Any]) -> str:
    """A name that everybody knows; that of a folder is private."""
    name: str = arm["name"]
    return name if name in ARMS or name.startswith("imagenet-resnet") else f"network {index}"


def facts(config: dict[str, Any], pretraining: str) -> Iterable[tuple[str, str]]:
    derived, measured = config["derived"], config["measured"]
    yield "pretraining", pretraining
    yield "recipe", str(derived.get("recipe"))
    yield "views", str(derived.get(derived["method"], {}).get("num_views"))
    yield "network", f"{derived['backbone']}, stem {derived['stem']}"
    yield "image size", f"{derived['image_size']} px"
    for key in ("patch_size", "batch_size", "steps", "optimizer"):
        yield key.replace("_", " "), str(derived.get(key))
    yield "learning rate", str(derived.get("lr"))
    yield "seed", str(config["asked"].get("seed"))
    last = measured.get("last", {})
    if "pretext_accuracy" in last:
        accuracy, chance = percent(last["pretext_accuracy"]), percent(last["chance"])
        yield "pretext accuracy, last logged", f"{accuracy} % (chance {chance} %)"
    if "loss" in last:
        yield "loss, last logged", f"{last['loss']:.3f}"
    if "seconds" in measured:
        yield "trained for, since the last start", f"{measured['seconds'] / 60:.1f} min on {measured['device']}"


def usage(address: str, name: str, derived: dict[str, Any], *, in_timm: bool) -> Iterable[str]:
    classes = derived.get("classes")
    verb = f"predict {address} photo.jpg" if classes else f"embed photo.jpg --from {address}"
    more = f"selfie finetune --from {address} --dataset FOLDER_WITH_A_SUBFOLDER_A_CLASS --fraction 0.2 --seeds 3"
    yield f"With selfie:\n\n```sh\npip install selfie-cli\nselfie {verb}\n{more}\n```"
    loaded = f'network = load_network(open_run("{address}"), features=None, device=torch.device("cpu"))'
    answer = "probabilities" if classes else "vectors"
    yield (
        "In torch:\n\n```python\nimport torch\nfrom selfie_cli.recipes.networks import load_network\n"
        f"from selfie_cli.runs import open_run\n\n{loaded}\n"
        f"{answer} = network.{answer}(pixels)  # of uint8 [B, S, S, 3], RGB, S = {derived['image_size']} or more\n```"
    )
    if not in_timm:
        yield f"timm and torchvision have no such network; for others: `selfie export {address} --to onnx`."
        return
    whole = bool(classes) or num_stages(derived) == 4
    note = "" if whole else "  # without the fourth stage, which was not pretrained"
    yield (
        f"In timm, after `selfie export {address} --to timm`, which says how images are prepared:\n\n"
        "```python\nimport timm\nfrom safetensors.torch import load_file\n\n"
        f'model = timm.create_model("{derived["backbone"]}", num_classes={len(classes or [])})\n'
        f'model.load_state_dict(load_file("{name}-timm.safetensors"), strict={whole}){note}\n```'
    )


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def shown(value: Any) -> str:
    return ", ".join(f"{key} `{each}`" for key, each in value.items()) if isinstance(value, dict) else f"`{value}`"


def table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
