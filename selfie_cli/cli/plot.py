"""A text plot of accuracy over the share of the labels."""

from selfie_cli.comparison.results import Point
from selfie_cli.talk import printable

LEGEND = "test accuracy in %: o mean, |--| one standard deviation"


def as_text(points: list[Point], *, width: int = 80) -> str:
    """Draw a line per point and arm: o at the mean, with a bar of one standard deviation to each side."""
    arms = [arm for point in points for arm in point.arms]
    ends = [100 * (arm.mean + sign * (arm.std or 0)) for arm in arms for sign in (-1, 1)]
    high = min(100, 5 * (max(ends) // 5 + 1))
    low = max(0, min(5 * (min(ends) // 5), high - 5))
    names = [printable(arm.name) for arm in points[0].arms]
    names = [name if len(name) <= 24 else name[:21] + "..." for name in names]
    head = max(map(len, names)) + 8
    room = width - head - 2

    def column(value: float) -> int:
        return round(min(1, max(0, (100 * value - low) / (high - low))) * (room - 1))

    lines = []
    for point in points:
        share = point.share
        for name, arm in zip(names, point.arms, strict=True):
            bar = [" "] * room
            if arm.std is not None:
                left, right = column(arm.mean - arm.std), column(arm.mean + arm.std)
                bar[left : right + 1] = "|" + "-" * (right - left - 1) + "|" if right > left else "|"
            bar[column(arm.mean)] = "o"
            lines.append(f"{share:>6} {name:<{head - 7}}|{''.join(bar)}|")
            share = ""
        lines.append(f"{'':{head}}|{' ' * room}|")
    lines[-1] = f"{'':{head}}+{'-' * room}+"
    scale = [f"{low:g}", f"{(low + high) / 2:g}", f"{high:g}"]
    gap = room - sum(map(len, scale))
    lines.append(f"{'':{head + 1}}{scale[0]}{'':{gap // 2}}{scale[1]}{'':{gap - gap // 2}}{scale[2]}")
    lines.append(f"{LEGEND:>{head + 1 + room}}")
    return "\n".join(lines)
