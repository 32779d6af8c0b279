"""The command line: parsing and printing only; each command calls one function of a room below."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from . import screen
from .core.errors import Cancelled, UsageError, VitrifyError

app = typer.Typer(
    name="vitrify",
    help="Turn diffusion pipelines and image classifiers into compiled artifacts; prove, run, benchmark them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="The cache of graphs and exported models.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Model = Annotated[str, typer.Argument(help="An artifact's folder, a model's folder, or a hub id.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda:0, ...; without it the best that works.")]
Threads = Annotated[int, typer.Option(help="Threads of the runtime; 0 leaves the choice to it.", min=0)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Variant = Annotated[str | None, typer.Option(help="Variant of the weights, such as fp16.")]
Token = Annotated[
    str | None, typer.Option(help="Hub token; default: the stored one.", envvar="HF_TOKEN", show_envvar=True)
]


@app.command()
def doctor(json: Json = False) -> None:
    """Show the machine, the runtimes, their devices, and what to repair. Exits with 4 where no runtime is usable."""
    from .runtimes.doctor import examine

    found = examine()
    if json:
        screen.print_json(found)
    else:
        for name, value in found["machine"].items():
            print(f"{name:13} {', '.join(value) if isinstance(value, list) else value}")
        print()
        for name, row in found["runtimes"].items():
            if row["usable"]:
                print(f"{name:8} {row['version']} on {', '.join(row['devices'])}: {row['buys']}")
            else:
                print(f"{name:8} not usable: {row['what']} {row['fix']} ({row['buys']})")
        versions = ", ".join(f"{n} {v}" for n, v in found["export"]["versions"].items())
        print(f"{'export':8} " + (versions if found["export"]["usable"] else f"not usable: {found['export']['fix']}"))
        for problem in found["problems"]:
            print(f"\nproblem: {problem['what']}\n    fix: {problem['fix']}")
    if not any(r["usable"] for r in found["runtimes"].values()):
        raise typer.Exit(4)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A diffusers or transformers folder, or a hub id as owner/name.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The artifact's folder.")] = None,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Numeric proof; default: where it needs under 1 GB.")
    ] = None,
    offline: Annotated[bool, typer.Option(help="Use only what the hub's cache holds.")] = False,
    force: Annotated[bool, typer.Option(help="Replace an artifact that lies there.")] = False,
    json: Json = False,
) -> None:
    """Export a model to an artifact without loading its weights, and prove it."""
    from .export.job import ExportJob, find_source

    with screen.progress() as report:
        found = find_source(
            source, revision=revision, variant=variant, token=token, offline=True if offline else None, report=report
        )
        name = re.sub(r"[^\w.-]+", "-", Path(source).resolve().name if Path(source).exists() else source.split("/")[-1])
        target = output or Path(f"{name}-onnx")
        done = ExportJob(found, target, verify, force, report).run()
    if json:
        screen.print_json({"artifact": str(target), "notes": done.notes, "manifest": done.artifact.to_json()})
        return
    for note in done.notes:
        print(note)
    screen.print_proofs(done.artifact)
    print(f"{target} is ready: vitrify {_use(done.artifact)}".replace("ARTIFACT", str(target)))


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.")],
    against: Annotated[str | None, typer.Option(help="A source or another artifact; default: its own source.")] = None,
    json: Json = False,
) -> None:
    """Check an artifact's hashes, trace its weights, and compare numbers and pictures. Exits with 3 where it fails."""
    from .export.verify import verify_artifact

    with screen.progress() as report:
        proved = verify_artifact(artifact, against, report)
    if json:
        screen.print_json({"artifact": str(artifact), "proof": proved.proof, "components": screen.proofs_of(proved)})
    else:
        screen.print_proofs(proved)


@app.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.")],
    checksums: Annotated[bool, typer.Option("--checksums", help="Also hash every file of weights.")] = False,
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
    if json:
        screen.print_json(found.to_json() | {"checksums": "verified" if checksums else "not run"})
        return
    print(
        f"{found.name}: {found.model['architecture']} from {found.model['source']}, family {found.pipeline['family']}"
    )
    rows = [
        [
            c.name,
            c.format,
            str(c.precision.get("weights")),
            screen.megabytes(sum(w.bytes for w in c.weights)),
            screen.shapes(c.inputs),
            screen.shapes(c.outputs),
        ]
        for c in found.components.values()
    ]
    screen.table(rows, ["component", "format", "weights", "MB", "inputs", "outputs"])
    screen.print_proofs(found)
    print("checksums: " + ("every file is the one that was built" if checksums else "not run (--checksums)"))


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to draw; (red:1.3) weighs words.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG; default: named after prompt and seed.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", "-n", help="What not to draw.")] = "",
    width: Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; at 1 or less off, at half the cost.")
    ] = 7.5,
    seed: Annotated[int | None, typer.Option(help="Default: a random one, which is printed.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, euler_a, dpmpp_2m, ...")] = None,
    batch: Annotated[int, typer.Option(help="Pictures; the seed grows by 1 for each.", min=1)] = 1,
    rng: Annotated[str, typer.Option(help="cpu: torch's CPU numbers; philox: CUDA's.")] = "cpu",
    device: DeviceOption = None,
    threads: Threads = 0,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Draw pictures from a prompt."""
    from .core.progress import Event
    from .export.resolve import artifact_for
    from .pipelines.images import check_png_path, save_png
    from .pipelines.load import load
    from .runtimes.base import Options

    if output is not None:
        check_png_path(output)
    with screen.progress() as report:
        artifact = artifact_for(model, revision=revision, variant=variant, token=token, report=report)
        _need(artifact, "text2img", "generate")
        pipeline = load(artifact, device, options=Options(threads=threads), say=lambda s: screen.say(f"device: {s}"))
        try:
            result = pipeline.generate(
                prompt,
                negative_prompt=negative_prompt,
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                seed=seed,
                scheduler=scheduler,
                batch=batch,
                rng=rng,
                on_step=lambda s: report(Event("step", s.number, s.total, "steps")),
            )
        finally:
            pipeline.close()
    slug = "-".join(re.findall(r"\w+", prompt.lower())[:8]) or "picture"
    first = output or Path(f"{slug}-{result.seed}.png")
    paths = [first if batch == 1 else first.with_name(f"{first.stem}-{i + 1}{first.suffix}") for i in range(batch)]
    for path, image, parameters in zip(paths, result.images, result.parameters, strict=True):
        save_png(image, path, parameters | {"model": artifact.name, "artifact": artifact.id, "version": _version()})
    if json:
        images = [{"path": str(p), **t} for p, t in zip(paths, result.parameters, strict=True)]
        screen.print_json({"images": images, "timings": result.timings, "placement": result.placement})
        return
    for path, parameters in zip(paths, result.parameters, strict=True):
        print(
            f"{path}  seed {parameters['seed']}, {result.timings['total']:.2f} s, "
            f"{result.placement['unet']['provider']}"
        )


@app.command()
def classify(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    top_k: Annotated[int, typer.Option(help="Labels a picture.")] = 5,
    threshold: Annotated[float | None, typer.Option(help="Every label with at least this score instead.")] = None,
    function: Annotated[str | None, typer.Option(help="softmax, sigmoid or none; default: the model's own.")] = None,
    faces: Annotated[bool, typer.Option("--faces", help="Find faces first and classify each of them.")] = False,
    detector: Annotated[Path | None, typer.Option(help="A YuNet ONNX file for --faces.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures a run.", min=1)] = 8,
    device: DeviceOption = None,
    threads: Threads = 0,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Label pictures."""
    from .core.progress import Event
    from .export.resolve import artifact_for
    from .pipelines.images import expand, open_image
    from .pipelines.load import load
    from .runtimes.base import Options

    if detector is not None and not faces:
        raise UsageError("--detector finds faces.", "Give --faces too.")
    paths = expand(images)
    pictures = [open_image(p) for p in paths]
    with screen.progress() as report:
        artifact = artifact_for(model, revision=revision, variant=variant, token=token, report=report)
        _need(artifact, "classify", "classify")
        # few pictures: weights that stay mapped open at once; many: each run should be fast
        options = Options(threads=threads, prepack=len(pictures) > 16, arena=len(pictures) > 16)
        pipeline = load(artifact, device, options=options, say=lambda s: screen.say(f"device: {s}"))
        try:
            answers = pipeline.classify(
                pictures,
                top_k=top_k,
                function=function,
                threshold=threshold,
                faces=faces,
                detector=detector,
                batch=batch,
                on_batch=lambda done, total: (
                    report(Event("classify", done, total, "pictures")) if total > batch else None
                ),
            )
        finally:
            pipeline.close()
    kind = "faces" if faces else "labels"
    if json:
        results = [{"image": str(p), kind: a} for p, a in zip(paths, answers, strict=True)]
        screen.print_json({"results": results, "timings": pipeline.timings, "placement": pipeline.placement})
        return
    for path, answer in zip(paths, answers, strict=True):
        if not faces:
            print(f"{path}  {screen.scores(answer)}")
        for face in answer if faces else []:
            box = face["box"]
            print(f"{path}  {box['left']},{box['top']} {box['width']}x{box['height']}  {screen.scores(face['labels'])}")
        if faces and not answer:
            print(f"{path}  no face found")


@app.command()
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
    except VitrifyError as exc:
        screen.print_error(exc, as_json)
        sys.exit(exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        screen.print_error(Cancelled("Interrupted; nothing half-written is left.", "Run it again."), as_json)
        sys.exit(Cancelled.exit_code)
    except BrokenPipeError:
        sys.exit(0)  # the reader of a pipe has what it wanted
    except Exception as exc:
        if hasattr(exc, "format_message"):  # the parser's own errors
            context = getattr(exc, "ctx", None)
            where = context.command_path if context is not None else "vitrify"
            screen.print_error(UsageError(exc.format_message(), f"See {where} --help."), as_json)
            sys.exit(2)
        traceback.print_exc()
        fault = VitrifyError(
            f"{type(exc).__name__}: {exc}", "This is a fault of vitrify: report it with the lines above."
        )
        screen.print_error(fault, as_json)
        sys.exit(1)


def _need(artifact: Any, task: str, command: str) -> None:
    if task not in artifact.pipeline.get("tasks", []):
        raise UsageError(f"{artifact.name} cannot {command}.", f"Use: vitrify {_use(artifact)}.")


def _use(artifact: Any) -> str:
    if "classify" in artifact.pipeline.get("tasks", []):
        return "classify ARTIFACT picture.png"
    return 'generate ARTIFACT "a prompt" -o out.png'


def _version() -> str:
    from . import __version__

    return str(__version__)


if __name__ == "__main__":
    main()
