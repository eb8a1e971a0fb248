"""The command `codec`, and the only module that prints or exits.

Torch and rich are loaded where they are needed.
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

import vbc.codec
from vbc.bitstream.container import DEFAULT_LIMITS, MAX_BOUND, Limits
from vbc.bitstream.geometry import BINS, LOSSY_LEVELS, MAX_REFINEMENTS, is_bins, is_lossy, stage_of
from vbc.codec import api, study_cli
from vbc.codec import jobs as batch
from vbc.codec.jobs import DecodeOptions, EncodeOptions, Failure, Job, Report
from vbc.codec.regions import Region, Roi, parse_region, united
from vbc.codec.settings import AUTO, MAX_EFFORT, ROI_GAIN, EncodeSettings, Tune

app = typer.Typer(
    help="Learned image codec: one file from the first preview to lossless.",
    epilog="Exit codes: 0 ok, 1 some inputs failed, 2 usage, 3 corrupt or truncated, "
    "4 unsupported version or image or missing model, 5 limit exceeded.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich help costs a fifth of a second
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(study_cli.app, name="study")


class KeepMetadata(StrEnum):
    all = "all"
    none = "none"


class ImageKind(StrEnum):
    png = "png"
    webp = "webp"
    tiff = "tiff"
    ppm = "ppm"
    jpg = "jpg"


class Stage(StrEnum):
    all = "all"
    tune = "tune"
    lossy = "lossy"
    exact = "exact"
    tune_lossy = "tune-lossy"
    eye = "eye"
    tune_exact = "tune-exact"
    tune_layered = "tune-layered"
    whole = "whole"
    bins = "bins"
    values = "values"
    export = "export"
    fine_tune = "fine-tune"


class LossyStage(StrEnum):
    tune_lossy = "tune-lossy"
    eye = "eye"
    whole = "whole"


In = Annotated[list[str], typer.Argument(metavar="IN...", help="Files or folders; - is standard input.")]
Out = Annotated[
    str,
    typer.Option(
        "-o", "--output", metavar="OUT", help="File, folder for several inputs, or - for standard output."
    ),
]
EncodeLevels = Annotated[
    int | None,
    typer.Option(
        "--levels", min=0, max=3, help="Lossy levels to store [default: 3]; 0 only with --lossless."
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(
        "--quality",
        min=0,
        max=100,
        help="Of the lossy levels; 60 looks good [default: 60, layered files 50].",
    ),
]
Lossless = Annotated[bool, typer.Option("--lossless", help="Add the exact levels.")]
Effort = Annotated[
    int,
    typer.Option(
        "--effort",
        min=0,
        max=MAX_EFFORT,
        help="Of the exact levels. 0: none, 1: output layers tuned to the image from samples, "
        "2: tuned from all pixels. Of the lossy levels 2 moves bits to where errors are seen. "
        "Slower and smaller, decoded alike.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="cpu|cuda|cuda:N", help="Where the networks run.")
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        "--region", metavar="X,Y,W,H", help="A part of the picture, in pixels; reads only what it needs."
    ),
]
REGIONS_METAVAR = "X,Y,W,H|MASK"
RoiOption = Annotated[
    list[str] | None,
    typer.Option(
        "--roi",
        metavar=f"{REGIONS_METAVAR}|{AUTO}",
        help="A region of interest, in pixels, or a gray image of the picture's size that is bright there; "
        "it becomes better, and its packets stand first in every level. Repeat for several, or let the "
        f"encoder look for some: {AUTO}.",
    ),
]
RoiQuality = Annotated[
    int | None,
    typer.Option(
        "--roi-quality",
        min=0,
        max=100,
        help=f"Of the lossy levels in regions of interest [default: {ROI_GAIN} above --quality].",
    ),
]
RoiFirst = Annotated[
    bool, typer.Option("--roi-first", help="All levels of regions of interest before everything else.")
]
OutsideRoi = Annotated[
    list[str],
    typer.Option(
        "--outside-roi",
        metavar=REGIONS_METAVAR,
        help="A region to keep, as --roi of encode. Repeat for several.",
    ),
]
MetadataOption = Annotated[
    KeepMetadata,
    typer.Option("--metadata", help="Keep ICC, EXIF and XMP, or drop them (orientation too)."),
]
Model = Annotated[
    Path | None,
    typer.Option("--model", exists=True, dir_okay=False, help="Weights [default: the shipped ones]."),
]
Jobs = Annotated[int, typer.Option("-j", "--jobs", min=1, help="Processes.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of each process.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="In a folder, do again what is there [default: leave it, which resumes a batch]. "
        "A single file named with -o is always replaced.",
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option("--max-pixels", min=1, help="Refuse larger pictures before anything is decoded."),
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        "--max-memory", min=1, metavar="MIB", help="Refuse files whose decoding would take more MiB."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON for each input.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"codec {vbc.codec.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        fail_usage("a command is missing; see codec --help")


TuneOption = Annotated[
    Tune, typer.Option("--tune", help="What the lossy levels please: the eye, or squared error alone.")
]


Refinements = Annotated[
    int | None,
    typer.Option(
        "--refinements",
        min=0,
        max=MAX_REFINEMENTS,
        help="Stages in which the lossy levels reach their quality after a first, coarser one "
        "[default: 2 with --progressive, else 0].",
    ),
]

Near = Annotated[
    int,
    typer.Option(
        "--near",
        min=0,
        max=MAX_BOUND,
        metavar="N",
        help="Near-lossless: no sample is further from the image than N, 1 to 8. --levels is 0 then, or 3.",
    ),
]

Progressive = Annotated[
    bool,
    typer.Option(
        "--progressive", help="With --lossless: a picture that goes on getting better up to the last byte."
    ),
]


@app.command()
def encode(
    inputs: In,
    output: Out,
    levels: EncodeLevels = None,
    quality: Quality = None,
    lossless: Lossless = False,
    effort: Effort = 1,
    tune: TuneOption = "eye",
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes",
            min=1,
            help="In place of a quality: the best file of at most N bytes; a larger lossless one is cut.",
        ),
    ] = None,
    roi: RoiOption = None,
    roi_quality: RoiQuality = None,
    roi_first: RoiFirst = False,
    refinements: Refinements = None,
    near: Near = 0,
    progressive: Progressive = False,
    metadata: MetadataOption = KeepMetadata.all,
    device: DeviceOption = "cpu",
    model: Model = None,
    jobs: Jobs = 1,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode images to .vbc files."""
    from vbc.codec.files.image_io import INPUT_SUFFIXES

    interest = None if not roi else AUTO if roi == [AUTO] else checked_roi(roi, "--roi")
    settings = checked_settings(
        levels,
        quality,
        lossless=lossless,
        effort=effort,
        tune=tune,
        max_bytes=max_bytes,
        roi=interest,
        roi_quality=roi_quality,
        roi_first=roi_first,
        refinements=refinements,
        near=near,
        progressive=progressive,
    )
    check_device(device)
    options = EncodeOptions(settings, metadata is KeepMetadata.all, device, model)
    todo = plan_jobs(inputs, output, INPUT_SUFFIXES, batch.ENDING)
    work = partial(batch.encode_file, options=options)
    code(work, todo, jobs, threads, "encoding", as_json, quiet, resume=not overwrite, takes_progress=True)


@app.command()
def decode(
    inputs: In,
    output: Out,
    levels: Annotated[
        int | None, typer.Option("--levels", min=1, help="Use the first N levels of the file [default: all].")
    ] = None,
    region: RegionOption = None,
    native: Annotated[
        bool, typer.Option("--native", help="At the size of the last lossy level used.")
    ] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Accept missing and damaged packets; show what there is.")
    ] = False,
    kind: Annotated[
        ImageKind, typer.Option("--format", help="Kind of image where the name of OUT does not say it.")
    ] = ImageKind.png,
    max_pixels: MaxPixels = DEFAULT_LIMITS.max_pixels,
    max_memory: MaxMemory = None,
    device: DeviceOption = "cpu",
    model: Model = None,
    jobs: Jobs = 1,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decode .vbc files to images."""
    from vbc.codec.files.image_io import OUTPUT_FORMATS

    check_device(device)
    limits = limits_of(max_pixels, max_memory)
    part = checked_region(region)
    if part is not None and native:
        fail_usage("--region goes with the full size, not with --native")
    options = DecodeOptions(levels, part, native, allow_partial, f".{kind.value}", device, model, limits)
    todo = plan_jobs(inputs, output, (batch.ENDING,), options.suffix)
    for job in todo:
        suffix = "" if job.target == batch.STANDARD else Path(job.target).suffix.lower()
        if suffix and suffix not in OUTPUT_FORMATS:
            fail_usage(f"cannot write {suffix}; known endings: {' '.join(OUTPUT_FORMATS)}")
    work = partial(batch.decode_file, options=options)
    code(work, todo, jobs, threads, "decoding", as_json, quiet, resume=not overwrite, takes_progress=True)


@app.command()
def cut(
    inputs: In,
    output: Out,
    max_bytes: Annotated[
        int | None, typer.Option("--bytes", min=1, help="Keep as much as a file of N bytes holds.")
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option("--stage", min=1, help="Keep the levels up to this one, as `codec info` shows them."),
    ] = None,
    max_pixels: MaxPixels = DEFAULT_LIMITS.max_pixels,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make shorter .vbc files of the same pictures, without decoding."""
    if max_bytes is None and stage is None:
        fail_usage("--bytes or --stage is missing")
    limits = limits_of(max_pixels, None)
    todo = plan_jobs(inputs, output, (batch.ENDING,), batch.ENDING)
    work = partial(batch.cut_file, max_bytes=max_bytes, stage=stage, limits=limits)
    code(work, todo, title="cutting", as_json=as_json, quiet=quiet, resume=not overwrite)


@app.command()
def strip(
    inputs: In,
    output: Out,
    outside_roi: OutsideRoi,
    metadata: MetadataOption = KeepMetadata.all,
    max_pixels: MaxPixels = DEFAULT_LIMITS.max_pixels,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Leave out of .vbc files what regions of the picture do not need, without decoding.

    Alpha and metadata are kept whole.
    """
    roi = checked_roi(outside_roi, "--outside-roi")
    todo = plan_jobs(inputs, output, (batch.ENDING,), batch.ENDING)
    limits = limits_of(max_pixels, None)
    work = partial(batch.strip_file, roi=roi, keep_metadata=metadata is KeepMetadata.all, limits=limits)
    code(work, todo, title="stripping", as_json=as_json, quiet=quiet, resume=not overwrite)


@app.command()
def info(
    inputs: In,
    levels: Annotated[
        int | None, typer.Option("--levels", min=1, help="Name the bytes that the first N levels need.")
    ] = None,
    region: RegionOption = None,
    as_json: Json = False,
) -> None:
    """Show what the headers of .vbc files say, and with --region which bytes a part of the picture needs."""
    work = partial(batch.info_file, levels=levels, region=checked_region(region))
    code(work, [Job(i, "") for i in inputs], as_json=as_json, show=show_info)


@app.command()
def verify(
    inputs: In,
    max_pixels: MaxPixels = DEFAULT_LIMITS.max_pixels,
    max_memory: MaxMemory = None,
    device: DeviceOption = "cpu",
    model: Model = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check .vbc files completely: checksums, all levels, and the hash of the pixels."""
    check_device(device)
    limits = limits_of(max_pixels, max_memory)
    work = partial(batch.verify_file, device=device, model=model, limits=limits)
    code(work, [Job(i, "") for i in inputs], title="verifying", as_json=as_json, quiet=quiet)


@app.command()
def train(
    data: Annotated[Path, typer.Option("--data", exists=True, help="Folder of training images.")],
    valid: Annotated[Path, typer.Option("--valid", exists=True, help="Folder of validation images.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for checkpoints and weights; an earlier run there goes on.")
    ],
    stage: Annotated[Stage, typer.Option("--stage", help="Which part to train.")] = Stage.all,
    lossy: Annotated[
        LossyStage, typer.Option("--lossy", help="Stage whose lossy network tune-exact and export take.")
    ] = LossyStage.tune_lossy,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            exists=True,
            file_okay=False,
            metavar="RUN",
            help="Folder of an earlier run whose weights stages start from.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of each stage.")] = 10_000,
    batch_size: Annotated[int, typer.Option("--batch", min=1, help="Tiles of a step.")] = 16,
    device: DeviceOption = "cpu",
    threads: Threads = None,
) -> None:
    """Train the networks; one line of JSON for every report."""
    import torch

    from vbc.codec.train.stages import train as run_training

    if device != "cpu" and not torch.cuda.is_available():
        fail_usage("no CUDA device is available to this torch; use --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    emit = partial(print, flush=True)
    with exit_on_error():
        run_training(
            data,
            valid,
            out,
            stage=stage.value,
            lossy=lossy.value,
            start_from=start_from,
            steps=steps,
            batch=batch_size,
            device=device,
            emit=emit,
        )


@app.command("eval")
def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, help="Folder of images, or one image.")
    ],
    levels: EncodeLevels = None,
    quality: Annotated[
        list[int] | None,
        typer.Option("--quality", min=0, max=100, help="Repeat for several [default: as `codec encode`]."),
    ] = None,
    lossless: Lossless = False,
    effort: Effort = 1,
    tune: TuneOption = "eye",
    refinements: Refinements = None,
    device: DeviceOption = "cpu",
    model: Model = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Encode and decode images in memory: bytes of real files, PSNR (RGB, all subpixels), seconds."""
    from vbc.codec.files.image_io import INPUT_SUFFIXES

    qualities: Sequence[int | None] = quality or [None]
    settings = checked_settings(
        levels, qualities[0], lossless=lossless, effort=effort, tune=tune, refinements=refinements
    )
    check_device(device)
    todo = [Job(str(file), "") for file, _ in batch.files_below(folder, INPUT_SUFFIXES)]
    if not todo:
        fail_usage(f"no image in {folder}")
    failures: list[Failure] = []
    if not as_json:
        print_line(EVAL_HEAD)
    for q in qualities:
        options = EncodeOptions(replace(settings, quality=q), False, device, model)
        reports: list[Report] = []
        for job, result in batch.run(partial(batch.evaluate_file, options=options), todo, 1, threads):
            if isinstance(result, Failure):
                failures.append(result)
                say_failure(job, result, as_json)
            else:
                reports.append(result)
                print_line(json.dumps(result) if as_json else eval_row(result))
        if reports:
            total = batch.mean_report(reports)
            print_line(json.dumps(total) if as_json else eval_row(total))
    raise typer.Exit(batch.exit_code(failures, len(todo)))


def main() -> None:
    """Entry point of the command."""
    warnings.filterwarnings("ignore", message=r"Image size .* exceeds limit")  # image_io has its own limit
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # so that temporary files are removed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    sys.exit(run())


def run() -> int | str | None:
    """The command, to the last byte of its standard output. Returns the exit code."""
    code: int | str | None = batch.OK
    try:
        app()
    except SystemExit as e:
        code = e.code
    except OSError as e:  # of --help, where standard output is unbuffered
        code = say_output_error(e)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as e:
        code = code or say_output_error(e)
        # else the interpreter tries again when it ends, and exits with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def say_output_error(error: OSError) -> int:
    """Say that standard output takes no more, unless its reader has gone. Returns the exit code."""
    if not isinstance(error, BrokenPipeError):
        print_line(f"codec: {error.strerror or error}", sys.stderr)
    return batch.SOME_FAILED


def code(
    work: Callable[..., Report],
    jobs: list[Job],
    processes: int = 1,
    threads: int | None = None,
    title: str | None = None,
    as_json: bool = False,
    quiet: bool = False,
    show: Callable[[Report], str] | None = None,
    resume: bool = False,
    takes_progress: bool = False,
) -> NoReturn:
    """Do the jobs, say how each went, and exit.

    title: of the progress bar. show: what goes to standard output for a job done. resume: leave out jobs of
    a folder whose output is there. takes_progress: the work can say how far a single job is.
    """
    data_on_stdout = any(job.target == batch.STANDARD for job in jobs)
    failures: list[Failure] = []
    n_jobs = len(jobs)
    if resume and any(job.into_folder for job in jobs):
        jobs = leave_out_finished(jobs, as_json, quiet)
    with exit_on_error(), progress_bar(title if not (quiet or as_json) else None) as advance:
        if len(jobs) == 1 and takes_progress:
            work = partial(work, progress=advance)
        for done, (job, result) in enumerate(batch.run(work, jobs, processes, threads), 1):
            if isinstance(result, Failure):
                failures.append(result)
                say_failure(job, result, as_json)
            elif as_json:
                print_line(json.dumps(result), sys.stderr if data_on_stdout else sys.stdout)
            elif show is not None:
                print_line(show(result))
            elif not quiet:
                print_line(summary(result), sys.stderr)
            advance(f"{done} of {len(jobs)}", done / len(jobs))
    raise typer.Exit(batch.exit_code(failures, n_jobs))


def leave_out_finished(jobs: list[Job], as_json: bool, quiet: bool) -> list[Job]:
    """The jobs that are not done yet; says which are."""
    left = batch.not_done(jobs)
    todo = set(left)
    finished = [job for job in jobs if job not in todo]
    if as_json:
        for job in finished:
            print_line(json.dumps({"input": job.source, "output": job.target, "skipped": True}))
    elif finished and not quiet:
        print_line(
            f"{len(finished)} of {len(jobs)} are done already; --overwrite does them again", sys.stderr
        )
    return left


def plan_jobs(
    inputs: list[str], output: str, input_suffixes: tuple[str, ...], output_suffix: str
) -> list[Job]:
    """The jobs that the arguments name; a usage error where there are none."""
    try:
        jobs = batch.plan(inputs, output, input_suffixes, output_suffix)
    except batch.UsageError as e:
        fail_usage(str(e))
    if not jobs:
        fail_usage(f"no {' '.join(input_suffixes)} file in {' '.join(inputs)}")
    if any(job.target == batch.STANDARD for job in jobs) and (sys.stdout is None or sys.stdout.isatty()):
        what = "to a terminal" if sys.stdout else "to a closed standard output"
        fail_usage(f"not writing an image {what}; redirect standard output or name a file")
    return jobs


def limits_of(max_pixels: int, max_memory_mib: int | None) -> Limits:
    """The default limits but for these."""
    memory = None if max_memory_mib is None else max_memory_mib << 20
    return replace(DEFAULT_LIMITS, max_pixels=max_pixels, max_memory=memory)


def checked_settings(levels: int | None, quality: int | None, **others: Any) -> EncodeSettings:
    """The encoder's settings; a usage error where the options do not go together. others: as they have
    them."""
    if levels is None:
        levels = 0 if others.get("near") else LOSSY_LEVELS
    try:
        return EncodeSettings(levels, quality, **others)
    except ValueError as e:
        fail_usage(str(e))


def checked_region(region: str | None) -> Region | None:
    """X,Y,W,H as numbers; a usage error for anything else."""
    if region is None:
        return None
    try:
        return parse_region(region)
    except ValueError as e:
        fail_usage(f"--region: {e}")


def checked_roi(values: list[str], option: str) -> Roi:
    """Regions and masks together; a usage error where one is neither, or there is nothing in it."""
    rois: list[Roi] = []
    for value in values:
        try:
            rois.append(mask_of(value) if os.path.isfile(value) else Roi((parse_region(value),)))
        except (ValueError, OSError) as e:
            fail_usage(f"{option} {value}: {e}")
    try:
        return united(rois)
    except ValueError as e:
        fail_usage(f"{option}: {e}")


def mask_of(path: str) -> Roi:
    """The regions that a mask shows. Raises ValueError (UnsupportedImage is one), OSError."""
    from vbc.codec.files.reading import read_image
    from vbc.codec.files.region_mask import read_mask

    with open(path, "rb") as f:
        return read_mask(read_image(f))


def check_device(device: str) -> None:
    """A usage error where the networks cannot run there."""
    try:
        api.check_device(device)
    except (ValueError, RuntimeError) as e:
        fail_usage(str(e))


def fail_usage(message: str) -> NoReturn:
    raise typer.BadParameter(message)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit with the code that belongs to whatever ends the work early."""
    try:
        yield
    except KeyboardInterrupt:
        print_line("interrupted", sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        raise
    except Exception as e:
        failure = batch.failure_of(e)
        print_line(failure.trace or f"codec: {failure.message}", sys.stderr)
        raise typer.Exit(failure.exit_code) from None


@contextmanager
def progress_bar(title: str | None) -> Iterator[api.Progress]:
    """A function that moves a bar on standard error, which does nothing without a title or a terminal."""
    if title is None or not sys.stderr.isatty():
        yield lambda stage, fraction: None
        return
    from rich.console import Console
    from rich.progress import Progress

    # standard output may carry an image, so rich must not put itself in between
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda stage, fraction: bar.update(task, completed=fraction, description=f"{title} {stage}")


def print_line(line: str, file: TextIO | None = None) -> None:
    print(line, file=file, flush=True)


def say_failure(job: Job, failure: Failure, as_json: bool) -> None:
    """Name what failed and why; a fault of the codec itself comes with its trace."""
    if as_json:
        report = {
            "input": job.source,
            "error": failure.kind,
            "message": failure.message,
            "exit": failure.exit_code,
        }
        print_line(json.dumps(report), sys.stderr if job.target == batch.STANDARD else sys.stdout)
    else:
        print_line(f"{failure.trace or ''}codec: {job.source}: {failure.message}", sys.stderr)


def summary(report: Report) -> str:
    """One line about an encoded, decoded or verified file."""
    what = [f"{report['n_bytes']} bytes"] if "n_bytes" in report else []
    if "width" in report:
        what.append(f"{report['width']}x{report['height']}")
    if "rate_bpp" in report:
        what.append(f"{report['rate_bpp']:.3f} bpp")
    if "n_left_out" in report:
        what.append(f"{report['n_left_out']} packets left out")
    what.append(f"levels {' '.join(map(str, report['levels'])) or 'none'}")
    if report.get("exact"):
        what.append("exact")
    if "time_s" in report:
        what.append(f"{report['time_s']:.2f} s")
    return f"{report['input']}: {'ok, ' if report.get('ok') else ''}{', '.join(what)}"


def show_info(report: Report) -> str:
    """What `codec info` prints for a file."""
    planes = ("gray" if report["channels"] == 1 else "RGB") + (" with alpha" if report["alpha"] else "")
    bound = report["near"]
    kind = "lossless" if report["lossless"] else f"no sample off by more than {bound}" if bound else "lossy"
    quality = f"quality {report['quality']}"
    if report["refinements"]:
        quality += f", {report['final_quality']} with {report['refinements']} refinements"
    lines = [
        f"{report['input']}: {report['width']}x{report['height']} {planes}, "
        f"{report['bit_depth']} bits a sample, {kind}, {quality}",
        f"  {report['n_bytes']} of {report['n_bytes_complete']} bytes, "
        f"{report['n_packets']} packets, model {report['model_hash']}, tables {report['tables_hash']}",
    ]
    for level, end in report["level_ends"].items():
        kind = "lossy" if is_lossy(level) else "exact"
        if is_bins(level):
            kind = f"bins of level {level - BINS}"
        elif is_lossy(level) and stage_of(level)[0]:
            kind = "lossy, refinement {} of level {}".format(*stage_of(level))
        state = "" if level in report["levels"] else "  (missing)"
        share = 100 * end / report["n_bytes_complete"]
        lines.append(f"  level {level:2}  {kind}  ends at byte {end} ({share:.1f} %){state}")
    if tuple(report["ranges"]) != ((0, report["n_bytes_complete"]),):
        needed = sum(end - start for start, end in report["ranges"])
        lines.append(f"  {needed} bytes are needed: " + " ".join(f"{a}-{b - 1}" for a, b in report["ranges"]))
    lines += [f"  {name.upper()} {n_bytes} bytes" for name, n_bytes in report["metadata_bytes"].items()]
    return "\n".join(lines)


EVAL_HEAD = (
    f"{'image':24} {'q':>3} {'bytes':>10} {'bpp':>8} {'bpsp':>7} {'PSNR dB':>8} {'enc s':>8} {'dec s':>8}"
)


def eval_row(report: Report) -> str:
    """One row of the table of `codec eval`."""
    psnr = "exact" if report["psnr_db"] is None else f"{report['psnr_db']:.2f}"
    return (
        f"{Path(report['input']).name[-24:]:24} {report['quality']:3} {report['n_bytes']:10} "
        f"{report['rate_bpp']:8.4f} {report['rate_bpsp']:7.4f} {psnr:>8} "
        f"{report['encode_s']:8.3f} {report['decode_s']:8.3f}"
    )


if __name__ == "__main__":
    main()
