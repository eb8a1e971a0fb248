"""The device path: symbols coded by tensors, on whatever device, to the bits and pixels of the host's path.

Here it runs on CPU tensors in plain torch, in Triton's interpreter, and on `meta` tensors, which hold no
values: what passes there never waits for the device and never mixes devices. tests/gpu_check.py has the same
for CUDA.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import check_format_error, decoded_hash, laplace_tables, rebuild
from pictures import noise, photo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vbc.bitstream import container
from vbc.bitstream.ans import LANE_SYMBOLS, LaneDecoder, LaneEncoder
from vbc.bitstream.errors import Corrupt, FormatError
from vbc.bitstream.tables import TableSet
from vbc.codec import api, cli
from vbc.codec.entropy import tensor_coder as device
from vbc.codec.entropy.tensor_coder import NO_TABLE, TensorReader, TensorWriter, device_tables
from vbc.codec.exact import block_device as exact_device
from vbc.codec.exact.networks import ExactNet
from vbc.codec.lossy.coding import of_parity
from vbc.codec.lossy.networks import LossyNet, Widths, parity
from vbc.codec.model import Model, place
from vbc.codec.nets.int_nets import exact_product
from vbc.codec.pipeline import decode_image, encode_image, verify
from vbc.codec.train.exact_loss import exact_bits
from vbc.kernels import conv, predict, rans
from vbc.kernels.dispatch import CudaMissing

GOLDEN = Path(__file__).parents[1] / "golden"
ANSWERS: dict[str, dict[str, str]] = json.loads((GOLDEN / "answers.json").read_text())
CPU, META = torch.device("cpu"), torch.device("meta")
TABLES = laplace_tables((0.4, 3, 12, 60))


@pytest.fixture(scope="module")
def placed(tiny: Model) -> Model:
    """The tiny model on the device path, in plain torch."""
    return place(tiny, CPU)


# Whole files


@pytest.mark.parametrize("name", ANSWERS)
def test_golden_files(placed: Model, name: str) -> None:
    """Every level of every golden file; of the large one the first exact level, a middle one and the last."""
    data = (GOLDEN / name).read_bytes()
    levels = [int(n) for n in ANSWERS[name]]
    for n in (1, 4, levels[-1]) if "tuned" in name else levels:
        assert decoded_hash(decode_image(data, model=placed, levels=n)) == ANSWERS[name][str(n)], n


@pytest.mark.parametrize("native", [1, 2])
def test_native_sizes(tiny: Model, placed: Model, native: int) -> None:
    data = (GOLDEN / "lossy-3.vbc").read_bytes()
    a, b = (decode_image(data, model=m, levels=native, native=True).rgb for m in (tiny, placed))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        {"levels": 1, "quality": 95},
        {"levels": 3, "quality": 30},
        {"levels": 0, "lossless": True},
        {"levels": 3, "lossless": True, "effort": 0},
    ],
)
def test_encoding_gives_the_same_bytes(tiny: Model, placed: Model, options: dict[str, Any]) -> None:
    """The self-check of lossless ones has decoded them on the device path; the host reads them too."""
    x = photo(45, 38)
    data = encode_image(x, model=placed, **options)
    assert data == encode_image(x, model=tiny, **options)
    verify(data, model=tiny)


def test_encoding_noise_and_tuned_layers(tiny: Model, placed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw levels, and corrections fitted on the host for networks on the device."""
    assert encode_image(noise(9, 20), model=placed, levels=0, lossless=True) == encode_image(
        noise(9, 20), model=tiny, levels=0, lossless=True
    )
    monkeypatch.setattr("vbc.codec.exact.grids.MIN_POSITIONS", 200)
    monkeypatch.setattr("vbc.codec.payloads.MIN_POSITIONS", 200)
    monkeypatch.setattr("vbc.codec.exact.tuning.COST_BITS", -1e9)  # worth it in any case
    x = photo(41, 34)
    data = encode_image(x, model=placed, levels=0, lossless=True)
    assert data == encode_image(x, model=tiny, levels=0, lossless=True)
    assert torch.equal(decode_image(data, model=tiny).rgb, x)


def test_several_blocks(tiny: Model, placed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps follow each other in the lanes block by block, in lossy levels too."""
    from vbc.codec.exact import grids as exact_levels
    from vbc.codec.lossy import coding as lossy_levels

    for function, side in ((exact_levels.code_step, 9), (lossy_levels.code_level, 4)):
        monkeypatch.setitem(function.__kwdefaults__ or {}, "block", side)
        *defaults, _ = function.__defaults__ or ()
        monkeypatch.setattr(function, "__defaults__", (*defaults, side))
    data = encode_image(photo(50, 67), model=tiny, lossless=True)
    for n in (2, 3, None):
        a, b = (decode_image(data, model=m, levels=n).rgb for m in (tiny, placed))
        assert torch.equal(a, b)
    assert encode_image(photo(50, 67), model=placed, lossless=True) == data


@pytest.fixture(scope="module")
def small(tiny: Model) -> dict[int, tuple[Tensor, bytes]]:
    """An archival and a layered file, written by the host."""
    x = photo(11, 9)
    return {n: (x, encode_image(x, model=tiny, levels=n, lossless=True)) for n in (0, 3)}


@pytest.mark.parametrize("levels", [0, 3])
def test_interpreted_kernels(
    placed: Model,
    small: dict[int, tuple[Tensor, bytes]],
    levels: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same through the Triton kernels: `device` has set the interpreter going."""
    if device != "cpu":
        pytest.skip("tests/gpu_check.py decodes all files on CUDA")
    launched = []
    for module, launcher in (
        (conv, "_launch"),
        (predict, "channel_tables_triton"),
        (rans, "decode_step_triton"),
    ):
        function = getattr(module, launcher)
        monkeypatch.setattr(module, launcher, spy(function, launched))
    x, data = small[levels]
    assert torch.equal(decode_image(data, model=placed).rgb, x)
    assert {"_launch", "decode_step_triton", "channel_tables_triton"} <= set(launched)


def spy(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        names.append(function.__name__)
        return function(*arguments)

    return run


# Damage


def rebuilt(data: bytes, damage: Callable[[list[bytearray]], None]) -> bytes:
    """The file with its payloads damaged and its checksums right."""
    header = container.unpack_header(data)
    payloads = [bytearray(container.read_chunk(data, header, i)) for i in range(len(header.chunks))]
    damage(payloads)
    return rebuild(header, payloads)


def outcome(data: bytes, model: Model) -> str:
    try:
        return decoded_hash(decode_image(data, model=model))
    except FormatError as e:
        return type(e).__name__


@pytest.mark.parametrize("name", ["layered-stripes", "archival", "lossy-high"])
def test_damage_has_the_same_outcome(tiny: Model, placed: Model, name: str) -> None:
    """Whatever stands in the lanes: the same typed error on both paths, or the same picture."""
    data = (GOLDEN / f"{name}.vbc").read_bytes()
    rng = np.random.default_rng(8)
    seen = set()
    for _ in range(12):
        level, at, value = rng.random(), rng.random(), int(rng.integers(1, 256))

        def damage(p: list[bytearray], level: float = level, at: float = at, value: int = value) -> None:
            target = p[int(level * len(p))]
            target[int(at * len(target))] ^= value

        broken = rebuilt(data, damage)
        want = outcome(broken, tiny)
        assert outcome(broken, placed) == want
        seen.add(want)
    assert "Corrupt" in seen


def random_steps(sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Index and symbols of steps, one symbol in fifty an escape."""
    rng = np.random.default_rng(sum(sizes))
    steps = []
    for n in sizes:
        index = rng.integers(0, len(TABLES), n).astype(np.uint16)
        symbols = np.round(rng.laplace(0, 4, n)).clip(-127, 127).astype(np.int16)
        where = rng.random(n) < 0.02
        symbols[where] = rng.choice([-32768, -128, 128, 300, 32767], int(where.sum()))
        steps.append((index, symbols))
    return steps


def written(steps: list[tuple[np.ndarray, np.ndarray]], tables: TableSet = TABLES) -> bytes:
    encoder = LaneEncoder(tables)
    for index, symbols in steps:
        encoder.put(index, symbols)
    return encoder.finish()


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(a.astype(np.int16)) for a in arrays]


def test_reader_and_writer_are_those_of_the_host() -> None:
    """Several lanes, escapes, an empty step, positions that are not coded anywhere in a step."""
    steps = random_steps([LANE_SYMBOLS + 300, 1, 0, 50, 2 * LANE_SYMBOLS])
    payload = written(steps)
    host, writer = LaneDecoder(TABLES, payload), TensorWriter(TABLES)
    reader = TensorReader(device_tables(TABLES, CPU), payload)
    rng = np.random.default_rng(2)
    for index, symbols in steps:
        assert np.array_equal(host.get(index), symbols)
        at = np.sort(rng.permutation(2 * len(index))[: len(index)])
        wide, given = np.full(2 * len(index), NO_TABLE), np.full(2 * len(index), 77)
        wide[at], given[at] = index, symbols
        i, s = tensors(wide, given)
        have = reader.code(i, None).numpy()
        assert np.array_equal(have[at], symbols)
        assert not np.delete(have, at).any()
        writer.code(i, s)
    host.finish()
    reader.finish()
    assert writer.finish() == payload


@pytest.mark.parametrize(
    ("written_sizes", "read_sizes"),
    [([40], [39]), ([40], [41]), ([40], []), ([LANE_SYMBOLS + 5], [LANE_SYMBOLS]), ([9], [LANE_SYMBOLS + 1])],
)
def test_lanes_that_do_not_fit_are_corrupt(written_sizes: list[int], read_sizes: list[int]) -> None:
    reader = TensorReader(device_tables(TABLES, CPU), written(random_steps(written_sizes)))
    for n in read_sizes:
        assert reader.code(torch.zeros(n, dtype=torch.int16), None).shape == (n,)
    check_format_error(reader.finish, Corrupt)


def test_wrong_escape_counts_are_corrupt() -> None:
    """More escapes in the lanes than values for them, none at all, or fewer."""
    index = np.zeros(30, np.uint16)
    flat = TableSet(np.full((1, 256), 256, np.uint32))
    for n_escapes, stated in ((3, 2), (3, 0), (2, 3)):
        symbols = np.arange(30, dtype=np.int16)
        symbols[:n_escapes] = 200
        payload = bytearray(written([(index, symbols)], flat))
        assert payload[:2] == bytes([30, n_escapes])
        payload[1] = stated
        start = 4
        values = np.full(stated, 200, "<i2").tobytes()
        whole = bytes(payload[:start]) + values + bytes(payload[start + 2 * n_escapes :])
        reader = TensorReader(device_tables(flat, CPU), whole)
        reader.code(torch.zeros(30, dtype=torch.int16), None)
        check_format_error(reader.finish, Corrupt)


def test_a_bad_layout_is_corrupt_at_once() -> None:
    payload = written(random_steps([50]))
    for broken in (payload[:-1], b"", payload + b"\0", payload[:-4] + bytes(4)):
        check_format_error(lambda b=broken: TensorReader(device_tables(TABLES, CPU), b), Corrupt)


# No device


def test_no_cuda_is_an_error_of_its_own(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = (GOLDEN / "lossy-1.vbc").read_bytes()
    for call in (
        lambda: api.encode(np.zeros((4, 4, 3), np.uint8), device="cuda", model=tiny),
        lambda: api.decode(data, device="cuda", model=tiny),
        lambda: api.decode_image(data, "cuda", model=tiny),
        lambda: api.verify(data, device="cuda", model=tiny),
    ):
        with pytest.raises(CudaMissing, match="sees no CUDA device"):
            call()


def test_no_cuda_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file, target = str(GOLDEN / "lossy-1.vbc"), tmp_path / "out.png"
    for arguments in (
        ["decode", file, "-o", str(target)],
        ["encode", file, "-o", str(target)],
        ["verify", file],
    ):
        done = CliRunner().invoke(cli.app, [*arguments, "--device", "cuda"])
        assert done.exit_code == 2
        assert "CUDA" in done.output
    assert not target.exists()


def test_other_devices_are_refused(tiny: Model) -> None:
    wrong: Any = "meta"
    with pytest.raises(ValueError, match="cpu and cuda"):
        api.encode(np.zeros((4, 4, 3), np.uint8), device=wrong, model=tiny)


def test_the_model_stays_on_the_cpu_unless_asked(tiny: Model) -> None:
    assert tiny.to("cpu") is tiny
    assert tiny.cumulative is None
    assert tiny.to("meta") is tiny.to("meta")
    assert tiny.to("meta").device == META


# No waiting, no mixing


class OneDevice(TorchDispatchMode):
    """Fails where an operation takes tensors of two devices, indices included; copies alone may."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        devices = {x.device.type for x in leaves if isinstance(x, Tensor)}
        assert len(devices) < 2 or func.__name__.startswith(("_to_copy", "copy_")), func
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels that give tensors without values, and readers that check nothing at the end."""

    def launch(
        x: Tensor, packed: Tensor, bias: Tensor, shift: Tensor, head: bool, added: Tensor | None
    ) -> Tensor:
        assert all(t.device == META for t in (x, packed, bias, shift))
        side, outputs = packed.shape[1] - 1, packed.shape[0]
        size = (x.shape[0], outputs, x.shape[2] - side, x.shape[3] - side)
        dtype = torch.int32 if head else torch.uint8
        return torch.empty(size, dtype=dtype, device=META, memory_format=torch.channels_last)

    def tables(base: Tensor, out: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        return base.new_empty(len(out)), base.new_empty(len(out))

    for module in (conv, predict, rans):
        monkeypatch.setattr(module, "use_triton", lambda x: x.device == META)
        monkeypatch.setattr(module, "_triton_agrees", lambda *key: True)
    monkeypatch.setattr(conv, "_launch", launch)
    monkeypatch.setattr(predict, "channel_tables_triton", tables)
    monkeypatch.setattr(rans, "decode_step_triton", lambda lanes, index, *rest: torch.empty_like(index))
    monkeypatch.setattr(device.TensorReader, "finish", lambda self: None)
    with OneDevice():
        yield


@pytest.mark.parametrize("name", ["lossy-3", "archival-tuned", "layered", "one-row", "noise-raw"])
def test_decoding_never_waits_for_the_device(tiny: Model, on_meta: None, name: str) -> None:
    """No value of a tensor reaches the host, no index has to be brought to the device."""
    data = (GOLDEN / f"{name}.vbc").read_bytes()
    header = container.unpack_header(data)
    for levels in (None, 1, 2, 5):
        rgb = decode_image(data, model=tiny.to(META), levels=levels).rgb
        assert rgb.device == META
        assert rgb.shape == (3, header.height, header.width)


def test_training_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both networks, forward and backward; the losses only add logging."""
    monkeypatch.setattr(torch, "autocast", lambda *kind, **options: nullcontext())  # there is none for meta
    exact = ExactNet(8).to(META)
    lossy = LossyNet(Widths(8, 8, 8, 8, 8)).to(META)
    x = torch.empty((2, 3, 64, 64), dtype=torch.int16, device=META)
    q = torch.empty(2, device=META)
    with OneDevice():
        (exact_bits(exact, x) + exact_bits(exact, x, x, q)).backward()
        latents, bits = lossy(x.float(), q)
        (lossy.synthesise(torch.cat(latents, 1), q, 3).mean() + sum(b.sum() for b in bits)).backward()


# Pieces


def test_places_of_a_parity() -> None:
    for h in range(1, 6):
        for w in range(1, 6):
            for even in (True, False):
                want = (parity(h, w) == even).flatten().nonzero()[:, 0]
                assert torch.equal(of_parity(h, w, even, CPU), want)


def test_exact_product_is_exact() -> None:
    x, basis = torch.full((3, 64), -32768.0).double(), torch.full((64, 64), 4095.0).double()
    basis[::2] = -4095
    assert torch.equal(exact_product(x, basis).long(), x.long() @ basis.long())


def test_an_untuned_phase_has_a_layer_of_zeros(tiny: Model) -> None:
    """Flag and corrections are coded as the host codes them; without a flag nothing more is read."""
    encoder = TensorWriter(tiny.tables)
    tuning = exact_device.code_tuning_on_device(tiny.exact, encoder, "V", None, CPU)
    parts = (tuning.layer.weight, tuning.layer.bias, tuning.around, tuning.before)
    assert not any(x.any() for x in parts)
    payload = encoder.finish()
    assert payload[0] == 1, "one symbol"
    reader = TensorReader(device_tables(tiny.tables, CPU), payload)
    again = exact_device.code_tuning_on_device(tiny.exact, reader, "V", None, CPU)
    reader.finish()
    assert not again.layer.weight.any()
    assert not again.around.any()
