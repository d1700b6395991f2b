"""Which node holds which conversation, and what coming back or going elsewhere costs. Pure data, `now` is an argument.

A conversation is known by chained hashes over what its prompt is made of (template-relevant fields, then each message);
every prefix that ends in an assistant message is a key. A node's memory is a bounded, ordered set of conversations; how
many of them the node really still holds is learned from how fast it reads a prompt that came home, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from server.exchange import AskRequest, Message
from server.nodes import ModelKey, NodeId

HELD_PER_NODE = 64  # more than any phone holds; bounds memory with thousands of one-question callers
BELIEVED_COLD = 64  # conversations for which a cold reading is believed, then it is tried again
KEYS_IN_ALL = 400_000  # of all nodes together, some 130 MB: each node may keep its share of them
KEYS_PER_CONVERSATION = 64  # older prefixes of a long conversation are not worth their bytes
TEMPLATE_FIELDS = ("system", "template", "tools", "think")
CHARACTERS_PER_TOKEN = 4.0  # before a node has counted for us; English text in common tokenizers
MESSAGE_OVERHEAD_TOKENS = 5  # role markers around each message
WARM_SHARE = 0.5  # read in less than half the cold time: the prefix was held
GAP_BUCKETS = 40
GAP_MEMORY = 1 - 1 / 256  # counts of gaps fade, so that evenings may differ from mornings
USUAL_GAPS = 4.0  # what is assumed of gaps weighs as much as so many that were seen
LEARNING_RATE = 1 / 32  # share of later turns: follows a change of load within some dozens of requests


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request's prompt has in common with earlier ones.

    `prefixes`: keys of the prefixes that end in an assistant message, longest first, each with its estimated tokens.
    `whole`: the hash of everything, the link that the answer's own key continues; `begun` is left out of it: the
    assistant's message that the client has begun itself, and that the answer makes whole.
    """

    prefixes: tuple[tuple[int, int], ...]
    whole: int
    tokens: int
    begun: str = ""
    opening: tuple[int, int] = (0, 0)  # hash and estimated tokens of the leading system messages; tokens 0: none

    @property
    def later_turn(self) -> bool:
        return bool(self.prefixes)


def conversation(request: AskRequest) -> Conversation:
    """Read the keys off a request. Without messages, Ollama's `context` stands for the history."""
    parts = [_canonical(request.fields.get(name)) for name in TEMPLATE_FIELDS]
    link = hash((*parts, request.options.get("num_ctx")))
    if request.operation != "chat":
        return _from_context(request, link)
    prefixes: list[tuple[int, int]] = []
    tokens = 0
    last = len(request.messages) - 1
    begun = ""
    opening = (0, 0)
    for index, message in enumerate(request.messages):
        tokens += _message_tokens(message)
        if message.get("role") == "assistant" and index == last:
            begun = str(message.get("content") or "")
            break
        link = _next_link(link, message)
        if message.get("role") == "system" and opening[1] + _message_tokens(message) == tokens:
            opening = (link, tokens)
        if message.get("role") == "assistant":
            prefixes.append((link, tokens))
    prefixes.reverse()
    return Conversation(tuple(prefixes[:KEYS_PER_CONVERSATION]), link, tokens, begun, opening)


def _from_context(request: AskRequest, link: int) -> Conversation:
    context = request.fields.get("context") or ()
    tokens = round(len(request.prompt) / CHARACTERS_PER_TOKEN) + len(context)
    whole = hash((link, tuple(context), request.prompt))
    return Conversation(((hash(tuple(context)), len(context)),) if context else (), whole, tokens)


def answer_key(whole: int, text: str, context: tuple[int, ...] = ()) -> int:
    """The key under which the next turn will ask for this conversation."""
    if context:
        return hash(context)
    return _next_link(whole, {"role": "assistant", "content": text})


def _next_link(link: int, message: Message) -> int:
    # clients often strip what they send back, and drop the thinking; both must not hide a homecoming
    content = message.get("content")
    text = content.strip() if isinstance(content, str) else ""
    extras = _canonical(message.get("images")), _canonical(message.get("tool_calls"))
    return hash((link, message.get("role"), text, extras))


def _canonical(value: Any) -> Any:
    if not value:
        return None
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _message_tokens(message: Message) -> int:
    content = message.get("content")
    length = len(content) if isinstance(content, str) else 0
    return round(length / CHARACTERS_PER_TOKEN) + MESSAGE_OVERHEAD_TOKENS


@dataclass(slots=True)
class Held:
    """One conversation a node read or told last; `tokens` counts prompt and answer."""

    keys: tuple[int, ...]
    model: ModelKey
    digest: str
    tokens: int
    at: float
    opening: tuple[int, int] = (0, 0)  # see `Conversation`


@dataclass(frozen=True, slots=True)
class Match:
    """A request finds (part of) its conversation at a node: `depth` conversations were there since."""

    tokens: int
    depth: int
    certain: bool  # the node has shown that it holds conversations this deep
    at: float = 0.0  # when it was told last


@dataclass(slots=True)
class NodeMemory:
    """What one node holds, as far as the gateway can know. Newest conversation last."""

    node_id: NodeId
    holders: dict[int, set[NodeId]]  # of all nodes: see `Memories`
    nodes: Callable[[], int] = lambda: 1  # how many share `KEYS_IN_ALL`
    held: dict[int, Held] = field(default_factory=dict)  # by newest key, in the order of writing
    by_key: dict[int, Held] = field(default_factory=dict)
    warm_depth: int = 0  # deepest return that was read warm
    cold_depth: int | None = None  # shallowest return that was read cold
    cold_for: int = 0  # conversations since; one odd reading must not be believed for ever
    went_on_from: int | None = None  # the newest key of what the last one written has replaced
    pinned_contexts: dict[ModelKey, int] = field(default_factory=dict)  # the num_ctx a model was loaded with by us

    def __len__(self) -> int:
        return len(self.held)

    @property
    def capacity(self) -> int:
        """How many conversations it has shown to hold at once."""
        return self.warm_depth + 1

    def find(self, prefixes: Iterable[tuple[int, int]], digest: str) -> Match | None:
        """The longest prefix held here, for the model copy with this digest."""
        for key, estimated in prefixes:
            entry = self.by_key.get(key)
            if entry is None or entry.digest != digest:
                continue
            depth = self._depth(entry)
            if self.cold_depth is not None and max(1, self.cold_depth) <= depth:
                return None  # even then the newest one is asked for: that is how it can show that it holds one
            certain = depth <= self.warm_depth and self.cold_depth != 0
            whole = key == entry.keys[0]
            return Match(entry.tokens if whole else min(estimated, entry.tokens), depth, certain, entry.at)
        return None

    def _depth(self, entry: Held) -> int:
        depth = 0
        for other in reversed(self.held.values()):
            if other is entry:
                return depth
            depth += 1
        return depth

    def write(self, entry: Held, continued: Iterable[tuple[int, int]] = ()) -> None:
        """The node has just told this. An older state of the same conversation (`continued`) is replaced by it."""
        self.went_on_from = None
        for key, _ in continued:
            older = self.by_key.get(key)
            if older is not None:
                self.went_on_from = older.keys[0]
                self._drop(older)
                break
        self.forget_newest(entry.keys[0])
        self.held[entry.keys[0]] = entry
        for key in entry.keys:
            self.by_key[key] = entry
            self.holders.setdefault(key, set()).add(self.node_id)
        self.cold_for += 1
        if self.cold_for > BELIEVED_COLD:
            self.cold_depth = None
        share = KEYS_IN_ALL // max(1, self.nodes())
        while len(self.held) > HELD_PER_NODE or (len(self.by_key) > share and len(self.held) > 1):
            self._drop(next(iter(self.held.values())))

    def learn(self, match: Match, warm: bool) -> None:
        """A conversation came home from `match.depth` and was read warm or cold."""
        if warm:
            self.warm_depth = max(self.warm_depth, match.depth)
            if self.cold_depth is not None and self.cold_depth <= match.depth:
                self.cold_depth = None
        else:
            self.cold_for = 0
            self.cold_depth = match.depth if self.cold_depth is None else min(self.cold_depth, match.depth)
            self.warm_depth = min(self.warm_depth, max(0, match.depth - 1))

    def shared_opening(self, conversation: Conversation, digest: str) -> int:
        """Estimated tokens of the opening that a held conversation has in common with this one."""
        opening = conversation.opening
        if not opening[1]:
            return 0
        shared = any(entry.opening == opening and entry.digest == digest for entry in self.held.values())
        return opening[1] if shared else 0

    def next_lost(self, model: ModelKey) -> Held | None:
        """The conversation that one more would push out; None while there is room."""
        room = self.warm_depth + 1
        for entry in reversed(self.held.values()):
            if entry.model == model:
                room -= 1
                if room == 0:
                    return entry
        return None

    def forget(self, model: ModelKey | None = None) -> None:
        """The model left the node's memory (None: the node itself restarted): nothing of it is held any more."""
        if model is None:
            self.pinned_contexts.clear()
            self.warm_depth, self.cold_depth = 0, None  # it may have come back with more memory, or another version
        else:
            self.pinned_contexts.pop(model, None)
        self.forget_held(model)

    def forget_held(self, model: ModelKey | None) -> None:
        """The model was loaded anew: what it held is gone, the context we want for it is not."""
        for entry in [e for e in self.held.values() if model is None or e.model == model]:
            self._drop(entry)

    def forget_newest(self, key: int) -> None:
        """Drop the conversation whose newest state has this key."""
        entry = self.held.get(key)
        if entry is not None:
            self._drop(entry)

    def _drop(self, entry: Held) -> None:
        self.held.pop(entry.keys[0], None)
        for key in entry.keys:
            if self.by_key.get(key) is entry:
                del self.by_key[key]
                holders = self.holders[key]
                holders.discard(self.node_id)
                if not holders:
                    del self.holders[key]


@dataclass(slots=True)
class Memories:
    """The memories of all nodes, and who holds which key: finding a home must not ask a thousand nodes."""

    by_node: dict[NodeId, NodeMemory] = field(default_factory=dict)
    holders: dict[int, set[NodeId]] = field(default_factory=dict)

    def of(self, node_id: NodeId) -> NodeMemory:
        memory = self.by_node.get(node_id)
        if memory is None:
            memory = self.by_node[node_id] = NodeMemory(node_id, self.holders, self.by_node.__len__)
        return memory

    def forget_elsewhere(self, node_id: NodeId, prefixes: Iterable[tuple[int, int]]) -> None:
        """The conversation went on at `node_id`, which has just written it: where it was before nobody asks for it.

        Only where its newest state is held: many conversations may begin alike, and each has its own way from there.
        Where several hold that, as many clients have said the same so far, and one of them went on: the oldest goes.
        """
        longest = next(iter(prefixes), None)  # it names the conversation; shorter ones may belong to its siblings
        here = self.by_node.get(node_id)
        if longest is None or (here is not None and here.went_on_from == longest[0]):
            return
        key = longest[0]
        left = [self.by_node[other] for other in self.holders.get(key, ()) if other != node_id]
        left = [memory for memory in left if key in memory.held]
        if left:
            min(left, key=lambda memory: memory.held[key].at).forget_newest(key)

    def remove(self, node_id: NodeId) -> None:
        memory = self.by_node.pop(node_id, None)
        if memory is not None:
            memory.forget()


def was_warm(match: Match, prompt_tokens: int, prompt_seconds: float, cold_tokens_per_second: float) -> bool | None:
    """Did the node still hold it, by how fast it read? None when the prompt says too little about it."""
    if prompt_tokens <= 0 or match.tokens < prompt_tokens * WARM_SHARE:
        return None
    return prompt_seconds < WARM_SHARE * prompt_tokens / cold_tokens_per_second


def _gap_bucket(seconds: float) -> int:
    """Half octaves from an eighth of a second to a day: the length of the square as a whole number."""
    bucket = int(seconds * seconds * 64.0).bit_length()
    return bucket if bucket < GAP_BUCKETS else GAP_BUCKETS - 1


@dataclass(slots=True)
class ReturnRate:
    """How likely a conversation comes back, and how soon: learned from the share of later turns in the traffic."""

    share: float = 0.0
    gap_seconds: float = 30.0
    seen: int = 0
    gaps: list[float] = field(default_factory=lambda: [0.0] * GAP_BUCKETS)  # counts that fade
    longer: list[float] = field(default_factory=lambda: [0.0] * GAP_BUCKETS)  # how many of them outlast each bucket

    def observe(self, later_turn: bool) -> None:
        self.seen += 1
        rate = max(LEARNING_RATE, 1 / self.seen)
        self.share += rate * (float(later_turn) - self.share)

    def observe_gap(self, seconds: float) -> None:
        """A conversation came back after so long."""
        self.gap_seconds += LEARNING_RATE * 4 * (max(seconds, 0.001) - self.gap_seconds)
        self.gaps = [count * GAP_MEMORY for count in self.gaps]
        self.gaps[_gap_bucket(seconds)] += 1.0
        above = 0.0
        for bucket in range(GAP_BUCKETS - 1, -1, -1):
            self.longer[bucket] = above + self.gaps[bucket] / 2
            above += self.gaps[bucket]

    def outlasting(self, idle_seconds: float) -> float:
        """The share of gaps that are longer: those seen, and until there are many, what is usual."""
        times = idle_seconds / (3.0 * self.gap_seconds)
        usual = 1.0 / (1.0 + times * times)
        seen = self.longer[0] + self.gaps[0] / 2
        return (USUAL_GAPS * usual + self.longer[_gap_bucket(idle_seconds)]) / (USUAL_GAPS + seen)

    def probability(self, idle_seconds: float) -> float:
        """A turn is followed by another with the probability `share`; the longer nothing came, the less likely.

        Where users think for a minute at most, what has been silent for two has ended: it makes room first.
        """
        if not self.share:
            return 0.0
        follows = self.share * self.outlasting(idle_seconds)
        return follows / (follows + 1.0 - self.share)


def loss_seconds(lost: Held | None, prompt_tokens_per_second: float, rate: ReturnRate, now: float) -> float:
    """Expected seconds of reading anew if this conversation is pushed out of its node."""
    if lost is None:
        return 0.0
    return rate.probability(now - lost.at) * lost.tokens / prompt_tokens_per_second


def continued_keys(conversation: Conversation, text: str, context: tuple[int, ...] = ()) -> tuple[int, ...]:
    """All keys of a conversation after its answer, newest first: regenerating an earlier turn comes home as well."""
    older = (key for key, _ in conversation.prefixes)
    return (answer_key(conversation.whole, conversation.begun + text, context), *older)[:KEYS_PER_CONVERSATION]
