"""Accuracy over the share of the labels, as characters for a terminal."""

LEGEND = "test accuracy in %: o mean, |--| one standard deviation"
Spread = tuple[float, float | None]


def as_text(fractions: list[float], arms: dict[str, list[Spread]], *, width: int = 80) -> str:
    """A line for each point and arm: o at the mean, a bar one standard deviation to either side.

    Each point has its share of the labels (0..1) and, per arm, mean and standard deviation (0..1; None for one seed).
    """
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
