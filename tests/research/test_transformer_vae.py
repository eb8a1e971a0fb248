"""TVAE and its relatives: codes and poses, what they cost, that they learn, what is seen of digits."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.importance import log_weights
from vbc.codec.research.parts.loop import make_optimiser, train_step
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.transformer_vae import ink, pose_study
from vbc.codec.research.systems.transformer_vae.coadaptation_study import FORMS as STARTS
from vbc.codec.research.systems.transformer_vae.model import KINDS, DigitModel, Form, ink_nats
from vbc.codec.research.systems.transformer_vae.poses import Pose, PoseForm
from vbc.codec.research.systems.transformer_vae.training import Case, maker, plan_of, train_cases

ALL = {**{kind: make(3) for kind, make in KINDS.items()}, **pose_study.forms()}


def bars(n: int) -> Tensor:
    """Upright bars with noise, moved sideways: uint8 [n, 1, 28, 28]."""
    r = torch.Generator().manual_seed(0)
    x = torch.randint(0, 30, (n, 1, 28, 28), generator=r)
    for one, left in zip(x, torch.randint(6, 18, (n,), generator=r).tolist(), strict=True):
        one[0, 5:23, left : left + 4] = 255
    return x.to(torch.uint8)


def setting_in(folder: Path) -> Setting:
    return Setting(folder, folder, 0.001, emit=list[str]().append)


@pytest.mark.parametrize("name", ALL)
def test_codes_and_their_cost(name: str) -> None:
    torch.manual_seed(0)
    model, x = DigitModel(ALL[name]), bars(5)
    z, u = model.encode(x)
    assert z.mean.shape == (5, ALL[name].z)
    assert u.mean.shape == (5, ALL[name].total - ALL[name].z)
    terms = model.terms([x], torch.Generator().manual_seed(1))
    assert all(value.shape == (5,) and (value > -1e-4).all() for value in terms.values())
    assert torch.allclose(model.place(model.template(z.mean), u.mean), model.template(z.mean), atol=1e-5)
    # before training a pose's posterior is its prior
    assert terms["KL_u"].abs().max() < 1e-4


@pytest.mark.parametrize("name", ["Aff-TVAE", "TPS-TVAE", "Aff-DTVAE"])
def test_a_free_pose_is_a_point_without_density(name: str) -> None:
    model, x = DigitModel(ALL[name]), bars(2)
    _, u = model.encode(x)
    assert torch.equal(u.sample(torch.Generator().manual_seed(1)), u.mean)
    with pytest.raises(ValueError, match="flat"):
        model.log_joint([x], [torch.zeros(2, 3), u.mean])


def test_forms_that_make_no_sense() -> None:
    for pose in (PoseForm(), PoseForm("affine", "learned")):
        with pytest.raises(ValueError, match="upright"):
            DigitModel(Form("DTVAE", 3, pose, upright=True))


def test_the_double_transformer_moves_back_what_it_moved() -> None:
    """The encoder sees the digit moved by u, the drawing is moved by the inverse: in the place of a drawing,
    what the encoder has seen is the digit again."""
    model = DigitModel(KINDS["Aff-DTVAE"](3))
    x = torch.nn.functional.avg_pool2d(bars(8).float() / 255, 5, 1, 2)
    u = 0.1 * torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    seen = model.pose.move(x, u)
    assert (model.place(seen, u) - x).abs().mean() < 0.02
    assert (seen - x).abs().mean() > 0.04


@pytest.mark.parametrize("name", ["VAE", "c", "e4", "f"])
def test_importance_weights_are_the_bound(name: str) -> None:
    """Their mean is minus the sum of the terms, in closed form and drawn."""
    torch.manual_seed(0)
    model, x = DigitModel(ALL[name]), bars(2)
    if model.form.pose.n:
        torch.nn.init.normal_(model.posed.weight, std=0.02)
    generator = torch.Generator().manual_seed(1)
    weights = log_weights(model, x, 1500, generator, 500)
    drawn = [sum(model.terms([x], generator).values()) for _ in range(300)]
    error = 5 * float(weights.std(1).max()) / math.sqrt(300)
    assert torch.allclose(-weights.mean(1), torch.stack(drawn).mean(0), atol=error)


def test_cost_of_pixels() -> None:
    x = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    p = torch.tensor([[0.1, 0.5, 0.2]])
    entropy = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert float(ink_nats(x, p)) == pytest.approx(-math.log(0.9) + math.log(2) + entropy, rel=1e-5)
    assert float(ink_nats(x[:, :1], torch.ones(1, 1))) == pytest.approx(6 * math.log(10), rel=0.01)


def test_priors_of_poses() -> None:
    """A full prior mixes independent numbers; five degrees of freedom start as the identity."""
    pose = Pose(PoseForm("affine", "full", 4), 28)
    assert (pose.prior().mean.shape, pose.prior().log_var.abs().max()) == ((1, 4), 0)
    u = torch.randn(50_000, 4, generator=torch.Generator().manual_seed(1))
    mixed = pose.mix.weight.detach() @ pose.mix.weight.detach().T
    assert torch.allclose(torch.cov(pose.cells(u).detach().T), mixed, atol=0.002)
    turn = Pose(PoseForm("turn", "learned"), 28)
    cells = turn.cells(torch.tensor([[0.0] * 5, [math.pi / 2, 0, 0, 0, 0.5]]))
    assert torch.allclose(cells, torch.tensor([[0.0] * 6, [-1, -1, 0, 1, -1, 0.5]]), atol=1e-6)
    upright = Pose(PoseForm("affine", "upright"), 28)
    assert [name for name, _ in upright.named_parameters()] == ["log_tau"]
    assert math.exp(0.5 * float(upright.prior().log_var[0, 0].detach())) == pytest.approx(0.1)


def test_a_random_start_is_none_at_the_identity() -> None:
    x = bars(4)
    poses = {name: DigitModel(form).encode(x)[1].mean.detach().abs() for name, form in STARTS.items()}
    assert poses["start at the identity"].max() == 0
    assert poses["random start"].max() > 0.05


@pytest.mark.parametrize("name", ["VAE", "TPS-TVAE", "Aff-DTVAE", "e4"])
def test_models_learn(name: str, tmp_path: Path) -> None:
    plan = plan_of(1)
    model, loss, batches = maker(Case(ALL[name]), bars(100), setting_in(tmp_path))()
    optimiser = make_optimiser(model, plan)
    nats = [train_step(model, loss, batches, plan, optimiser, step, "cpu")["RE"] for step in range(15)]
    assert nats[-1] < 0.75 * nats[0]
    if model.form.pose.n:
        assert model.posed.weight.abs().max() > 0


def test_all_models_take_equally_many_steps(tmp_path: Path) -> None:
    cases = [Case(KINDS["VAE"](2)), Case(KINDS["VAE"](2), 1), Case(KINDS["TPS-TVAE"](2))]
    assert len({case.name for case in cases}) == 3
    trained, steps = train_cases(cases, bars(100), setting_in(tmp_path), 0.3)
    assert steps >= 1
    first, second, _ = trained.values()
    assert not torch.equal(first.mean.weight, second.mean.weight)
    again, same = train_cases(cases, bars(100), setting_in(tmp_path), 0.3)
    assert same == steps
    assert torch.equal(again[cases[2]].mean.weight, trained[cases[2]].mean.weight)


def test_blur_and_border() -> None:
    x = torch.zeros(2, 1, 6, 6)
    x[0, 0, 2:4, 2:4] = 1
    assert (ink.blur(x), ink.at_border(x), ink.ink(x).tolist()) == (0, 0, [4, 0])
    x[1, 0, 5, 3] = 0.6
    assert ink.blur(x) == pytest.approx(1 / 4.6)
    assert ink.at_border(x) == 0.5


def test_slant() -> None:
    at = torch.arange(28).float() - 14
    y, x = at.unsqueeze(1), at
    angles = torch.tensor([0.0, 0.5, -0.5, 1.2])
    bars = [((y * a.cos() - x * a.sin()).abs() < 2) & ((x * a.cos() + y * a.sin()).abs() < 9) for a in angles]
    found = ink.axis_angle(torch.stack(bars).float().unsqueeze(1))
    assert torch.allclose(found.float(), angles, atol=0.03)
    narrow = 0.2 * torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    assert ink.angle_deviation(narrow) == pytest.approx(math.degrees(0.2), rel=0.03)
    assert ink.angle_deviation(narrow + math.pi / 2) == pytest.approx(math.degrees(0.2), rel=0.03)
