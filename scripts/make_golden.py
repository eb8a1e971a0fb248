"""Write the golden files of the current format with the tiny frozen model.

Only for a new format version, never to make a test pass.

python scripts/make_golden.py [--new-model]
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from vbc.bitstream import container
from vbc.codec.model import load_model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export import export_model, save_model
from vbc.codec.train.lossy_net import LossyNet, Widths

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from checks import decoded_hash  # noqa: E402
from pictures import checker, noise, photo, soft_mask, stripes  # noqa: E402

FOLDER = TESTS / "golden"
TINY = FOLDER / "tiny.safetensors"


def checkered(height: int, width: int) -> torch.Tensor:
    """uint8 [3, height, width] that is packed whole."""
    return torch.from_numpy(
        np.stack([checker(height, width), soft_mask(height, width) & 0xC0, checker(height, width) // 2])
    )


def planes(*arrays: np.ndarray) -> torch.Tensor:
    """uint8 [C, H, W]."""
    return torch.from_numpy(np.stack(arrays))


CASES = {
    "lossy-1": (photo(37, 53), {"levels": 1}),
    "lossy-2": (photo(37, 53), {"levels": 2, "quality": 30}),
    "lossy-3": (photo(37, 53), {"levels": 3}),
    "lossy-low": (photo(64, 40), {"quality": 0}),
    "lossy-high": (photo(40, 64), {"quality": 100}),
    "archival": (photo(37, 53), {"levels": 0, "lossless": True}),
    "archival-tuned": (photo(220, 230), {"levels": 0, "lossless": True, "effort": 2}),
    "layered": (photo(37, 53), {"lossless": True}),
    "layered-stripes": (stripes(20, 33), {"lossless": True, "quality": 95}),
    "noise-raw": (noise(16, 19), {"levels": 0, "lossless": True}),
    "graphic": (checkered(40, 50), {"levels": 0, "lossless": True}),
    "graphic-gray-layered": (
        checkered(40, 50)[:1].expand(3, -1, -1).contiguous(),
        {"lossless": True, "gray": True},
    ),
    "one-pixel": (photo(1, 1), {"lossless": True}),
    "one-row": (photo(1, 77), {"lossless": True}),
    "one-column": (photo(50, 1), {"lossless": True}),
    "gray": (photo(21, 22)[1:2].expand(3, -1, -1).contiguous(), {"lossless": True, "gray": True}),
    "alpha": (photo(37, 53), {"lossless": True, "alpha": planes(soft_mask(37, 53))[0]}),
    "alpha-lossy": (photo(21, 22), {"levels": 2, "alpha": planes(checker(21, 22))[0]}),
    "alpha-photo": (
        photo(70, 41),
        {"levels": 0, "lossless": True, "alpha": photo(140, 41)[1, :70].contiguous()},
    ),
    "deep": (  # low bytes of every mode: noise, smooth, equal to the upper ones
        photo(33, 40),
        {
            "lossless": True,
            "low": torch.stack((noise(33, 40)[0], photo(66, 80)[1, :33, :40], photo(33, 40)[2])),
        },
    ),
    "deep-gray-alpha": (
        photo(20, 31)[1:2].expand(3, -1, -1).contiguous(),
        {
            "levels": 0,
            "lossless": True,
            "gray": True,
            "alpha": planes(soft_mask(20, 31))[0],
            "low": planes(soft_mask(20, 31)[::-1], checker(20, 31)),
        },
    ),
}


def tiny_model() -> None:
    """A model of small random networks: enough to pin the arithmetic, useless for pictures."""
    torch.manual_seed(11)
    exact = ExactNet(width=8)
    lossy = LossyNet(Widths(analysis=8, context=8, prior=8, neighbours=8, enhance=8))
    for net in (exact, lossy):
        for p in net.parameters():
            if not p.detach().any():  # what starts at zero must be pinned too
                torch.nn.init.normal_(p, std=0.02)
    save_model(TINY, export_model(exact, lossy, None))


def main() -> None:
    """Write the files that are not there yet; existing ones are never touched."""
    FOLDER.mkdir(exist_ok=True)
    if "--new-model" in sys.argv:
        tiny_model()
    model = load_model(TINY)
    path = FOLDER / "answers.json"
    answers = json.loads(path.read_text()) if path.exists() else {}
    for name, (rgb, options) in CASES.items():
        file = FOLDER / f"{name}.vbc"
        if file.exists():
            continue
        data = encode_image(rgb, model=model, **options)
        file.write_bytes(data)
        count = len(container.level_ends(container.unpack_header(data)))
        pictures = (decode_image(data, model=model, levels=n) for n in range(1, count + 1))
        hashes = [decoded_hash(p) for p in pictures]
        answers[file.name] = {str(n): h for n, h in enumerate(hashes, 1)}
    path.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
