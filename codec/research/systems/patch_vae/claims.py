"""What section 5 of the patch-VAE thesis claims, and whether measured figures say so."""

from vbc.codec.research.run import Effect, Row

Figures = dict[str, dict[str, float]]


def tables_2_and_3(data: str, patch: Figures, whole: Figures) -> list[Effect]:
    """Claims on one data set. patch, whole: by model of patch codes and of global codes, their figures."""
    z, ce, dB = ({name: patch[name][key] for name in patch} for key in ("z", "CE", "PSNR of E[x|z]"))
    return [
        *bits_of_15(data, z),
        Effect(
            f"{data}: 9|1 keeps about 3 to 4 times the bits of 9|3.",
            2 <= z["9|1"] / z["9|3"] <= 6,
            f"{z['9|1']:.1f} and {z['9|3']:.1f} bits, {z['9|1'] / z['9|3']:.2f} times (accepted: 2 to 6).",
        ),
        likelihood(data, ce),
        colour(data, ce),
        Effect(
            f"{data}: bits of z per pixel fall from 3|1 over 9|1 to 15|1.",
            z["3|1"] / 9 > z["9|1"] / 81 > z["15|1"] / 225,
            f"{z['3|1'] / 9:.3f}, {z['9|1'] / 81:.3f}, {z['15|1'] / 225:.3f} bits a pixel.",
        ),
        Effect(
            f"{data}: the best likelihood is not the best look: 15|5 shows less of the image than 15|1.",
            ce["15|5"] == min(ce.values()) and dB["15|5"] < dB["15|1"],
            f"15|5: {ce['15|5']:.2f} bits/dim, the latents alone {dB['15|5']:.1f} dB; "
            f"15|1: {ce['15|1']:.2f} bits/dim, {dB['15|1']:.1f} dB.",
        ),
        global_codes(data, {name: whole[name]["z"] for name in whole}),
        Effect(
            f"{data}: a beta-VAE keeps a few bits.",
            all(1 < whole[name]["z"] < 30 for name in ("beta-VAE_32d", "beta-VAE_256d")),
            f"{whole['beta-VAE_32d']['z']:.1f} bits with 32 latents, "
            f"{whole['beta-VAE_256d']['z']:.1f} with 256 (accepted: 1 to 30).",
        ),
    ]


def bits_of_15(data: str, z: dict[str, float]) -> list[Effect]:
    steps = z["15|1"] / z["15|3"], z["15|3"] / z["15|5"]
    said = f"{z['15|1']:.1f}, {z['15|3']:.1f}, {z['15|5']:.1f} bits"
    return [
        Effect(
            f"{data}: larger blocks need fewer bits of z: 15|1 > 15|3 > 15|5.", min(steps) > 1, f"{said}."
        ),
        Effect(
            f"{data}: each of these steps is one to about 1/2.3.",
            all(1.5 <= step <= 4 for step in steps),
            f"{said}: 1/{steps[0]:.2f} and 1/{steps[1]:.2f} (accepted: 1/1.5 to 1/4).",
        ),
    ]


def likelihood(data: str, ce: dict[str, float]) -> Effect:
    single = min(ce[name] for name in ("3|1", "9|1", "15|1"))
    return Effect(
        f"{data}: given z, 15|5 has the best likelihood, then 15|3 and 9|3, which are alike; every |1 is "
        "worse by 0.5 bit or more.",
        ce["15|5"] < min(ce["15|3"], ce["9|3"])
        and abs(ce["15|3"] - ce["9|3"]) < 0.25
        and max(ce["15|3"], ce["9|3"]) + 0.5 <= single,
        f"15|5: {ce['15|5']:.2f}, 15|3: {ce['15|3']:.2f}, 9|3: {ce['9|3']:.2f}, "
        f"the best |1: {single:.2f} bits/dim.",
    )


def colour(data: str, ce: dict[str, float]) -> Effect:
    """A control of ours: how much of the step from |1 to |3 is dependence between a pixel's colours."""
    step = ce["9|1"] - ce["9|3"]
    share = (ce["9|1"] - ce["9|1 colour"]) / step if step > 0 else 0.0
    return Effect(
        f"{data}: likelihood improves from |1 to |3 because of neighbouring pixels, not of a pixel's colours "
        "(a control of ours).",
        share < 0.5 if step > 0 else None,
        f"9|1: {ce['9|1']:.2f}, with colour coefficients {ce['9|1 colour']:.2f}, 9|3: {ce['9|3']:.2f} "
        "bits/dim; "
        f"the coefficients alone give {100 * share:.0f} % of the step.",
    )


def global_codes(data: str, z: dict[str, float]) -> Effect:
    small, middle, large = (z[f"VAE_{n}d"] for n in (32, 256, 4096))
    return Effect(
        f"{data}: the bits of a global code grow with its dimension, but far less than in proportion.",
        small < middle and middle / small < 8 / 2 and large / middle < 16 / 2,
        f"{small:.0f}, {middle:.0f}, {large:.0f} bits for 32, 256, 4096 latents.",
    )


def decoding_speed(data: str, rows: list[Row]) -> Effect:
    """Whether blocks decode in side^2 steps whatever the image's size, and how much that gains."""
    said = "; ".join(
        f"{row.model}: {row.figures['steps']:.0f} steps, {row.figures['parallel']:.0f} ms, in raster order "
        f"{row.figures['raster steps']:.0f} steps, {row.figures['raster']:.0f} ms"
        for row in rows
    )
    return Effect(
        f"{data}: independent blocks decode faster than raster order.",
        all(row.figures["times faster"] > 1 for row in rows),
        said,
    )
