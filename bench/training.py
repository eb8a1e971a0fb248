"""Curves of a training run, from the log that `codec train` keeps in its folder.

`python -m bench.training RUN -o curves.png`: for each stage what every report has, and what validation gave.
"""

import argparse
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from vbc.codec.files.image_io import write_atomic
from vbc.codec.train.stages import LOG

Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""By stage, then by figure: steps and values, ascending by step."""
BESIDES = ("step", "rate", "s")
"""Numbers of a report that are no figures."""
COLUMNS = 2


def read_curves(folder: Path) -> Curves:
    """The curves in a run's log; of a step that was done twice, after an interruption, the later report.

    Raises FileNotFoundError where there is none.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in (folder / LOG).read_text().splitlines():
        report = json.loads(line)
        if "step" not in report:
            continue
        figures = {f"valid {key}": value for key, value in report.pop("valid", {}).items()}
        figures |= {k: v for k, v in report.items() if k not in BESIDES}
        for name, value in figures.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(report["stage"], {}).setdefault(name, {})[report["step"]] = value
    return {
        stage: {name: sorted(by_step.items()) for name, by_step in figures.items()}
        for stage, figures in found.items()
    }


def plot(curves: Curves) -> bytes:
    """A chart for each stage and figure, as PNG; a figure and its validation share one."""
    from matplotlib.figure import Figure

    charts = [
        (stage, name, [label for label in figures if label.removeprefix("valid ") == name])
        for stage, figures in curves.items()
        for name in dict.fromkeys(label.removeprefix("valid ") for label in figures)
    ]
    rows = math.ceil(len(charts) / COLUMNS)
    figure = Figure(figsize=(6 * COLUMNS, 3 * rows), layout="constrained")
    for n, (stage, name, labels) in enumerate(charts, start=1):
        axes = figure.add_subplot(rows, COLUMNS, n)
        for label in labels:
            xs, ys = zip(*curves[stage][label], strict=True)
            of_validation = label != name
            axes.plot(xs, ys, marker="o" if of_validation else None, linewidth=1, label=label)
        axes.set(title=stage, xlabel="step", ylabel=name)
        axes.grid(linewidth=0.3)
        if len(labels) > 1:
            axes.legend(fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2 where the log has no report."""
    p = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    p.add_argument("run", type=Path, metavar="RUN", help="folder of a run of codec train")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    options = p.parse_args(argv)
    curves = read_curves(options.run) if (options.run / LOG).exists() else {}
    if not curves:
        p.error(f"no report of a step in {options.run / LOG}")
    write_atomic(options.output, plot(curves))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
