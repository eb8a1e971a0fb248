"""Models of earlier runs for studies that only use trained models."""

import json
from collections.abc import Sequence

from vbc.codec.research.parts.data_sets import Split
from vbc.codec.research.run import RESULT, Setting
from vbc.codec.research.systems.ssvae.comparison import Entrant, train_equally
from vbc.codec.research.systems.ssvae.model import SsVae
from vbc.codec.train.checkpoint import load_checkpoint


def load_or_train(
    study: str, entrants: Sequence[Entrant], data: Split, setting: Setting, batch: int, seconds: float
) -> tuple[dict[str, SsVae], str]:
    """Models by name, from the finished run of a study that stands beside this run's folder under its default
    name, STUDY-SEED; where there is none they are trained here. And a sentence that says which."""
    folder = setting.out.parent / f"{study}-{setting.seed}"
    paths = {entrant.name: folder / f"{entrant.name}.best.safetensors" for entrant in entrants}
    if (folder / RESULT).exists() and all(path.exists() for path in paths.values()):
        models = {}
        for entrant in entrants:
            model = entrant.make().to(setting.device)
            step = load_checkpoint(paths[entrant.name], model)
            models[entrant.name] = model.eval()
            setting.emit(
                json.dumps({"model": entrant.name, "loaded": str(paths[entrant.name]), "step": step})
            )
        return models, f"The models are those of the run {folder.name}."
    trained = train_equally(entrants, data, setting, batch, seconds)
    steps = next(iter(trained.values()))[1]
    said = f"The models were trained here, {steps} steps each: there was no finished run {folder.name}."
    return {name: model for name, (model, _) in trained.items()}, said
