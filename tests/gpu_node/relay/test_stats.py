"""STATS: what the node tells of itself, within one frame."""

from __future__ import annotations

from dataclasses import replace

from gpu_node import __version__
from gpu_node.relay.stats import fitting
from gpu_node.relay_descriptions import description_of
from tests.gpu_node.relay.relayed import answer, failure, generate, scripted
from tests.gpu_node.serving import DESCRIPTION, NAME, Fleet, Model
from transport.errors import Refused
from wire.messages import encode_message
from wire.messages_session import ErrorCode
from wire.messages_stats import DeviceRecord, HolderRecord, ModelRecord, Stats


async def test_it_tells_models_devices_and_who_holds_what() -> None:
    async with scripted(Fleet(models=(Model(NAME), Model("other:1b")))) as (here, fleet):
        link = await here.connect()
        fleet.script(NAME).counters.output_tokens = 5
        await answer(link, generate(keep_alive_seconds=60.0))
        stats = await link.ask(Stats())
        assert isinstance(stats, Stats)
        values = dict(stats.values)
        assert (values["version"], values["slots"], values["main_model"]) == (__version__, 2, NAME)
        assert (values["sessions"], values["connections"], values["streams"], values["running"]) == (1, 1, 1, 0)
        main, other = stats.models
        assert (main.name, other.name, main.family, main.quantisation) == (NAME, "other:1b", "llama", "Q4_1")
        assert main.parameters == (("temperature", 0.2), ("stop", ("<end>",)))
        (resident,) = stats.residents
        assert (resident.model, resident.state, resident.slots, resident.device) == (NAME, "ready", 2, "cpu")
        assert resident.seconds_left == 60.0 and resident.context_tokens == 4096
        held = here.host.held
        assert (resident.device_bytes, resident.cache_bytes) == (held.total_bytes, held.cache_bytes)
        account = here.residents.accounts[0]
        assert stats.devices == (
            DeviceRecord("cpu", "cpu", account.budget_bytes, account.free_bytes, account.used_bytes),
        )
        assert stats.holders == (HolderRecord(NAME, "model", held.total_bytes, "idle"),)


def test_a_node_with_more_than_fits_leaves_the_last_out() -> None:
    models = tuple(ModelRecord(f"model {number}", digest="d" * 128) for number in range(4096))
    holders = tuple(HolderRecord("o" * 500, "model") for _ in range(4096))
    told = fitting(Stats((("version", "1"),), models, (), (), holders))
    encode_message(told)
    assert 0 < len(told.models) < 4096 and told.models == models[: len(told.models)]
    small = Stats(models=models[:2])
    assert fitting(small) is small


async def test_a_model_that_is_asked_for_by_name_is_described() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        plain = await link.ask(Stats())
        told = await link.ask(Stats((("model", "smollm2"),)))
        assert isinstance(plain, Stats) and isinstance(told, Stats)
        values = dict(told.values)
        assert (values["template"], values["licence"]) == ("{{ messages }}", "Apache-2.0")
        assert values["info.llama.attention.head_count"] == 9 and values["info.tokenizer.ggml.add_bos_token"] is False
        assert not any(name.startswith("info.") for name, _ in plain.values) and told.models == plain.models
        refused = await failure(link, Stats((("model", "nobody"),)))
        assert isinstance(refused, Refused) and refused.code is ErrorCode.MODEL_NOT_FOUND


def test_a_description_leaves_out_what_is_too_long() -> None:
    long = replace(DESCRIPTION, template="x" * 70_000, config={"num_attention_heads": 9, "vocab_size": [1]})
    told = dict(description_of("m", long, None))
    assert "template" not in told and told["licence"] == "Apache-2.0"
    assert "info.llama.vocab_size" not in told and "info.tokenizer.ggml.add_bos_token" not in told
