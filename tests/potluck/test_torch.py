"""The torch plug-ins against a real node, held equal to transformers on the same weights."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from potluck import InvalidRequest, Misuse, Relay, TensorData
from potluck.torch import RemoteCausalLM, RemoteModule, from_torch, pipeline, to_torch
from tests.fakes.relay_node import Refusal
from tests.potluck.played import playing
from wire.frames import FrameType
from wire.messages_session import Error, ErrorCode
from wire.messages_work import Load

CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def local(node):
    return LlamaForCausalLM.from_pretrained(node.folder).eval()


@pytest.fixture(scope="module")
def relay(node):
    with Relay(node.place) as relay:
        yield relay


@pytest.fixture(scope="module")
def remote(relay, node):
    return RemoteCausalLM(relay, node.model)


IDS = torch.tensor([[5, 9, 40, 77, 12], [8, 8, 100, 3, 250]])


def test_logits_are_those_of_the_model_itself(remote, local):
    with torch.no_grad():
        torch.testing.assert_close(remote(IDS).logits, local(IDS).logits, **CLOSE)
        assert remote(IDS[0]).logits.shape == (5, 320)
        last = remote(IDS, logits_to_keep=1).logits
        torch.testing.assert_close(last, local(IDS).logits[:, -1:], **CLOSE)


def test_one_row_lies_where_it_was_received(remote):
    logits = remote(IDS[:1]).logits
    assert logits.shape == (1, 5, 320)
    assert logits.untyped_storage().nbytes() == 5 * 320 * 4
    logits += 1  # it is the caller's own memory


@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
def test_padding_on_either_side_changes_nothing(remote, local, mask):
    masks = torch.tensor([mask, [1] * 5])
    text = IDS[0][torch.tensor(mask).bool()]
    with torch.no_grad():
        logits = remote(IDS, attention_mask=masks).logits
        torch.testing.assert_close(logits[0][torch.tensor(mask).bool()], local(text[None]).logits[0], **CLOSE)
        torch.testing.assert_close(logits[1], local(IDS[1:]).logits[0], **CLOSE)
    assert not logits[0][~torch.tensor(mask).bool()].any()


def test_hidden_states_and_embeddings(remote, local):
    with torch.no_grad():
        embeddings = local.get_input_embeddings()(IDS)
        hidden = local.model(IDS).last_hidden_state
        output = remote(inputs_embeds=embeddings, output_hidden_states=True)
        torch.testing.assert_close(output.hidden_states[-1], hidden, **CLOSE)
        torch.testing.assert_close(output.logits, local(IDS).logits, **CLOSE)
        assert output[0] is output.logits is output["logits"] and output[1] is output.hidden_states
        assert remote(IDS, output_logits=False, output_hidden_states=True).logits is None


def test_results_have_the_type_that_the_inputs_ask_for(relay, node, local):
    embeddings = local.get_input_embeddings()(IDS).detach().to(torch.bfloat16)
    assert RemoteModule(relay, node.model)(inputs_embeds=embeddings).logits.dtype == torch.bfloat16
    assert RemoteModule(relay, node.model, dtype=torch.float16)(IDS).logits.dtype == torch.float16
    assert RemoteModule(relay, node.model)(IDS.to(torch.int32)).logits.dtype == torch.float32


def test_it_is_for_inference_only(remote, local):
    with pytest.raises(Misuse, match="trained"):
        remote.train()
    assert not remote.training
    embeddings = local.get_input_embeddings()(IDS)
    with pytest.raises(Misuse, match="gradient"):
        remote(inputs_embeds=embeddings)
    with torch.no_grad():
        remote(inputs_embeds=embeddings)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"input_ids": IDS, "inputs_embeds": torch.zeros(1, 1, 32)},
        {"input_ids": IDS.float()},
        {"input_ids": IDS, "attention_mask": torch.tensor([[1, 0, 1, 1, 1], [1] * 5])},
        {"input_ids": IDS, "attention_mask": torch.tensor([[0] * 5, [1] * 5])},
        {"input_ids": IDS, "attention_mask": torch.ones(2, 4)},
        {"input_ids": IDS, "labels": IDS},
        {"input_ids": IDS, "use_cache": True},
        {"input_ids": IDS, "logits_to_keep": 2},
    ],
)
def test_what_a_node_cannot_do_is_refused(remote, wrong):
    with pytest.raises(Misuse):
        remote(**wrong)


def test_greedy_generation_equals_transformers(remote, local):
    expected = local.generate(IDS, max_new_tokens=24, do_sample=False, pad_token_id=2)
    assert torch.equal(remote.generate(IDS, max_new_tokens=24), expected)


def test_generation_ends_behind_an_end_token(remote, local):
    free = local.generate(IDS[:1], max_new_tokens=24, do_sample=False)[0, 5:].tolist()
    end = free[6]
    expected = local.generate(IDS, max_new_tokens=24, do_sample=False, eos_token_id=end, pad_token_id=0)
    told = remote.generate(IDS, max_new_tokens=24, eos_token_id=end, pad_token_id=0)
    assert torch.equal(told, expected)
    assert told[0, 5:].tolist().index(end) == free.index(end)


def test_penalty_bias_and_least_length_are_those_of_transformers(remote, local):
    options = {"max_new_tokens": 12, "repetition_penalty": 1.3, "sequence_bias": {(7,): 4.0}, "min_new_tokens": 4}
    expected = local.generate(IDS[:1], do_sample=False, pad_token_id=2, **options)
    assert torch.equal(remote.generate(IDS[:1], **options), expected)


def test_left_padding_is_taken_off_for_the_node(remote, local):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    told = remote.generate(IDS, attention_mask=mask, max_new_tokens=8)
    alone = remote.generate(IDS[:1, 2:], max_new_tokens=8)
    assert told[0, 5:].tolist() == alone[0, 3:].tolist()
    assert told[:, :5].equal(IDS)


def test_sampling_follows_torchs_generator_and_the_seed(remote):
    def drawn(**options):
        return remote.generate(IDS[:1], max_new_tokens=10, do_sample=True, num_return_sequences=3, **options)

    torch.manual_seed(3)
    first = drawn()
    torch.manual_seed(3)
    assert torch.equal(drawn(), first)
    assert not torch.equal(drawn(), first)
    assert torch.equal(drawn(seed=5), drawn(seed=5))
    assert len({tuple(row.tolist()) for row in first}) > 1


class Streamer:
    def __init__(self):
        self.told, self.ended = [], False

    def put(self, value):
        self.told.append(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_a_streamer_hears_the_prompt_and_every_token(remote):
    streamer = Streamer()
    whole = remote.generate(IDS[:1], max_new_tokens=6, streamer=streamer)
    assert streamer.told[0] == IDS[0].tolist()
    assert [id for ids in streamer.told[1:] for id in ids] == whole[0, 5:].tolist()
    assert streamer.ended
    with pytest.raises(Misuse, match="one answer"):
        remote.generate(IDS, streamer=Streamer())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"logits_processor": [print]}, "logits_processor"),
        ({"max_new_token": 4}, "max_new_tokens"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"num_return_sequences": 2}, "do_sample"),
        ({"max_length": 3}, "max_length"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"max_time": 1.0}, "max_time"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_by_name(remote, options, name):
    with pytest.raises(Misuse, match=name):
        remote.generate(IDS, **options)


def test_options_that_are_off_are_accepted(remote):
    told = remote.generate(IDS, max_new_tokens=2, num_beams=1, use_cache=True, logits_processor=[], bad_words_ids=None)
    assert told.shape == (2, 7)


def test_the_pipeline_tells_texts_and_chats(remote, node):
    tell = pipeline("text-generation", model=remote)
    [record] = tell("the quick brown", max_new_tokens=8)
    assert record["generated_text"].startswith("the quick brown")
    [short] = tell("the quick brown", max_new_tokens=8, return_full_text=False)
    assert record["generated_text"] == "the quick brown" + short["generated_text"]
    tokenizer = AutoTokenizer.from_pretrained(node.folder)
    ids = tokenizer("the quick brown", return_tensors="pt").input_ids
    expected = tokenizer.decode(remote.generate(ids, max_new_tokens=8)[0, ids.shape[1] :], skip_special_tokens=True)
    assert short["generated_text"].rstrip("\ufffd") == expected.rstrip("\ufffd")
    chat = [{"role": "user", "content": "hello"}]
    [told] = tell(chat, max_new_tokens=4)
    assert told["generated_text"][:-1] == chat and told["generated_text"][-1]["role"] == "assistant"
    both = tell(["a model", chat], max_new_tokens=3, do_sample=True, num_return_sequences=2, seed=1)
    assert [len(records) for records in both] == [2, 2]
    with pytest.raises(Misuse):
        pipeline("fill-mask", model=remote)
    with pytest.raises(Misuse, match="max_new_tokens"):
        tell("x", max_length=9)


def test_a_model_that_the_node_let_go_is_loaded_again():
    gone = Error(ErrorCode.BAD_REQUEST, "not loaded", details=(("field", "model"),))
    with playing() as played, Relay(played.place) as relay:
        module = RemoteModule(relay, "tiny", context_tokens=64)
        played.node.script.refusals.append(Refusal(FrameType.RUN, gone))
        assert module(torch.tensor([1, 2])).logits.argmax(-1).tolist() == [2, 3]
        assert [load.options for load in played.node.asked(Load)] == [(("context_tokens", 64),)] * 2
        other = Error(ErrorCode.BAD_REQUEST, "wrong", details=(("field", "inputs"),))
        played.node.script.refusals.append(Refusal(FrameType.RUN, other))
        with pytest.raises(InvalidRequest):
            module(torch.tensor([1, 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int64])
def test_tensors_travel_in_every_type(relay, dtype):
    source = torch.arange(6).reshape(2, 3).to(dtype)
    with relay.tensor(from_torch(source)) as there:
        back = to_torch(there.get())
    assert back.dtype == dtype and back.shape == (2, 3)
    assert torch.equal(back.view(torch.uint8), source.view(torch.uint8))


def test_memory_is_shared_where_it_can_be():
    source = torch.arange(4.0)
    taken = from_torch(source)
    source[0] = 9
    assert taken.tolist() == [9.0, 1.0, 2.0, 3.0]
    assert to_torch(TensorData(memoryview(bytearray(4)), "float32", ())).shape == ()
    assert to_torch(TensorData(memoryview(b""), "float32", (0, 3))).shape == (0, 3)
    assert from_torch(source[::2]).tolist() == [9.0, 2.0]
