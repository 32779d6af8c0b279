"""The command line: parsing and printing only; each command calls one function of a room below."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from . import screen
from .arguments import (
    ConfigFolder,
    Control,
    Force,
    Json,
    Offline,
    PredictionType,
    PreviewVae,
    PromptOnce,
    Revision,
    StepCacheGraph,
    Token,
    Tome,
    Vae,
    Variant,
    Verify,
)
from .cli_late import late_group
from .cli_saving import DecoderOption, GuidanceEvery, GuidanceInterval, PresetOption, StepCacheOption
from .core.errors import BadInput, Cancelled, DiskError, UsageError, VitrifyError

_LESS = "Less work"

# each command's module and name, in the order of --help
COMMANDS = {
    "doctor": "cli_doctor:doctor",
    "export": "cli:export",
    "compile": "cli_compile:compile",
    "verify": "cli:verify",
    "inspect": "cli:inspect",
    "generate": "cli_generate:generate",
    "classify": "cli_run:classify",
    "sweep": "cli_sweep:sweep",
    "tune": "cli_tune:tune",
    "loadgen": "cli_loadgen:loadgen",
    "serve": "cli_serve:serve",
    "serve-key": "cli_serve:serve_key",
    "demo": "cli:demo",
    "cache": "cli:cache_app",
    "bench": "cli_bench:bench_app",
}

app = typer.Typer(
    name="vitrify",
    cls=late_group({name: f"{__package__}.{where}" for name, where in COMMANDS.items()}),
    help="Turn diffusion pipelines and image classifiers into compiled artifacts; prove, run, benchmark them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="The cache of graphs and exported models.", no_args_is_help=True)


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A diffusers or transformers folder, a single .safetensors or .gguf file, or a hub id as owner/name."
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The artifact's folder.")] = None,
    config: ConfigFolder = None,
    prediction_type: PredictionType = None,
    graph_from: Annotated[
        Path | None,
        typer.Option(help="An artifact of the same architecture, whose graphs are taken instead of traced."),
    ] = None,
    control: Control = False,
    tome: Tome = None,
    vae: Vae = None,
    preview_vae: PreviewVae = None,
    step_cache: StepCacheGraph = None,
    prompt_once: PromptOnce = False,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    verify: Verify = None,
    offline: Offline = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export a model to an artifact without loading its weights, and prove it."""
    from .core.artifact import Artifact
    from .export.changed import Changes
    from .export.job import ExportJob, configs_from, find_source

    changes = Changes(tome, vae, preview_vae, step_cache, prompt_once)
    changes.check()
    graphs = None if graph_from is None else Artifact.load(graph_from)
    with screen.progress() as report:
        found = find_source(
            source,
            revision=revision,
            variant=variant,
            token=token,
            offline=True if offline else None,
            config=configs_from(source, config, graph_from),
            prediction_type=prediction_type,
            report=report,
        )
        found = changes.apply(found, token=token, offline=True if offline else None, report=report)
        target = output or Path(f"{found.name}-onnx")
        done = ExportJob(found, target, verify, force, report, graphs=graphs, control=control).run()
    if json:
        screen.print_json({"artifact": str(target), "notes": done.notes, "manifest": done.artifact.to_json()})
        return
    for note in done.notes:
        print(note)
    screen.print_proofs(done.artifact)
    from .cli_run import use

    print(f"{target} is ready: vitrify {use(done.artifact)}".replace("ARTIFACT", str(target)))


def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.")],
    against: Annotated[str | None, typer.Option(help="A source or another artifact; default: its own source.")] = None,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    offline: Offline = False,
    lpips: Annotated[
        Path | None, typer.Option(help="Folder with LPIPS's weights: measure the pictures also with it.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP model: measure CLIP scores too.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the proofs, with the pictures, as a page.")] = None,
    preset: PresetOption = None,
    step_cache: StepCacheOption = None,
    guidance_interval: GuidanceInterval = None,
    guidance_every: GuidanceEvery = None,
    decoder: DecoderOption = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="dB on average that pictures of less work must have.", rich_help_panel=_LESS)
    ] = None,
    min_ssim: Annotated[
        float | None, typer.Option(help="And their SSIM on average.", max=1.0, rich_help_panel=_LESS)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of each of these pictures; default: 20.", min=1, rich_help_panel=_LESS)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Of these pictures; default: the model's own.", rich_help_panel=_LESS)
    ] = None,
    json: Json = False,
) -> None:
    """Check an artifact's hashes, trace its weights, and compare numbers and pictures. Exits with 3 where it fails.

    With an option that leaves out some of a picture's work: compare such pictures with those of all the work instead.
    """
    from .export.verify import verify_artifact
    from .export.verify_less import Less, verify_less
    from .pipelines.guiding import parse_interval

    saving = {
        "preset": preset, "step_cache": step_cache, "guidance_every": guidance_every,
        "guidance_interval": parse_interval(guidance_interval) if guidance_interval is not None else None,
        "decoder": decoder.value if decoder is not None else None,
    }  # fmt: skip
    saving = {name: value for name, value in saving.items() if value is not None}
    less = Less(saving, min_psnr, min_ssim, steps, guidance)
    if less:
        if revision or variant or token:
            raise UsageError(
                "Less work is measured beside an artifact.", "Leave --revision, --variant and --token out."
            )
        with screen.progress() as report:
            measured = verify_less(artifact, less, against, lpips=lpips, clip=clip, html=html, report=report)
        if json:
            screen.print_json({"artifact": str(artifact), "proof": measured.proof})
        else:
            screen.print_pictures(measured)
        return
    with screen.progress() as report:
        proved = verify_artifact(
            artifact,
            against,
            revision=revision,
            variant=variant,
            token=token,
            offline=True if offline else None,
            lpips=lpips,
            clip=clip,
            html=html,
            report=report,
        )
    if json:
        screen.print_json({"artifact": str(artifact), "proof": proved.proof, "components": screen.proofs_of(proved)})
    else:
        screen.print_proofs(proved)


def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.")],
    checksums: Annotated[bool, typer.Option("--checksums", help="Also hash every file.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the proofs as a page.")] = None,
    json: Json = False,
) -> None:
    """Show what an artifact holds and what was proved of it. Exits with 6 where it is damaged or unsafe."""
    from .pipelines.load import open_artifact

    found = open_artifact(artifact)
    if checksums:
        found.verify(checksums=True)
    if html is not None:
        from .proof.page import write_page

        write_page(found, html)
    unhashed = found.unhashed()
    hashed = len({path for path, _ in found.files()} - set(unhashed))
    if json:
        state = ("verified" if hashed else "not recorded") if checksums else "not run"
        screen.print_json(found.to_json() | {"checksums": state, "unhashed": unhashed})
        return
    print(
        f"{found.name}: {found.model['architecture']} from {found.model['source']}, family {found.pipeline['family']}"
    )
    for line in screen.changes(found):
        print(line)
    rows = [
        [
            c.name,
            c.format,
            str(c.precision.get("recipe") or "-"),
            str(c.precision.get("weights")),
            screen.megabytes(sum(w.bytes for w in c.weights)),
            screen.shapes(c.inputs),
            screen.shapes(c.outputs),
        ]
        for c in found.components.values()
    ]
    screen.table(rows, ["component", "format", "recipe", "weights", "MB", "inputs", "outputs"])
    for line in screen.plans(found):
        print(line)
    screen.print_proofs(found)
    print("checksums: " + (screen.checksums(hashed, unhashed) if checksums else "not run (--checksums)"))


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures, table and page.")] = Path(
        "vitrify-demo"
    ),
    json: Json = False,
) -> None:
    """Do the whole job with the built-in models: export, proof, pictures, labels, timings, a page."""
    from .demo.run import run_demo

    with screen.progress() as report:
        summary = run_demo(output, report)
    if json:
        screen.print_json(summary)
    else:
        for line in summary["lines"]:
            print(line)
        print(f"Open {output / 'index.html'}")


@cache_app.command("ls")
def cache_ls(json: Json = False) -> None:
    """List the cache, the most recently used first."""
    from .core.cache import Cache

    cache = Cache()
    found = cache.entries()
    total = sum(e.bytes for e in found)
    if json:
        entries = [{"kind": e.kind, "key": e.key, "bytes": e.bytes, "used": e.used} for e in found]
        screen.print_json({"folder": str(cache.root), "limit": cache.limit, "bytes": total, "entries": entries})
        return
    screen.table([[e.kind, e.key, screen.megabytes(e.bytes)] for e in found], ["kind", "key", "MB"])
    used, most = screen.megabytes(total), screen.megabytes(cache.limit)
    print(f"{cache.root}: {used} MB of at most {most} MB ($VITRIFY_CACHE, $VITRIFY_CACHE_MAX)")


@cache_app.command("prune")
def cache_prune(
    max_bytes: Annotated[int, typer.Option(help="Keep at most this much; 0 empties the cache.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Remove the least recently used entries."""
    from .core.cache import Cache

    removed = Cache().prune(max_bytes)
    total = sum(e.bytes for e in removed)
    if json:
        screen.print_json({"removed": [f"{e.kind}/{e.key}" for e in removed], "bytes": total})
    else:
        print(f"removed {len(removed)} entries, {screen.megabytes(total)} MB")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"vitrify {_version()}")
        raise typer.Exit


def main() -> None:
    """The console script: runs the command line and exits with the error's code."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)
        if code == Cancelled.exit_code:  # typer's whole answer to Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        _end(_interrupted(), as_json)
    except BrokenPipeError:
        sys.exit(0)  # the reader of a pipe has what it wanted
    except Exception as exc:
        if _came_of_ctrl_c(exc):
            _end(_interrupted(), as_json)
        if isinstance(exc, VitrifyError):
            _end(exc, as_json)
        if hasattr(exc, "format_message"):  # the parser's own errors
            if type(exc).__name__ == "NoArgsIsHelpError":  # the help is shown, and nothing more is to be said
                print(exc.format_message(), end="")
                sys.exit(2)
            context = getattr(exc, "ctx", None)
            where = context.command_path if context is not None else "vitrify"
            said = exc.format_message()
            quotes = "Put what has spaces in quotes. " if said.startswith("Got unexpected extra argument") else ""
            _end(UsageError(said, f"{quotes}See {where} --help."), as_json)
        if isinstance(exc, OSError) and exc.errno is not None:
            _end(_of_the_system(exc), as_json)
        import traceback

        traceback.print_exc()
        fault = VitrifyError(
            f"{type(exc).__name__}: {exc}", "This is a fault of vitrify: report it with the lines above."
        )
        _end(fault, as_json)


def _end(error: VitrifyError, as_json: bool) -> NoReturn:
    screen.print_error(error, as_json)
    sys.exit(error.exit_code)


def _interrupted() -> Cancelled:
    return Cancelled("Interrupted; nothing half-written is left.", "Run it again.")


def _came_of_ctrl_c(exc: Exception) -> bool:
    """Whether this is a Ctrl-C that Python raised while `threading` took a lock back, or was raised from that one:
    `threading` then gives up a lock that it does not hold, a RuntimeError. Other faults on the way out of a Ctrl-C,
    such as a full disk, are told as what they are."""
    return any(
        isinstance(one, RuntimeError) and isinstance(one.__context__, KeyboardInterrupt) for one in (exc, exc.__cause__)
    )


def _of_the_system(exc: OSError) -> VitrifyError:
    """What the system said of a path that no room looked at closer, as where arguments are in the wrong order."""
    name = str(exc.filename or exc.filename2 or "A file")
    shown = name if len(name) <= 80 else f"{name[:77]}..."
    if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return DiskError(f"{shown}: {exc.strerror}.", "Check the disk, or use another folder.")
    return BadInput(f"{shown}: {exc.strerror}.", "Check the path, its permissions, and the order of the arguments.")


def _version() -> str:
    from . import __version__

    return str(__version__)


if __name__ == "__main__":
    main()
