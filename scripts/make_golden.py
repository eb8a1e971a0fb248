"""Write the golden files of the current format with the tiny frozen model.

Only for a new format version, never to make a test pass.

python scripts/make_golden.py [--new-model]
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from vbc.bitstream import container
from vbc.codec.exact import ExactNet
from vbc.codec.export import export_model, save_model
from vbc.codec.lossy import LossyNet, Widths
from vbc.codec.model import load_model
from vbc.codec.pipeline import decode_image, encode_image

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from pictures import noise, photo, stripes  # noqa: E402

FOLDER = TESTS / "golden"
TINY = FOLDER / "tiny.safetensors"
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
    "one-pixel": (photo(1, 1), {"lossless": True}),
    "one-row": (photo(1, 77), {"lossless": True}),
    "one-column": (photo(50, 1), {"lossless": True}),
    "gray": (photo(21, 22)[1:2].expand(3, -1, -1).contiguous(), {"lossless": True, "gray": True}),
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
        pictures = (decode_image(data, model=model, levels=n).rgb for n in range(1, count + 1))
        hashes = [hashlib.sha256(p.contiguous().numpy().tobytes()).hexdigest() for p in pictures]
        answers[file.name] = {str(n): h for n, h in enumerate(hashes, 1)}
    path.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
