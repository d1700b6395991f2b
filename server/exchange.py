"""One request and the events that answer it: the values every part of the gateway passes on.

Requests are kept in Ollama's shape (messages, options, fields), since most nodes speak it; other dialects are
translated at the edges. A request's events end in exactly one `Done` or `Failed`; a client that leaves closes the
stream instead. Knows nothing of HTTP, nodes' states or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NewType

from server.errors import GatewayError

RequestId = NewType("RequestId", str)
CallerId = NewType("CallerId", str)
Operation = Literal["chat", "generate", "embed"]
CacheOutcome = Literal["hit", "miss", "joined", "off"]
HomecomingOutcome = Literal["home", "elsewhere", "new"]  # where a conversation that came back went
Message = Mapping[str, Any]  # {"role", "content", "images"?, "tool_calls"?, "thinking"?, "tool_name"?}


@dataclass(frozen=True, slots=True)
class AskRequest:
    """What a caller wants, independent of the dialect it came in.

    `model` is None for "whatever the node has". `fields` holds the rest of Ollama's body under Ollama's names:
    format, tools, think, keep_alive, raw, system, template, suffix, context, images, logprobs, top_logprobs, truncate,
    input and dimensions (embed). Values have been checked; nothing is None in it.
    """

    id: RequestId
    caller: CallerId
    operation: Operation
    model: str | None = None
    messages: Sequence[Message] = ()
    prompt: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0  # higher goes first, within one caller only
    deadline_seconds: float | None = None
    cacheable: bool = False  # this caller and dialect want the answer cache
    dialect: str = "ask"

    @property
    def deterministic(self) -> bool:
        """Would the same request give the same answer? (temperature 0 or a seed)"""
        return self.options.get("temperature") == 0 or "seed" in self.options


@dataclass(frozen=True, slots=True)
class Started:
    """First event of every stream: whether the answer comes from the cache, joins another, or is made anew."""

    cache: CacheOutcome


@dataclass(frozen=True, slots=True)
class Queued:
    """Still waiting for a slot; `position` counts from 1."""

    position: int


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer, as the node cut it. `tokens` is how many of the model's tokens it holds.

    `ids` are those tokens where the node tells them; they may be ahead of their text, or have told it before.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[Any, ...] = ()
    logprobs: tuple[Any, ...] = ()
    tokens: int = 1
    ids: tuple[int, ...] | None = None  # None: this node tells none

    @property
    def is_heard(self) -> bool:
        """Is there anything in it for the client?"""
        return bool(self.text or self.thinking or self.tool_calls or self.logprobs)


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer as far as it has come elsewhere: its tokens, and how many UTF-8 bytes of its text were handed on."""

    ids: tuple[int, ...]
    text_bytes: int


@dataclass(frozen=True, slots=True)
class Embedding:
    vectors: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Durations:
    """What the node says it spent, in nanoseconds (0 where it does not say)."""

    total: int = 0
    load: int = 0
    prompt: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class NodeDone:
    """A node's own last record: why it stopped and what it counted."""

    reason: str  # stop, length, load, unload, tool_calls …
    model: str
    usage: Usage = Usage()
    durations: Durations = Durations()
    context: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeShare:
    """Which node told how much of the answer, and how it came to go on (first, retry, chat, raw, replay)."""

    node: str
    tokens: int
    way: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds since the request came in."""

    queue: float
    first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class Done:
    """The whole answer is out. Counts and durations are summed over all nodes that told a part of it."""

    reason: str
    model: str
    node: str
    usage: Usage
    durations: Durations
    timings: Timings
    attempts: int
    nodes: tuple[NodeShare, ...]
    cache: CacheOutcome = "off"
    homecoming: HomecomingOutcome = "new"
    context: tuple[int, ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        if self.durations.generation > 0:
            return self.usage.completion_tokens / (self.durations.generation / 1e9)
        return None


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer ends here, for this reason. Text told before stays told."""

    error: GatewayError
    model: str = ""
    node: str = ""  # the last one tried
    attempts: int = 0
    nodes: tuple[NodeShare, ...] = ()
    homecoming: HomecomingOutcome = "new"


Event = Started | Queued | Token | Embedding | Done | Failed
NodeEvent = Token | Embedding | NodeDone
