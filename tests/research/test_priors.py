"""Priors and Gaussians: the flow inverts with autograd's determinant, densities and KL are torch's."""

import torch
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence
from torch.distributions.categorical import Categorical

from vbc.codec.research.parts.gaussians import Gaussian, kl, standard_normal
from vbc.codec.research.parts.priors import MixtureOfGaussians, RealNVP, StandardNormal

SHAPE = (2, 4, 4)


def moved_flow() -> RealNVP:
    """A flow that does something: its outputs start at zero."""
    torch.manual_seed(1)
    flow = RealNVP(SHAPE, growth=2, n_units=1).double()
    for name, p in flow.named_parameters():
        if "output" in name:
            torch.nn.init.normal_(p, std=0.3)
    return flow


@torch.no_grad()
def test_flow_inverts() -> None:
    flow = moved_flow()
    z = torch.randn(3, *SHAPE, dtype=torch.float64)
    v, _ = flow.to_base(z)
    assert float((v - z).abs().max()) > 0.1
    assert torch.allclose(flow.from_base(v), z, atol=1e-9)


def test_flow_log_determinant_is_autograds() -> None:
    flow = moved_flow()
    z = torch.randn(1, *SHAPE, dtype=torch.float64)
    _, log_det = flow.to_base(z)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.to_base(z)[0], z)
    n = z.numel()
    want = torch.linalg.slogdet(jacobian.reshape(n, n)).logabsdet
    assert torch.allclose(log_det, want, atol=1e-9)


def test_flow_couplings_in_one_shape_are_the_flow() -> None:
    """As bits-back coding wants them: scales and shifts of the code's own shape."""
    flow = moved_flow()
    z = torch.randn(2, *SHAPE, dtype=torch.float64)
    v, total = z, torch.zeros(2, dtype=torch.float64)
    for coupling in flow.couplings():
        log_scale, shift = coupling(v)
        v, total = (v - shift) * torch.exp(-log_scale), total - log_scale.flatten(1).sum(1)
    want_v, want_total = flow.to_base(z)
    assert torch.allclose(v, want_v)
    assert torch.allclose(total, want_total)


def test_mixture_is_torchs() -> None:
    prior = MixtureOfGaussians(SHAPE, k=3)
    torch.nn.init.normal_(prior.means)
    torch.nn.init.normal_(prior.raw_variances)
    deviations = torch.nn.functional.softplus(prior.raw_variances).sqrt()
    want = MixtureSameFamily(Categorical(torch.ones(3)), Independent(Normal(prior.means, deviations), 3))
    z = torch.randn(5, *SHAPE)
    assert torch.allclose(prior.log_prob(z), want.log_prob(z), rtol=1e-5)


def test_samples_follow_the_prior() -> None:
    """The mean of log p over samples is minus the entropy, for the normal known: four standard errors."""
    z = StandardNormal(SHAPE).sample(4000, torch.Generator().manual_seed(2))
    each = StandardNormal(SHAPE).log_prob(z)
    want = -Normal(0.0, 1.0).entropy() * 32
    assert abs(float(each.mean() - want)) < 4 * float(each.std()) / 4000**0.5
    prior = MixtureOfGaussians(SHAPE, k=2)
    torch.nn.init.normal_(prior.means)
    many = prior.sample(4000, torch.Generator().manual_seed(2)).detach()
    assert torch.allclose(many.mean(0), prior.means.detach().mean(0), atol=0.15)


def test_gaussians_are_torchs() -> None:
    torch.manual_seed(4)
    q, p = (Gaussian.of(torch.randn(3, 4, 2, 2)) for _ in range(2))
    of = [Independent(Normal(g.mean, torch.exp(0.5 * g.log_var)), 3) for g in (q, p)]
    z = q.sample(torch.Generator().manual_seed(1))
    assert torch.allclose(q.log_prob(z), of[0].log_prob(z), rtol=1e-5)
    assert torch.allclose(kl(q, p), kl_divergence(*of), rtol=1e-5)
    assert torch.equal(kl(p, p), torch.zeros(3))
    assert torch.equal(standard_normal(2, (3,), torch.device("cpu")).mean, torch.zeros(2, 3))


def test_log_variance_is_clamped() -> None:
    q = Gaussian.of(torch.tensor([[0.0, 100.0], [0.0, -100.0]]).view(2, 2, 1, 1))
    assert q.log_var.flatten().tolist() == [7.0, -7.0]
