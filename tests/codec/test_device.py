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
from checks import decode_answer, decoded_hash, every_refinement, payloads_of, rebuild
from grouped import CASES, grouped_file
from pictures import noise, photo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vbc.bitstream import container
from vbc.bitstream.errors import FormatError
from vbc.codec import api, cli
from vbc.codec.entropy.coder import Writer
from vbc.codec.entropy.tensor_coder import TensorWriter
from vbc.codec.exact import level as exact_level
from vbc.codec.exact.tuning import code_tuning, tuning_symbols_at_most
from vbc.codec.flow import decode_state
from vbc.codec.model import Model, place
from vbc.codec.nets.int_nets import exact_product
from vbc.codec.pipeline import decode_image, encode_image, verify
from vbc.codec.settings import EncodeSettings
from vbc.codec.train.exact_loss import exact_bits
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.lossy_net import LossyNet, Widths
from vbc.kernels import conv, predict, rans
from vbc.kernels.dispatch import CudaMissing

GOLDEN = Path(__file__).parents[1] / "golden"
ANSWERS: dict[str, dict[str, str]] = json.loads((GOLDEN / "answers.json").read_text())
CPU, META = torch.device("cpu"), torch.device("meta")
ARCHIVAL = EncodeSettings(levels=0, lossless=True)


@pytest.fixture(scope="module")
def placed(tiny: Model) -> Model:
    """The tiny model on the device path, in plain torch."""
    return place(tiny, CPU)


# Whole files


@pytest.mark.parametrize("name", ANSWERS)
def test_golden_files(placed: Model, name: str) -> None:
    """Every answer of every golden file; of those with several groups the last level and a region."""
    data = (GOLDEN / name).read_bytes()
    answers = list(ANSWERS[name])
    levels = [n for n in answers if n.isdecimal()]
    for answer in (levels[-1], answers[-1]) if "groups" in name else answers:
        assert decoded_hash(decode_answer(data, placed, answer)) == ANSWERS[name][answer], answer


@pytest.mark.parametrize(
    "settings",
    [
        EncodeSettings(levels=1, quality=95),
        EncodeSettings(quality=30),
        EncodeSettings(quality=90, refinements=2),
        ARCHIVAL,
        EncodeSettings(lossless=True, effort=0),
    ],
    ids=str,
)
def test_encoding_gives_the_same_bytes(tiny: Model, placed: Model, settings: EncodeSettings) -> None:
    """The self-check of lossless ones has decoded them on the device path; the host reads them too."""
    x = photo(45, 38)
    data = encode_image(x, model=placed, settings=settings)
    assert data == encode_image(x, model=tiny, settings=settings)
    verify(data, model=tiny)


def test_encoding_noise_and_tuned_layers(tiny: Model, placed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain groups, and corrections fitted on the host for networks on the device."""
    x = noise(9, 20)
    assert encode_image(x, model=placed, settings=ARCHIVAL) == encode_image(x, model=tiny, settings=ARCHIVAL)
    monkeypatch.setattr("vbc.codec.exact.level.MIN_POSITIONS", 200)
    monkeypatch.setattr("vbc.codec.exact.tuning_fit.MIN_POSITIONS", 200)
    monkeypatch.setattr("vbc.codec.exact.tuning_fit.SIDE_BITS", -1e9)  # worth it in any case
    x = photo(41, 34)
    data = encode_image(x, model=placed, settings=ARCHIVAL)
    assert data == encode_image(x, model=tiny, settings=ARCHIVAL)
    assert sum(packet.part == 0 for packet in container.unpack_header(data).packets if packet.level) == 1
    assert torch.equal(decode_image(data, model=tiny).rgb, x)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(
    "name",
    [
        "lossy",
        "lossy-some-maps",
        "refined-twice",
        "refined-layered",
        "layered-tuned",
        "archival",
        "half-noise",
        "deep-gray-alpha",
    ],
)
def test_many_groups(tiny: Model, placed: Model, name: str) -> None:
    """On a device all groups of one shape are one batch, on the host they are a few."""
    data, case = grouped_file(name), CASES[name]
    want, got = (decode_image(data, model=m) for m in (tiny, placed))
    assert decoded_hash(want) == decoded_hash(got)
    assert want.exact == got.exact
    part = [decode_image(data[: len(data) // 2], model=m, allow_partial=True) for m in (tiny, placed)]
    assert torch.equal(part[0].rgb, part[1].rgb)
    assert part[0].levels == part[1].levels
    if not case.tuned and not case.some_maps:
        with every_refinement():
            again = encode_image(case.rgb, model=placed, settings=case.settings, **case.others)
        assert again == data


@pytest.fixture(scope="module")
def small(tiny: Model) -> dict[int, tuple[Tensor, bytes]]:
    """An archival and a layered file, written by the host."""
    x = photo(11, 9)
    settings = {n: EncodeSettings(n, lossless=True, effort=0) for n in (0, 3)}
    return {n: (x, encode_image(x, model=tiny, settings=settings[n])) for n in (0, 3)}


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


def outcome(data: bytes, model: Model) -> str:
    try:
        return decoded_hash(decode_image(data, model=model))
    except FormatError as e:
        return type(e).__name__


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(
    "name", ["half-noise", "archival", "archival-tuned", "lossy", "lossy-2", "lossy-some-maps"]
)
def test_damage_has_the_same_outcome(tiny: Model, placed: Model, name: str) -> None:
    """Whatever stands in the lanes: the same typed error on both paths, or the same picture."""
    data = grouped_file(name)
    header = container.unpack_header(data)
    rng = np.random.default_rng(8)
    seen = set()
    for _ in range(6):
        payloads = payloads_of(data)
        target = payloads[int(rng.integers(0, len(payloads)))]
        target[int(rng.integers(0, len(target)))] ^= int(rng.integers(1, 256))
        broken = rebuild(header, payloads)
        want = outcome(broken, tiny)
        assert outcome(broken, placed) == want
        seen.add(want)
    assert "Corrupt" in seen


# No device


def test_no_cuda_is_an_error_of_its_own(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = (GOLDEN / "lossy-1.vbc").read_bytes()
    for device in ("cuda", "cuda:0", "cuda:3"):
        for call in (
            lambda d: api.encode(np.zeros((4, 4, 3), np.uint8), device=d, model=tiny),
            lambda d: api.decode(data, device=d, model=tiny),
            lambda d: api.decode(data, device=d, region=(0, 0, 1, 1), model=tiny),
            lambda d: api.decode_image(data, d, model=tiny),
            lambda d: api.verify(data, device=d, model=tiny),
        ):
            with pytest.raises(CudaMissing, match="sees no CUDA device"):
                call(device)


def test_no_cuda_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file, target = str(GOLDEN / "lossy-1.vbc"), tmp_path / "out.png"
    for arguments in (
        ["decode", file, "-o", str(target)],
        ["encode", file, "-o", str(target)],
        ["verify", file],
    ):
        for device in ("cuda", "cuda:1"):
            done = CliRunner().invoke(cli.app, [*arguments, "--device", device])
            assert done.exit_code == 2
            assert "CUDA" in done.output
    assert not target.exists()


@pytest.mark.parametrize("wrong", ["meta", "", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "mps"])
def test_other_devices_are_refused(tiny: Model, wrong: str) -> None:
    data = (GOLDEN / "lossy-1.vbc").read_bytes()
    for call in (
        lambda: api.encode(np.zeros((4, 4, 3), np.uint8), device=wrong, model=tiny),
        lambda: api.decode(data, device=wrong, model=tiny),
        lambda: api.verify(data, device=wrong, model=tiny),
    ):
        with pytest.raises(ValueError, match="cpu, cuda and cuda:N"):
            call()


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
def on_meta(without_values: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is checked at the end of a level, and no operation mixes devices."""
    for module in (decode_state, exact_level):
        monkeypatch.setattr(module, "finish_all", lambda readers: None)
    with OneDevice():
        yield


@pytest.mark.parametrize(
    "name", ["lossy-3", "refined-layered", "groups-tuned", "layered", "one-row", "noise-raw"]
)
def test_decoding_never_waits_for_the_device(tiny: Model, on_meta: None, name: str) -> None:
    """No value of a tensor reaches the host, no index has to be brought to the device."""
    data = (GOLDEN / f"{name}.vbc").read_bytes()
    header = container.unpack_header(data)
    for levels in (None, 1, 2, 5):
        rgb = decode_image(data, model=tiny.to(META), levels=levels).rgb
        assert rgb.device == META
        assert rgb.shape == (3, header.height, header.width)


@pytest.mark.usefixtures("small_groups", "on_meta")
@pytest.mark.parametrize("name", ["lossy", "lossy-some-maps", "refined-twice", "layered-tuned", "half-noise"])
def test_many_groups_and_regions_never_wait_for_the_device(tiny: Model, name: str) -> None:
    data = grouped_file(name)
    for levels, region in ((None, (33, 5, 40, 20)), (2, (0, 0, 5, 5)), (5, None)):
        decoded = decode_image(data, model=tiny.to(META), levels=levels, region=region)
        assert decoded.rgb.device == META
        assert decoded.rgb.shape == (3, *((39, 201) if region is None else region[:1:-1]))


def test_training_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both networks, forward and backward; the losses only add logging."""
    monkeypatch.setattr(torch, "autocast", lambda *kind, **options: nullcontext())  # there is none for meta
    exact = ExactNet(8).to(META)
    lossy = LossyNet(Widths(8, 8, 8, 8, 8)).to(META)
    x = torch.empty((2, 3, 64, 64), dtype=torch.int16, device=META)
    q = torch.empty(2, device=META)
    qualities = torch.empty((2, 1, 8, 8), device=META)
    with OneDevice():
        (exact_bits(exact, x) + exact_bits(exact, x, x, q)).backward()
        latents, bits = lossy(x.float(), qualities)
        (lossy.synthesise(torch.cat(latents, 1), qualities, 3).mean() + sum(b.sum() for b in bits)).backward()


# Pieces


def test_exact_product_is_exact() -> None:
    x, basis = torch.full((3, 64), -32768.0).double(), torch.full((64, 64), 4095.0).double()
    basis[::2] = -4095
    assert torch.equal(exact_product(x, basis).long(), x.long() @ basis.long())


def test_an_untuned_phase_without_waiting_has_a_layer_of_zeros(tiny: Model) -> None:
    """Elsewhere than on the CPU the host does not look at the flags: its zeros are what was coded."""
    writer = Writer(tiny.tables, 1)
    assert code_tuning(tiny.exact, writer, "V", 1, None, CPU) is None
    placed = tiny.to(META)
    tensor_writer = TensorWriter(tiny.tables, 1)
    coded = code_tuning(placed.exact, tensor_writer, "V", 1, None, META)
    assert coded is not None
    (tuning,) = coded
    assert (tuning.layer.weight.device, tuning.around.device, tuning.before.device) == (META,) * 3
    (payload,) = writer.finish()
    assert payload[1] == 6, "flags alone"
    reader = place(tiny, CPU).reader([payload], tuning_symbols_at_most(tiny.exact))
    assert code_tuning(tiny.exact, reader, "V", 1, None, CPU) is None
    reader.finish()
