"""The training loop: a run that was interrupted ends with the numbers of one that was not."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vbc.codec.research.parts import data_sets, loop
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.loop import Plan, train
from vbc.codec.research.run import Setting

DATA = torch.arange(40, dtype=torch.float32).view(20, 2) / 40
PLAN = Plan(steps=12, batch=4, rate=0.01, log_every=2, valid_every=4, save_minutes=0.0)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        noise: Tensor = self.line(x + 0.01 * torch.randn_like(x))
        return noise


def setting_in(folder: Path, log: list[str] | None = None) -> Setting:
    folder.mkdir(exist_ok=True)
    return Setting(folder, folder, 1.0, emit=(log if log is not None else []).append)


def run(
    folder: Path, plan: Plan, stop_at: int | None = None, valid: bool = False
) -> tuple[Line, dict[str, float]]:
    """Train a line; stop_at: the step at which it is interrupted."""
    model = Line()

    def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        value = (model(x) - x.sum(1, keepdim=True)).square().mean()
        return value, {"twice": 2 * value.item()}

    def validate() -> float:
        return float((model(DATA) - DATA.sum(1, keepdim=True)).square().mean())

    batch = loop.random_batch(DATA, plan.batch, plan.seed)
    figures = train(
        model, loss, batch, plan, folder / "line.safetensors", setting_in(folder), validate if valid else None
    )
    return model, figures


@pytest.mark.parametrize("optimiser", ["adam", "adamax", "adadelta", "rmsprop", "sgd"])
@pytest.mark.parametrize("valid", [False, True])
def test_an_interrupted_run_ends_alike(optimiser: loop.Optimiser, valid: bool, tmp_path: Path) -> None:
    plan = replace(PLAN, optimiser=optimiser)
    whole, expected = run(tmp_path / "whole", plan, valid=valid)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", plan, stop_at=9, valid=valid)
    assert (tmp_path / "parts" / "line.safetensors").exists()
    resumed, figures = run(tmp_path / "parts", plan, valid=valid)
    again, unchanged = run(tmp_path / "parts", plan, stop_at=0, valid=valid)
    assert figures == unchanged
    for model in (resumed, again):
        assert torch.equal(model.line.weight, whole.line.weight)
    assert {k: v for k, v in figures.items() if k != "seconds"} == {
        k: v for k, v in expected.items() if k != "seconds"
    }
    assert set(figures) == {"seconds", "loss", "twice"} | ({"valid", "valid_step"} if valid else set())


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    """A rate that grows until training diverges: the model ends with the weights of the best validation."""
    model, figures = run(
        tmp_path / "run", replace(PLAN, rate=0.1, warmup=40, steps=40, optimiser="sgd"), valid=True
    )
    worse, last = run(tmp_path / "bad", replace(PLAN, rate=3.0, warmup=12, optimiser="sgd"), valid=True)
    assert figures["valid_step"] == 40
    assert last["valid_step"] < 12
    assert last["valid"] < last["loss"]
    assert not torch.equal(model.line.weight, worse.line.weight)


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    model = Line()
    with pytest.raises(FloatingPointError, match="step 0 is nan"):
        train(
            model,
            lambda x, step: (model(x).sum() * torch.nan, {}),
            loop.random_batch(DATA, 4, 1),
            PLAN,
            tmp_path / "line.safetensors",
            setting_in(tmp_path),
        )


def test_reports_are_lines_of_json(tmp_path: Path) -> None:
    model, log = Line(), list[str]()
    batch = loop.random_batch(DATA, 4, 1)
    setting = setting_in(tmp_path, log)
    train(
        model,
        lambda x, step: (model(x).square().mean(), {}),
        batch,
        PLAN,
        tmp_path / "a.safetensors",
        setting,
    )
    assert [json.loads(line)["step"] for line in log] == [2, 4, 6, 8, 10, 12]
    assert set(json.loads(log[0])) == {"model", "step", "loss", "s"}


def test_rates() -> None:
    rates = [replace(PLAN, rate=1.0, rate_end=0.1, warmup=2).rate_at(step) for step in range(13)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    decaying = replace(PLAN, rate=1.0, rate_end=0.3, decay=0.5)
    assert [decaying.rate_at(step) for step in range(4)] == [1.0, 0.5, 0.3, 0.3]
    assert replace(PLAN, rate=0.7).rate_at(11) == 0.7


def test_steps_within_a_budget_are_kept(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> tuple[nn.Module, loop.Loss, loop.Batches]:
        calls.append(0)
        model = Line()
        return model, lambda x, step: (model(x).square().mean(), {}), loop.random_batch(DATA, 4, 1)

    setting = setting_in(tmp_path)
    plan = replace(PLAN, steps=10**9)
    steps = loop.steps_within(make, plan, 1.0, setting, "line")
    assert 10 < steps < 10**7
    assert loop.steps_within(make, plan, 9.0, setting, "line") == steps
    assert loop.steps_within(make, replace(plan, steps=3), 1.0, setting, "short") == 3
    assert len(calls) == 2


def test_constants_of_adam() -> None:
    optimiser = loop.make_optimiser(Line(), replace(PLAN, beta1=0.5))
    assert optimiser.defaults["betas"] == (0.5, 0.999)
    assert loop.make_optimiser(Line(), PLAN).defaults["betas"] == (0.9, 0.999)


def test_models_that_are_timed_as_one_get_equal_steps(tmp_path: Path) -> None:
    def loss_of(model: Line, plan: Plan) -> loop.Loss:
        return lambda x, step: (model(x).square().mean(), {})

    setting, batch = setting_in(tmp_path), loop.random_batch(DATA, 4, 1)
    plan = replace(PLAN, steps=40)
    for name, seconds, timed_as in (("a b", 100.0, "both"), ("c", 1e-9, "both"), ("d", 1e-9, None)):
        fit(Line, loss_of, batch, plan, seconds, setting, name, timed_as)
    assert json.loads((tmp_path / loop.PLANS).read_text()) == {"both": 40, "d": 1}
    reports = {path.name for path in tmp_path.glob("*.safetensors")}
    assert reports == {"a-b.safetensors", "c.safetensors", "d.safetensors"}


def test_batches_are_passes_in_random_order() -> None:
    batch = loop.random_batch(torch.arange(10), 3, seed=5)
    passes = [torch.cat([batch(3 * n + k) for k in range(3)]).tolist() for n in range(2)]
    assert all(len(set(one)) == 9 for one in passes)
    assert passes[0] != passes[1]
    assert batch(4).tolist() == batch(4).tolist()
    assert batch(4).tolist() != loop.random_batch(torch.arange(10), 3, seed=6)(4).tolist()
    assert sorted(loop.random_batch(torch.arange(2), 3, seed=5)(7).tolist()) == [0, 1]


@pytest.mark.parametrize("augment", [loop.flip, loop.flip_and_shift])
def test_augmentation_only_moves_pixels(augment: Callable[[Tensor, np.random.Generator], Tensor]) -> None:
    x = torch.arange(8 * 40, dtype=torch.uint8).view(8, 1, 1, 40).expand(8, 3, 20, 40)
    moved = loop.random_batch(x, 8, 1, augment)
    y = moved(0)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert torch.equal(y, moved(0))
    assert not torch.equal(y.sort(0).values, x.sort(0).values)
    steps = y.int().diff(dim=-1).remainder(256)
    assert set(steps.flatten().tolist()) <= {0, 1, 255}


def test_padded_and_averaged() -> None:
    x = torch.arange(2 * 5 * 3, dtype=torch.uint8).view(2, 1, 5, 3)
    y, inside = data_sets.padded(x, 8)
    assert y.shape == (2, 1, 8, 8)
    assert torch.equal(y[inside.expand_as(y)].view(2, 1, 5, 3), x)
    assert torch.equal(y[..., 0], y[..., 2])
    with pytest.raises(ValueError, match="5x3"):
        data_sets.padded(x, 4)
    square = torch.tensor([[0, 1, 9, 9], [1, 0, 9, 10]], dtype=torch.uint8).view(1, 1, 2, 4)
    assert data_sets.average(square, 2).flatten().tolist() == [1, 9]


def test_held_out_images_are_apart() -> None:
    train_part, valid = data_sets.hold_out(torch.arange(100))
    assert (len(train_part), len(valid)) == (85, 15)
    assert sorted(torch.cat((train_part, valid)).tolist()) == list(range(100))
    assert torch.equal(valid, data_sets.hold_out(torch.arange(100))[1])


def test_small_sets(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no freyfaces"):
        data_sets.frey_faces(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    rng = np.random.default_rng(0)

    def images(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, np.uint8)

    np.savez(small / "freyfaces_uint8.npz", x=images(7, 28, 20))
    np.savez(
        small / "cifar10_lossless_prefix.npz",
        train=images(20, 32, 32, 3),
        test=(test := images(4, 32, 32, 3)),
    )
    np.savez(
        small / "mnist.npz",
        test=images(4, 28, 28),
        test_labels=images(4),
        train_prefix=images(6, 28, 28),
        train_prefix_labels=(labels := images(6)),
    )
    assert data_sets.frey_faces(tmp_path).shape == (7, 1, 28, 20)
    split = data_sets.cifar(tmp_path)
    assert [len(part) for part in split] == [17, 3, 4]
    assert torch.equal(split.test, torch.from_numpy(test).permute(0, 3, 1, 2))
    digits = data_sets.mnist(tmp_path)
    assert digits.train.shape == (6, 1, 28, 28)
    assert digits.train_labels.dtype == torch.int64
    assert digits.train_labels.tolist() == labels.tolist()


def test_losses_in_turn_take_a_step_each(tmp_path: Path) -> None:
    """A generator's second loss is computed with the weights that its first one led to."""
    model, seen = Line(), list[Tensor]()

    def losses(x: Tensor, step: int) -> Iterator[tuple[Tensor, dict[str, float]]]:
        for n in (1.0, 3.0):
            seen.append(model.line.weight.detach().clone())
            yield n * model(x).square().mean(), {"n": n, f"only {n:g}": n}

    plan = replace(PLAN, steps=1, optimiser="sgd")
    batch = loop.random_batch(DATA, 4, 1)
    figures = train(model, losses, batch, plan, tmp_path / "line.safetensors", setting_in(tmp_path))
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], model.line.weight)
    assert (figures["n"], figures["only 1"], figures["only 3"]) == (2, 1, 3)
