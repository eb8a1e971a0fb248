"""What a training run finds: checkpoints of its own, and those of an earlier run that it starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.checkpoint import load_checkpoint
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.values_net import ValuesNet
from vbc.codec.train.whole_loss import WholeNet

LOSSY, EXACT, TUNED_LOSSY, TUNED_EXACT = "lossy", "exact", "tune-lossy", "tune-exact"
EYE, LAYERED, WHOLE, BINS, VALUES = "eye", "tune-layered", "whole", "bins", "values"
BEFORE = {TUNED_LOSSY: LOSSY, EYE: TUNED_LOSSY, TUNED_EXACT: EXACT, LAYERED: TUNED_EXACT}
"""The stages whose results tuning stages start from."""

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and that of an earlier run, where it starts from one.

    lossy: the stage whose lossy network later stages take: `TUNED_LOSSY`, `EYE` or `WHOLE`.
    """

    own: Path
    earlier: Path | None = None
    lossy: str = TUNED_LOSSY

    def checkpoint(self, stage: str) -> Path:
        """Where a stage of this run keeps its result."""
        return self.own / f"{stage}.safetensors"

    def find(self, *stages: str) -> Path:
        """The result of the first of some stages that there is, in this run, else in the earlier one.

        Raises FileNotFoundError where there is none.
        """
        found = self.look_for(*stages)
        if found is None:
            raise FileNotFoundError(self.checkpoint(stages[0]))
        return found

    def look_for(self, *stages: str) -> Path | None:
        """As `find`, or None."""
        for folder in (self.own, self.earlier):
            for stage in stages:
                if folder is not None and (path := RunFolder(folder).checkpoint(stage)).exists():
                    return path
        return None

    def start(self, stage: str) -> Path | None:
        """The weights that a stage starts from; None for fresh ones. The same of a run that is resumed.

        Those of the stage before it in this run, or of the same stage of the earlier run, or of the stage
        before it there. Raises FileNotFoundError where a tuning stage finds nothing to tune.
        """
        before = BEFORE.get(stage)
        if before is not None and self.checkpoint(before).exists():
            return self.checkpoint(before)
        if self.earlier is not None:
            names = self.exact_stages if stage in (EXACT, TUNED_EXACT, LAYERED) else (stage, before or stage)
            found = RunFolder(self.earlier).look_for(*names)
            if found is not None:
                return found
        if before is not None:
            raise FileNotFoundError(self.checkpoint(before))
        return None

    @property
    def exact_stages(self) -> tuple[str, ...]:
        """Stages that may have the exact networks, the best first: layered ends are tuned to one lossy
        network, that of the eye."""
        return (TUNED_EXACT, EXACT) if self.lossy == TUNED_LOSSY else (LAYERED, TUNED_EXACT, EXACT)

    def load_lossy(self) -> LossyNet:
        """The lossy network that later stages take; the float one as long as tuning has not begun."""
        if self.lossy == WHOLE:
            return self.load_whole().lossy
        return loaded(LossyNet(), self.find(*((EYE,) if self.lossy == EYE else (TUNED_LOSSY, LOSSY))))

    def load_whole(self) -> WholeNet:
        """Both networks that were trained together."""
        return loaded(WholeNet(LossyNet(), ExactNet()), self.find(WHOLE))

    def load_exact(self) -> ExactNet:
        """The tuned exact networks, or those trained together with the lossy network of stage `WHOLE`."""
        if self.lossy == WHOLE:
            return self.load_whole().exact
        return loaded(ExactNet(), self.find(*self.exact_stages[:-1]))

    def load_bins(self, exact: ExactNet) -> BinsNet | None:
        """The networks for bins, where they have been trained."""
        path = self.look_for(BINS)
        return None if path is None else loaded(BinsNet(exact.width), path)

    def load_values(self) -> ValuesNet | None:
        """The networks of values after bins, where they have been trained."""
        path = self.look_for(VALUES)
        return None if path is None else loaded(ValuesNet(), path)


def loaded(net: N, path: Path) -> N:
    """A network with the weights of a checkpoint."""
    load_checkpoint(path, net)
    return net
