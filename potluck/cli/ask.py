"""`potluck ask`: one question, its answer to stdout as it comes, everything else to stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potluck.cli.answering import summary, tell
from potluck.cli.connection import KeyFile, Url, connect
from potluck.cli.questions import STDIN, parse_options, question, read_piped
from potluck.cli.reports import reporting

if TYPE_CHECKING:
    from potluck.answers import Answer
    from potluck.streams import Stream


def ask(
    prompt: Annotated[
        str | None, typer.Argument(help="The question; - or a pipe reads it from stdin, both together are joined.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model; default: whatever a node has.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System prompt.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", "-t", help="0 is the surest answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", help="Longest answer, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text to stop at; may be repeated.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="json, for an answer that is JSON.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="Image file; may be repeated.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Any other option, as top_k=40; may be repeated.")
    ] = None,
    think: Annotated[bool | None, typer.Option(help="Let a model think first, where it can.")] = None,
    cache: Annotated[bool, typer.Option(help="May the answer come from the gateway's cache?")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON, once it is there.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Always say how it went (on stderr).")] = False,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Ask one question and print the answer as it comes.

    Exit codes: 0 answered, 1 failed, 2 used wrongly, 130 stopped by Ctrl-C (what came of the answer stays).
    """
    fields: dict[str, Any] = {
        "model": model,
        "system": system,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
        "stop": stop or None,
        "format": format,
        "images": image or None,
        "think": think,
        "cache": None if cache else False,
    }
    for_people = sys.stdout.isatty() and sys.stderr.isatty() and not as_json
    with reporting():
        fields["progress"] = for_people or None
        fields["options"] = parse_options(option or [], fields) or None
        text = question(prompt, read_piped(prompt == STDIN))
        with connect(url, key_file) as gateway:
            stream = gateway.stream(text, **fields)
            answer = _print_json(stream) if as_json else tell(stream, for_people=for_people)
    if verbose or for_people:
        typer.secho(summary(answer), err=True, dim=True)


def _print_json(stream: Stream) -> Answer:
    with stream:
        answer = stream.finish()
    typer.echo(json.dumps(answer.as_record(), ensure_ascii=False, indent=2))
    return answer
