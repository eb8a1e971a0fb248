"""Scenes: pictures of several objects of which everything is known, drawn when they are asked for.

Digits that keep apart (after Multi-MNIST), flat coloured sprites that overlap (after Multi-dSprites), shaded
solids with shadows on a grey ground (after CLEVR), and digits on photographs. Everything is a function of the
number of scenes and the seed.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.research.parts import sprites
from vbc.codec.research.parts.data_sets import Labelled

SIDE = 64
"""Of every scene, in pixels."""
PAGE, DIGIT = 84, 20
"""Digits are squares of 20 pixels on a page of 84, which is then resized."""
MOST_DIGITS, MOST_SPRITES, MOST_SOLIDS = 5, 4, 10
FEWEST_SOLIDS = 3
INK = 64
"""A digit covers the pixels of at least this grey value."""
SMALLEST_VISIBLE = 12
"""Pixels; of what shows less, nothing can be found, and it is left out of masks, boxes and counts."""
CONTRAST = 60
"""A sprite differs from its ground by so much in some channel at least."""
DIAMETERS = (8.0, 18.0)
"""Of solids, in pixels, each varied by a tenth."""
SOLID_NOISE = 2.0
"""Standard deviation of the noise on scenes of solids, in grey values."""
NEAREST = 0.75
"""Centres of solids are further apart than this share of the sum of their radii, so that some overlap."""
SOLID_COLOURS = (
    (87, 87, 87),
    (173, 35, 35),
    (42, 75, 215),
    (29, 105, 20),
    (129, 74, 25),
    (129, 38, 192),
    (41, 208, 208),
    (255, 238, 51),
)
"""Those of CLEVR."""
GROUND = (118.0, 148.0)
"""Grey of the ground at the top and at the bottom."""
SOLID_SIDE, SHADOW_SIDE = 24, 32
"""Of the squares that a solid and its shadow are painted in."""
BORDER = 16
"""Pixels around a scene that such a square may reach into."""
TRIES = 60
"""Places tried for an object; a digit's page is then begun anew, a solid left out."""

Floats = NDArray[np.floating[Any]]
"""float32 everywhere; for the type checker a product with a number might be more."""
Ints = NDArray[np.int64]


class Scenes(NamedTuple):
    """Scenes of at most M objects.

    images: uint8 [N, C, 64, 64]. owner: uint8 [N, 64, 64], which object a pixel shows, from 1 on; 0 is the
    ground. boxes: float32 [N, M, 4], left, top, right and bottom edge of each object in pixels, zeros beyond
    the last one. counts: int64 [N]. kinds: int64 [N, M], digit, shape or -1 beyond the last object.
    """

    images: Tensor
    owner: Tensor
    boxes: Tensor
    counts: Tensor
    kinds: Tensor

    @property
    def masks(self) -> Tensor:
        """Where there are objects: bool [N, 64, 64]."""
        return self.owner > 0

    def in_colour(self) -> "Scenes":
        """The scenes with three channels; equal ones where they are grey."""
        return self._replace(images=self.images.expand(-1, 3, -1, -1).contiguous())

    def first(self, n: int) -> "Scenes":
        """The first n scenes."""
        return Scenes(*(part[:n] for part in self))


def digit_scenes(digits: Tensor, labels: Tensor, n: int, seed: int, fewest: int = 1) -> Scenes:
    """`fewest` to 5 separate digits on black, of one channel. The box of a digit is its whole square.

    digits: uint8 [N, 1, 28, 28]. labels: int64 [N].
    """
    rng = np.random.default_rng((seed, 0))
    counts = rng.integers(fewest, MOST_DIGITS + 1, n)
    places = _apart(n, rng)
    chosen = rng.integers(0, len(digits), (n, MOST_DIGITS))
    middle = (digits.shape[-1] - DIGIT) // 2
    squares = digits[:, 0, middle : middle + DIGIT, middle : middle + DIGIT].numpy()
    page = np.zeros((n, PAGE, PAGE), np.uint8)
    owner = np.zeros((n, PAGE, PAGE), np.uint8)
    every = np.arange(n)[:, None, None]
    for k in range(MOST_DIGITS):
        there = (k < counts)[:, None, None]
        rows, columns = (places[:, k, axis, None] + np.arange(DIGIT) for axis in (1, 0))
        at = every, rows[:, :, None], columns[:, None, :]
        page[at] = np.where(there, squares[chosen[:, k]], page[at])
        owner[at] = np.where(there, k + 1, owner[at])
    images = torch.cat([_resized(part) for part in torch.split(torch.from_numpy(page), 1024)])
    nearest = ((np.arange(SIDE) + 0.5) * PAGE / SIDE).astype(np.int64)
    owned = torch.from_numpy(owner[:, nearest][:, :, nearest]) * (images[:, 0] >= INK)
    beyond = torch.from_numpy(np.arange(MOST_DIGITS) >= counts[:, None])
    corner = torch.from_numpy(places).float() * (SIDE / PAGE)
    boxes = torch.cat((corner, corner + DIGIT * SIDE / PAGE), 2).masked_fill(beyond.unsqueeze(2), 0)
    kinds = labels[torch.from_numpy(chosen)].masked_fill(beyond, -1)
    return Scenes(images, owned, boxes, torch.from_numpy(counts), kinds)


def digits_of(data: Labelled, n: int, n_test: int, seed: int, fewest: int = 1) -> tuple[Scenes, Scenes]:
    """Scenes of digits for training, and others of other digits for testing."""
    return (
        digit_scenes(data.train, data.train_labels, n, 2 * seed, fewest),
        digit_scenes(data.test, data.test_labels, n_test, 2 * seed + 1, fewest),
    )


def on_photographs(scenes: Scenes, photographs: Tensor, seed: int) -> Scenes:
    """Scenes of digits in random bright or dark colours on photographs, uint8 [P, 3, 64, 64]."""
    rng = np.random.default_rng((seed, 1))
    n = len(scenes.images)
    ground = photographs[torch.from_numpy(rng.integers(0, len(photographs), n))].float()
    bright = rng.random((n, 1)) < 0.5
    colour = np.where(bright, rng.uniform(200, 255, (n, 3)), rng.uniform(0, 40, (n, 3)))
    ink = torch.from_numpy(colour).float().view(n, 3, 1, 1)
    cover = scenes.images.float() / 255
    return scenes._replace(images=(ground + (ink - ground) * cover).round().to(torch.uint8))


def sprite_scenes(n: int, seed: int) -> Scenes:
    """1 to 4 coloured sprites, later ones over earlier ones, on a flat ground."""
    rng = np.random.default_rng((seed, 2))
    counts = rng.integers(1, MOST_SPRITES + 1, n)
    factors = sprites.random_factors(n * MOST_SPRITES, rng)
    ground = rng.integers(0, 256, (n, 3))
    colours = rng.integers(0, 256, (n, MOST_SPRITES, 3))
    alike = np.abs(colours - ground[:, None]).max(2, keepdims=True) < CONTRAST
    colours = np.where(alike, (colours + 128) % 256, colours)
    shape = factors[:, 0].reshape(n, MOST_SPRITES)
    images = np.broadcast_to(ground[:, :, None, None].astype(np.uint8), (n, 3, SIDE, SIDE)).copy()
    owner = np.zeros((n, SIDE, SIDE), np.uint8)
    for start in range(0, n, 500):
        part = slice(start, start + 500)
        drawn = factors.reshape(n, MOST_SPRITES, -1)[part]
        for k in range(MOST_SPRITES):
            inside = sprites.render(drawn[:, k], SIDE).numpy().astype(bool)
            inside &= (k < counts[part])[:, None, None, None]
            colour = colours[part, k, :, None, None].astype(np.uint8)
            images[part] = np.where(inside, colour, images[part])
            owner[part] = np.where(inside[:, 0], k + 1, owner[part])
    return _seen(images, owner, shape)


def solid_scenes(n: int, seed: int) -> Scenes:
    """3 to 10 shaded discs (kind 0) and squares (kind 1) of 8 or 18 pixels, with shadows, on a grey ground,
    under slight noise; nearer ones, which stand lower, over farther ones."""
    rng = np.random.default_rng((seed, 3))
    counts = rng.integers(FEWEST_SOLIDS, MOST_SOLIDS + 1, n)
    radius: Floats = rng.choice(DIAMETERS, (n, MOST_SOLIDS)) / 2 * rng.uniform(0.9, 1.1, (n, MOST_SOLIDS))
    x, y, placed = _strewn(radius, rng)
    there = placed & (np.arange(MOST_SOLIDS) < counts[:, None])
    order = np.argsort(y, 1)
    x, y, radius = (np.take_along_axis(v, order, 1) for v in (x, y, radius))
    there = np.take_along_axis(there, order, 1)
    kinds = rng.integers(0, 2, (n, MOST_SOLIDS))
    colours = np.array(SOLID_COLOURS, np.float32)[rng.integers(0, len(SOLID_COLOURS), (n, MOST_SOLIDS))]
    shiny = rng.random((n, MOST_SOLIDS)) < 0.5
    tone = rng.uniform(0.92, 1.08, n)
    images, owner = np.empty((n, 3, SIDE, SIDE), np.uint8), np.empty((n, SIDE, SIDE), np.uint8)
    for start in range(0, n, 250):
        part = slice(start, start + 250)
        xs, ys, radii = (v[part].astype(np.float32) for v in (x, y, radius))
        places = _Places(xs, ys, radii, there[part])
        canvas, owner[part] = _paint(places, kinds[part] == 0, colours[part], shiny[part], tone[part])
        noisy = canvas + rng.normal(0, SOLID_NOISE, canvas.shape).astype(np.float32)
        images[part] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)
    return _seen(images, owner, kinds)


def with_boxes(images: Tensor, boxes: Tensor, colours: Tensor | None = None) -> Tensor:
    """Pictures with frames drawn on them: uint8 [N, C, H, W] to [N, 3, H, W].

    boxes: float [N, K, 4], left, top, right, bottom edges in pixels; one of no width is not drawn. colours:
    uint8 [K, 3]; where there are none, from red over green to blue.
    """
    out = images.expand(-1, 3, -1, -1).clone()
    height, width = out.shape[-2:]
    n_boxes = boxes.shape[1]
    if colours is None:
        shade = torch.arange(n_boxes) / max(1, n_boxes - 1)
        up, down = (2 * shade).clamp(0, 1), (2 * shade - 1).clamp(0, 1)
        colours = (255 * torch.stack((1 - up, up - down, down), 1)).round().to(torch.uint8)
    for n, of_image in enumerate(boxes.cpu()):
        for box, colour in zip(of_image, colours, strict=True):
            if box[2] <= box[0]:
                continue
            left, right = box[[0, 2]].round().long().sub(torch.tensor([0, 1])).clamp(0, width - 1).tolist()
            top, bottom = box[[1, 3]].round().long().sub(torch.tensor([0, 1])).clamp(0, height - 1).tolist()
            ink = colour.view(3, 1).to(out)
            out[n, :, top : bottom + 1, left] = out[n, :, top : bottom + 1, right] = ink
            out[n, :, top, left : right + 1] = out[n, :, bottom, left : right + 1] = ink
    return out


def _resized(page: Tensor) -> Tensor:
    """Pages uint8 [N, 84, 84] at the size of scenes: uint8 [N, 1, 64, 64]."""
    small = F.interpolate(page.unsqueeze(1).float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def _apart(n: int, rng: np.random.Generator) -> Ints:
    """Left and top corners of five squares that do not overlap, on n pages: int64 [n, 5, 2]."""
    room = PAGE - DIGIT + 1
    places = np.zeros((n, MOST_DIGITS, 2), np.int64)
    pages = np.arange(n)
    while len(pages):
        found = np.zeros((len(pages), MOST_DIGITS, 2), np.int64)
        good = np.ones(len(pages), bool)
        for k in range(MOST_DIGITS):
            wrong = np.arange(len(pages))
            for _ in range(TRIES):
                found[wrong, k] = rng.integers(0, room, (len(wrong), 2))
                gaps = np.abs(found[wrong, k, None] - found[wrong, :k]).max(2)
                wrong = wrong[(gaps < DIGIT).any(1)]
            good[wrong] = False
        places[pages[good]] = found[good]
        pages = pages[~good]
    return places


def _strewn(radius: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Centres x and y of solids inside their scenes, and whether a place was found: [n, M] each."""
    n, most = radius.shape
    x, y = np.zeros((n, most)), np.zeros((n, most))
    placed = np.zeros((n, most), bool)
    for k in range(most):
        left = np.arange(n)
        for _ in range(TRIES):
            r = radius[left, k]
            x[left, k], y[left, k] = (r + 1 + rng.random(len(left)) * (SIDE - 2 * r - 2) for _ in range(2))
            far = np.hypot(x[left, k, None] - x[left, :k], y[left, k, None] - y[left, :k])
            near = (far < NEAREST * (r[:, None] + radius[left, :k])) & placed[left, :k]
            placed[left, k] = ~near.any(1)
            left = left[near.any(1)]
            if not len(left):
                break
    return x, y, placed


class _Places(NamedTuple):
    """Centres and radii of solids in pixels, float32 [N, M], and which of them there are, bool [N, M]."""

    x: Floats
    y: Floats
    radius: Floats
    there: NDArray[np.bool_]


class _Window(NamedTuple):
    """The pixels around the k-th solid of each scene.

    at: their indices on a canvas with a border. dx, dy: distance from the centre in pixels. r: radius. there:
    whether there is one. All [N, w, w] when broadcast.
    """

    at: tuple[Ints, Ints, Ints]
    dx: Floats
    dy: Floats
    r: Floats
    there: NDArray[np.bool_]

    @classmethod
    def of(cls, places: _Places, k: int, side: int) -> "_Window":
        """A window of `side` pixels."""
        left, top = (np.floor(v[:, k]).astype(np.int64) - side // 2 for v in (places.x, places.y))
        rows, columns = (start[:, None] + np.arange(side) for start in (top, left))
        at = np.arange(len(left))[:, None, None], rows[:, :, None] + BORDER, columns[:, None, :] + BORDER
        dx, dy = (
            (v + 0.5 - centre[:, k, None]).astype(np.float32)
            for v, centre in ((columns, places.x), (rows, places.y))
        )
        one = np.s_[:, k, None, None]
        return cls(at, dx[:, None, :], dy[:, :, None], places.radius[one], places.there[one])


def _paint(
    places: _Places,
    disc: NDArray[np.bool_],
    colours: Floats,
    shiny: NDArray[np.bool_],
    tone: Floats,
) -> tuple[Floats, NDArray[np.uint8]]:
    """Scenes of solids without noise, float32 [N, 64, 64, 3], and which solid each pixel shows, uint8
    [N, 64, 64]. All shadows lie on the ground. disc, shiny: [N, M]. colours: [N, M, 3]. tone: of the ground,
    [N]."""
    n, side = len(tone), SIDE + 2 * BORDER
    down = np.clip((np.arange(side) - BORDER) / SIDE, 0, 1)
    ground = ((GROUND[0] + (GROUND[1] - GROUND[0]) * down) * tone[:, None]).astype(np.float32)
    canvas = np.broadcast_to(ground[:, :, None, None], (n, side, side, 3)).copy()
    owner = np.zeros((n, side, side), np.uint8)
    for k in range(MOST_SOLIDS):
        w = _Window.of(places, k, SHADOW_SIDE)
        far = np.sqrt(((w.dx - 0.35 * w.r) / 1.15) ** 2 + ((w.dy - 0.35 * w.r) / 0.8) ** 2)
        canvas[w.at] *= (1 - 0.4 * np.clip((1.1 * w.r - far) / 2.5, 0, 1) * w.there)[..., None]
    for k in range(MOST_SOLIDS):
        w = _Window.of(places, k, SOLID_SIDE)
        cover, light = _solid(w, disc[:, k, None, None], shiny[:, k, None, None])
        paint = np.minimum(colours[:, k, None, None] * light[..., None], 255)
        below = canvas[w.at]
        canvas[w.at] = below + cover[..., None] * (paint - below)
        owner[w.at] = np.where(cover > 0.5, k + 1, owner[w.at])
    inner = slice(BORDER, BORDER + SIDE)
    return canvas[:, inner, inner], owner[:, inner, inner]


def _solid(w: _Window, disc: NDArray[np.bool_], shiny: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """How far a solid covers pixels, 0..1, and by what its colour is multiplied there, light from the upper
    left. A disc is a ball, a square has a flat front."""
    across = np.maximum(np.abs(w.dx), np.abs(w.dy)) / 0.9
    edge = np.where(disc, np.sqrt(w.dx**2 + w.dy**2), across)
    cover = np.clip(w.r - edge + 0.5, 0, 1) * w.there
    slope = -(w.dx + w.dy) / (np.sqrt(2) * w.r)
    gleam = np.exp(-((w.dx + 0.35 * w.r) ** 2 + (w.dy + 0.35 * w.r) ** 2) / (0.15 * w.r) ** 2)
    light = np.where(disc, 0.75 + 0.45 * slope, 0.9 + 0.15 * slope) + np.where(shiny & disc, 0.8 * gleam, 0)
    return cover.astype(np.float32), np.maximum(light, 0.2).astype(np.float32)


def _seen(images: NDArray[np.uint8], owner: NDArray[np.uint8], kinds: Ints) -> Scenes:
    """Scenes whose objects are those that show, numbered without gaps, in the boxes of what shows."""
    n, most = kinds.shape
    ids = np.arange(1, most + 1)
    area = np.stack([(owner == k).sum((1, 2)) for k in ids], 1)
    visible = area >= SMALLEST_VISIBLE
    number = np.zeros((n, most + 1), np.uint8)
    number[:, 1:] = np.where(visible, np.cumsum(visible, 1), 0)
    owner = np.take_along_axis(number, owner.reshape(n, -1).astype(np.int64), 1).reshape(owner.shape)
    boxes = np.zeros((n, most, 4), np.float32)
    for k in ids:
        shows = owner == k
        for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):
            along = shows.any(axis)
            boxes[:, k - 1, low] = along.argmax(1)
            boxes[:, k - 1, high] = np.where(along.any(1), SIDE - along[:, ::-1].argmax(1), 0)
    order = np.argsort(~visible, 1, kind="stable")
    counts = visible.sum(1).astype(np.int64)
    kept = np.where(np.arange(most) < counts[:, None], np.take_along_axis(kinds, order, 1), -1)
    parts = (images, owner, boxes, counts, kept)
    return Scenes(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))
