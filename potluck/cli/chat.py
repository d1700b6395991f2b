"""`potluck chat`: a conversation at the terminal. Ctrl-C stops an answer, Ctrl-D leaves."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potluck.cli.answering import summary, tell
from potluck.cli.connection import KeyFile, Url, connect
from potluck.cli.conversation import FENCE, Conversation, Lines, Order, Say
from potluck.cli.reports import FAILED, reporting, tell_error
from potluck.cli.safe_text import for_terminal
from potluck.errors import PotluckError

if TYPE_CHECKING:
    from potluck.gateway import Gateway

PROMPT, PROMPT_INSIDE = ">>> ", "... "
HELP = '''  /model [NAME]   choose another model; without a name, list what there is
  /system [TEXT]  set the system prompt; without a text, drop it
  /clear          begin anew
  /save FILE      write the conversation down, as JSON where FILE ends in .json
  /bye            leave (or Ctrl-D)
  """             begin and end a message of several lines
  Ctrl-C          stop an answer'''


def chat(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model; default: whatever a node has.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System prompt.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say after each answer how it went.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Talk with a model. /help in the chat tells what else can be typed."""
    with reporting(), connect(url, key_file) as gateway:
        whole = Chat(gateway, Conversation(model, system), verbose=verbose).run()
    if not whole:
        raise typer.Exit(FAILED)


class Chat:
    """The loop: reads lines, asks, prints. All that is decided about lines and turns is in `conversation.py`."""

    def __init__(self, gateway: Gateway, conversation: Conversation, *, verbose: bool) -> None:
        self._gateway = gateway
        self._conversation = conversation
        self._verbose = verbose
        self._lines = Lines()
        self._interactive = sys.stdin.isatty()
        self._all_went_well = True

    def run(self) -> bool:
        """Until the end of the input. A gateway that is not there is told before the first question."""
        self._gateway.health()
        if self._interactive:
            _with_line_editing()
            self._note("Type a message, /help for more, Ctrl-D to leave.")
        while (line := self._read()) is not None:
            match self._lines.receive(line):
                case Say(text):
                    self._say(text)
                case Order("bye" | "exit" | "quit"):
                    break
                case Order() as order:
                    self._obey(order)
        if self._lines.inside:
            self._note(f"The last message lacks its closing {FENCE} and was not sent.")
            self._all_went_well = False
        # Whoever sits there has seen what failed; a script has only the exit code.
        return self._interactive or self._all_went_well

    def _read(self) -> str | None:
        prompt = PROMPT_INSIDE if self._lines.inside else PROMPT
        while True:
            try:
                return input(prompt if self._interactive else "")
            except EOFError:
                if self._interactive:
                    typer.echo()
                return None
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._lines.drop()
                prompt = PROMPT
                typer.echo()
                self._note("Ctrl-D or /bye leaves.")

    def _say(self, text: str) -> None:
        for_people = self._interactive and sys.stdout.isatty()
        stream = self._gateway.stream(
            messages=self._conversation.messages(text),
            model=self._conversation.model,
            cache=False,  # whoever says the same twice in a chat wants another answer
            progress=for_people or None,
        )
        try:
            answer = tell(stream, for_people=for_people)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self._keep(text, stream.text)
            self._note("stopped")
        except PotluckError as error:
            self._keep(text, stream.text)
            self._all_went_well = False
            tell_error(error)
        else:
            self._keep(text, answer.text)
            if self._verbose:
                self._note(summary(answer))
        if self._interactive:
            typer.echo()

    def _keep(self, said: str, answer: str) -> None:
        """What was told so far counts as the answer; where nothing was told, nothing was said either."""
        if answer:
            self._conversation.keep(said, answer)

    def _obey(self, order: Order) -> None:
        match order:
            case Order("help" | "?"):
                self._note(HELP)
            case Order("clear"):
                self._conversation.clear()
                self._note("The conversation begins anew.")
            case Order("model", ""):
                self._list_models()
            case Order("model", name):
                self._conversation.model = name
                self._note(f"Now asking {name}.")
            case Order("system", text):
                self._conversation.system = text or None
                self._note("System prompt set." if text else "No system prompt any more.")
            case Order("save", name):
                self._save(name)
            case _:
                self._note(f"There is no /{order.name}; /help tells what there is.")

    def _list_models(self) -> None:
        chosen = self._conversation.model
        try:
            names = self._gateway.models()
        except PotluckError as error:
            tell_error(error)
            return
        self._note("\n".join(f"{'*' if name == chosen else ' '} {name}" for name in names) or "No models yet.")
        if chosen is None:
            self._note("None is chosen: each node answers with its own.")

    def _save(self, name: str) -> None:
        if not name:
            self._note("Give a file: /save talk.txt")
            return
        try:
            self._conversation.save(Path(name))
        except FileExistsError:
            self._note(f"{name} exists already and is not replaced.")
        except OSError as error:
            self._note(f"Cannot write {name}: {error.strerror or error}.")
        else:
            self._note(f"Saved to {name}.")

    def _note(self, text: str) -> None:
        """Words of this program, not of a model: on stderr, so that a pipe gets answers only."""
        typer.secho(for_terminal(text), err=True, dim=True)


def _with_line_editing() -> None:
    """Arrow keys and earlier lines at the prompt, where Python has them. Nothing is written to disk."""
    with suppress(ImportError):
        import readline  # noqa: F401 - importing it is what turns it on
