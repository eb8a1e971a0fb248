"""Groups of an exact level: from what they see to entropy parameters to symbols (docs/format.md, section 11).

Planes are int16 YCoCg-R, channels last. A group sees the coarser grid of the whole picture, and of its own
grid only its own pixels. Pictures of one size go through together: a group is a window of one of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vbc.codec.entropy.coder import Coder
from vbc.codec.exact.bins import BinPredictor, bins_base, bins_pixels, seen_pixels
from vbc.codec.exact.features import HALO, RADIUS, phase_base, phase_inputs
from vbc.codec.exact.model import NEIGHBOURS, TAPS, ExactModel, Tuning
from vbc.codec.exact.planes import (
    by_channel,
    cut,
    cut_with_halo,
    halved,
    in_windows,
    lossy_plane,
    lossy_planes,
    phase_size,
    phase_view,
    runs,
    shape_of,
    stack,
)
from vbc.codec.pixels.borders import Window, extend
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASES
from vbc.kernels.predict import LOG_SCALE_MIN, ChannelPredictor, Corrections, PredictMaps

ERROR_HALO = 1
"""Positions around a group whose prior errors tuned means may follow."""
PIECE = 1 << 15
"""Positions that are predicted at a time on the CPU: what is worked out for them stays in the cache, torch
does not wake other threads for single channels of them, and starting an operation costs little beside it. On
one thread a quarter of that makes photographs of 0.4 MP 4 % slower to decode, regions 6 %."""


@dataclass(frozen=True)
class GridStep:
    """What all groups of an exact level of B pictures see: the step from x_{k+1} to x_k.

    coarse: x_{k+1}, int16 [B, 3, h, w]. errors: its prior errors, int8 likewise, or None for zeros. lossy:
    the lossy picture on x_k, uint8 RGB [B, 3, .., ..], or None in an archival file. level_class, quality:
    what the networks are conditioned on. bound: of bins, 1 to 8, or 0 for values. keep: what bins are
    predicted with, for the values that follow.
    """

    model: ExactModel
    coarse: Tensor
    errors: Tensor | None
    lossy: Tensor | None
    level_class: int
    quality: int
    bound: int = 0
    keep: bool = False

    @property
    def n_pictures(self) -> int:
        """B."""
        return len(self.coarse)

    def maps(self, phase: str) -> PredictMaps:
        """The look-up tables of a phase."""
        return (self.model.bin_maps if self.bound else self.model.maps)[phase]

    def predictor(
        self, base: Tensor, out: Tensor, corrections: Corrections | None, maps: PredictMaps
    ) -> ChannelPredictor:
        """The predictor of values, or of bins, at some positions of a phase. maps: `maps` of it."""
        if self.bound:
            return BinPredictor(base, out, corrections, maps, self.bound)
        return ChannelPredictor(base, out, corrections, maps)

    def of(self, pictures: Sequence[int]) -> "GridStep":
        """The step of some of the pictures, ascending; a copy of their planes where there are gaps."""
        parts = runs(pictures)
        coarse, errors, lossy = (
            None if plane is None else stack([plane[part] for part in parts])
            for plane in (self.coarse, self.errors, self.lossy)
        )
        assert coarse is not None
        return replace(self, coarse=coarse, errors=errors, lossy=lossy)


@dataclass(frozen=True)
class Predictions:
    """What bins were predicted with: of G, R and B, int8 [N, 3, h, w] each.

    offsets: of means, from the middles of the bins, sixteenths of a pixel value. scales: sixteenths of an
    octave.
    """

    offsets: Tensor
    scales: Tensor

    @classmethod
    def sure(cls, pixels: Tensor) -> "Predictions":
        """Of pixels that are known without a network: any tensor of their shape and device."""
        offsets = torch.zeros_like(pixels, dtype=torch.int8)
        return cls(offsets, torch.full_like(offsets, LOG_SCALE_MIN))

    @classmethod
    def empty(cls, pixels: Tensor) -> "Predictions":
        """Memory for those of all pixels of a grid; what of it is not written has no meaning."""
        return cls(*(torch.empty_like(pixels, dtype=torch.int8) for _ in range(2)))

    def planes(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.offsets, self.scales


@dataclass(frozen=True)
class Parameters:
    """Entropy parameters of a phase of N groups before channels are known.

    base: int16 [N, 3, h, w]; out: int32 [N, 9, h, w]. features: the last hidden layer, uint8 [N, width, h,
    w].
    """

    base: Tensor
    out: Tensor
    features: Tensor


@dataclass(frozen=True)
class Surroundings:
    """What N groups of one shape see of the pixels known so far.

    planes: A, then the phases coded, int16 [N, 3, h+8, w+8]: with the halo of the networks. errors: their
    prior errors, int8 [N, 3, h+2, w+2].
    """

    planes: dict[str, Tensor]
    errors: dict[str, Tensor]

    def part(self, n: int, window: Window, phase: str) -> "Surroundings":
        """What a window of the n-th of them sees before a phase; that may have been seen by now."""
        rows, cols = window
        known = known_before(phase)

        def grown(planes: dict[str, Tensor], halo: int) -> dict[str, Tensor]:
            inner = slice(rows.start, rows.stop + 2 * halo), slice(cols.start, cols.stop + 2 * halo)
            return {p: planes[p][n : n + 1, :, *inner] for p in known}

        return Surroundings(grown(self.planes, HALO), grown(self.errors, ERROR_HALO))

    @classmethod
    def join(cls, parts: Sequence["Surroundings"]) -> "Surroundings":
        """Windows of one shape, one after the other."""
        planes = {p: stack([part.planes[p] for part in parts]) for p in parts[0].planes}
        return cls(planes, {p: stack([part.errors[p] for part in parts]) for p in parts[0].errors})

    def parameters(
        self, step: GridStep, lossy: dict[str, Tensor] | None, phase: str, size: tuple[int, int]
    ) -> Parameters:
        """Entropy parameters of a phase of this size, once the phases before it are known.

        lossy: `planes.lossy_planes` of the same windows in a layered file.
        """
        inner = (..., slice(size[0] + 2 * HALO), slice(size[1] + 2 * HALO))
        known = {p: self.planes[p][inner] for p in known_before(phase)}
        guides = None if lossy is None else {p: plane[inner] for p, plane in lossy.items()}
        base, planes, guide = phase_inputs(phase, known["A"], known.get("D"), known.get("H"), guides)
        features, out = step.model.phases[phase](planes, guide, step.level_class, step.quality, step.bound)
        base = base[..., RADIUS:-RADIUS, RADIUS:-RADIUS]
        return Parameters(bins_base(base) if step.bound else base, out, features)

    def around(self, phase: str, base: Tensor, bound: int) -> Iterator[Tensor]:
        """What tuned means of a phase follow around its pixels, thing by thing: int32 [N, 3, h, w] each.

        Sums of prior errors by group of neighbours (`NEIGHBOURS`), then by how much single known pixels
        (`TAPS`) differ from the base. base: as `Parameters`. bound: as `GridStep`.
        """
        base = plane_by_plane(base)
        h, w = base.shape[-2:]
        known = known_before(phase)
        errors = {p: plane_by_plane(self.errors[p]) for p in known}
        pixels = {p: plane_by_plane(bins_base(self.planes[p]) if bound else self.planes[p]) for p in known}

        def shifted(plane: Tensor, halo: int, dy: int, dx: int) -> Tensor:
            return plane[..., halo + dy : halo + dy + h, halo + dx : halo + dx + w]

        for first, *others in NEIGHBOURS[phase]:
            total = shifted(errors[first[0]], ERROR_HALO, *first[1:])
            for plane, dy, dx in others:
                total = total + shifted(errors[plane], ERROR_HALO, dy, dx)
            yield total
        for plane, dy, dx in TAPS[phase]:
            yield shifted(pixels[plane], HALO, dy, dx) - base


class GroupBatch:
    """N groups of one shape of an exact level while they are coded, phase by phase.

    windows: theirs on the finer grid, in each of the step's B pictures; they start at even positions. Group
    n * B + b is window n of picture b. keep_lossy: keep the lossy picture's
    planes from one phase to the next (24 bytes a position of the coarser grid). pixels, errors: what was
    decoded, by phase, int16 and int8 [N, 3, .., ..]. predictions: likewise, where the step keeps them.
    """

    def __init__(self, step: GridStep, windows: Sequence[Window], keep_lossy: bool = True):
        self.step, self.windows = step, windows
        self.pixels: dict[str, Tensor] = {}
        self.errors: dict[str, Tensor] = {}
        self.predictions: dict[str, Predictions] = {}
        self.coarse = [halved(window) for window in windows]
        self._size = shape_of(self.coarse[0])
        self._keep_lossy = keep_lossy
        self._lossy: dict[str, Tensor] | None = None
        known = cut_with_halo(step.coarse, self.coarse)
        if step.errors is None:
            h, w = (n + 2 * ERROR_HALO for n in self._size)
            missed = torch.zeros((self.n_groups, 3, h, w), dtype=torch.int8, device=known.device)
        else:
            missed = cut_with_halo(step.errors, self.coarse, ERROR_HALO)
        self.seen = Surroundings({"A": known}, {"A": missed})

    @property
    def n_groups(self) -> int:
        """N."""
        return len(self.windows) * self.step.n_pictures

    def size(self, phase: str) -> tuple[int, int]:
        """Rows and columns of a phase of one of the groups."""
        return phase_size(phase, *shape_of(self.windows[0]))

    def parameters(self, phase: str) -> Parameters:
        """Entropy parameters of a phase, once the phases before it are seen."""
        lossy = self._lossy
        if lossy is None and self.step.lossy is not None:
            lossy = lossy_planes(self.step.lossy, self.coarse)
            self._lossy = lossy if self._keep_lossy else None
        return self.seen.parameters(self.step, lossy, phase, self.size(phase))

    def is_empty(self, phase: str) -> bool:
        """Whether the groups, of one row or column, have no pixels of a phase."""
        return 0 in self.size(phase)

    def see(self, phase: str, pixels: Tensor) -> None:
        """Let later phases see a phase's pixels, int16 [N, 3, h, w].

        Beyond the group its outermost pixels are repeated, in a layered file their differences to the lossy
        picture. A stands for a phase without pixels.
        """
        if phase == PHASES[-1]:
            return
        planes = self.seen.planes
        if self.step.lossy is None or not pixels.numel():
            own = pixels if pixels.numel() else planes["A"][..., HALO:-HALO, HALO:-HALO]
            planes[phase] = extend(own, *self._size, HALO)
            return
        kept = self._lossy
        guide = lossy_plane(self.step.lossy, self.coarse, phase) if kept is None else kept[phase]
        h, w = pixels.shape[-2:]
        difference = pixels - guide[..., HALO : HALO + h, HALO : HALO + w]
        planes[phase] = extend(difference, *self._size, HALO).add_(guide)

    def code(
        self,
        phase: str,
        coder: Coder,
        parameters: Parameters,
        tunings: Sequence[Tuning] | None,
        target: Tensor | None,
    ) -> None:
        """Code the channels of a phase.

        tunings: of each picture, or None. target: its pixels in an encoder, int16 [N, 3, h, w], as
        `phase_pixels`; of values it has them seen.
        """
        n, _, h, w = parameters.base.shape
        base, out = by_channel(parameters.base), by_channel(parameters.out)
        corrections_at = None
        if tunings is not None:
            linear = by_channel(tuned_outputs(tunings, parameters.features))
            around = self.seen.around(phase, parameters.base, self.step.bound)
            corrections_at = CorrectionsAt(tunings, linear, by_channel(moves(phase, tunings, around)), h * w)
        pieces = positions_in_pieces(base)
        predictors, maps = [], self.step.maps(phase)
        for part in pieces:
            corrections = None if corrections_at is None else corrections_at(part)
            predictors.append(self.step.predictor(base[:, part], out[:, part], corrections, maps))
        wanted = None if target is None else by_channel(target)
        known = wanted is not None and not self.step.bound
        values = wanted if wanted is not None and known else torch.empty_like(base)
        for c in range(3):
            # a coder may keep what it is given until it is finished, so each channel has its own
            index, rounded, symbols = torch.empty((3, base.shape[1]), dtype=torch.int16, device=base.device)
            for part, predictor in zip(pieces, predictors, strict=True):
                index[part], rounded[part] = predictor.tables()
                if wanted is not None:
                    symbols[part] = predictor.symbols(wanted[c, part], rounded[part])
            decoded = coder.code(index.view(n, -1), None if wanted is None else symbols.view(n, -1)).view(-1)
            for part, predictor in zip(pieces, predictors, strict=True):
                if not known:
                    values[c, part] = predictor.values(rounded[part], decoded[part])
                predictor.learn(values[c, part])
        if not known:
            pixels = in_windows(values, n, h, w)
            self.pixels[phase] = seen_pixels(pixels) if self.step.bound else pixels
            self.see(phase, self.pixels[phase])
        errors = torch.cat([predictor.prior_errors() for predictor in predictors], 1)
        self._take_errors(phase, in_windows(errors, n, h, w))
        if self.step.keep:
            of_bins = [predictor for predictor in predictors if isinstance(predictor, BinPredictor)]
            kept = zip(*(predictor.predictions() for predictor in of_bins), strict=True)
            self.predictions[phase] = Predictions(*(in_windows(torch.cat(part, 1), n, h, w) for part in kept))

    def interpolate(self, phase: str) -> None:
        """Let the mean of the four nearest known pixels stand for each pixel of a phase, without prior
        errors."""
        base = phase_base(phase, self.seen.planes["A"], self.seen.planes.get("D"))
        h, w = self.size(phase)
        self.set_pixels(phase, base[..., RADIUS : RADIUS + h, RADIUS : RADIUS + w])

    def set_pixels(self, phase: str, pixels: Tensor) -> None:
        """Take a phase's pixels, int16 [N, 3, h, w], as decoded, without prior errors."""
        self.pixels[phase] = pixels
        self.see(phase, pixels)
        self._take_errors(phase, torch.zeros_like(pixels, dtype=torch.int8))
        if self.step.keep:
            self.predictions[phase] = Predictions.sure(pixels)

    def set_empty(self, phase: str) -> None:
        """Take a phase that has no pixels as decoded."""
        size = (self.n_groups, 3, *self.size(phase))
        self.set_pixels(phase, torch.empty(size, dtype=torch.int16, device=self.step.coarse.device))

    def _take_errors(self, phase: str, errors: Tensor) -> None:
        self.errors[phase] = errors
        if phase != PHASES[-1]:
            halo = ERROR_HALO
            own = errors if errors.numel() else self.seen.errors["A"][..., halo:-halo, halo:-halo]
            self.seen.errors[phase] = extend(own, *self._size, halo)


def known_before(phase: str) -> tuple[str, ...]:
    """The planes that are known when a phase is coded."""
    return ("A", *PHASES[: PHASES.index(phase)])


def phase_pixels(picture: Tensor, windows: Sequence[Window], phase: str, bound: int = 0) -> Tensor:
    """A phase's pixels of groups, int16 [N, 3, h, w], of a picture on the finer grid, uint8 RGB [1, 3, H, W].

    In YCoCg-R, for bins in G, R and B.
    """
    pixels = phase_view(cut(picture, windows), phase)
    return bins_pixels(pixels) if bound else rgb_to_ycocg(pixels)


def positions_in_pieces(base: Tensor) -> list[slice]:
    """Ranges of the positions of [3, P] that are predicted at a time: all on a device."""
    n = base.shape[1]
    size = PIECE if base.device.type == "cpu" else max(n, 1)
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]


class CorrectionsAt:
    """What tuned layers add at a range of the positions [W, B, h * w] of windows of B pictures.

    tunings: of each picture. linear: int32 [6, P]; moved: int32 [3, P], as `moves`. area: h * w.
    """

    def __init__(self, tunings: Sequence[Tuning], linear: Tensor, moved: Tensor, area: int):
        self._linear, self._moved = linear, moved
        self._picture: Tensor | None = None
        self._before = tunings[0].before
        if len(tunings) > 1:
            pictures = torch.arange(len(tunings), dtype=torch.int32, device=linear.device)
            n_windows = linear.shape[1] // (len(tunings) * area)
            self._picture = pictures.view(1, -1, 1).expand(n_windows, -1, area).reshape(-1)
            self._before = torch.stack([tuning.before for tuning in tunings])

    def __call__(self, part: slice) -> Corrections:
        picture = None if self._picture is None else self._picture[part]
        return Corrections(self._linear[:, part], self._moved[:, part], self._before, picture)


def tuned_outputs(tunings: Sequence[Tuning], features: Tensor) -> Tensor:
    """The tuned layers of B pictures on their own windows: uint8 [W * B, width, h, w] to int32 [W * B, 6, h,
    w]."""
    if len(tunings) == 1:
        return tunings[0].layer(features)
    by_picture = [
        tuning.layer(features[b :: len(tunings)].contiguous(memory_format=torch.channels_last))
        for b, tuning in enumerate(tunings)
    ]
    return torch.stack(by_picture, 1).flatten(0, 1)


def around_units(phase: str) -> list[int]:
    """What a slope of 1 for each of `Surroundings.around` counts, in 1/4096 of a pixel value: prior errors
    are in quarters of one and come as sums."""
    return [4] * len(NEIGHBOURS[phase]) + [8] * len(TAPS[phase])


def moves(phase: str, tunings: Sequence[Tuning], around: Iterable[Tensor]) -> Tensor:
    """By how much means of windows of B pictures are to move for what is around them: int32 [W * B, 3, h, w],
    1/4096 of a pixel value, the rounding constant in it.

    tunings: of each picture. around: as `Surroundings.around`.
    """
    slopes = torch.stack([tuning.around for tuning in tunings], 1)[..., None, None]  # [n_around, B, 3, 1, 1]
    total: Tensor | None = None
    for part, slope, unit in zip(around, slopes, around_units(phase), strict=True):
        if total is None:
            total = torch.full_like(part, 128)
        by_picture = (-1, len(tunings), *part.shape[1:])
        total.view(by_picture).addcmul_(part.reshape(by_picture), slope, value=unit)
    assert total is not None
    return total


def plane_by_plane(x: Tensor) -> Tensor:
    """As int32, one plane after the other in memory: factors that differ by plane are applied three times as
    fast to it."""
    return x.to(torch.int32, memory_format=torch.contiguous_format)
