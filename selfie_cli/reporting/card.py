"""The model card of a run, README.md on the Hub: results, how the run was made and is used, and what is not known."""

import re
from typing import TYPE_CHECKING, Any

from selfie_cli.comparison.results import RISING, ArmResult, Curve, Finetuned
from selfie_cli.comparison.summary import evaluation_rows, percent, spread
from selfie_cli.data.named import NAMED
from selfie_cli.recipes import METHODS, THEN, arxiv, called, num_stages
from selfie_cli.reporting.page import environment
from selfie_cli.schema import FOREIGN
from selfie_cli.talk import counted, printable

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

ARMS = ("supervised", "untrained", "finetune", "hybrid", "hybrid-selfie", *METHODS, *FOREIGN)


def model_card(
    address: str,
    *,
    config: dict[str, Any],
    command: str,
    results: Finetuned | Curve | None,
    evaluations: list[dict[str, Any]],
    in_timm: bool,
) -> str:
    """Return the text of the model card, made with card.md.jinja.

    Args:
        address: hf://owner/name[@revision].
        config: the run's config as published; command: the command that made the run.
        results: its results.json; evaluations: its eval-*.json. Only public names in them are shown.
        in_timm: whether timm has the network.
    """
    from huggingface_hub import ModelCard, ModelCardData

    repo = address.removeprefix("hf://").partition("@")[0]
    derived, name = config["derived"], repo.partition("/")[2]
    named = config["asked"].get("dataset") is not None
    tested = results and {"dataset": results.dataset, "num_test": results.num_test, "named": named}
    method = derived.get("pretraining", derived["method"])
    points = results.points if results else []
    measured = [score for each in evaluations for score in scores(each)]
    if tested:
        point = points[-1]
        arm = point.arms[min(1, len(point.arms) - 1) if isinstance(results, Curve) else -1]
        how = "a linear classifier" if point.frozen else "finetuned"
        what = f"accuracy, seed {point.seeds[0]}, {how} on {counted(point.num_labels, 'label')}"
        measured.append(score(tested, what, arm.accuracies[0]))
    bases = [each["path"].removeprefix("hf://").partition("@")[0] for each in config.get("from", []) if each["path"]]
    card_data = ModelCardData(
        model_name=name,
        library_name="selfie-cli",
        pipeline_tag="image-classification" if derived.get("classes") else "image-feature-extraction",
        tags=["selfie", "self-supervised-learning", method, derived["backbone"]],
        metrics=["accuracy"] if measured else None,
        base_model=[each for each in bases if "/" in each] or None,
        eval_results=measured or None,
    )
    templates = environment("selfie_cli.reporting")  # not HTML: `words` escapes text from files for Markdown
    templates.filters |= {"words": escaped, "percent": percent}
    functions = {each.__name__: each for each in (credited, arm_name, told, spread, evaluation_rows)}
    found = {"tested": tested, "points": points, "evaluations": evaluations, "rising": RISING}
    text = templates.get_template("card.md.jinja").render(
        functions | found,
        address=address,
        name=name,
        card_data=card_data,
        config=config,
        command=command,
        in_timm=in_timm,
        whole=num_stages(derived) == 4,
    )
    return str(ModelCard(re.sub(r"\n{3,}", "\n\n", text.lstrip()) + "\n"))


def arm_name(index: int, arm: ArmResult) -> str:
    """Return the arm's name if it is public, else a number: the name of a folder is private."""
    name = arm.name
    return name if name in ARMS or name.startswith("imagenet-resnet") else f"network {index}"


def credited(derived: dict[str, Any]) -> str:
    """Return in words the methods and recipes that pretrained the network, each with its paper."""
    each = called(derived).split(THEN)
    return THEN.join(escaped(words) + (f", arXiv:{paper}" if (paper := arxiv(words)) else "") for words in each)


def escaped(text: str) -> str:
    """Escape text from a file for Markdown, so that it cannot make links, code or HTML, or end a line or a cell."""
    plain = printable(text)
    html = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return re.sub(r"[!-/:-@\[-`{-~]", lambda found: html.get(found[0], f"\\{found[0]}"), plain)


def known(name: Any) -> str | None:
    """Return the name of a public data set; None for other names, which may be private."""
    return name if name in NAMED else None


def set_of(found: dict[str, Any]) -> str | None:
    """Return the name of the data set of results if --dataset was that public name, else None."""
    return known(found["dataset"]) if found.get("named") else None


def told(found: dict[str, Any]) -> str:
    return f"{counted(found['num_test'], 'test image')} of {set_of(found) or 'a set that is not named'}"


def score(found: dict[str, Any], metric: str, value: float) -> "EvalResult":
    from huggingface_hub import EvalResult

    name = set_of(found)
    return EvalResult(
        task_type="image-classification",
        dataset_type=name or "imagefolder",
        dataset_name=name or told(found),
        dataset_config=None if name else told(found),  # keeps results of different unnamed sets apart
        dataset_split="test",
        metric_type="accuracy",
        metric_name=metric,
        metric_value=round(value, 4),
    )


def scores(found: dict[str, Any]) -> list["EvalResult"]:
    """Return an evaluation's results for this network, without those of the untrained network."""
    kind = f"k {found['k']}, temperature {found['temperature']:g}"
    listed = [
        score(found, f"accuracy of kNN ({kind})", found["trained"]["knn"]),
        score(found, "accuracy of a linear probe", found["trained"]["linear"]),
    ]
    if found["classified"]:
        listed.append(score(found, "accuracy", found["classified"]["top1"]))
    return listed
