"""Study `bfvae-toy`: a shape in the middle of a flat ground, one code for each.

Zeng's thesis, section 5.4.1, table 5.2, figures 5.4 and 5.5. Objects are red, green or blue; the fourth
colour, dark green, tests. In a second set objects are black too: there a foreground on black cannot be seen.
"""

from dataclasses import dataclass, replace

from vbc.codec.research.parts.measures import psnr
from vbc.codec.research.parts.picture_vae import Form
from vbc.codec.research.parts.pictures import save_points, save_rows
from vbc.codec.research.parts.shapes import COLOURS, SHAPES, Drawing, draw
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.bfvae.measures import (
    group_share,
    mean_psnr,
    principal_plane,
    rolled,
    separation,
    swapped,
    told,
    true_swap,
)
from vbc.codec.research.systems.bfvae.model import PLAN, Bfvae, Kind, scene_batches, trained

FORM = Form(3, 32, 32, (16, 32, 64), hidden=256, residual=False)
KIND = Kind(FORM, front=32, back=32, beta=1.0)
SEEN, HELD_OUT = ("red", "green", "blue"), "dark green"
TOY = Drawing(colours=SEEN)
WITH_BLACK = replace(TOY, colours=(*SEEN, "black"))
PER_SHAPE, TESTED, SHOWN = 2000, 1000, 10
PROBE_TRAIN, PROBE_TEST = 1500, 1000


@dataclass(frozen=True)
class Variant:
    """A model of the study and what its training pictures are."""

    kind: Kind
    drawing: Drawing


VARIANTS = {
    "toy": Variant(KIND, TOY),
    "toy, E_f taught by L_f alone": Variant(replace(KIND, joint=False), TOY),
    "with black": Variant(KIND, WITH_BLACK),
    "with black, mask channel": Variant(replace(KIND, masked=True), WITH_BLACK),
}
SWAP_UNITS = {
    "reconstruction": "dB",
    "swap": "dB",
    "swap, unseen colour": "dB",
    "swap, same colours": "dB",
    "extraction": "dB",
    "object left": "%",
}
PROBE_UNITS = dict.fromkeys(("z_f train", "z_b train", "z_f test", "z_b test"), "%")
# Table 5.2
KNOWN = {
    "shape": dict(zip(PROBE_UNITS, (100.0, 86.7, 100.0, 36.3), strict=True)),
    "colour": dict(zip(PROBE_UNITS, (100.0, 100.0, 88.3, 88.27), strict=True)),
}
CHANCE = 100 / len(SHAPES)


def figures_of(model: Bfvae, drawing: Drawing, seed: int) -> dict[str, float]:
    """The figures of SWAP_UNITS, on new pictures. Same colours: an object on a ground of its own colour,
    which no picture has."""
    seen = draw(drawing, TESTED, seed + 100)
    unseen = draw(replace(TOY, colours=(HELD_OUT,)), TESTED, seed + 101)
    others = rolled(seen)
    quality = psnr(swapped(model, seen, others), true_swap(seen, others)).clamp_max(60.0)
    return separation(model, seen) | {
        "swap, unseen colour": mean_psnr(swapped(model, seen, unseen), true_swap(seen, unseen)),
        "swap, same colours": float(quality[seen.ground == others.colour].mean()),
    }


def probed(model: Bfvae, drawing: Drawing, label: str, seed: int) -> dict[str, float]:
    """What both codes tell of one label of the object, on pictures of a drawing."""
    train, test = draw(drawing, PROBE_TRAIN, seed + 200), draw(drawing, PROBE_TEST, seed + 201)
    return told(model, train, test, label, seed)


def run(setting: Setting) -> Result:
    """All variants, as many steps each."""
    seconds = 0.95 * setting.budget_s / len(VARIANTS)
    models, swaps, probes = {}, [], []
    for name, variant in VARIANTS.items():
        scenes = draw(variant.drawing, PER_SHAPE * len(SHAPES), setting.seed)
        batches = scene_batches(scenes, PLAN.batch, setting.seed)
        model = trained(variant.kind, batches, seconds, setting, name.replace(",", ""), timed_as="toy")
        models[name] = model
        swaps.append(Row(name, figures_of(model, variant.drawing, setting.seed)))
        one = replace(TOY, colours=("black",) if "black" in variant.drawing.colours else ("red",))
        shape = probed(model, one, "shape", setting.seed)
        known = KNOWN if name == "toy" else {}
        probes.append(Row(f"{name}: shape of {one.colours[0]} ones", shape, known.get("shape", {})))
        if name == "toy":
            squares = replace(TOY, shapes=("square",), colours=(*SEEN, HELD_OUT))
            colour = probed(model, squares, "colour", setting.seed)
            probes.append(Row(f"{name}: colour of squares", colour, KNOWN["colour"]))
    tables = [
        Table("A two-layer network from each code to the object (table 5.2)", PROBE_UNITS, probes),
        Table("Swaps and extraction, PSNR against the true recomposition", SWAP_UNITS, swaps),
    ]
    toy = models["toy"]
    test = draw(TOY, TESTED, setting.seed + 102)
    z_b = toy.encode_back(test.images).mean.cpu()
    shares = {label: group_share(z_b, getattr(test, label)) for label in ("ground", "colour", "shape")}
    plane, names = principal_plane(z_b), list(COLOURS)
    groups = {name: plane[test.ground == names.index(name)] for name in TOY.grounds}
    pictures = show(models, setting) + save_points(setting.out / "background-codes.png", groups)
    by_probe, by_model = ({row.model: row.figures for row in rows} for rows in (probes, swaps))
    return Result(tables, claims(by_probe, by_model, shares), notes(), pictures)


def show(models: dict[str, Bfvae], setting: Setting) -> list[str]:
    """Grounds of one row with the objects of another, as they are and as models compose them."""
    files = []
    for name, colours in (("toy", (*SEEN, HELD_OUT)), ("with black, mask channel", ("black", *SEEN))):
        model = models[name]
        grounds = draw(VARIANTS[name].drawing, SHOWN, setting.seed + 300)
        objects = draw(replace(TOY, colours=colours), SHOWN, setting.seed + 301)
        rows = {
            "ground of": grounds.images,
            "object of": objects.images,
            "swapped": swapped(model, grounds, objects),
            "true": true_swap(grounds, objects),
            "reconstruction": swapped(model, grounds, grounds),
            "extracted ground": model.extract(grounds.images).cpu(),
        }
        files += save_rows(setting.out / f"{name.replace(', ', '-').replace(' ', '-')}.png", rows)
    return files


def claims(
    probes: dict[str, dict[str, float]], swaps: dict[str, dict[str, float]], shares: dict[str, float]
) -> list[Effect]:
    """What section 5.4.1 claims of the toy. probes, swaps: figures by row. shares: of z_b's variance, those
    between groups of a label."""
    shape, colour = probes["toy: shape of red ones"], probes["toy: colour of squares"]
    black = {name: probes[f"{name}: shape of black ones"] for name in VARIANTS if "black" in name}
    blind, seeing = black["with black"]["z_f test"], black["with black, mask channel"]["z_f test"]
    toy, apart = swaps["toy"], swaps["toy, E_f taught by L_f alone"]
    said = f"PSNR {toy['swap']:.1f} dB over all pairs"
    return [
        Effect(
            "z_f knows the shape (95 % or more).",
            shape["z_f test"] >= 95,
            f"{shape['z_f test']:.1f} % in test",
        ),
        Effect(
            "z_b hardly knows it: near chance, 25 %, on new pictures (accepted: below 45 %).",
            shape["z_b test"] < 45,
            f"{shape['z_b test']:.1f} % in test, {shape['z_b train']:.1f} % in training",
        ),
        Effect(
            "z_b keeps the object's colour: central objects never show what is behind them (above 60 %).",
            colour["z_b test"] > 60,
            f"{colour['z_b test']:.1f} % of four colours, z_f {colour['z_f test']:.1f} %",
        ),
        Effect(
            "z_b falls into clusters by ground first, by the object's colour within them.",
            shares["ground"] > shares["colour"] > shares["shape"],
            ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()) + " of the variance",
        ),
        Effect(
            "Swaps to pairs of one colour, which training lacks, work (within 3 dB of all pairs).",
            toy["swap, same colours"] > toy["swap"] - 3,
            f"{toy['swap, same colours']:.1f} dB; {said}",
        ),
        Effect(
            "Unseen object colours work in part: worse than seen ones, better than the object's absence.",
            toy["swap"] > toy["swap, unseen colour"] > 10,
            f"{toy['swap, unseen colour']:.1f} dB; {said}",
        ),
        Effect(
            "Black objects need the mask as a channel of E_f.",
            blind < CHANCE + 15 and seeing > blind + 20,
            f"shape of black ones from z_f: {blind:.1f} % without, {seeing:.1f} % with it",
        ),
        Effect(
            "The gradient of L_b belongs into E_f (ours; the thesis does not say): swaps are better with it.",
            toy["swap"] > apart["swap"],
            f"{toy['swap']:.1f} dB against {apart['swap']:.1f} dB",
        ),
    ]


def notes() -> list[str]:
    return [
        "32x32 pictures (thesis: 64x64), 32 and 32 latents, 16-32-64 channels, beta 1; Adam from 1e-3.",
        f"{PER_SHAPE} training pictures a shape, sizes and angles at random. Probes: codes of {PROBE_TRAIN} "
        f"new pictures, tested on {PROBE_TEST} others, two layers of 256.",
        "Object left: error of the extracted ground where the object was, 100 % where it is still in place.",
    ]


STUDY = Study(
    about="BFVAE on central shapes: what each code knows, swaps, black objects and the mask channel",
    source="Zeng's thesis, sections 5.3 and 5.4.1, table 5.2",
    budget="15m",
    run=run,
)
