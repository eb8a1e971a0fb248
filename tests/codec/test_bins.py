"""Bins before values: near-lossless files keep their bound; progressive ones are exact, by way of bins."""

import dataclasses

import pytest
import torch
from checks import payloads_of, rebuild, rewritten
from pictures import checker, constant, noise, photo, smooth, stripes
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.geometry import is_bins
from vbc.bitstream.source import as_source
from vbc.codec import IncrementalReader, api, pipeline
from vbc.codec.api import read_info
from vbc.codec.entropy.coder import Counter
from vbc.codec.exact import bins
from vbc.codec.exact.bins import BinPredictor, bins_base, bins_pixels, seen_pixels
from vbc.codec.exact.planes import every
from vbc.codec.exact.values import N_VALUE_TABLES, code_values, value_classes
from vbc.codec.flow.decode_list import batches, decode_together
from vbc.codec.model import Model, build_model, place
from vbc.codec.pipeline import SelfCheckFailed, decode_image, encode_image
from vbc.codec.pixels.colour import rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.settings import EncodeSettings
from vbc.codec.train import bins_net, values_net
from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export import export_model
from vbc.codec.train.frequency_tables import cell_tables, initial_tables, value_tables
from vbc.codec.train.integer_runs import code_bins, whole_grid
from vbc.codec.train.likelihood import logistic_nll
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.qconv import set_quantise
from vbc.codec.train.values_net import GridOfValues, ValuesNet

PROGRESSIVE = EncodeSettings(lossless=True, progressive=True)


def largest_error(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def checkered(height: int, width: int) -> Tensor:
    return torch.from_numpy(checker(height, width))[None].expand(3, -1, -1).contiguous()


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize(
    ("picture", "near"),
    [(photo(37, 53), n) for n in (1, 2, 5, 8)]
    + [(noise(20, 17), 1), (noise(20, 17), 8), (stripes(20, 33), 3), (checkered(31, 18), 5)]
    + [
        (constant(9, 40), 8),
        (constant(40, 9, 0), 2),
        (smooth(1, 60), 4),
        (smooth(60, 1), 7),
        (photo(9, 9), 6),
    ],
)
def test_no_sample_is_further_off_than_the_bound(
    tiny: Model, picture: Tensor, near: int, levels: int
) -> None:
    data = encode_image(picture, model=tiny, settings=EncodeSettings(levels, near=near))
    error = largest_error(decode_image(data, model=tiny).rgb, picture)
    header = container.unpack_header(data)
    assert error <= near
    if header.lossless:  # a packed picture was smaller
        assert error == header.bound == 0
    else:
        assert header.bound == read_info(data).near == near
        assert header.archival == (levels == 0)
        assert any(is_bins(level) for level in container.levels_present(header))
        assert not header.has(container.PIXEL_HASH)


def test_coarser_bounds_make_smaller_files(tiny: Model) -> None:
    sizes = [
        len(encode_image(photo(64, 80), model=tiny, settings=EncodeSettings(0, near=n, lossless=not n)))
        for n in (0, 1, 2, 4, 8)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2


def test_the_smallest_pictures_are_lossless(tiny: Model) -> None:
    data = encode_image(photo(8, 3), model=tiny, settings=EncodeSettings(0, near=5))
    assert container.unpack_header(data).lossless
    assert torch.equal(decode_image(data, model=tiny).rgb, photo(8, 3))


def test_gray_and_alpha_of_near_lossless_files(tiny: Model) -> None:
    gray = photo(30, 41)[1:2].expand(3, -1, -1).contiguous()
    alpha = photo(30, 41)[0]
    data = encode_image(gray, model=tiny, settings=EncodeSettings(near=2), gray=True, alpha=alpha)
    decoded = decode_image(data, model=tiny)
    assert largest_error(decoded.rgb[1], gray[1]) <= 2
    assert decoded.alpha is not None
    assert torch.equal(decoded.alpha, alpha)


def test_upper_bytes_alone_are_never_called_lossless(tiny: Model) -> None:
    """Of 16 bits a near-lossless file keeps the upper bytes, also where it is a packed one."""
    low = photo(40, 50)
    data = encode_image(checkered(40, 50), model=tiny, settings=EncodeSettings(0, near=1), low=low)
    header = container.unpack_header(data)
    assert not header.lossless
    assert header.bit_depth == 8
    assert largest_error(decode_image(data, model=tiny).rgb, checkered(40, 50)) <= 1


def test_a_sample_beyond_the_bound_is_no_file(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_off(*args: object, **options: object) -> pipeline.Decoded:
        decoded = decode_image(*args, **options)  # type: ignore[arg-type]
        decoded.rgb[2, 5, 7] += 3 if decoded.rgb[2, 5, 7] < 100 else -3
        return decoded

    monkeypatch.setattr(pipeline, "decode_image", one_off)
    with pytest.raises(SelfCheckFailed):
        encode_image(photo(30, 30), model=tiny, settings=EncodeSettings(0, near=1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"near": 9},
        {"near": -1},
        {"near": 1, "lossless": True},
        {"near": 1, "levels": 2},
        {"near": 1, "max_bytes": 1000},
        {"progressive": True},
        {"levels": 0},
    ],
)
def test_settings_that_do_not_go_together(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"near|progressive|levels"):
        EncodeSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [PROGRESSIVE, dataclasses.replace(PROGRESSIVE, levels=0, refinements=0)])
@pytest.mark.parametrize(
    "picture", [photo(37, 53), photo(1, 77), photo(50, 1), stripes(20, 33), noise(16, 19)]
)
def test_progressive_files_are_exact(tiny: Model, picture: Tensor, settings: EncodeSettings) -> None:
    data = encode_image(picture, model=tiny, settings=settings)
    decoded = decode_image(data, model=tiny)
    assert decoded.exact
    assert torch.equal(decoded.rgb, picture)
    pipeline.verify(data, model=tiny)
    header = container.unpack_header(data)
    if header.bound:
        present = container.levels_present(header)
        at_bins = decode_image(data, model=tiny, levels=1 + present.index(header.geometry.last_bins))
        assert largest_error(at_bins.rgb, picture) <= header.bound == 2


def test_a_progressive_file_cut_at_its_bins_is_near_lossless(tiny: Model) -> None:
    picture = photo(37, 53)
    data = encode_image(picture, model=tiny, settings=PROGRESSIVE)
    last_bins = container.unpack_header(data).geometry.last_bins
    short = api.cut(data, stage=last_bins)
    facts = read_info(short)
    assert (facts.near, facts.lossless) == (2, False)
    assert largest_error(decode_image(short, model=tiny).rgb, picture) == 2
    coarser = api.cut(data, stage=last_bins - 1)
    assert read_info(coarser).near == 0
    assert len(coarser) < len(short) < len(data)


@pytest.mark.parametrize("levels", [0, 3])
def test_noise_takes_no_more_than_its_samples(tiny: Model, levels: int) -> None:
    picture = noise(60, 71)
    data = encode_image(picture, model=tiny, settings=dataclasses.replace(PROGRESSIVE, levels=levels))
    assert len(data) <= pipeline.size_limit(picture.numel())
    assert torch.equal(decode_image(data, model=tiny).rgb, picture)


@pytest.mark.parametrize("settings", [PROGRESSIVE, EncodeSettings(near=3), EncodeSettings(0, near=2)])
def test_prefixes_show_what_is_there(tiny: Model, small_groups: None, settings: EncodeSettings) -> None:
    """Every packet makes the picture better on the whole, and pieces show what one prefix does."""
    picture = smooth(40, 67)
    data = encode_image(picture, model=tiny, settings=settings)
    header = container.unpack_header(data)
    reader = IncrementalReader(model=tiny)
    at, errors = 0, []
    for end in header.ends[:: max(1, len(header.ends) // 10)]:
        reader.feed(data[at:end])
        at = end
        shown = torch.from_numpy(reader.picture().picture.rgb.copy()).permute(2, 0, 1)
        alone = decode_image(data[:end], model=tiny, allow_partial=True).rgb
        assert torch.equal(shown, alone)
        errors.append((alone.float() - picture.float()).square().mean().item())
    assert errors[-1] < errors[len(errors) // 2] < errors[0]


@pytest.mark.parametrize("settings", [PROGRESSIVE, EncodeSettings(near=3), EncodeSettings(0, near=2)])
def test_regions_read_their_packets_alone(tiny: Model, small_groups: None, settings: EncodeSettings) -> None:
    picture = photo(61, 90)
    data = encode_image(picture, model=tiny, settings=settings)
    whole = decode_image(data, model=tiny).rgb
    for x, y, w, h in ((0, 0, 5, 7), (40, 20, 21, 13), (85, 58, 5, 3)):
        ranges = read_info(data, region=(x, y, w, h)).ranges
        blank = bytearray(len(data))
        for start, end in ranges:
            blank[start:end] = data[start:end]
        part = decode_image(bytes(blank), model=tiny, region=(x, y, w, h)).rgb
        assert torch.equal(part, whole[:, y : y + h, x : x + w])
    assert sum(end - start for start, end in read_info(data, region=(0, 0, 5, 7)).ranges) < 0.8 * len(data)


def test_damaged_bins_cost_their_groups_alone(tiny: Model, small_groups: None) -> None:
    picture = smooth(40, 67)
    data = encode_image(picture, model=tiny, settings=PROGRESSIVE)
    header, payloads = container.unpack_header(data), payloads_of(data)
    last = max(i for i, packet in enumerate(header.packets) if packet.level == header.geometry.last_bins)
    start, _ = header.span(last)
    broken = bytearray(data)
    broken[start] ^= 0xFF
    with pytest.raises(Corrupt):
        decode_image(bytes(broken), model=tiny)
    partial = decode_image(bytes(broken), model=tiny, allow_partial=True).rgb
    rows, cols = header.geometry.window(header.packets[last].level, header.packets[last].part - 1)
    different = (partial != picture).any(0)
    assert different.any()
    different[rows, cols] = False
    assert not different.any()
    payloads[last] = bytearray(b"\7")  # a mode that is none, under a right checksum
    with pytest.raises(Corrupt):
        decode_image(rebuild(header, payloads), model=tiny)


@pytest.mark.parametrize("mode", [1, 2, 3, 4, 255])
def test_values_after_bins_have_one_mode(tiny: Model, mode: int) -> None:
    data = encode_image(photo(37, 53), model=tiny, settings=PROGRESSIVE)
    header, payloads = container.unpack_header(data), payloads_of(data)
    place = header.find(header.geometry.last_level, 1)
    assert place is not None
    payloads[place][0] = mode
    with pytest.raises(Corrupt):
        decode_image(rebuild(header, payloads), model=tiny)


def test_values_follow_bins_of_one_bound(tiny: Model) -> None:
    data = encode_image(photo(37, 53), model=tiny, settings=PROGRESSIVE)
    header = container.unpack_header(data)
    assert header.bound == container.VALUES_BOUND
    with pytest.raises(Corrupt):
        dataclasses.replace(header, flags=header.flags + (1 << container.BOUND_SHIFT))
    with pytest.raises(Corrupt):  # a file without a bound has no bins
        dataclasses.replace(header, flags=header.flags & 3)


def test_values_need_their_bins(tiny: Model) -> None:
    data = encode_image(photo(37, 53), model=tiny, settings=PROGRESSIVE)
    header = container.unpack_header(data)
    packets = [
        (packet.unit, packet.part, bytes(body))
        for packet, body in zip(header.packets, payloads_of(data), strict=True)
        if packet.level != header.geometry.last_bins and packet.unit != container.PIXEL_HASH
    ]
    with pytest.raises(Corrupt, match=f"level {header.geometry.last_level}"):
        rewritten(header, packets, flags=header.flags & ~container.LOSSLESS)


def test_the_device_path_gives_the_same_files_and_pictures(tiny: Model) -> None:
    placed = place(tiny, torch.device("cpu"))
    for settings in (PROGRESSIVE, EncodeSettings(near=2)):
        data = encode_image(photo(37, 53), model=tiny, settings=settings)
        assert encode_image(photo(37, 53), model=placed, settings=settings) == data
        assert torch.equal(decode_image(data, model=placed).rgb, decode_image(data, model=tiny).rgb)


def test_files_decode_together_as_alone(tiny: Model) -> None:
    files = [encode_image(photo(37, 53).roll(i, 2), model=tiny, settings=PROGRESSIVE) for i in range(3)]
    headers = [container.unpack_header(data) for data in files]
    assert batches(headers) == [[0, 1, 2]]
    together = decode_together([as_source(data) for data in files], headers, place(tiny, torch.device("cpu")))
    for data, rgb in zip(files, together, strict=True):
        assert torch.equal(rgb, decode_image(data, model=tiny).rgb)


# pieces


def test_bins_base_is_the_colour_transform() -> None:
    rgb = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(bins_base(rgb_to_ycocg(rgb)), bins_pixels(rgb))
    assert torch.equal(seen_pixels(bins_pixels(rgb)), rgb_to_ycocg(rgb))
    far = torch.full((1, 3, 1, 1), 32767, dtype=torch.int16)
    assert bins_base(far).dtype == torch.int16


@pytest.mark.parametrize("bound", range(1, 9))
def test_bins_cover_every_sample_once(tiny: Model, bound: int) -> None:
    """From any mean: the middle is within the bound, and each bin has 2 bound + 1 samples."""
    base = torch.zeros((3, 1), dtype=torch.int16)
    predictor = BinPredictor(
        base, torch.zeros((9, 1), dtype=torch.int32), None, tiny.exact.bin_maps["D"], bound
    )
    samples = torch.arange(256, dtype=torch.int16)
    for mean in (0, 1, 100, 254, 255):
        rounded = torch.full_like(samples, mean)
        symbols = predictor.symbols(samples, rounded)
        values = predictor.values(rounded, symbols)
        assert (values - samples).abs().max() <= bound
        assert values.min() >= 0
        assert values.max() <= 255
        assert torch.bincount(symbols.long() - symbols.min()).max() <= 2 * bound + 1
    extreme = torch.tensor([-32768, 32767], dtype=torch.int16)
    assert predictor.values(torch.zeros_like(extreme), extreme).tolist() == [0, 255]


def test_steps_in_octaves() -> None:
    for bound, octaves in enumerate(bins.STEP_OCTAVES):
        assert octaves == round(16 * torch.log2(torch.tensor(2.0 * bound + 1)).item())


def test_value_classes_reach_all_tables_and_no_other() -> None:
    means, scales = torch.meshgrid(torch.arange(-300, 301), torch.arange(-400, 401), indexing="ij")
    classes = value_classes(means.int(), scales.int())
    assert set(classes.unique().tolist()) == set(range(N_VALUE_TABLES))
    assert torch.equal(classes, value_classes(-means.int(), scales.int()))
    assert torch.equal(classes.diff(dim=1) >= 0, torch.ones_like(classes[:, 1:], dtype=torch.bool))


def test_tables_of_values() -> None:
    """Five letters, more probable towards the mean, and what a logistic restricted to the bin has."""
    tables = value_tables()
    assert tables.shape == (N_VALUE_TABLES, 256)
    assert tables.sum(1) == pytest.approx(1)
    assert tables[:, :125].sum() == tables[:, 130:].sum() == 0
    (one,) = cell_tables(torch.tensor([0.5]).double().numpy(), torch.tensor([0.75]).double().numpy(), 2)
    mass = torch.exp2(-logistic_nll(torch.arange(-2, 3) - 0.75, torch.tensor(0.5))).double()
    assert one[125:130] == pytest.approx((mass / mass.sum()).numpy(), rel=1e-5)
    index = initial_tables()[0]
    assert int(index["exact.values_table"]) + N_VALUE_TABLES == len(index["tables"])


def test_integer_bins_and_values_follow_the_float_networks() -> None:
    """Quantised training form against the coder's integers, from the same grid on: within 1.5 %."""
    torch.manual_seed(5)
    exact, bin_net, value_net = ExactNet(width=16), BinsNet(16), ValuesNet(8)
    bin_net.start(exact)
    with torch.no_grad():
        for net in (bin_net, value_net):
            for p in net.parameters():
                p.add_(torch.randn_like(p) * 0.02)
    for each in (exact, bin_net, value_net):
        set_quantise(each, True)
    x = photo(96, 96)[None].contiguous(memory_format=torch.channels_last)
    tensors = export_model(exact, LossyNet(), None, bins=bin_net, values=value_net)
    model = build_model(tensors)
    counter = Counter(len(model.tables))
    with torch.no_grad():
        steps = dict(code_bins(model, counter, x, None, 0, 2))
        whole = counter.bits(model.tables.frequencies)
        coarser = Counter(len(model.tables))
        for k, _ in code_bins(model, coarser, x, None, 0, 2):
            if k == 1:
                break
        step = steps[0]
        coarse = ycocg_to_rgb(steps[1].middles)
        bits, decoded = bins_net.training_bits(bin_net, x, coarse, torch.tensor([2]), 0)
        assert whole - coarser.bits(model.tables.frequencies) == pytest.approx(bits.item(), rel=0.015)
        assert (decoded == ycocg_to_rgb(step.middles)).float().mean() > 0.9
        counter = Counter(len(model.tables))
        code_values(step, [whole_grid(pipeline.geometry_of(x), 0)], counter, every(x, 0))
        distances = (bins_pixels(x) - bins_pixels(ycocg_to_rgb(step.middles))).to(torch.int8)
        grid = GridOfValues(*step.predictions.planes(), distances)
        bits = values_net.values_bits(value_net, grid, 0)
    assert counter.bits(model.tables.frequencies) == pytest.approx(bits.item(), rel=0.015)
