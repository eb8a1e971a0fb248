"""What sections 6 and 7 of the patch-VAE thesis claim of probes, and whether measured accuracies say so."""

from itertools import pairwise

from vbc.codec.research.run import Effect
from vbc.codec.research.systems.patch_vae.global_vae import LAYERS
from vbc.codec.research.systems.patch_vae.model import THESIS

MARGIN = 0.3
"""Percentage points that count as equal where a claim says "at least"."""
LOCAL = 1 / 3
"""An attribute is local where its box holds less than this share of the positions."""


def claims_of_table(data: str, found: dict[str, float]) -> list[Effect]:
    """Claims on table 4. found: accuracy in percent by row."""
    best = max(THESIS, key=lambda name: found[name])
    whole = {name: value for name, value in found.items() if "VAE_" in name and "beta" not in name}
    beta = {name: value for name, value in found.items() if name.startswith("beta")}
    top, low = max(whole, key=lambda name: whole[name]), max(beta, key=lambda name: beta[name])

    def said(*names: str) -> str:
        return ", ".join(f"{name}: {found[name]:.2f} %" for name in names) + "."

    return [
        Effect(
            f"{data}: all patch codes together are at least as good as the best of them (within {MARGIN} "
            "points).",
            found["ALL"] >= found[best] - MARGIN,
            said("ALL", best),
        ),
        Effect(f"{data}: patch codes beat pixels.", found[best] > found["PIXEL"], said(best, "PIXEL")),
        Effect(f"{data}: patch codes beat global codes.", found[best] > whole[top], said(best, top)),
        Effect(f"{data}: pixels beat VAE_32d.", found["PIXEL"] > found["VAE_32d"], said("PIXEL", "VAE_32d")),
        Effect(
            f"{data}: global VAEs beat beta-VAEs.",
            found["VAE_32d"] > beta[low],
            said("VAE_32d", *beta, "CHANCE"),
        ),
        Effect(
            f"{data}: patch codes beat global codes also with as few features (a control of ours).",
            found["9|1, random 32"] > found["VAE_32d"],
            said("9|1, random 32", "VAE_32d", "PIXEL, random as 9|1", "9|1"),
        ),
    ]


def claims_of_depth(found: dict[str, float]) -> list[Effect]:
    """Claim of figures 11 and 12. found: accuracy in percent by layer; none where no layer was probed."""
    values = [found[name] for name in LAYERS]
    falls = all(a >= b - MARGIN for a, b in pairwise(values))
    return [
        Effect(
            "Early batch-norm layers of a global VAE probe better than late ones and than z.",
            values[0] > max(values[3:]) and falls,
            ", ".join(f"{name}: {found[name]:.2f} %" for name in LAYERS) + ".",
        )
    ]


def weight_claims(boxes: dict[str, dict[str, float]]) -> Effect:
    """Claim of figure 10. boxes: weight, area and their ratio by attribute."""
    local = {name: row["ratio"] for name, row in boxes.items() if row["area of box"] < LOCAL}
    above = [name for name, ratio in local.items() if ratio > 2]
    return Effect(
        "Weights of the 9|1 probe lie where an attribute is: over twice its box's share of the area.",
        len(above) == len(local),
        f"{len(above)} of {len(local)} local attributes: "
        + ", ".join(f"{name} {ratio:.1f}" for name, ratio in local.items())
        + ".",
    )
