"""Study `vae-priors` (table 7.1): a VAE with three priors, and a control with a larger decoder."""

from functools import partial

from vbc.codec.research.parts.data_sets import cifar
from vbc.codec.research.parts.frechet import own_distance, train_features
from vbc.codec.research.parts.pictures import save_rows
from vbc.codec.research.parts.priors import MixtureOfGaussians, RealNVP, StandardNormal
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.ssvae.comparison import (
    TRAINING_SHARE,
    Entrant,
    Measured,
    add_figures,
    alike,
    measure,
    nll_difference,
    samples,
    seeded,
    shown_again,
    train_equally,
)
from vbc.codec.research.systems.ssvae.model import Sizes, SsVae
from vbc.codec.research.systems.ssvae.modes import between, generate
from vbc.codec.research.systems.ssvae.vae import LATENT_SHAPE, Size

BATCH = 32
SHOWN = 8
VAE_SIZES = Sizes(encode_u=Size(4, 3), decode_u=Size(16, 3))
CONTROL_SIZES = Sizes(encode_u=Size(4, 3), decode_u=Size(16, 3), more_decoder=Size(32, 12))
"""The decoder gets, beside the latents, what the flow has: its parameters differ by less than a tenth."""
UNITS = {
    "nll": "bits per dimension, IW",
    "elbo": "bits per dimension",
    "RE_x": "nats per image",
    "KL_u": "nats per image",
    "psnr": "dB, reconstruction",
    "ms_ssim": "reconstruction",
    "frechet": "own features",
    "parameters": "",
    "seconds_1": "s",
    "seconds_20": "s",
    "steps": "",
    "iw_images": "images for nll",
}
"""Columns; KL_u is the KL of the VAE's only latent variable, which the thesis calls z."""


def vae(prior: type[StandardNormal] | type[MixtureOfGaussians] | type[RealNVP], sizes: Sizes) -> SsVae:
    """The ssVAE without representations."""
    return SsVae(32, (), sizes, prior(LATENT_SHAPE))


ENTRANTS = (
    Entrant(
        "normal",
        partial(vae, StandardNormal, VAE_SIZES),
        {"nll": 3.88, "RE_x": 6675, "KL_u": 1596, "parameters": 20e6, "seconds_1": 0.01},
    ),
    Entrant(
        "mixture",
        partial(vae, MixtureOfGaussians, VAE_SIZES),
        {"nll": 3.83, "RE_x": 6512, "KL_u": 1653, "parameters": 22e6, "seconds_1": 0.01},
    ),
    Entrant(
        "realnvp",
        partial(vae, RealNVP, VAE_SIZES),
        {"nll": 3.51, "RE_x": 5540, "KL_u": 1966, "parameters": 32e6, "seconds_1": 0.07},
    ),
    Entrant("control", partial(vae, StandardNormal, CONTROL_SIZES)),
)


def run(setting: Setting) -> Result:
    """Train the four, measure each, compare."""
    data = cifar(setting.data)
    trained = train_equally(ENTRANTS, data, setting, BATCH, TRAINING_SHARE * setting.budget_s)
    net = train_features(data.train, setting, steps=300 if setting.budget_s >= 600 else 10)
    size = samples(setting.budget_s)
    test = data.test[: size.others]
    shown = {"originals": test[:SHOWN]}
    measured: dict[str, Measured] = {}
    for entrant in ENTRANTS:
        model, steps = trained[entrant.name]
        again = shown_again(model, test, setting)["RS1"]
        made = generate(model, size.generated, seeded(setting)).cpu()
        quality = {**alike(again, test), "frechet": own_distance(net, made, data.test)}
        measured[entrant.name] = add_figures(measure(entrant, model, steps, data.test, setting), quality)
        shown |= {f"{entrant.name}: reconstructions": again[:SHOWN], f"{entrant.name}: samples": made[:SHOWN]}
        shown[f"{entrant.name}: between two images"] = between(
            model, test[:2].to(setting.device), SHOWN, seeded(setting)
        ).cpu()
    rows = [Row(e.name, measured[e.name].figures, e.thesis) for e in ENTRANTS]
    notes = [
        "Trained on 4,322 images of CIFAR-10, tested on its test images; pictures are without pixel noise.",
        f"nll: {size.importance} importance samples for each of iw_images test images; RE and KL: "
        f"{size.others} test images.",
    ]
    pictures = save_rows(setting.out / "pictures.png", shown)
    return Result([Table("VAE priors, CIFAR-10", UNITS, rows)], effects(measured), notes, pictures)


def effects(m: dict[str, Measured]) -> list[Effect]:
    """What table 7.1 claims, in our figures."""
    three = [m[name] for name in ("normal", "mixture", "realnvp")]

    def order(key: str, digits: int = 3) -> tuple[list[float], str]:
        values = [one.figures[key] for one in three]
        said = ", ".join(f"{one.name} {value:.{digits}f}" for one, value in zip(three, values, strict=True))
        return values, said

    nll, nll_said = order("nll")
    re, re_said = order("RE_x", 0)
    kl, kl_said = order("KL_u", 0)
    seconds, seconds_said = order("seconds_1")
    gain = nll_difference(m["realnvp"], m["normal"], 3072)
    against_control = nll_difference(m["realnvp"], m["control"], 3072)
    return [
        Effect(
            "nll: normal > mixture > RealNVP",
            nll[0] > nll[1] > nll[2],
            f"{nll_said} bpd; mixture less normal: {nll_difference(three[1], three[0], 3072)}, "
            f"RealNVP less mixture: {nll_difference(three[2], three[1], 3072)}",
        ),
        Effect(
            "RealNVP's prior takes fewer bits than the normal one (0.37 bpd fewer in the thesis)",
            gain.mean < 0 and gain.clear,
            f"RealNVP less normal: {gain}",
        ),
        Effect("RE falls from normal over mixture to RealNVP", re[0] > re[1] > re[2], f"{re_said} nats"),
        Effect("KL rises from normal over mixture to RealNVP", kl[0] < kl[1] < kl[2], f"{kl_said} nats"),
        Effect("RealNVP samples slowest", seconds[2] > max(seconds[:2]), f"{seconds_said} s an image"),
        Effect(
            "The gain is the prior's, not the parameters': RealNVP beats an equally large decoder (ours)",
            against_control.mean < 0 and against_control.clear,
            f"RealNVP less control: {against_control}; parameters "
            f"{m['realnvp'].figures['parameters']:,.0f} and {m['control'].figures['parameters']:,.0f}",
        ),
    ]


STUDY = Study("VAE with normal, mixture and RealNVP priors", "ssVAE thesis, table 7.1", "40m", run)
