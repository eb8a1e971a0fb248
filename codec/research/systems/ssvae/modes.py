"""Ways of sampling an ssVAE: what is not given is drawn, coarse to fine.

Generation gives nothing. Super-resolution (SR) gives the true y_K and the codes below z_K; conditional
reconstruction (CR) the true y_K and z_K; RS1, RS2, ... give the first one, two, ... codes and no picture.
Codes are given as samples of their posteriors. Pictures come without pixel noise, as the mean of the
likeliest component (released code).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vbc.codec.research.parts.importance import draw
from vbc.codec.research.systems.ssvae.model import SsVae

AT_ONCE = 64
"""Pictures generated at once: what the network makes of them at 64 x 64 takes half a gigabyte."""
Mode = Callable[[SsVae, Tensor, torch.Generator], Tensor]
"""From x, uint8 [N, 3, H, W], to what the receiver sees of it, of the same shape."""


@torch.no_grad()
def complete(
    model: SsVae,
    views: Sequence[Tensor | None],
    codes: Sequence[Tensor | None],
    n: int,
    generator: torch.Generator,
) -> tuple[list[Tensor], list[Tensor]]:
    """All views and codes of n pictures: those given stay, the others are drawn in the order of the model.

    views: y_1, ..., y_K, x; uint8 [n, C, h, w] or None. codes: u, z_1, ..., z_K; float [n, 16, 8, 8] or None.
    """
    base, first = model.base, codes[0]
    done_codes = [base.prior.sample(n, generator) if first is None else first]
    seen = views[0]
    done_views = [base.likelihood.mode(base.maps(done_codes[0])) if seen is None else seen]
    for k in range(1, len(views)):
        level, z, x = model.level(k), codes[k], views[k]
        if z is None:
            z = level.prior(done_views[-1], done_codes[-1]).sample(generator)
        done_codes.append(z)
        done_views.append(level.likelihood.mode(level.maps(done_views[-1], z)) if x is None else x)
    return done_views, done_codes


def generate(model: SsVae, n: int, generator: torch.Generator) -> Tensor:
    """n pictures from the model: uint8 [n, 3, H, W]."""
    nothing = [None] * (len(model.levels) + 1)
    parts = [min(AT_ONCE, n - start) for start in range(0, n, AT_ONCE)]
    return torch.cat([complete(model, nothing, nothing, part, generator)[0][-1] for part in parts])


@torch.no_grad()
def posterior_codes(model: SsVae, x: Tensor, generator: torch.Generator) -> list[Tensor]:
    """u*, z_1*, ..., z_K* of pictures."""
    return draw(model.posteriors(model.views(x)), generator)


def keep_codes(n_codes: int) -> Mode:
    """RS1, RS2, ...: the first n codes are kept, all pictures drawn."""

    def mode(model: SsVae, x: Tensor, generator: torch.Generator) -> Tensor:
        codes = posterior_codes(model, x, generator)
        kept = [code if i < n_codes else None for i, code in enumerate(codes)]
        return complete(model, [None] * len(codes), kept, len(x), generator)[0][-1]

    return mode


def conditional_reconstruction(model: SsVae, x: Tensor, generator: torch.Generator) -> Tensor:
    """CR: true y_K and z_K*; the codes below change nothing."""
    return complete(model, *_true_view(model, x, generator, own_code=True), len(x), generator)[0][-1]


def super_resolution(model: SsVae, x: Tensor, generator: torch.Generator) -> Tensor:
    """SR, for a representation of full size CG: true y_K and what can be inferred from it; z_K is drawn."""
    return complete(model, *_true_view(model, x, generator, own_code=False), len(x), generator)[0][-1]


def modes(model: SsVae) -> dict[str, Mode]:
    """The model's ways to show a picture again, by name."""
    k = len(model.levels)
    ancestral = {f"RS{n}": keep_codes(n) for n in range(1, k + 2)}
    return {**ancestral, "SR": super_resolution, "CR": conditional_reconstruction} if k else ancestral


def _true_view(
    model: SsVae, x: Tensor, generator: torch.Generator, own_code: bool
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """All views but x; all codes, or all but z_K."""
    views = model.views(x)
    codes: list[Tensor | None] = [*posterior_codes(model, x, generator)]
    return [*views[:-1], None], codes if own_code else [*codes[:-1], None]


@torch.no_grad()
def between(model: SsVae, pair: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n pictures on the straight line between the codes u of two, the rest drawn: uint8 [n, 3, H, W].

    pair: uint8 [2, 3, H, W]. The codes are the posteriors' means.
    """
    first, last = model.posteriors(model.views(pair))[0].mean
    return from_u(model, along(first, last, n), generator)


@torch.no_grad()
def from_u(model: SsVae, u: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures whose u is given and all else drawn: uint8 [N, 3, H, W] from float [N, 16, 8, 8]."""
    k = len(model.levels)
    return complete(model, [None] * (k + 1), [u, *[None] * k], len(u), generator)[0][-1]


def along(first: Tensor, last: Tensor, n: int) -> Tensor:
    """n points at equal distances from the first to the last: [n, ...]."""
    at = torch.linspace(0, 1, n, device=first.device).view(-1, *[1] * first.dim())
    return torch.lerp(first.unsqueeze(0), last.unsqueeze(0), at)
