"""Accuracy over the share of the labels: as characters for a terminal, and as PNG and SVG by matplotlib.

Both take the share of each point (0..1) and, for each arm, a mean and a standard deviation a point (0..1; None for a
single seed).
"""

from pathlib import Path

from selfie_cli.files import replacing

LEGEND = "test accuracy in %: o mean, |--| one standard deviation"
Spread = tuple[float, float | None]
# Okabe and Ito's colours, which colour-blind readers can tell apart; the markers say it again.
STYLES = (
    *(("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D"), ("#CC79A7", "v"), ("#E69F00", "P")),
    *(("#56B4E9", "X"), ("#999999", "*")),
)


def as_text(fractions: list[float], arms: dict[str, list[Spread]], *, width: int = 80) -> str:
    """A line for each point and arm: o at the mean, a bar one standard deviation to either side."""
    ends = [100 * (mean + sign * (std or 0)) for points in arms.values() for mean, std in points for sign in (-1, 1)]
    high = min(100, 5 * (max(ends) // 5 + 1))
    low = max(0, min(5 * (min(ends) // 5), high - 5))
    names = {name: name if len(name) <= 24 else name[:21] + "..." for name in arms}
    head = max(map(len, names.values())) + 8
    room = width - head - 2

    def column(value: float) -> int:
        return round(min(1, max(0, (100 * value - low) / (high - low))) * (room - 1))

    lines = []
    for row, fraction in enumerate(fractions):
        for name, points in arms.items():
            mean, std = points[row]
            bar = [" "] * room
            if std is not None:
                left, right = column(mean - std), column(mean + std)
                bar[left : right + 1] = "|" + "-" * (right - left - 1) + "|" if right > left else "|"
            bar[column(mean)] = "o"
            share = f"{fraction * 100:.3g} %" if name == next(iter(arms)) else ""
            lines.append(f"{share:>6} {names[name]:<{head - 7}}|{''.join(bar)}|")
        lines.append(f"{'':{head}}|{' ' * room}|")
    lines[-1] = f"{'':{head}}+{'-' * room}+"
    scale = [f"{low:g}", f"{(low + high) / 2:g}", f"{high:g}"]
    gap = room - sum(map(len, scale))
    lines.append(f"{'':{head + 1}}{scale[0]}{'':{gap // 2}}{scale[1]}{'':{gap - gap // 2}}{scale[2]}")
    lines.append(f"{LEGEND:>{head + 1 + room}}")
    return "\n".join(lines)


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: a $ begins no formula, a leading _ keeps nothing out of the legend."""
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def draw(
    files: list[Path], title: str, fractions: list[float], arms: dict[str, list[Spread]], ticks: list[str]
) -> None:
    """Write the plot to each of `files`, in the format that its suffix names. Raises ImportError without matplotlib.

    `ticks` say what stands below each share.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    apart = max(1.03, (fractions[-1] / fractions[0]) ** 0.015)  # so that bars do not hide each other
    for index, (name, points) in enumerate(arms.items()):
        colour, marker = STYLES[index % len(STYLES)]
        aside = apart ** (index - (len(arms) - 1) / 2)
        axes.errorbar(
            [100 * fraction * aside for fraction in fractions],
            [100 * mean for mean, _ in points],
            yerr=[100 * (std or 0) for _, std in points],
            label=literal(name),
            color=colour,
            marker=marker,
            capsize=3,
        )
    axes.set(
        title=literal(title),
        xlabel="share of the training labels (logarithmic)",
        ylabel="test accuracy in %",
        xscale="log",
    )
    axes.set_xticks([100 * fraction for fraction in fractions], ticks)
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    figure.legend(title="mean ± standard deviation over seeds", loc="outside lower center", ncols=min(4, len(arms)))
    for file in files:
        with replacing(file) as temporary, matplotlib.rc_context({"svg.hashsalt": "selfie"}):
            figure.savefig(temporary, metadata={"Date": None} if file.suffix == ".svg" else None)
