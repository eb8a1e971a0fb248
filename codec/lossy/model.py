"""What the lossy levels take from a weights file: integer networks, quantiser steps, the encoder's
network."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream.tables import TOTAL_BITS, TableSet
from vbc.codec.lossy.latents import (
    N_REFINED_TABLES,
    N_SCALES,
    STEP_UNIT,
    THIRD_OCTAVES,
    latent_basis,
)
from vbc.codec.lossy.map_coding import N_MAP_TABLES
from vbc.codec.nets.int_nets import IntChain
from vbc.codec.pixels.interlace import PHASES

ANALYSIS = "analysis."
"""How the names of the encoder's own tensors begin."""
OFFSET_WIDTH = 5
"""Which of the tables that corrections of the exact levels have, half an octave apart, serves for offsets:
that of a logistic of 0.35."""
LEAST_STEP = 14
"""Steps below it would be 0 after three refinements."""


@dataclass(frozen=True)
class LossyModel:
    """The lossy levels' networks and constants, all on one device.

    context: level 1's networks by phase. priors, neighbours: those of levels 2 and 3. enhance: what corrects
    the picture after the inverse DCT. steps: by refinement (0: none) int32 [101, 192], quantiser steps by
    quality and latent, in 1/256 of a latent unit. log2_steps: likewise, their logarithms, in sixteenths of an
    octave. first_scale: int32 [6], log-scales of level 1's coarsest grid, sixteenths of an octave.
    first_table: the table of level 1's smallest scale. map_table: the first one of maps of qualities.
    refine_table: the first one of refinements. offset_table: that of offsets of scales. basis: integer DCTs
    of 2, 4 and 8 samples a side, float64 [n*n frequencies, n*n samples], times 4096. The encoder's alone:
    analysis, its network in float32 and "basis", the float DCT; cost, the bits of each symbol under each
    lossy table, float32 [3 * 48, 256]; refine_cost, likewise under each table of refinements, float32 [260,
    256]; offset_cost, under that of offsets, float32 [256].
    """

    context: dict[str, IntChain]
    priors: dict[int, IntChain]
    neighbours: dict[int, IntChain]
    enhance: IntChain
    steps: tuple[Tensor, ...]
    log2_steps: tuple[Tensor, ...]
    first_scale: Tensor
    basis: dict[int, Tensor]
    analysis: dict[str, Tensor]
    first_table: int
    map_table: int
    refine_table: int
    offset_table: int
    cost: Tensor
    refine_cost: Tensor
    offset_cost: Tensor

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], tables: TableSet) -> Self:
        """The model in a weights file's tensors.

        Raises KeyError where one is missing, ValueError where one breaks an invariant.
        """
        named = dict(tensors)
        for name, count in (
            ("lossy.first_table", 3 * N_SCALES),
            ("lossy.map_table", N_MAP_TABLES),
            ("lossy.refine_table", N_REFINED_TABLES),
        ):
            if not 0 <= int(named[name]) <= len(tables) - count:
                raise ValueError(f"{name} leads beyond the {len(tables)} tables")
        first_table, refine_table = (int(named[f"lossy.{name}_table"]) for name in ("first", "refine"))
        offset_table = int(named["exact.tuning_table"]) + OFFSET_WIDTH
        bits = torch.from_numpy(TOTAL_BITS - np.log2(tables.frequencies.astype(np.float32)))
        if named["lossy.step"].min() < LEAST_STEP:
            raise ValueError(f"a quantiser step below {LEAST_STEP} / {STEP_UNIT}")
        steps = [named["lossy.step"]]
        for _ in THIRD_OCTAVES[1:]:
            steps.append((2 * steps[-1] + 3) // 6)
        log2_step = named["lossy.log2_step"].int()
        analysis = {k.removeprefix(ANALYSIS): t for k, t in named.items() if k.startswith(ANALYSIS)}
        return cls(
            context={p: IntChain.load(named, f"lossy.context.{p}") for p in PHASES},
            priors={n: IntChain.load(named, f"lossy.prior{n}") for n in (2, 3)},
            neighbours={n: IntChain.load(named, f"lossy.neighbours{n}") for n in (2, 3)},
            enhance=IntChain.load(named, "lossy.enhance"),
            steps=tuple(steps),
            log2_steps=tuple(log2_step - octaves for octaves in THIRD_OCTAVES),
            first_scale=named["lossy.first_scale"].int(),
            basis={n: named[f"lossy.basis{n}"].double() for n in (2, 4, 8)},
            analysis=analysis | {"basis": latent_basis()},
            first_table=first_table,
            map_table=int(named["lossy.map_table"]),
            refine_table=refine_table,
            offset_table=offset_table,
            cost=bits[first_table : first_table + 3 * N_SCALES].contiguous(),
            refine_cost=bits[refine_table : refine_table + N_REFINED_TABLES].contiguous(),
            offset_cost=bits[offset_table].contiguous(),
        )

    @property
    def step(self) -> Tensor:
        """Quantiser steps without refinement."""
        return self.steps[0]

    @property
    def log2_step(self) -> Tensor:
        """Their logarithms."""
        return self.log2_steps[0]

    @property
    def for_the_eye(self) -> bool:
        """Whether the weights were trained for the eye, not for squared error."""
        return "for_the_eye" in self.analysis

    @property
    def scores(self) -> Tensor | None:
        """The SSIMULACRA 2 score of typical pictures at each quality, float32 [101], rising.

        None where the weights do not say.
        """
        return self.analysis.get("score")

    def to(self, device: torch.device) -> "LossyModel":
        """The model on another device."""
        return replace(
            self,
            context={p: chain.to(device) for p, chain in self.context.items()},
            priors={n: chain.to(device) for n, chain in self.priors.items()},
            neighbours={n: chain.to(device) for n, chain in self.neighbours.items()},
            enhance=self.enhance.to(device),
            steps=tuple(step.to(device) for step in self.steps),
            log2_steps=tuple(step.to(device) for step in self.log2_steps),
            first_scale=self.first_scale.to(device),
            basis={n: basis.to(device) for n, basis in self.basis.items()},
            analysis={name: tensor.to(device) for name, tensor in self.analysis.items()},
            cost=self.cost.to(device),
            refine_cost=self.refine_cost.to(device),
            offset_cost=self.offset_cost.to(device),
        )
