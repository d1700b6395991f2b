"""`potluck plan`: how a model would be split over devices. Reads the files' headers; nothing is loaded or fetched."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from potluck.cli.reports import FAILED, reporting, sentence
from potluck.cli.safe_text import one_line
from potluck.errors import Misuse

if TYPE_CHECKING:
    from gpu_node.device_profiles import Findings
    from gpu_node.devices import Device
    from gpu_node.load_wish import LoadWish
    from gpu_node.model_folder import ModelDescription
    from gpu_node.model_source import ModelSource
    from gpu_node.plan_picture import Picture
    from gpu_node.split import SplitWish
    from gpu_node.split_plan import DoesNotFit, ModelShape

MOST_SEQUENCES = 4096  # more requests at once than any engine takes


class StrategyName(StrEnum):
    VRAM = "vram"
    BALANCED = "balanced"
    PROFILED = "profiled"


class GoalName(StrEnum):
    LATENCY = "latency"
    THROUGHPUT = "throughput"


class WeightsName(StrEnum):
    AUTO = "auto"
    FULL = "full"
    STORED = "stored"
    INT8 = "int8"
    INT4 = "int4"


class DtypeName(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def plan(
    devices: Annotated[
        str, typer.Option("--devices", "-d", help='What to split over: "cpu:2GiB@1.0,cpu:1GiB@0.5", "cuda:0,cuda:1".')
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A known name, a .gguf file, a folder of safetensors, or a hub id.")
    ] = "default",
    context: Annotated[
        int | None, typer.Option("--context", "-c", min=1, max=1 << 24, help="Tokens of one request.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", min=1, max=MOST_SEQUENCES, help="Whole contexts that should fit at once; a node wants 8."
        ),
    ] = None,
    strategy: Annotated[StrategyName, typer.Option("--strategy", help="How layers are shared out.")] = (
        StrategyName.BALANCED
    ),
    goal: Annotated[GoalName, typer.Option("--goal", help="What 'profiled' makes good.")] = GoalName.LATENCY,
    weights: Annotated[WeightsName, typer.Option("--weights", help="How weights are held.")] = WeightsName.AUTO,
    dtype: Annotated[DtypeName, typer.Option("--dtype", help="What is computed in.")] = DtypeName.AUTO,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Split by hand: layers of each device in turn, as in 12,18.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how a model would be split over devices, without loading anything. Exit code 1 where it does not fit."""
    with reporting(), _node_errors(as_json):
        from gpu_node.devices import parse_devices
        from gpu_node.load_wish import LoadWish
        from gpu_node.split import SplitWish
        from gpu_node.vram import CONTEXTS_WANTED

        wish = LoadWish(weights=weights.value, dtype=dtype.value, context=context or 0)
        how = SplitWish(strategy.value, goal.value, counts_of(layers))
        listed = parse_devices(devices)
        found, description = _find(model)
        if description is None:
            _refuse(f"{found.name} is not on this machine yet", f"Fetch it with: {fetch_command(model)}")
        shape, tokens = _shape(found, description, wish)
        findings = _findings(listed, how)
        picture = _picture(shape, (tokens, concurrency or CONTEXTS_WANTED), listed, how, findings)
        _show(picture, as_json, measured=bool(findings.devices))


def counts_of(layers: str | None) -> tuple[int, ...]:
    """Raises `Misuse`."""
    if layers is None:
        return ()
    words = [word.strip() for word in layers.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
        raise Misuse(f'"{layers}" is no split by hand: write the layers of each device in turn, as in 12,18')
    return tuple(map(int, words))


def fetch_command(model: str) -> str:
    return f"python -m gpu_node.model_store fetch {model}"


def _find(model: str) -> tuple[ModelSource, ModelDescription | None]:
    """What the name means, and what its files say where they are here."""
    from gpu_node.manifest import models_folder
    from gpu_node.model_folder import describe
    from gpu_node.model_source import GgufSource, KnownSource
    from gpu_node.model_store import ModelStore, default_cache
    from gpu_node.progress import Progress

    told = os.environ.get("POTLUCK_NODE_CACHE")
    cache = Path(told).expanduser() if told else default_cache(os.environ)
    store = ModelStore(cache, models_folder(), Progress(sys.stderr))
    source = store.resolve(model)
    folder = store.find(source)
    if folder is not None:
        return source, store.describe(source, folder)
    # A GGUF file tells all by itself; the store would only lay a note beside it.
    lying = models_folder() / source.model.file if isinstance(source, KnownSource) else None
    path = source.path if isinstance(source, GgufSource) else lying
    return source, describe(path) if path is not None and path.exists() else None


def _shape(source: ModelSource, description: ModelDescription, wish: LoadWish) -> tuple[ModelShape, int]:
    """The model's sizes, and the context that is planned for."""
    from gpu_node.host import LARGEST_DEFAULT_CONTEXT, UNSTATED_CONTEXT
    from gpu_node.model_shape import shape_of

    longest = description.context_length or UNSTATED_CONTEXT
    if wish.context > longest:
        raise Misuse(f"{source.name} reaches {longest:,} tokens; --context {wish.context} is more")
    tokens = wish.context or min(LARGEST_DEFAULT_CONTEXT, longest)
    return shape_of(one_line(source.name), description, wish), tokens


def _picture(
    shape: ModelShape, demand: tuple[int, int], devices: Sequence[Device], wish: SplitWish, findings: Findings
) -> Picture:
    """`demand`: tokens of a context, and how many contexts."""
    from gpu_node.devices import local_links, planned_devices
    from gpu_node.plan_picture import Picture
    from gpu_node.split import plan_split
    from gpu_node.split_plan import Demand, Sizes
    from gpu_node.splitting import step_tokens_over

    free = {one.card: one.free_bytes for one in findings.devices} | _free_bytes(devices)
    planned = planned_devices(devices, free, shape, findings.profiles)
    wanted = Demand(*demand, step_tokens_over(devices))
    found = plan_split(shape, planned, local_links(devices), wanted, wish)
    return Picture(found, Sizes(shape, wanted), planned)


def _findings(devices: Sequence[Device], wish: SplitWish) -> Findings:
    """Of the probe, which takes seconds: only where speeds are wanted that nobody stated."""
    from gpu_node.device_profiles import Findings
    from gpu_node.model_store import default_cache
    from gpu_node.probing import FILE_NAME, ProbeRun, Probing
    from gpu_node.splitting import stage_threads

    if wish.strategy != "profiled" or all(device.speed for device in devices):
        return Findings()
    told = os.environ.get("POTLUCK_NODE_CACHE")
    folder = Path(told).expanduser() if told else default_cache(os.environ)
    found = Probing(folder / FILE_NAME, ProbeRun(threads=stage_threads(devices))).findings()
    for device in devices:
        if device.card not in found.profiles and not device.speed:
            why = "".join(f" ({one.why})" for one in found.left_out if one.what in (device.card, device.kind, "torch"))
            raise Misuse(
                f"the strategy 'profiled' needs the speed of {device.name}, which could not be measured{why}: "
                "state it, as in cpu:2GiB@1.0,cpu:1GiB@0.5"
            )
    return found


def _free_bytes(devices: Sequence[Device]) -> dict[str, int]:
    """By card, of those without a budget; nobody is asked where all have one."""
    from gpu_node.inventory import free_by_card

    cards = {device.card for device in devices if device.budget_bytes is None}
    if not cards:
        return {}
    found = free_by_card(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return {card: size for card, size in found.items() if card in cards}


def _show(picture: Picture, as_json: bool, measured: bool) -> None:
    from gpu_node.plan_picture import plan_lines, record_of

    if as_json:
        typer.echo(json.dumps(record_of(picture, measured), ensure_ascii=False, indent=2))
        return
    width = shutil.get_terminal_size((80, 24)).columns
    for line in plan_lines(picture, width, plain=not _has_blocks(sys.stdout.encoding)):
        typer.echo(line)


def _has_blocks(encoding: str | None) -> bool:
    try:
        "█▓▒░·".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@contextmanager
def _node_errors(as_json: bool) -> Iterator[None]:
    """What the planner and the store refuse, as this command tells it."""
    if find_spec("gpu_node") is None:
        raise Misuse("this installation lacks gpu_node; install the whole project")
    from gpu_node.errors import NodeError, UsageError
    from gpu_node.split_plan import DoesNotFit

    try:
        yield
    except UsageError as error:
        raise Misuse(str(error)) from error
    except DoesNotFit as error:
        if as_json:
            typer.echo(json.dumps(refusal_of(error), ensure_ascii=False, indent=2))
            raise typer.Exit(FAILED) from error
        _refuse(refusal_of(error)["message"], *map(sentence, error.remedies))
    except NodeError as error:
        _refuse(str(error))


def refusal_of(error: DoesNotFit) -> dict[str, Any]:
    """For JSON. The message without its remedies, which have a place of their own."""
    message = str(error).removesuffix(". ".join(error.remedies)).removesuffix(". ")
    return {"fits": False, "message": message, "short_bytes": error.short_bytes, "remedies": list(error.remedies)}


def _refuse(message: str, *advice: str) -> NoReturn:
    typer.echo(f"error: {sentence(message)}", err=True)
    for line in advice:
        typer.echo(f"       {one_line(line)}", err=True)
    raise typer.Exit(FAILED)
