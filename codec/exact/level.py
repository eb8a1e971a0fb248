"""An exact level: all its groups in one traversal, both directions (docs/format.md, section 11)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from vbc.bitstream.errors import Corrupt
from vbc.codec.colour import rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.entropy.coder import Coder, Means
from vbc.codec.exact.groups import GridStep, GroupBatch, Parameters, phase_pixels
from vbc.codec.exact.model import Tuning
from vbc.codec.exact.planes import Window, halved, in_batches, phase_size, phase_view, shape_of
from vbc.codec.exact.tuning import code_tuning, tuning_symbols_at_most
from vbc.codec.exact.tuning_fit import MIN_POSITIONS, fit_tuning
from vbc.codec.follower import Follower
from vbc.codec.interlace import PHASES
from vbc.codec.model import Model
from vbc.codec.samples import from_samples, samples

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
FOLLOW_POSITIONS = 60_000
"""From so many positions on, symbols are coded on a thread of their own while the networks go on."""
KEEP_POSITIONS = 1 << 20
"""Levels of at most so many positions keep their entropy parameters while corrections are fitted to samples
of them: 100 bytes each. Larger ones run the networks once more on sampled windows."""

TuningOf = Callable[[str, list[Tensor] | None, list[Parameters] | None], Tuning | None]
"""From a phase, its pixels and its entropy parameters (None where not at hand) to what tunes it: by batch,
the parameters of those batches alone that have pixels of the phase."""


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
    n_positions = sum(len(b.windows) * h * w for b in batches for h, w in [shape_of(b.windows[0])])
    host = batches[0].step.coarse.device.type == "cpu"
    with Follower(host and n_positions >= FOLLOW_POSITIONS) as follow:
        coded: list[Future[None] | None] = [None] * len(batches)
        for phase in PHASES:
            targets = None if picture is None else [phase_pixels(picture, b.windows, phase) for b in batches]
            known = [b.parameters(phase) for b in batches if not b.is_empty(phase)] if keep else None
            tuning = follow(tuning_of, phase, targets, known)
            at_hand = None if known is None else iter(known)
            for i, (batch, coder) in enumerate(zip(batches, coders, strict=True)):
                before, target = coded[i], None if targets is None else targets[i]
                if target is None and before is not None:
                    before.result()
                if batch.is_empty(phase):
                    coded[i] = follow(batch.set_empty, phase)
                else:
                    parameters = batch.parameters(phase) if at_hand is None else next(at_hand)
                    coded[i] = follow(_code, batch, phase, coder, parameters, tuning, target)
                if target is not None:
                    batch.see(phase, target)
                if phase == PHASES[-1]:
                    follow(finished, i)


def _code(
    batch: GroupBatch,
    phase: str,
    coder: Coder,
    parameters: Parameters,
    tuning: "Future[Tuning | None]",
    target: Tensor | None,
) -> None:
    batch.code(phase, coder, parameters, tuning.result(), target)


def make_batches(
    step: GridStep, windows: Sequence[Window], keep_lossy: bool = True
) -> list[tuple[list[int], GroupBatch]]:
    """Batches of groups that go through the networks together, with the numbers of their windows."""
    most = HOST_BATCH if step.coarse.device.type == "cpu" else DEVICE_BATCH
    return [
        (numbers, GroupBatch(step, [windows[i] for i in numbers], keep_lossy))
        for numbers in in_batches(windows, most)
    ]


# encoding


def encode_level(
    model: Model,
    step: GridStep,
    windows: Sequence[Window],
    picture: Tensor,
    depth: int,
    effort: int,
    want_errors: bool,
) -> tuple[bytes | None, list[bytes], Tensor | None]:
    """Packets of a level: what its groups share (None for nothing), the groups', and the new prior errors.

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

    def tuning_of(phase: str, targets: list[Tensor] | None, known: list[Parameters] | None) -> Tuning | None:
        if not tuned:
            return None
        assert targets is not None
        wanted = fit_tuning(step.model, phase, batches, targets, known, effort)
        fitted.append(wanted is not None)
        return code_tuning(step.model, shared, phase, wanted, step.coarse.device)

    def finished(i: int) -> None:
        bodies.update(zip(numbered[i][0], writers[i].finish(), strict=True))

    h, w = picture.shape[-2:]
    tuned = effort > 0 and h * w >= 4 * MIN_POSITIONS
    code_groups(batches, writers, tuning_of, picture, tuned and h * w <= KEEP_POSITIONS, finished)
    mode = bytes([TUNED if any(fitted) else CODED])
    raw_mode = RAW if depth == 3 else RAW_GRAY
    packets = [mode + bodies[i] for i in range(len(windows))]
    plain = {
        i: plain_packet(picture, window, raw_mode)
        for i, window in enumerate(windows)
        if len(packets[i]) > 1 + depth * n_new(window)
    }
    errors = None
    if want_errors:
        errors = torch.empty_like(picture, dtype=torch.int8, memory_format=torch.channels_last)
        known = torch.zeros_like(step.coarse, dtype=torch.int8) if step.errors is None else step.errors
        for numbers, batch in numbered:
            for n, i in enumerate(numbers):
                put_group(
                    errors, known, windows[i], zeros_like(batch.errors) if i in plain else batch.errors, n
                )
    packets = [plain.get(i, packet) for i, packet in enumerate(packets)]
    return (mode + shared.finish()[0] if any(fitted) else None), packets, errors


# decoding


def decode_groups(
    model: Model,
    step: GridStep,
    windows: Mapping[int, Window],
    packets: Mapping[int, memoryview],
    shared: memoryview | None,
) -> Iterator[tuple[list[int], dict[str, Tensor], dict[str, Tensor]]]:
    """Decode groups of a level: yields group numbers with their pixels and prior errors by phase, [N, 3, ..,
    ..].

    windows, packets: by number of the group. shared: the packet that the level's groups share, where there is
    one. Raises Corrupt.
    """
    bodies: dict[int, dict[int, memoryview]] = {}
    for number, packet in packets.items():
        mode, body = split_packet(packet)
        bodies.setdefault(mode, {})[number] = body
    if not bodies.keys() <= {CODED, RAW, TUNED, RAW_GRAY}:
        raise Corrupt(f"a group has mode {max(bodies)}")
    for mode in RAW_DEPTH.keys() & bodies.keys():
        for number, body in bodies[mode].items():
            pixels = plain_pixels(body, windows[number], RAW_DEPTH[mode], step.coarse.device)
            yield [number], pixels, zeros_like(pixels)
    tunings = decode_tunings(model, step, shared) if TUNED in bodies else {}
    chunk = CHUNK if step.coarse.device.type == "cpu" else None
    for mode in (CODED, TUNED):
        chosen = bodies.get(mode, {})
        numbers = list(chosen)
        places = in_batches([windows[n] for n in numbers], HOST_BATCH if chunk else DEVICE_BATCH)
        step_tunings = tunings if mode == TUNED else {}
        for first in range(0, len(places), chunk or max(1, len(places))):
            part = places[first : first + (chunk or len(places))]
            batches = [GroupBatch(step, [windows[numbers[i]] for i in place]) for place in part]
            readers = [
                model.reader([chosen[numbers[i]] for i in place], 3 * n_new(batch.windows[0]))
                for place, batch in zip(part, batches, strict=True)
            ]
            code_groups(batches, readers, lambda phase, *_, t=step_tunings: t.get(phase))
            for place, batch, reader in zip(part, batches, readers, strict=True):
                reader.finish()
                yield [numbers[i] for i in place], batch.pixels, batch.errors


def decode_tunings(model: Model, step: GridStep, shared: memoryview | None) -> dict[str, Tuning | None]:
    """What tunes the phases, from the level's shared packet. Raises Corrupt."""
    if shared is None:
        raise Corrupt("tuned groups without the packet that they share")
    mode, body = split_packet(shared)
    if mode != TUNED:
        raise Corrupt(f"a shared packet has mode {mode}")
    reader = model.reader([body], tuning_symbols_at_most(step.model))
    tunings = {p: code_tuning(step.model, reader, p, None, step.coarse.device) for p in PHASES}
    reader.finish()
    return tunings


def fill_groups(
    step: GridStep, windows: Sequence[Window], network: bool
) -> Iterator[tuple[list[int], dict[str, Tensor], dict[str, Tensor]]]:
    """What stands for missing groups of an archival file: yields as `decode_groups`, by place in `windows`.

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
        yield numbers, batch.pixels, batch.errors


def zeros_like(phases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prior errors of groups that no network has predicted, by phase."""
    return {p: torch.zeros_like(x, dtype=torch.int8) for p, x in phases.items()}


def put_group(plane: Tensor, coarse: Tensor, window: Window, phases: Mapping[str, Tensor], n: int) -> None:
    """Write a group into the plane of its grid: its positions of the coarser grid, and the n-th of each
    phase.

    plane: [1, 3, H, W], int16 YCoCg-R or int8 errors as all the others, or uint8 RGB, to which pixels are
    converted.
    """
    part = plane[..., *window]
    for p, new in {"A": coarse[..., *halved(window)], **{p: x[n : n + 1] for p, x in phases.items()}}.items():
        phase_view(part, p).copy_(ycocg_to_rgb(new) if plane.dtype == torch.uint8 else new)


# plain samples


def n_new(window: Window) -> int:
    """Pixels of a group that its coarser grid lacks."""
    return sum(h * w for h, w in (phase_size(p, *shape_of(window)) for p in PHASES))


def plain_packet(picture: Tensor, window: Window, mode: int) -> bytes:
    """The packet of a group that is stored plain. Inverse: plain_pixels."""
    part = picture[..., *window]
    return bytes([mode]) + b"".join(samples(phase_view(part, p)[:, : RAW_DEPTH[mode]]) for p in PHASES)


def plain_pixels(body: memoryview, window: Window, depth: int, device: torch.device) -> dict[str, Tensor]:
    """The phases of a group that is stored plain, int16 YCoCg-R [1, 3, .., ..]. Raises Corrupt."""
    if len(body) != depth * n_new(window):
        raise Corrupt(f"a plain group of {len(body)} bytes, {depth * n_new(window)} expected")
    pixels = {}
    at = 0
    for p in PHASES:
        h, w = phase_size(p, *shape_of(window))
        pixels[p] = rgb_to_ycocg(from_samples(body[at : at + depth * h * w], h, w, depth).to(device))
        at += depth * h * w
    return pixels


def split_packet(packet: memoryview) -> tuple[int, memoryview]:
    """Mode byte and the rest. Raises Corrupt for an empty packet."""
    if not len(packet):
        raise Corrupt("an empty packet")
    return packet[0], packet[1:]
