"""SAID: boxes, canvases, description length, detection, and a few steps of training."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts import scenes
from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.said import bits, claims, detection, glimpser, sums, training, whole
from vbc.codec.research.systems.said.bits import Course, Ideal, Real
from vbc.codec.research.systems.said.boxes import Boxes, box_bits, grid_boxes, random_boxes
from vbc.codec.research.systems.said.model import Canvas, Form, PatchVae, Said, pasted, seen, shrunk

FORMS = [
    Form(1),
    Form(3, alpha=False),
    Form(1, scope=False),
    Form(1, base="VAE"),
    Form(1, placing="gradient"),
]


def pictures(n: int, channels: int = 1) -> Tensor:
    """Sprites, grey or in colour: uint8."""
    return scenes.sprite_scenes(n, 1).images[:, :channels].contiguous()


def made(form: Form) -> Said:
    torch.manual_seed(0)
    return Said(form).eval()


# Boxes


def test_edges_and_boxes_are_inverse() -> None:
    edges = torch.tensor([[0.0, 0, 64, 64], [3, 10, 7, 50]])
    boxes = Boxes.between(edges, 64)
    assert torch.allclose(boxes.edges(64), edges, atol=1e-5)
    assert boxes.width[0].tolist() == [1, 1]
    assert boxes.centre[0].tolist() == [0, 0]


def test_a_halved_box_costs_a_bit_for_each_side() -> None:
    large = Boxes(torch.zeros(1, 2), torch.full((1, 2), 1e-2))
    small = Boxes(torch.zeros(1, 2), torch.full((1, 2), 0.5e-2))
    assert float(small.position_nats() - large.position_nats()) == pytest.approx(2 * math.log(2), abs=1e-3)
    prior = Boxes(torch.zeros(1, 2), torch.ones(1, 2))
    assert float(prior.position_nats()) == 0


def test_rounded_boxes_are_as_many_as_their_bits_say() -> None:
    boxes = random_boxes(200, torch.Generator().manual_seed(0))
    outside = Boxes(boxes.centre * 2, boxes.width * 0.01)
    for one in (boxes, outside):
        edges = one.rounded(64).edges(64)
        assert torch.allclose(edges, edges.round(), atol=1e-4)
        assert (edges.round()[:, 2:] > edges.round()[:, :2]).all()
        assert float(edges.min()) >= -1e-4
        assert float(edges.max()) <= 64 + 1e-4
    inside = boxes.edges(64)
    assert float((boxes.rounded(64).edges(64) - inside).abs().max()) <= 0.5 + 1e-4
    pairs = sum(1 for low in range(9) for high in range(low + 1, 9))
    assert 2 ** box_bits(8) == pytest.approx(pairs**2)


def test_a_grid_covers_the_picture_once() -> None:
    cover = torch.zeros(1, 1, 64, 64)
    for boxes in grid_boxes(1, 4):
        cover += pasted(torch.zeros(1, 1, 64, 64), boxes, torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8))[1]
    assert float((cover - 1)[..., 2:-2, 2:-2].abs().max()) < 0.6  # borders of two neighbours share a pixel
    assert float(cover.mean()) == pytest.approx(1, abs=0.02)


# Canvases


def test_a_box_of_eight_pixels_restores_them() -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    boxes = Boxes.between(torch.tensor([[8.0, 16, 16, 24], [40, 0, 48, 8]]), 64)
    canvas, one = torch.zeros_like(x), torch.ones(2, 1, 8, 8)
    after, cover = pasted(canvas, boxes, seen(x, boxes), one)
    assert torch.allclose(after[0, :, 16:24, 8:16], x[0, :, 16:24, 8:16], atol=1e-4)
    assert torch.allclose(after[1, :, 0:8, 40:48], x[1, :, 0:8, 40:48], atol=1e-4)
    assert torch.allclose(after * (cover == 0), torch.zeros_like(after))
    half, _ = pasted(torch.ones_like(x), boxes, seen(x, boxes), 0.5 * one)
    assert torch.allclose(half[0, :, 16:24, 8:16], 0.5 + 0.5 * x[0, :, 16:24, 8:16], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_scope_is_where_no_box_has_been(form: Form) -> None:
    model, x = made(form), pictures(3, form.channels).float() / 255
    canvas, base = model.start(x)
    assert (canvas.scope == 1).all()
    expected = 8.0 * 64 * form.channels
    assert torch.allclose(base, torch.tensor(expected)) == (form.base == "picture")
    boxes = Boxes.between(torch.tensor([[0.0, 0, 64, 64], [0, 0, 32, 64], [10, 10, 20, 20]]), 64)
    after = model.put(canvas, boxes, model.vae.decode(torch.zeros(3, 10)))
    assert not after.scope[0, :, 4:60, 4:60].any()
    assert not after.scope[1, :, 4:60, 4:30].any()
    assert (after.scope[1, :, :, 36:] == 1).all()
    assert float(after.scope[2].detach().mean()) == pytest.approx(1 - 100 / 4096, abs=0.01)
    again = model.put(after, boxes, model.vae.decode(torch.zeros(3, 10)))
    assert (again.scope <= after.scope + 1e-6).all()


def test_without_scope_the_network_cannot_see_where_boxes_were() -> None:
    x = pictures(2).float() / 255
    for form, blind in ((Form(1), False), (Form(1, scope=False), True)):
        model = made(form)
        canvas, _ = model.start(x)
        there = model.look(x, canvas)
        torch.nn.init.normal_(model.net.box.weight)
        there, elsewhere = (
            model.look(x, Canvas(canvas.values, scope))
            for scope in (canvas.scope, torch.zeros_like(canvas.scope))
        )
        assert torch.equal(there.centre, elsewhere.centre) == blind


@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_reaches_an_earlier_glimpse(form: Form, progress: float) -> None:
    """Each loss goes backward on its own, and what a glimpse starts on is a constant."""
    model, x = made(form), pictures(2, form.channels).float() / 255
    starts: list[Canvas] = []
    look = model.look

    def watched(x: Tensor, canvas: Canvas) -> Boxes:
        starts.append(canvas)
        return look(x, canvas)

    model.look = watched  # type: ignore[method-assign]
    n = 0
    for value, log in training.glimpse_losses(model, x, 3, progress):
        model.zero_grad()
        torch.autograd.backward(value)
        assert all(math.isfinite(figure) for figure in log.values())
        n += 1
    assert n == len(starts) == 3
    assert not any(part.requires_grad for canvas in starts for part in canvas)
    assert all(p.grad is not None for p in model.net.parameters())
    assert all(p.grad is not None for p in model.vae.encoder.parameters())


def test_the_likelihood_of_a_box_does_not_move_it() -> None:
    """The glimpse network's gradient is that of L_res + L_kl + L_pos alone."""
    x = pictures(3).float() / 255
    grads = []
    for with_likelihood in (True, False):
        model = made(Form(1, placing="gradient"))
        torch.manual_seed(1)
        value, _ = next(iter(training.glimpse_losses(model, x, 1)))
        if not with_likelihood:
            torch.manual_seed(1)
            canvas, _ = model.start(x)
            torch.randn(3, 10)
            boxes = model.look(x, canvas)
            code = model.vae.encode(seen(x, boxes))
            after = model.put(canvas, boxes, model.vae.decode(code.sample(torch.randn(6, 10)[:3])))
            square = (
                (v - x).square().flatten(1).mean(1) + 1 / 12 / 255**2 for v in (after.values, canvas.values)
            )
            new, old = square
            residual = 0.5 * 4096 * (new / old).log()
            kl = 0.5 * (code.mean**2 + code.log_var.exp() - 1 - code.log_var).sum(1)
            value = (residual + kl + boxes.position_nats()).mean()
        torch.autograd.backward(value)
        grads.append(torch.cat([p.grad.flatten() for p in model.net.parameters() if p.grad is not None]))
    assert float(grads[1].norm()) > 0
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-4 * float(grads[1].abs().max()))


def test_boxes_about_errors() -> None:
    errors = torch.zeros(50, 1, 64, 64)
    errors[:, :, 40, 20] = 1
    edges = training.boxes_about(errors).edges(64)
    middle = (edges[:, :2] + edges[:, 2:]) / 2
    assert (middle.floor() == torch.tensor([20, 40])).all()


def test_the_search_never_takes_a_worse_box() -> None:
    """By L_res + L_kl + L_pos, latents at their means; without other boxes it keeps what it is given."""
    model, x = made(Form(1)), pictures(6).float() / 255
    canvas, _ = model.start(x)
    given = model.look(x, canvas).detach()

    def nats(boxes: Boxes) -> Tensor:
        code = model.vae.encode(seen(x, boxes))
        after = model.put(canvas, boxes, model.vae.decode(code.mean), opaque=True)
        kl = 0.5 * (code.mean**2 + code.log_var.exp() - 1 - code.log_var).sum(1)
        error = (after.values - x).square().flatten(1).mean(1) + 1 / 12 / 255**2
        return 2048 * error.log() + kl + boxes.position_nats()

    torch.manual_seed(2)
    best = training.best_about(model, x, canvas, given, 0.3, opaque=True)
    assert (nats(best) <= nats(given) + 0.1).all()
    assert float((nats(given) - nats(best)).detach().mean()) > 1
    same = training.best_about(model, x, canvas, given, 0.0, opaque=True)
    assert float(same.squared_distance(given).max()) < 1e-8


# Bits


def course_of(gains: list[float], costs: list[float]) -> Course:
    n = len(gains)
    residual = 1000 - torch.tensor([0.0, *gains]).cumsum(0)
    zeros = torch.zeros(1, n)
    return Course(
        torch.tensor([500.0]),
        residual[None],
        torch.tensor([costs]),
        zeros,
        residual[None],
        torch.zeros(1, n, 4),
    )


@pytest.mark.parametrize(
    ("gains", "stop"),
    [([9.0, 8.0, 1.0, 50.0], 2), ([1.0, 90.0], 0), ([9.0, 9.0], 2), ([5.0], 1)],
)
def test_the_first_glimpse_that_does_not_pay_ends_it(gains: list[float], stop: int) -> None:
    course = course_of(gains, [5.0] * len(gains))
    found = bits.honest_stops(course)
    assert found.tolist() == [stop]
    split = bits.split_bits(course, found)
    assert split["base"] == 500
    assert split["total"] == pytest.approx(float(bits.at_stop(course.totals, found)))
    assert split["total"] == pytest.approx(1500 + 5 * stop - sum(gains[:stop]))


@pytest.mark.parametrize(
    ("gains", "falls"),
    [([90.0, 20.0, 9.0, 1.0, 2.0], True), ([20.0, 90.0, 9.0], False), ([90.0, 20.0, 1.0, 50.0], False)],
)
def test_whether_gains_fall(gains: list[float], falls: bool) -> None:
    """Glimpses that are not used may gain a little more or less, but not more than those that are."""
    fall, least = claims.course_effects(course_of(gains, [5.0] * len(gains)), "these")
    assert fall.found is falls
    assert least.found is (gains[-1] != 50)


@pytest.mark.parametrize("coding", [Ideal(1), Real(0.5)])
def test_following_adds_up(coding: Ideal | Real) -> None:
    model, x = made(Form(1)), pictures(3)
    course, canvases = bits.follow(model, x, 2, coding)
    assert canvases.shape == (3, 3, 1, 64, 64)
    total = course.base + course.residual[:, 2] + (course.latents + course.position).sum(1)
    assert torch.allclose(course.totals[:, 2], total)
    assert torch.allclose(course.gains.sum(1), course.residual[:, 0] - course.residual[:, 2], atol=0.1)
    square = 3 * (canvases[0] - x.float() / 255).square().flatten(1).sum(1)
    assert torch.allclose(course.square[:, 0], square, rtol=1e-4)
    assert (course.latents > 0).all()
    assert (course.position > 0).all() or isinstance(coding, Ideal)


def test_bits_of_an_error_of_known_size() -> None:
    """D = N / 2 log2(2 pi e s2); a canvas without error costs what rounding does."""
    x = torch.full((1, 1, 8, 8), 0.5)
    two = x + 2 / 255 * (-1) ** torch.arange(8).float()
    expected = 32 * math.log2(2 * math.pi * math.e * (4 + 1 / 12))
    assert float(Ideal(1).residual(x, two)) == pytest.approx(expected, rel=1e-4)
    assert float(Ideal(1).residual(x, x)) == pytest.approx(
        32 * math.log2(2 * math.pi * math.e / 12), rel=1e-4
    )


def test_real_bits_are_code_lengths() -> None:
    """Kraft: the masses of all grey values, and of all grid points, sum to one."""
    coding = Real(0.5)
    every = torch.arange(256).view(-1, 1, 1, 1).float() / 255
    mean = torch.full_like(every, 0.1)
    spread = torch.full((256, 1, 1, 1), 0.05)
    ours = torch.cat((every, mean + spread), 2)  # the second pixel makes the deviation nearly the same
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "error_variance", lambda a, b: torch.full((256,), 0.01))
        found = coding.residual(every, mean) - bits.SCALE_BITS - bits.CONTINUE_BITS
    assert float((2.0 ** -found.double()).sum()) == pytest.approx(1, abs=1e-3)
    assert coding.residual(ours, torch.cat((mean, mean), 2)).isfinite().all()
    z, latents = coding.send(Gaussian(torch.linspace(-8, 8, 33)[:, None], torch.zeros(33, 1)))
    assert torch.equal(z[:, 0], torch.linspace(-8, 8, 33))
    assert float((2.0 ** -latents.double()).sum()) == pytest.approx(1, abs=1e-6)


def test_far_errors_cost_finite_bits() -> None:
    x, mean = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    x[..., 0, 0] = 1
    assert math.isfinite(float(Real(0.5).residual(x, mean)))
    assert float(Real(0.5).residual(x, mean)) > float(Real(0.5).residual(mean, mean)) + 100


def test_greedy_boxes_take_fewer_bits_than_random_ones() -> None:
    torch.manual_seed(0)
    model, x = made(Form(1)), pictures(4)
    found = {
        name: bits.follow(model, x, 2, Ideal(1), choose)[0].totals[:, 2].mean()
        for name, choose in (("greedy", bits.greedy(model, 16, 1)), ("random", bits.at_random(1)))
    }
    assert found["greedy"] < found["random"]


# Detection


def test_overlaps() -> None:
    a = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 5, 10], [20, 20, 30, 30]]])
    assert detection.overlaps(a, a[:, :1])[0, :, 0].tolist() == pytest.approx([1, 0.5, 0])


def test_average_precision() -> None:
    truth = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]], [[5, 5, 15, 15], [0, 0, 0, 0]]])
    counts, scores = torch.tensor([2, 1]), torch.tensor([[3.0, 2], [1, 0]])

    def ap(edges: Tensor) -> float:
        return detection.mean_average_precision(edges, scores, truth, counts)

    perfect = truth.clone()
    assert ap(perfect) == pytest.approx(1)
    half = truth.clone()
    half[..., 2] = half[..., 0] + (half[..., 2] - half[..., 0]) * 0.55  # overlaps by 0.55
    assert ap(half) == pytest.approx(5 / 9)
    doubled = truth.clone()
    doubled[0, 1] = doubled[0, 0]  # the same object twice, the other one missed
    assert ap(doubled) == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert ap(torch.zeros_like(truth)) == 0
    assert detection.count_error(torch.tensor([2, 4]), counts) == 1.5
    assert detection.recall(doubled, torch.tensor([2, 1]), truth, counts) == pytest.approx(2 / 3)
    assert detection.recall(doubled, torch.tensor([0, 0]), truth, counts) == 0


# Training


@pytest.mark.parametrize("form", FORMS[3:])
def test_training(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps; what the repeated call finds is the same model."""
    monkeypatch.setattr(training, "BATCH", 2)
    monkeypatch.setattr("vbc.codec.research.parts.loop.TIMED_STEPS", 1)
    setting = Setting(tmp_path, tmp_path, 1e-3, emit=lambda line: None)
    model = training.trained(form, pictures(6, form.channels), 2, 1e-3, setting, "small")
    again = training.trained(form, pictures(6, form.channels), 2, 1e-3, setting, "small")
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    fresh = made(form)
    assert not torch.equal(model.net.box.weight, fresh.net.box.weight)


def test_the_vae_learns() -> None:
    torch.manual_seed(0)
    vae, small = PatchVae(1), shrunk(pictures(32).float() / 255)
    optimiser = torch.optim.Adam(vae.parameters(), 2e-3)
    seen_losses = []
    for _ in range(40):
        value, _ = training.vae_loss(vae, small)
        optimiser.zero_grad()
        torch.autograd.backward(value)
        optimiser.step()
        seen_losses.append(value.item())
    assert seen_losses[-1] < seen_losses[0] - 20


def test_the_glimpser_and_the_whole_vae_step() -> None:
    x = pictures(4, 3)
    model = glimpser.Glimpser(3)
    values = [value for value, _ in glimpser.losses(model, x.float() / 255, 3)]
    for value in values:
        torch.autograd.backward(value)
    assert len(values) == 3
    errors = {
        tries: glimpser.followed(x.float() / 255, 3, glimpser.best_of(tries, 1))[0][:, -1].mean()
        for tries in (1, 20)
    }
    assert errors[20] < errors[1]
    value, log = whole.loss_of(whole.WholeVae(3, 20), x)
    torch.autograd.backward(value)
    assert log["kl"] > 0


def test_sums() -> None:
    digits = torch.randint(
        0, 255, (20, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = scenes.digit_scenes(digits, torch.arange(20) % 10, 8, 1, fewest=5)
    assert torch.equal(sums.sums(found), found.kinds.sum(1).float())
    patches = sums.shown(found, found.boxes)
    assert patches.shape == (8, 5, 1, 8, 8)
    assert sums.glimpsed(made(Form(1)), found, 1).shape == patches.shape
    for tuned in (True, False):
        adder = sums.Adder(PatchVae(1), tuned, 4.5)
        torch.autograd.backward(adder(patches).sum())
        assert all((p.grad is not None) == tuned for p in adder.vae.encoder.parameters())
        # the same glimpses in another order add up to the same
        assert torch.allclose(adder(patches), adder(patches.flip(1)), atol=1e-4)
    share = sums.share_right(adder, patches, adder(patches).detach().round(), "cpu")
    assert share == 100
