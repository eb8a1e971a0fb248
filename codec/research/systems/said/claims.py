"""What the thesis claims of SAID, and whether measured figures say so."""

import torch
from torch import Tensor

from vbc.codec.research.run import Effect
from vbc.codec.research.systems.said.bits import Course, honest_stops

BY_GRADIENT = "SAID by gradient"
"""The variant whose boxes are learned as in the thesis, a control of ours."""
LEAST_AP = 0.05
"""Below it nothing was learned, and likeness says nothing."""
OFTEN = 0.05
"""Share of the scenes from which on a glimpse counts as used; later ones gain nothing but noise."""


def object_effects(figures: dict[str, dict[str, float]]) -> list[Effect]:
    """What tables 6.1 and 6.3 say of the variants, and how boxes are best learned."""
    gradient = figures[BY_GRADIENT]
    figures = {name: row for name, row in figures.items() if name != BY_GRADIENT}
    ap = {name: row["AP"] for name, row in figures.items()}
    count = {name: row["count error"] for name, row in figures.items()}
    learned = ap["SAID"] >= LEAST_AP
    said = ", ".join(f"{name} {value:.3f}" for name, value in ap.items())
    counts = ", ".join(f"{name} {value:.2f}" for name, value in count.items())
    return [
        Effect(
            "Alpha hardly matters for AP.",
            abs(ap["SAID"] - ap["no alpha"]) <= 0.1 * max(ap["SAID"], ap["no alpha"]) if learned else None,
            f"{said} (accepted: within a tenth of each other).",
        ),
        Effect(
            "A base from a VAE of the 8x8 picture finds objects worse than the picture itself, better than "
            "no scope.",
            ap["SAID"] > ap["8x8-VAE base"] > ap["no scope"],
            f"AP: {said}.",
        ),
        Effect(
            "Without scope AP is lowest and the count most wrong.",
            ap["no scope"] == min(ap.values()) and count["no scope"] == max(count.values()),
            f"AP: {said}; count error: {counts}.",
        ),
        Effect(
            "The glimpse network learns by gradient as well as by search (a control of ours).",
            gradient["AP"] >= 0.9 * ap["SAID"] if learned else None,
            f"AP {gradient['AP']:.3f} by gradient, {ap['SAID']:.3f} by search; "
            f"{gradient['objects in boxes']:.0f} and {figures['SAID']['objects in boxes']:.0f} % of the "
            "objects in boxes.",
        ),
    ]


def sum_effects(figures: dict[str, dict[str, float]]) -> list[Effect]:
    """What table 6.2 says."""
    true, said = figures["true boxes"], figures["SAID"]
    both = (
        f"test, fixed and tuned: true boxes {true['fixed test']:.1f} and {true['tuned test']:.1f} %, "
        f"SAID {said['fixed test']:.1f} and {said['tuned test']:.1f} %, guess {true['guess']:.1f} %."
    )
    return [
        Effect(
            "An encoder that is trained on with the sum task tells digits far better than one that is not.",
            true["tuned test"] > 1.3 * true["fixed test"] and said["tuned test"] > 1.3 * said["fixed test"],
            both,
        ),
        Effect(
            "True boxes serve the sum task better than found ones.",
            true["fixed test"] > said["fixed test"] and true["tuned test"] > said["tuned test"],
            both,
        ),
    ]


def course_effects(course: Course, data: str) -> list[Effect]:
    """Order of information, and whether the stop is where the total is least."""
    gains, totals, stop = course.gains.mean(0), course.totals, honest_stops(course)
    share = (stop[:, None] > torch.arange(len(gains))).double().mean(0)
    n_used = max(1, int((share >= OFTEN).sum()))
    ordered = bool((gains[:n_used].diff() < 0).all()) and bool((gains[n_used:] < gains[n_used - 1]).all())
    near = (totals.argmin(1) - stop).abs() <= 1
    ours, least, none = (float(v.double().mean()) for v in _totals(totals, stop))
    said = ", ".join(f"{gain:.0f}" for gain in gains.tolist())
    return [
        Effect(
            f"{data}: the gain falls from glimpse to glimpse.",
            n_used > 1 and ordered,
            f"mean gains {said} bits; the first {n_used} are used by {OFTEN:.0%} of the scenes or more, and "
            "are looked at.",
        ),
        Effect(
            f"{data}: the total is least at the stop or next to it.",
            float(near.double().mean()) > 0.8,
            f"in {100 * float(near.double().mean()):.0f} % of the scenes (accepted: 80); {ours:.0f} bits at "
            f"the stop, {least:.0f} at the best one, {none:.0f} without glimpses.",
        ),
    ]


def _totals(totals: Tensor, stop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return totals.gather(1, stop[:, None]), totals.min(1).values, totals[:, 0]


def real_effect(figures: dict[str, dict[str, float]]) -> Effect:
    """What bits-back coding saves."""
    ideal = figures["SAID"]
    name, real = min(
        ((name, row) for name, row in figures.items() if "real bits" in name), key=lambda at: at[1]["total"]
    )
    return Effect(
        "Glimpses pay in bits without bits-back too (a check of ours).",
        real["glimpses"] >= 1,
        f"{name}: {real['total']:.0f} bits after {real['glimpses']:.1f} glimpses, of which latents "
        f"{real['latents']:.0f} and boxes {real['boxes']:.0f}; ideal {ideal['total']:.0f} after "
        f"{ideal['glimpses']:.1f}, {ideal['latents']:.0f} and {ideal['boxes']:.0f}.",
    )
