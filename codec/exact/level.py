"""An exact level: all its groups in one traversal, both directions (docs/format.md, section 11)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vbc.bitstream.errors import Corrupt
from vbc.codec.entropy.coder import Coder, Decoder, Means, finish_all
from vbc.codec.exact.follower import Follower
from vbc.codec.exact.groups import GridStep, GroupBatch, Parameters, Predictions, phase_pixels
from vbc.codec.exact.model import Tuning
from vbc.codec.exact.planes import (
    halved,
    in_batches,
    phase_size,
    phase_view,
    runs,
    shape_of,
    stack,
)
from vbc.codec.exact.tuning import code_tuning, tuning_symbols_at_most
from vbc.codec.exact.tuning_fit import MIN_POSITIONS, fit_tuning
from vbc.codec.exact.values import ValuesStep, code_values
from vbc.codec.model import Model
from vbc.codec.pixels.borders import Window
from vbc.codec.pixels.colour import rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.pixels.samples import from_samples, samples

CODED, RAW, TUNED, RAW_GRAY, PACKED = range(5)
"""First byte of a packet: lanes follow; or plain samples; or lanes of networks with the corrections of the
level's shared packet; or plain samples of a picture whose planes are equal; or (level 4) the whole picture,
packed."""
RAW_DEPTH = {RAW: 3, RAW_GRAY: 1}
"""Bytes that one pixel takes where it is stored plain, by mode."""

HOST_BATCH = 1 << 18
"""Positions of the groups that go through the networks together on the CPU: one group of the finest grid."""
DEVICE_BATCH = 1 << 24
"""The same on a GPU: what fills it, at some 100 bytes a position."""
CHUNK = 8
"""Batches that a decoder has in flight on the CPU: two keep networks and entropy decoding busy, more cost
memory."""
FOLLOW_POSITIONS = 1 << 21
"""From so many positions on (a whole chunk of the finest grid), a decoder codes symbols on a thread of its
own while the networks go on. Below, and in an encoder, the threads stand in each other's way: without it
photographs of 0.4 MP decode 1.2 times as fast and encode 1.3 times, of 3.4 MP they encode 1.1 times as
fast, on two cores."""
KEEP_POSITIONS = 1 << 20
"""Levels of at most so many positions keep their entropy parameters while corrections are fitted to samples
of them: 100 bytes each. Larger ones run the networks once more on sampled windows."""

TuningOf = Callable[[str, list[Tensor] | None, list[Parameters] | None], Sequence[Tuning] | None]
"""From a phase, its pixels and its entropy parameters (None where not at hand) to what tunes it, for each
picture: by batch, the parameters of those batches alone that have pixels of the phase."""


def code_groups(
    batches: Sequence[GroupBatch],
    coders: Sequence[Coder],
    tuning_of: TuningOf,
    picture: Tensor | None = None,
    keep: bool = False,
    finished: Callable[[int], None] = lambda i: None,
) -> None:
    """Code the pixels of groups, phase by phase; each batch of groups by its own coder.

    picture: the grid to be coded, uint8 RGB [1, 3, h, w], in an encoder. keep: hold the entropy parameters of
    a whole phase for `tuning_of`. finished: called with a batch's number once its last phase is coded.
    """
    n_positions = sum(b.n_groups * h * w for b in batches for h, w in [shape_of(b.windows[0])])
    host = batches[0].step.coarse.device.type == "cpu"
    ahead = host and picture is None and n_positions >= FOLLOW_POSITIONS
    with Follower(ahead) as follow:
        coded: list[Future[None] | None] = [None] * len(batches)
        for phase in PHASES:
            targets = None if picture is None else pixels_of(batches, picture, phase)
            known = [b.parameters(phase) for b in batches if not b.is_empty(phase)] if keep else None
            tunings = follow(tuning_of, phase, targets, known)
            at_hand = None if known is None else iter(known)
            for i, (batch, coder) in enumerate(zip(batches, coders, strict=True)):
                before, target = coded[i], None if targets is None else targets[i]
                if target is None and before is not None:
                    before.result()
                if batch.is_empty(phase):
                    coded[i] = follow(batch.set_empty, phase)
                else:
                    parameters = batch.parameters(phase) if at_hand is None else next(at_hand)
                    coded[i] = follow(_code, batch, phase, coder, parameters, tunings, target)
                if target is not None and not batch.step.bound:
                    batch.see(phase, target)
                if phase == PHASES[-1]:
                    follow(finished, i)


def pixels_of(batches: Sequence[GroupBatch], picture: Tensor, phase: str) -> list[Tensor]:
    """A phase's pixels of batches, as `phase_pixels`."""
    return [phase_pixels(picture, batch.windows, phase, batch.step.bound) for batch in batches]


def _code(
    batch: GroupBatch,
    phase: str,
    coder: Coder,
    parameters: Parameters,
    tunings: "Future[Sequence[Tuning] | None]",
    target: Tensor | None,
) -> None:
    batch.code(phase, coder, parameters, tunings.result(), target)


def make_batches(
    step: GridStep, windows: Sequence[Window], keep_lossy: bool = True
) -> list[tuple[list[int], GroupBatch]]:
    """Batches of groups that go through the networks together, with the numbers of their windows."""
    most = (HOST_BATCH if step.coarse.device.type == "cpu" else DEVICE_BATCH) // step.n_pictures
    return [
        (numbers, GroupBatch(step, [windows[i] for i in numbers], keep_lossy))
        for numbers in in_batches(windows, most)
    ]


# encoding


@dataclass(frozen=True)
class EncodedLevel:
    """A level's packets, and what further levels need.

    shared: what its groups share, None for nothing. groups: theirs. decoded: the grid as it will be decoded,
    uint8 RGB [1, 3, h, w]. errors: the new prior errors, int8 likewise, None where they are not wanted.
    predictions: of all new pixels, where the step keeps them.
    """

    shared: bytes | None
    groups: list[bytes]
    decoded: Tensor
    errors: Tensor | None
    predictions: Predictions | None = None


def encode_level(
    model: Model,
    step: GridStep,
    windows: Sequence[Window],
    picture: Tensor,
    depth: int,
    effort: int,
    want_errors: bool,
) -> EncodedLevel:
    """Encode a level.

    windows: of all groups. picture: the grid x_k, uint8 RGB [1, 3, h, w]. depth: bytes of a plain pixel, 1
    where the picture's planes are equal. effort: 0 for no corrections, else how carefully they are found.
    want_errors: whether the prior errors are wanted, int8 [1, 3, h, w]; else None.
    """
    numbered = make_batches(step, windows, keep_lossy=len(windows) <= CHUNK)
    batches = [batch for _, batch in numbered]
    writers = [model.writer(len(batch.windows)) for batch in batches]
    shared = model.writer(1)
    fitted: list[bool] = []
    bodies: dict[int, bytes] = {}

    def tuning_of(
        phase: str, targets: list[Tensor] | None, known: list[Parameters] | None
    ) -> Sequence[Tuning] | None:
        if not tuned:
            return None
        assert targets is not None
        wanted = fit_tuning(phase, batches, targets, known, effort)
        fitted.append(wanted is not None)
        return code_tuning(step.model, shared, phase, step.level_class, wanted, step.coarse.device)

    def finished(i: int) -> None:
        bodies.update(zip(numbered[i][0], writers[i].finish(), strict=True))

    h, w = picture.shape[-2:]
    tuned = effort > 0 and h * w >= 4 * MIN_POSITIONS
    code_groups(batches, writers, tuning_of, picture, tuned and h * w <= KEEP_POSITIONS, finished)
    mode = bytes([TUNED if any(fitted) else CODED])
    raw_mode = RAW if depth == 3 else RAW_GRAY
    packets = [mode + bodies[i] for i in range(len(windows))]
    together = mode + shared.finish()[0] if any(fitted) else b""
    saved = [1 + depth * n_new(window) - len(packet) for window, packet in zip(windows, packets, strict=True)]
    pays = sum(max(0, n) for n in saved) >= len(together)  # what groups share must pay for itself, too
    plain = {
        i: plain_packet(picture, window, raw_mode)
        for i, window in enumerate(windows)
        if saved[i] < 0 or not pays
    }
    decoded = torch.empty_like(picture) if step.bound else picture
    if step.bound:
        for numbers, batch in numbered:
            for n, i in enumerate(numbers):
                if i in plain:
                    fine = picture[..., *windows[i]]
                    exact = {p: rgb_to_ycocg(phase_view(fine, p)) for p in PHASES}
                    put_group(decoded, step.coarse, windows[i], exact, 0)
                else:
                    put_group(decoded, step.coarse, windows[i], batch.pixels, n)
    errors = None
    if want_errors:
        errors = torch.empty_like(picture, dtype=torch.int8, memory_format=torch.channels_last)
        known = torch.zeros_like(step.coarse, dtype=torch.int8) if step.errors is None else step.errors
        for numbers, batch in numbered:
            for n, i in enumerate(numbers):
                missed = zeros_like(batch.errors) if i in plain else batch.errors
                put_group(errors, known, windows[i], missed, n)
    packets = [plain.get(i, packet) for i, packet in enumerate(packets)]
    predictions = None
    if step.keep:
        predictions = Predictions.empty(picture)
        for numbers, batch in numbered:
            for n, i in enumerate(numbers):
                put_predictions(predictions, windows[i], batch.predictions, n, sure=i in plain)
    return EncodedLevel(together if together and pays else None, packets, decoded, errors, predictions)


# decoding


@dataclass(frozen=True)
class DecodedGroups:
    """Groups of a level that were decoded together: windows of some of its pictures.

    numbers: of the groups. pictures: ascending. pixels, errors: by phase, int16 YCoCg-R and prior errors int8
    [len(numbers) * len(pictures), 3, .., ..]; the pictures of the first number come first. predictions:
    likewise, where the step keeps them.
    """

    numbers: list[int]
    pictures: tuple[int, ...]
    pixels: dict[str, Tensor]
    errors: dict[str, Tensor]
    predictions: dict[str, Predictions] = field(default_factory=dict)


def decode_groups(
    model: Model,
    step: GridStep,
    windows: Mapping[int, Window],
    packets: Mapping[int, Sequence[memoryview]],
    shared: Sequence[memoryview | None],
) -> Iterator[DecodedGroups]:
    """Decode groups of a level, each of all pictures.

    windows, packets: by number of the group; a packet for each picture. shared: for each picture the packet
    that the level's groups share, where there is one. Raises Corrupt: on the host before a damaged group is
    yielded; on a device at the end, which is the only wait for it.
    """
    bodies: dict[tuple[int, tuple[int, ...]], dict[int, list[memoryview]]] = {}
    for number, packets_of_all in packets.items():
        by_mode: dict[int, dict[int, memoryview]] = {}
        for picture, packet in enumerate(packets_of_all):
            mode, body = split_packet(packet)
            by_mode.setdefault(mode, {})[picture] = body
        for mode, found in by_mode.items():
            bodies.setdefault((mode, tuple(found)), {})[number] = list(found.values())
    unknown = {mode for mode, _ in bodies} - {CODED, RAW, TUNED, RAW_GRAY}
    if unknown:
        raise Corrupt(f"a group has mode {max(unknown)}")
    readers: list[Decoder] = []
    tuned = sorted({b for mode, pictures in bodies if mode == TUNED for b in pictures})
    tunings: dict[str, tuple[Tuning, ...] | None] = {}
    if tuned:
        reader, tunings = decode_tunings(model, step, [shared[b] for b in tuned])
        if model.decodes_blindly:
            readers.append(reader)
        else:
            reader.finish()
    for (mode, pictures), chosen in sorted(bodies.items(), key=lambda item: item[0][0] not in RAW_DEPTH):
        if mode in RAW_DEPTH:
            for number, parts in chosen.items():
                pixels = plain_pixels(parts, windows[number], RAW_DEPTH[mode], step.coarse.device)
                sure = {p: Predictions.sure(x) for p, x in pixels.items()} if step.keep else {}
                yield DecodedGroups([number], pictures, pixels, zeros_like(pixels), sure)
            continue
        here = step.of(pictures)
        tunings_here: dict[str, tuple[Tuning, ...]] = {}
        if mode == TUNED:
            places = [tuned.index(b) for b in pictures]
            tunings_here = {p: tuple(t[i] for i in places) for p, t in tunings.items() if t is not None}
        for numbers, batch, reader in decode_coded(model, here, windows, chosen, tunings_here):
            if model.decodes_blindly:
                readers.append(reader)
            else:
                reader.finish()
            yield DecodedGroups(numbers, pictures, batch.pixels, batch.errors, batch.predictions)
    finish_all(readers)


def decode_coded(
    model: Model,
    step: GridStep,
    windows: Mapping[int, Window],
    bodies: Mapping[int, Sequence[memoryview]],
    tunings: Mapping[str, Sequence[Tuning]],
) -> Iterator[tuple[list[int], GroupBatch, Decoder]]:
    """Decode groups whose lanes are `bodies`, one for each of the step's pictures: yields batches of them
    with their numbers and readers, which are not finished."""
    numbers = list(bodies)
    host = step.coarse.device.type == "cpu"
    most = (HOST_BATCH if host else DEVICE_BATCH) // step.n_pictures
    places = in_batches([windows[n] for n in numbers], most)
    chunk = CHUNK if host else len(places)
    for first in range(0, len(places), chunk):
        part = [[numbers[i] for i in place] for place in places[first : first + chunk]]
        batches = [GroupBatch(step, [windows[n] for n in together]) for together in part]
        readers = [
            model.reader([body for n in together for body in bodies[n]], 3 * n_new(batch.windows[0]))
            for together, batch in zip(part, batches, strict=True)
        ]
        code_groups(batches, readers, lambda phase, *_: tunings.get(phase))
        yield from zip(part, batches, readers, strict=True)


def decode_tunings(
    model: Model, step: GridStep, shared: Sequence[memoryview | None]
) -> tuple[Decoder, dict[str, tuple[Tuning, ...] | None]]:
    """What tunes the phases of pictures, from the shared packet of each, and their reader, which is not
    finished. Raises Corrupt."""
    bodies = []
    for packet in shared:
        if packet is None:
            raise Corrupt("tuned groups without the packet that they share")
        mode, body = split_packet(packet)
        if mode != TUNED:
            raise Corrupt(f"a shared packet has mode {mode}")
        bodies.append(body)
    reader = model.reader(bodies, tuning_symbols_at_most(step.model))
    device = step.coarse.device
    kind = step.level_class
    return reader, {p: code_tuning(step.model, reader, p, kind, None, device, len(bodies)) for p in PHASES}


def fill_groups(step: GridStep, windows: Sequence[Window], network: bool) -> Iterator[DecodedGroups]:
    """What stands for missing groups: yields as `decode_groups`, by place in `windows`.

    network: the networks' predictions; else the mean of the four nearest known pixels, which costs next to
    nothing.
    """
    for numbers, batch in make_batches(step, windows):
        for phase in PHASES:
            if batch.is_empty(phase):
                batch.set_empty(phase)
            elif network:
                batch.code(phase, Means(), batch.parameters(phase), None, None)
                batch.errors[phase].zero_()
            else:
                batch.interpolate(phase)
        every_one = tuple(range(step.n_pictures))
        yield DecodedGroups(numbers, every_one, batch.pixels, batch.errors, batch.predictions)


def zeros_like(phases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prior errors of groups that no network has predicted, by phase."""
    return {p: torch.zeros_like(x, dtype=torch.int8) for p, x in phases.items()}


def put_group(
    plane: Tensor,
    coarse: Tensor,
    window: Window,
    phases: Mapping[str, Tensor],
    n: int,
    pictures: Sequence[int] = (0,),
    to_rgb: Callable[[Tensor], Tensor] = ycocg_to_rgb,
) -> None:
    """Write a group of some pictures into the planes of its grid: its positions of the coarser grid, and what
    the n-th window has in each phase.

    plane: [B, 3, H, W], int16 YCoCg-R or int8 errors as all the others, or uint8 RGB, to which `to_rgb` maps
    pixels.
    """
    for run in runs(pictures):
        known = coarse[run, ..., *halved(window)]
        part = phase_view(plane[run, ..., *window], "A")
        part.copy_(to_rgb(known) if plane.dtype == torch.uint8 else known)
    put_phases(plane, window, phases, n, pictures, to_rgb)


def put_phases(
    plane: Tensor,
    window: Window,
    phases: Mapping[str, Tensor],
    n: int,
    pictures: Sequence[int] = (0,),
    to_rgb: Callable[[Tensor], Tensor] = ycocg_to_rgb,
) -> None:
    """As `put_group`, the new pixels alone."""
    at = n * len(pictures)
    for run in runs(pictures):
        n_here = run.stop - run.start
        for p, x in phases.items():
            new = x[at : at + n_here]
            part = phase_view(plane[run, ..., *window], p)
            part.copy_(to_rgb(new) if plane.dtype == torch.uint8 else new)
        at += n_here


def put_predictions(
    planes: Predictions,
    window: Window,
    phases: Mapping[str, Predictions],
    n: int,
    pictures: Sequence[int] = (0,),
    sure: bool = False,
) -> None:
    """Write what the n-th window's bins were predicted with into the planes of its grid. sure: that it was
    known without a network."""
    found = {p: Predictions.sure(x.offsets) for p, x in phases.items()} if sure else phases
    for plane, part in (
        (planes.offsets, {p: x.offsets for p, x in found.items()}),
        (planes.scales, {p: x.scales for p, x in found.items()}),
    ):
        put_phases(plane, window, part, n, pictures)


# values after bins


def encode_values(model: Model, step: ValuesStep, windows: Sequence[Window], picture: Tensor) -> list[bytes]:
    """Packets of the groups of a level where bins stand before values. picture: x_k, as `encode_level`."""
    packets: dict[int, bytes] = {}
    for numbers in in_batches(windows, HOST_BATCH if picture.device.type == "cpu" else DEVICE_BATCH):
        writer = model.writer(len(numbers))
        code_values(step, [windows[i] for i in numbers], writer, picture)
        packets.update(zip(numbers, writer.finish(), strict=True))
    return [bytes([CODED]) + packets[i] for i in range(len(windows))]


def decode_values(
    model: Model, step: ValuesStep, windows: Mapping[int, Window], packets: Mapping[int, Sequence[memoryview]]
) -> Iterator[DecodedGroups]:
    """Decode groups of a level, as `decode_groups`, where bins stand before values. Raises Corrupt."""
    numbers, n_pictures = list(packets), len(step.coarse)
    most = (HOST_BATCH if step.coarse.device.type == "cpu" else DEVICE_BATCH) // n_pictures
    readers: list[Decoder] = []
    for places in in_batches([windows[n] for n in numbers], most):
        together = [numbers[i] for i in places]
        bodies = []
        for mode, body in (split_packet(packet) for n in together for packet in packets[n]):
            if mode != CODED:
                raise Corrupt(f"a group of values has mode {mode}")
            bodies.append(body)
        here = [windows[n] for n in together]
        reader = model.reader(bodies, 3 * n_new(here[0]))
        pixels = code_values(step, here, reader)
        if model.decodes_blindly:
            readers.append(reader)
        else:
            reader.finish()
        yield DecodedGroups(together, tuple(range(n_pictures)), pixels, {})
    finish_all(readers)


# plain samples


def n_new(window: Window) -> int:
    """Pixels of a group that its coarser grid lacks."""
    return sum(h * w for h, w in (phase_size(p, *shape_of(window)) for p in PHASES))


def plain_packet(picture: Tensor, window: Window, mode: int) -> bytes:
    """The packet of a group that is stored plain. Inverse: plain_pixels."""
    part = picture[..., *window]
    return bytes([mode]) + b"".join(samples(phase_view(part, p)[:, : RAW_DEPTH[mode]]) for p in PHASES)


def plain_pixels(
    bodies: Sequence[memoryview], window: Window, depth: int, device: torch.device
) -> dict[str, Tensor]:
    """The phases of a group that pictures have stored plain, int16 YCoCg-R [B, 3, .., ..]. Raises Corrupt."""
    for body in bodies:
        if len(body) != depth * n_new(window):
            raise Corrupt(f"a plain group of {len(body)} bytes, {depth * n_new(window)} expected")
    pixels = {}
    at = 0
    for p in PHASES:
        h, w = phase_size(p, *shape_of(window))
        parts = [from_samples(body[at : at + depth * h * w], h, w, depth) for body in bodies]
        pixels[p] = rgb_to_ycocg(stack(parts).to(device))
        at += depth * h * w
    return pixels


def split_packet(packet: memoryview) -> tuple[int, memoryview]:
    """Mode byte and the rest. Raises Corrupt for an empty packet."""
    if not len(packet):
        raise Corrupt("an empty packet")
    return packet[0], packet[1:]
