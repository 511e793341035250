"""What selfie doctor has found, as lines for eyes: about a screen of them, whatever the number of images."""

import os

from selfie_cli.commands.doctor import Checkup
from selfie_cli.data.examination import Finding
from selfie_cli.training.hardware import duration


def lines_of(result: Checkup) -> list[str]:
    """The verdict, what was found, what is there, what this machine makes of it."""
    counts = [f"{len(each)} {word}" + "s" * (len(each) != 1) for each, word in counted_findings(result) if each]
    verdict = "Healthy" if result.healthy else "Not healthy"
    if result.healthy and any(each.kind == "finetune stops" for each in result.remarks):
        verdict += " for pretraining"
    lines = [f"{verdict}: {', '.join(counts) or 'nothing to remark'}"]
    inside = os.path.join(result.data[0], "") if len(result.data) == 1 and os.path.isdir(result.data[0]) else ""
    for found, word in counted_findings(result):
        lines += ["", f"{word.capitalize()}s"] if found else []
        shown = 10 if word == "problem" else 3
        for each in found:
            names = [f"{item.name}: {item.note}" if item.note else item.name for item in each.items[:shown]]
            names = [name.replace(inside, "") if inside else name for name in names]
            names += [f"and {len(each.items) - shown:,} more, see --json"] * (len(each.items) > shown)
            lines.append(f"  {each.kind}{f' ({len(each.items):,})' if names else ''}: {each.text}")
            lines += [f"      {name}" for name in names]
    return [*lines, "", *facts_of(result), "", *plans_of(result)]


def counted_findings(result: Checkup) -> list[tuple[list[Finding], str]]:
    return [(result.problems, "problem"), (result.remarks, "remark")]


def facts_of(result: Checkup) -> list[str]:
    parts = [f"{count:,} {part}".strip() for part, count in result.images.items()]
    facts = {"images": " + ".join(parts) + ("; pretraining reads train alone" if len(parts) > 1 else "")}
    facts["formats"] = ", ".join(f"{name} {count:,}" for name, count in result.formats.items())
    for name, each in (("short side", result.short_side), ("long side", result.long_side)):
        if each:
            facts[name] = f"{each.smallest:,} to {each.largest:,} px, median {each.median:,}"
            if each.smallest == each.largest:
                facts[name] = f"{each.median:,} px, all of them"
    if (size := result.file_bytes) and result.all_bytes:
        few, many, median = (amount(each) for each in (size.smallest, size.largest, size.median))
        facts["file size"] = f"{few} to {many}, median {median}, {amount(result.all_bytes)} in all"
    for part, classes in result.classes.items():
        if classes:
            few, many = (pick(classes, key=classes.__getitem__) for pick in (min, max))
            spread = f"from {classes[few]:,} ({few}) to {classes[many]:,} images ({many})"
            equal = f"{classes[few]:,} images each"
            spread = f"{len(classes)}, {equal if classes[few] == classes[many] else spread}"
            facts[f"{part} classes".strip()] = spread
    here = result.machine
    gpu = f", {here.gpu} with {amount(here.gpu_memory or 0)}" if here.gpu else f", no GPU in use ({here.device})"
    facts["machine"] = f"{here.cores} core{'s' * (here.cores > 1)}, {amount(here.memory)} of memory available{gpu}"
    if here.shared_memory is not None:
        facts["/dev/shm"] = (
            f"{amount(here.shared_memory)}; threads, by which selfie reads, need none of it, several GPUs do"
        )
    if here.disk is not None:
        facts["disk"] = f"{amount(here.disk)} free in {here.store}, where large sets are kept decoded"
    if result.images_per_second:
        threads = f"{result.workers} thread{'s' * (result.workers > 1)}"
        facts["decoding"] = f"{result.images_per_second:,.0f} images/s with {threads}"
    return [f"{name:<18} {text}" for name, text in facts.items() if text]


def plans_of(result: Checkup) -> list[str]:
    lines = []
    for plan in result.plans:
        text = f"{plan.backbone} at {plan.image_size} px, {plan.steps:,} steps of {plan.batch_size} images"
        if plan.micro_batch not in (plan.batch_size, None):
            text += f" in pieces of {plan.micro_batch}"
        if plan.seconds is not None:
            speed = plan.steps * plan.batch_size / plan.seconds
            text += f" in {plan.precision}: about {duration(plan.seconds)} at {speed:,.0f} images/s"
            text += f", and {duration(plan.reading)} to read them" if plan.reading >= 1 else ""
        where = "in memory" if plan.in_memory else "on disk"
        lines += [f"{text}; {amount(plan.pixels)} of pixels {where}", f"    {plan.command}"]
    return lines


def amount(num_bytes: float) -> str:
    """'812 bytes', '3.1 kB', '47 GB'."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.{1 if num_bytes < 10 * size else 0}f} {unit}"
    return f"{num_bytes:.0f} bytes"
