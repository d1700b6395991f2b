"""What loads, on what, and how the rest is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from gpu_node.engine.loader import (
    LoadOptions,
    choose_device,
    convert_gguf,
    end_ids,
    load_runner,
    multiplies_slowly,
    widen_long_products,
)
from gpu_node.engine.sequence import Bounds, GenerationRequest, Message, RawPrompt, SamplingOptions
from gpu_node.errors import ModelError
from tests.fakes.tiny_model import CHAT_TEMPLATE, write_tiny_model

CPU = LoadOptions(device="cpu")


def greedy(folder: Path, prompt: str) -> tuple[int, ...]:
    runner = load_runner(folder, LoadOptions(device="cpu", dtype="float32"))
    request = GenerationRequest(RawPrompt(prompt), SamplingOptions(0.0, repeat_penalty=1.0), Bounds(256, 20))
    return runner.generate(request, lambda token: None, threading.Event()).context


def test_a_gguf_becomes_a_folder_with_the_same_weights_tokenizer_and_template(
    tiny_gguf: Path, tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    convert_gguf(tiny_gguf, tmp_path)
    assert capfd.readouterr() == ("", "")
    converted, original = load_file(tmp_path / "model.safetensors"), load_file(tiny_folder / "model.safetensors")
    assert converted.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(converted[name], tensor.to(torch.bfloat16)), name
    mine, theirs = load_runner(tmp_path, CPU).vocabulary, load_runner(tiny_folder, CPU).vocabulary
    for text in ("the quick brown fox", "<|im_start|>user\nzażółć 😀<|im_end|>"):
        assert mine.encode(text) == theirs.encode(text)
        assert mine.decode(mine.encode(text)) == theirs.decode(theirs.encode(text))
    assert (tmp_path / "chat_template.jinja").read_text().strip() == CHAT_TEMPLATE
    assert load_runner(tmp_path, CPU).dtype == "bfloat16"


def test_digits_stand_alone_where_the_vocabulary_learned_them_so(tiny_gguf: Path, tmp_path: Path) -> None:
    convert_gguf(tiny_gguf, tmp_path)
    steps = json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert steps[0] == {"type": "Digits", "individual_digits": True}


def test_sharded_safetensors_are_the_same_model(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(tmp_path / "m", max_shard_size="30KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    assert greedy(tmp_path / "m", "the quick") == greedy(tiny_folder, "the quick")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_that_was_asked_for(tiny_folder: Path, name: str) -> None:
    assert load_runner(tiny_folder, LoadOptions("cpu", name)).dtype == name  # type: ignore[arg-type]


def test_half_precision_files_run_as_bfloat16_on_a_cpu(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_tiny_model(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    assert load_runner(folder, CPU).dtype == "bfloat16"


def test_a_runner_knows_where_it_is_and_what_it_weighs(tiny_folder: Path) -> None:
    runner = load_runner(tiny_folder, CPU)
    assert runner.device == "cpu"
    assert runner.memory_bytes == pytest.approx((tiny_folder / "model.safetensors").stat().st_size, rel=0.1)


def test_another_template_may_take_the_place_of_the_models_own(tiny_folder: Path) -> None:
    runner = load_runner(tiny_folder, LoadOptions("cpu", template="{{ messages[0]['content'] }}!"))
    assert runner.vocabulary.render([Message("user", "hi")]) == "hi!"


def test_threads_are_set_when_asked_for(tiny_folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        load_runner(tiny_folder, LoadOptions("cpu", threads=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_long_products_are_wide_and_short_ones_are_as_they_were() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 32).to(torch.bfloat16)
    wide = torch.nn.Sequential(torch.nn.Linear(64, 32).to(torch.bfloat16))
    wide[0].load_state_dict(plain.state_dict())
    widen_long_products(wide)
    few, many = torch.randn(1, 1, 64).to(torch.bfloat16), torch.randn(1, 50, 64).to(torch.bfloat16)
    assert torch.equal(wide(few), plain(few))
    exact = many.float() @ plain.weight.float().T + plain.bias.float()
    assert torch.equal(wide(many), exact.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("dtype", "capability", "slow"),
    [
        (torch.bfloat16, "AVX2", True),
        (torch.float16, "DEFAULT", True),
        (torch.bfloat16, "AVX512", False),
        (torch.float32, "AVX2", False),
    ],
)
def test_only_cpus_without_the_units_for_it_multiply_slowly(dtype: torch.dtype, capability: str, slow: bool) -> None:
    assert multiplies_slowly(dtype, capability) is slow


def test_every_way_to_say_where_an_answer_ends_counts(tiny_folder: Path) -> None:
    runner = load_runner(tiny_folder, CPU)
    assert runner.vocabulary.end_ids == {0, 2}  # <|endoftext|> by its name, <|im_end|> by every way

    class Nothing:
        eos_token_id = None

        def get_vocab(self) -> dict[str, int]:
            return {"<end_of_turn>": 9, "word": 3}

    class Several:
        generation_config = type("G", (), {"eos_token_id": [4, 5]})
        config = type("C", (), {"eos_token_id": 6})

    assert end_ids(Several(), Nothing()) == {4, 5, 6, 9}


def test_auto_takes_what_is_there() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(ModelError, match="no CUDA device"):
        choose_device("cuda")


def test_what_cannot_be_loaded_is_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "odd")
    config = json.loads((tmp_path / "odd/config.json").read_text())
    (tmp_path / "odd/config.json").write_text(json.dumps({**config, "model_type": "no_such_model"}))
    with pytest.raises(ModelError, match="odd cannot be loaded") as caught:
        load_runner(tmp_path / "odd", CPU)
    assert "\n" not in str(caught.value)


def test_broken_weights_are_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "torn")
    weights = tmp_path / "torn/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="torn cannot be loaded"):
        load_runner(tmp_path / "torn", CPU)


def test_code_that_comes_with_a_model_is_never_run(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own-code"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="own-code cannot be loaded"):
        load_runner(folder, CPU)
    assert not (tmp_path / "ran").exists()
