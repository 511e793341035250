"""Time a step of pretraining: ours on fixed pixels in several modes, and next to the steps of other programs.

    python benchmarks/step.py --backbone resnetv2_10_w32 --precisions fp32,bf16 --modes eager,compiled --operators
    python benchmarks/step.py --recipe paper --peer wuhoward --path CHECKOUT
    python benchmarks/step.py --method simclr --backbone resnet50 --image-size 224 --batch-size 32 \\
        --peer lightly --path LIGHTLY_TRAIN --photos PHOTOS
    python benchmarks/step.py --method simclr --backbone resnet50 --image-size 224 --batch-size 32 \\
        --peer plain --photos PHOTOS

Without a peer, every precision and mode runs steps for a second, in turns. The loop of `wuhoward` runs in this process:
its steps alternate with ours, on pixels in memory. `lightly` (its command, in its own environment) and `plain`
(plain_simclr.py) run as whole commands, which alternate with our steps on the same photos. The steady rate counts, data
included: the median of all steps of a turn except the first. We decode the photos once, beforehand; the peers decode
them in every step, as they always do.

The limit is the rate of large matrix products or convolutions, measured here, divided by the operations that torch
counts in a step.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import lightly
import measure
import torch
import work
import wuhoward

from selfie_cli.training.hardware import num_cores


def ours(a: argparse.Namespace, lines: measure.Lines) -> None:
    """Time all modes and precisions of our step, in turns."""
    trainings = {}
    first_calls = {}
    for precision, mode in itertools.product(a.precisions.split(","), a.modes.split(",")):
        name = f"{precision}, {mode}"
        trainings[name] = training = work.pretraining(
            **shape(a), device=a.device, precision=precision, compiled=mode != "eager", graphs=mode == "graphs"
        )
        first_calls[name] = measure.timed(lambda training=training: training().item())
    rates = measure.turns(
        a.rounds,
        {
            name: lambda each=each: a.batch_size * measure.calls_a_second(each, a.device, a.seconds, warm=0)
            for name, each in trainings.items()
        },
    )
    gflop = next(iter(trainings.values())).gflop()
    limits = {precision: measure.arithmetic_rate(a.device, precision) for precision in a.precisions.split(",")}
    for name, found in rates.items():
        precision = name.split(",")[0]
        top = work.operators(trainings[name])[1] if a.operators else []
        lines.add(
            f"{title(a)}: {name}",
            found,
            "images/s",
            **limit(limits[precision], precision, gflop),
            gflops=gflop * statistics.median(found),
            first_step_seconds=first_calls[name],
            **({"top": top, "note": work.in_words(top)} if top else {}),
        )


def beside_wuhoward(a: argparse.Namespace, lines: measure.Lines) -> None:
    """Alternate our steps with those of wuhoward/SELFIE, in one process."""
    precision = a.precisions.split(",")[-1]
    training = work.pretraining(**shape(a), precision=precision, compiled=a.modes.split(",")[-1] != "eager")
    training().item()
    own: list[float] = []

    def our_turn() -> None:
        own.append(measure.timed(lambda: training().item()))
        print(f"ours {own[-1]:.2f} s", file=sys.stderr, flush=True)

    # The first step of each side allocates memory and does not count.
    theirs = wuhoward.seconds_a_step(a.path, batch_size=a.batch_size, steps=a.rounds + 1, before_each=our_turn)[1:]
    our_rates, their_rates = ([a.batch_size / each for each in times] for times in (own[1:], theirs))
    gflop = training.gflop()
    pair(a, lines, "wuhoward/SELFIE", our_rates, their_rates, precision, gflop, own_gflop(a))


def own_gflop(a: argparse.Namespace) -> float:
    """Giga-operations per image of wuhoward's step, counted during one step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        wuhoward.seconds_a_step(a.path, batch_size=4, steps=1)
    return float(counter.get_total_flops()) / 4e9


def beside_command(a: argparse.Namespace, lines: measure.Lines) -> None:
    """Alternate the peer's whole command with as many steps of ours, on the same photos."""
    photos = measure.linked(a.photos, a.work / f"photos-{a.images}", a.images)
    precision = a.precisions.split(",")[-1]
    training = work.pretraining(
        **shape(a), device=a.device, precision=precision, compiled=a.modes.split(",")[-1] != "eager", photos=photos
    )
    training().item()

    def our_turn() -> float:
        times = [measure.timed(lambda: training().item()) for _ in range(a.peer_steps)]
        return a.batch_size / statistics.median(times[1:])

    def lightly_turn() -> float:
        how = {"precision": "auto", "accelerator": "gpu" if a.device == "cuda" else "cpu"}
        return lightly.pretrain_rate(a.path, a.work, photos, batch_size=a.batch_size, steps=a.peer_steps, **how)

    def plain_turn() -> float:
        script = Path(__file__).with_name("plain_simclr.py")
        size = ["--batch-size", str(a.batch_size), "--steps", str(a.peer_steps), "--workers", str(num_cores())]
        times = json.loads(measure.run([sys.executable, script, photos, *size]).stdout)
        return a.batch_size / statistics.median(times[1:])

    turn: Callable[[], float] = lightly_turn if a.peer == "lightly" else plain_turn
    name = "LightlyTrain 0.18's SimCLR" if a.peer == "lightly" else "plain PyTorch SimCLR"
    rates = measure.turns(a.rounds, {"selfie": our_turn, name: turn})
    simclr = {"method": "simclr", "recipe": "paper", "backbone": "resnet50", "image_size": 224, "batch_size": 4}
    their_gflop = work.pretraining(**simclr).gflop()
    pair(a, lines, name, rates["selfie"], rates[name], precision, training.gflop(), their_gflop)


def pair(
    a: argparse.Namespace,
    lines: measure.Lines,
    peer: str,
    own: list[float],
    theirs: list[float],
    precision: str,
    gflop: float,
    their_gflop: float,
) -> None:
    """Add two rows: ours with the ratio, and the peer's with its share of the fp32 limit."""
    targets = {"lightly": 1.5, "wuhoward": 3.0}
    lines.add(
        f"{title(a)}: selfie, {precision}",
        own,
        "images/s",
        **limit(measure.arithmetic_rate(a.device, precision), precision, gflop),
        gflops=gflop * statistics.median(own),
        **measure.against(peer, own, theirs, targets.get(a.peer)),
    )
    lines.add(
        f"{title(a)}: {peer}, fp32",
        theirs,
        "images/s",
        **limit(measure.arithmetic_rate(a.device, "fp32"), "fp32", their_gflop),
        gflops=their_gflop * statistics.median(theirs),
    )


def limit(rate: float, precision: str, gflop: float) -> dict[str, object]:
    return {"limit": rate / gflop, "bound": f"{precision} arithmetic, {rate:,.0f} GFLOP/s", "gflop_an_image": gflop}


def shape(a: argparse.Namespace) -> dict[str, object]:
    return {name: getattr(a, name) for name in ("method", "recipe", "backbone", "image_size", "batch_size")}


def title(a: argparse.Namespace) -> str:
    recipe = f" ({a.recipe})" if a.method == "selfie" else ""
    threads = "" if a.threads == num_cores() else f", {a.threads} thread{'s' * (a.threads > 1)}"
    return f"{a.method}{recipe}, {a.backbone}, {a.image_size} px, batch {a.batch_size}{threads}"


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--method", default="selfie")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--backbone", default="resnetv2_50")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", default="fp32,bf16", help="Beside a peer, ours takes the last one.")
    parser.add_argument("--modes", default="eager", help="Of eager, compiled, graphs; as for --precisions.")
    parser.add_argument("--seconds", type=float, default=1.0, help="Of each turn.")
    parser.add_argument("--operators", action="store_true", help="Without a peer: also say what takes the time.")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--peer", choices=("wuhoward", "lightly", "plain"))
    parser.add_argument("--path", type=Path, help="The checkout of wuhoward/SELFIE, or the command lightly-train.")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="How many of the photos to train on.")
    parser.add_argument("--peer-steps", type=int, default=4, help="Steps of each turn beside another command.")
    a = parser.parse_args()
    lines = measure.Lines("step", a.results)
    torch.set_num_threads(a.threads)
    {None: ours, "wuhoward": beside_wuhoward, "lightly": beside_command, "plain": beside_command}[a.peer](a, lines)


if __name__ == "__main__":
    main()
