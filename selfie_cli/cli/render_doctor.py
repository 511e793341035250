"""The result of `selfie doctor` as lines: about one screen, whatever the number of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.filesize import decimal as amount

from selfie_cli.talk import counted

if TYPE_CHECKING:
    from selfie_cli.commands.doctor import Diagnosis, Plan
    from selfie_cli.data.examination import Finding

SHOWN = {"problem": 10, "remark": 3}
"""Number of files shown per finding."""


def diagnosis(result: Diagnosis) -> list[str]:
    """Return the verdict, the findings, the facts about images and machine, and the time of pretraining."""
    findings = {"problem": result.problems, "remark": result.remarks}
    counts = [counted(len(each), word) for word, each in findings.items() if each]
    verdict = "Healthy" if result.healthy else "Not healthy"
    if result.healthy and any(each.kind == "finetune stops" for each in result.remarks):
        verdict += " for pretraining"
    lines = [f"{verdict}: {', '.join(counts) or 'no problems, no remarks'}"]
    one = result.data[0] if len(result.data) == 1 and os.path.isdir(result.data[0]) else None
    for word, each in findings.items():
        lines += ["", f"{word.capitalize()}s"] if each else []
        for finding in each:
            lines += lines_of(finding, SHOWN[word], folder=one)
    facts = [f"{name:<18} {text}" for name, text in facts_of(result) if text]
    return [*lines, "", *facts, "", *(line for plan in result.plans for line in plan_lines(plan))]


def lines_of(finding: Finding, shown: int, *, folder: str | None) -> list[str]:
    """Return the finding and its first `shown` files, named relative to `folder`."""
    names = [f"{item.name}: {item.note}" if item.note else item.name for item in finding.items[:shown]]
    if folder is not None:
        names = [name.replace(os.path.join(folder, ""), "") for name in names]
    if len(finding.items) > shown:
        names.append(f"and {len(finding.items) - shown:,} more, see --json")
    count = f" ({len(finding.items):,})" if names else ""
    return [f"  {finding.kind}{count}: {finding.text}", *(f"      {name}" for name in names)]


def facts_of(result: Diagnosis) -> Iterator[tuple[str, str]]:
    parts = [f"{count:,} {part}".strip() for part, count in result.images.items()]
    yield "images", " + ".join(parts) + ("; pretraining uses train only" if len(parts) > 1 else "")
    yield "formats", ", ".join(f"{name} {count:,}" for name, count in result.formats.items())
    for name, side in (("short side", result.short_side), ("long side", result.long_side)):
        if side and side.smallest == side.largest:
            yield name, f"{side.median:,} px, all images"
        elif side:
            yield name, f"{side.smallest:,} to {side.largest:,} px, median {side.median:,}"
    if (size := result.file_bytes) and result.all_bytes:
        least, most, median = (amount(each) for each in (size.smallest, size.largest, size.median))
        yield "file size", f"{least} to {most}, median {median}, {amount(result.all_bytes)} in total"
    for part, classes in result.classes.items():
        if not classes:
            continue
        few, many = (pick(classes, key=classes.__getitem__) for pick in (min, max))
        sizes = f"from {classes[few]:,} ({few}) to {classes[many]:,} images ({many})"
        if classes[few] == classes[many]:
            sizes = f"{counted(classes[few], 'image')} each"
        yield f"{part} classes".strip(), f"{len(classes)}, {sizes}"
    machine = result.machine
    gpu = f"{machine.gpu} with {amount(machine.gpu_memory or 0)}" if machine.gpu else "no GPU in use"
    cores = counted(machine.cores, "core")
    yield "machine", f"{cores}, {amount(machine.memory)} of memory available, {gpu} ({machine.device})"
    if machine.disk is not None:
        yield "disk", f"{amount(machine.disk)} free in {machine.store}, the cache of decoded images"
    if result.images_per_second:
        yield "decoding", f"{result.images_per_second:,.0f} images/s with {counted(result.workers, 'thread')}"


def plan_lines(plan: Plan) -> list[str]:
    from selfie_cli.training.hardware import duration

    text = f"{plan.backbone} at {plan.image_size} px, {plan.steps:,} steps of {plan.batch_size} images"
    if plan.micro_batch not in (plan.batch_size, None):
        text += f" in micro-batches of {plan.micro_batch}"
    if plan.seconds is not None:
        speed = plan.steps * plan.batch_size / plan.seconds
        text += f" in {plan.precision}: about {duration(plan.seconds)} at {speed:,.0f} images/s"
        if plan.reading >= 1:
            text += f", plus {duration(plan.reading)} to read the images"
    where = "in memory" if plan.in_memory else "on disk"
    return [f"{text}; {amount(plan.pixels)} of pixels {where}", f"    {plan.command}"]
