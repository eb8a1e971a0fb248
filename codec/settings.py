"""What an encoder is asked for. Light: imports nothing that codes."""

from dataclasses import dataclass
from typing import Literal, get_args

from vbc.bitstream.container import MAX_BOUND, MAX_QUALITY, VALUES_BOUND
from vbc.bitstream.geometry import LOSSY_LEVELS, MAX_REFINEMENTS
from vbc.codec.regions import Roi

Tune = Literal["eye", "psnr"]
TUNES: tuple[Tune, ...] = get_args(Tune)
MAX_EFFORT = 2
DEFAULT_QUALITY, LAYERED_QUALITY, PROGRESSIVE_QUALITY = 60, 50, 75
"""The lossy levels of a layered file are what is seen before the exact ones: better ones cost more than they
show. Those of a progressive one lead up to bins of 45 dB."""
PROGRESSIVE_REFINEMENTS = 2
"""With 1 the first stage is too fine for a twentieth of the bytes (docs/decisions/0010-bins.md)."""
ROI_GAIN = 20
"""A region of interest is better by so much than the rest: good becomes one whose faults must be searched."""
AUTO: Literal["auto"] = "auto"
"""In place of regions of interest: the encoder looks for some."""


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of one file; making them raises ValueError where they do not go together.

    levels: lossy levels to store, 1 to 3, or with lossless 3 (layered) or 0 (archival). quality: of the lossy
    levels, 0 to 100; None: 60, in a layered file 50. 60 stands for a score of SSIMULACRA 2 of about 70: with
    tune "eye" in every picture, with "psnr", one quantiser step for each quality, in the mean of pictures.
    lossless: store the exact levels too. effort: the encoder's work; decoding is the same. Of the exact
    levels, 0: none, 1: output layers tuned to the image from samples of it, 2: tuned from all pixels (of a
    phase of a grid at most about 400,000), graphics packed in every way. Of the lossy levels, 2 with tune
    "eye": they are coded once more, to see where errors show and to move bits there; 0 and 1 are the same.
    tune: what the lossy levels please, "eye" or "psnr" (squared error, at one quality everywhere). max_bytes:
    what the file may have, in place of a quality: a lossy one gets the best that fits, a lossless one that is
    larger is cut (`files.cutting`), and is lossy then. roi: regions of interest, whose packets stand before
    others in every level; `AUTO`: those that the encoder finds (`flow.find_regions`), if any. roi_quality: of
    the lossy levels there, on the same scale and not below `quality`; None: 20 above it, at most 100; with
    max_bytes regions have no quality of their own. roi_first: what the regions need of all levels stands
    before everything else. refinements: in how many stages, 0 to 3, the lossy levels reach their quality
    after a first one, each of which adds 25 units; fewer where the quality is not as high. The file is a
    little larger, and its first part shows more. None: 2 in a progressive file with lossy levels, else 0.
    near: the largest error of any sample of R, G and B, 1 to 8, of a near-lossless file, whose levels are 0
    or 3; 0 for none. progressive: of a lossless file, the exact levels say first in which bin of 5 a sample
    lies, so that the picture goes on getting better up to the last byte.
    """

    levels: int = LOSSY_LEVELS
    quality: int | None = None
    lossless: bool = False
    effort: int = 1
    tune: Tune = "eye"
    max_bytes: int | None = None
    roi: Roi | Literal["auto"] | None = None
    roi_quality: int | None = None
    roi_first: bool = False
    refinements: int | None = None
    near: int = 0
    progressive: bool = False

    def __post_init__(self) -> None:
        if self.lossless and self.levels not in (0, LOSSY_LEVELS):
            raise ValueError(
                f"lossless goes with levels {LOSSY_LEVELS} (layered) or 0 (archival), not {self.levels}"
            )
        if not 0 <= self.near <= MAX_BOUND:
            raise ValueError(f"near is 0 to {MAX_BOUND}, not {self.near}")
        if self.progressive and not self.lossless:
            raise ValueError("progressive goes with lossless")
        if self.near and self.lossless:
            raise ValueError("near and lossless do not go together")
        if self.near and self.max_bytes is not None:
            raise ValueError("near and a number of bytes do not go together")
        if self.near and self.levels not in (0, LOSSY_LEVELS):
            raise ValueError(f"near goes with levels {LOSSY_LEVELS} or 0, not {self.levels}")
        if not self.lossless and not self.near and not 1 <= self.levels <= LOSSY_LEVELS:
            raise ValueError(f"levels is 1 to {LOSSY_LEVELS}, or 0 together with lossless, not {self.levels}")
        if not 0 <= self.asked_quality <= MAX_QUALITY:
            raise ValueError(f"quality is 0 to {MAX_QUALITY}, not {self.quality}")
        if not 0 <= self.effort <= MAX_EFFORT:
            raise ValueError(f"effort is 0 to {MAX_EFFORT}, not {self.effort}")
        if self.max_bytes is not None and self.quality is not None:
            raise ValueError(
                "quality and a number of bytes do not go together: the one follows from the other"
            )
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"a file has 1 byte or more, not {self.max_bytes}")
        if self.refinements is not None and not 0 <= self.refinements <= MAX_REFINEMENTS:
            raise ValueError(f"refinements is 0 to {MAX_REFINEMENTS}, not {self.refinements}")
        if self.refinements and self.levels != LOSSY_LEVELS:
            raise ValueError(f"refinements go with levels {LOSSY_LEVELS}, not {self.levels}")
        if self.tune not in TUNES:
            raise ValueError(f"tune is {' or '.join(TUNES)}, not {self.tune!r}")
        if isinstance(self.roi, str) and self.roi != AUTO:
            raise ValueError(f"roi is regions of interest or {AUTO!r}, not {self.roi!r}")
        if self.roi is None and (self.roi_quality is not None or self.roi_first):
            raise ValueError("roi_quality and roi_first go with a region of interest (roi)")
        if self.roi_quality is not None and self.max_bytes is not None:
            raise ValueError("roi_quality and a number of bytes do not go together")
        if self.roi_quality is not None and not self.levels:
            raise ValueError("roi_quality is of the lossy levels, and levels is 0")
        if not self.asked_quality <= self.asked_roi_quality <= MAX_QUALITY:
            raise ValueError(
                f"roi_quality is {self.asked_quality}, the quality of the rest, to {MAX_QUALITY}, "
                f"not {self.roi_quality}"
            )

    @property
    def regions(self) -> Roi | None:
        """The regions of interest, where they are known."""
        return self.roi if isinstance(self.roi, Roi) else None

    @property
    def asked_quality(self) -> int:
        """The quality, or what stands for none."""
        if self.quality is not None:
            return self.quality
        if self.has_exact and self.levels:
            return PROGRESSIVE_QUALITY if self.progressive else LAYERED_QUALITY
        return DEFAULT_QUALITY

    @property
    def has_exact(self) -> bool:
        """Whether the file has more than the lossy levels."""
        return self.lossless or self.near > 0

    @property
    def bound(self) -> int:
        """Of the bins of the exact levels, or 0 where they have none."""
        return VALUES_BOUND if self.progressive else self.near

    @property
    def asked_refinements(self) -> int:
        """How many refinements, or what stands for none said."""
        if self.refinements is not None:
            return self.refinements
        return PROGRESSIVE_REFINEMENTS if self.progressive and self.levels else 0

    @property
    def asked_roi_quality(self) -> int:
        """The quality in regions of interest, or what stands for none."""
        if self.roi_quality is not None:
            return self.roi_quality
        return min(self.asked_quality + ROI_GAIN, MAX_QUALITY)
