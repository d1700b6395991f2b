"""What loads, in which numbers and with what, and how the rest is refused in one sentence."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import (
    LoadOptions,
    choose,
    choose_device,
    choose_dtype,
    computes_halves,
    load_runner,
    open_source,
)
from gpu_node.engine.runner import Runner
from gpu_node.errors import ModelError
from gpu_node.model_folder import model_files
from tests.fakes.greedy_steps import generated
from tests.fakes.tiny_model import tiny_config, tiny_tokenizer, write_tiny_gguf, write_tiny_model
from tests.gpu_node.engine.driving import greedy
from tests.gpu_node.engine.weights.written_gguf import quantising, tiny_model, write_gguf

CACHE = CacheOptions(block_count=24)
CPU = LoadOptions(device="cpu", kernels="torch", cache=CACHE)  # compiling takes longer than these tests
EXACT = replace(CPU, dtype="float32")
PROMPT = "the quick brown fox"


def answer(path: Path, options: LoadOptions = EXACT, count: int = 20) -> list[int]:
    runner = load_runner(path, options)
    found = greedy(runner, runner.vocabulary.encode(PROMPT), count)
    runner.close()
    return found


@pytest.fixture(scope="module")
def expected(tiny_folder: Path) -> list[int]:
    """By transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    found = generated(model, AutoTokenizer.from_pretrained(tiny_folder)(PROMPT)["input_ids"], 20)
    ends = [at for at, token in enumerate(found) if token in (0, 2)]
    return found[: ends[0] + 1] if ends else found


@pytest.mark.parametrize("layers", ["auto", "plain"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_greedy_tokens_are_those_of_generate(
    tiny_folder: Path, tiny_gguf: Path, expected: list[int], form: str, layers: Any
) -> None:
    path = tiny_folder if form == "folder" else tiny_gguf
    assert answer(path, replace(EXACT, layers=layers)) == expected


def test_a_gguf_answers_like_the_model_that_transformers_makes_of_it(tmp_path: Path, tiny_folder: Path) -> None:
    """Quantised, dequantised by transformers' own reader, and no layer of ours on that side."""
    from transformers import AutoModelForCausalLM, GgufConfig

    path = write_gguf(tiny_model("llama"), "llama", tmp_path / "m.gguf", quantising("Q4_1"))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    source = open_source(model_files(path))
    for name, parameter in theirs.named_parameters():
        mine = torch.empty_like(parameter)
        source.read_into(name, mine)
        assert torch.equal(mine, parameter), name
    source.close()


def test_sharded_safetensors_are_the_same_model(tiny_folder: Path, tmp_path: Path, expected: list[int]) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(tmp_path / "m", max_shard_size="30KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    assert answer(tmp_path / "m") == expected


@pytest.mark.parametrize("family", ["mixtral", "gptneox", "gpt2"])
def test_checkpoints_that_name_their_weights_otherwise_load_too(family: str, tmp_path: Path) -> None:
    """Experts one by one, an output layer by an older name, and a model saved without its prefix."""
    model = tiny_model(family, vocab_size=320, eos_token_id=None)
    (model.base_model if family == "gpt2" else model).save_pretrained(tmp_path)
    check_against_generate(tmp_path, model, "transformers' (There are no own layers")


def test_a_checkpoint_that_only_transformers_can_read_loads_too(tmp_path: Path) -> None:
    """Its router has another name in the files, which we do not know; its layers still lie in one buffer each."""
    from safetensors.torch import save_file
    from transformers import PhimoeConfig, PhimoeForCausalLM

    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "eos_token_id": None, "rope_parameters": None}
    torch.manual_seed(0)
    model = PhimoeForCausalLM(PhimoeConfig(**{**tiny_config().to_dict(), **own})).eval()
    model.config.save_pretrained(tmp_path)
    save_file(as_published(model.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    check_against_generate(tmp_path, model, "transformers' (the files name their weights otherwise)")
    with pytest.raises(ModelError, match="cannot be quantised while it is read: it holds no weight"):
        load_runner(tmp_path, replace(EXACT, weights="int8"))
    forget(tmp_path, "model.layers.0.block_sparse_moe.gate.weight")
    with pytest.raises(ModelError, match="does not fit its own configuration: missing keys"):
        load_runner(tmp_path, EXACT)


def as_published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts one by one, and the router by its first name."""
    found = {}
    for name, tensor in weights.items():
        place, _, last = name.partition(".mlp.")
        if last == "experts.gate_up_proj":
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found[f"{place}.block_sparse_moe.experts.{expert}.w1.weight"] = gate.clone()
                found[f"{place}.block_sparse_moe.experts.{expert}.w3.weight"] = up.clone()
        elif last == "experts.down_proj":
            for expert, down in enumerate(tensor):
                found[f"{place}.block_sparse_moe.experts.{expert}.w2.weight"] = down.clone()
        else:
            found[f"{place}.block_sparse_moe.gate.weight" if last == "router.weight" else name] = tensor.clone()
    return found


def forget(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def check_against_generate(folder: Path, model: Any, layers: str) -> None:
    tiny_tokenizer().save_pretrained(folder)
    runner = load_runner(folder, EXACT)
    prompt = [5, 9, 33, 7]
    found = greedy(runner, prompt, 12)
    assert found == generated(model, prompt, 12)[: len(found)]
    assert runner.summary["layers"].startswith(layers)
    runner.close()


def test_every_way_to_hold_weights_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    path = write_tiny_gguf(folder, tmp_path / "wide.gguf")
    exact = answer(path)
    sizes: dict[str, int] = {}
    for layers in ("auto", "plain"):
        for weights in ("full", "int8", "int4"):
            runner = load_runner(path, replace(EXACT, weights=weights, layers=layers))  # type: ignore[arg-type]
            told = runner.summary
            sizes[f"{layers} {weights}"] = runner.memory_bytes
            assert told["weights"] == weights
            assert (told["weight_error"] is None) == (weights == "full")
            if weights != "full":
                assert any(weights in form for form in told["forms"]), told["forms"]
                assert 0.0005 < told["weight_error"] < 0.2
            runner.close()
    assert exact
    assert sizes["auto full"] > 2 * sizes["auto int8"] > 2.4 * sizes["auto int4"]
    assert sizes["plain full"] > sizes["plain int8"] > sizes["plain int4"]


@pytest.mark.parametrize("layers", ["auto", "plain"])
def test_quantised_files_run_as_they_are_stored(tmp_path: Path, layers: Any) -> None:
    """Logits lie as near to those of the dequantised weights as the reported error says."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=128, vocab_size=320, initializer_range=0.1)
    path = write_gguf(model, "llama", tmp_path / "m.gguf", quantising("Q8_0"))
    add_tokenizer(tmp_path, path)
    told = []
    for weights in ("auto", "full"):
        runner = load_runner(tmp_path / "store", replace(EXACT, layers=layers, weights=weights))  # type: ignore[arg-type]
        told.append(runner.summary)
        runner.close()
    stored, full = told
    assert (stored["weights"], full["weights"]) == ("stored", "full")
    assert any("int8" in form for form in stored["forms"])
    assert stored["weight_bytes"] < 0.4 * full["weight_bytes"]
    assert stored["weight_error"] < 0.02
    assert full["weight_error"] is None


def add_tokenizer(folder: Path, gguf: Path) -> None:
    """A store's folder for a file whose own vocabulary is no real one."""
    tiny_tokenizer().save_pretrained(folder / "store")
    (folder / "store/potluck.json").write_text(json.dumps({"weights": str(gguf)}))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_that_was_asked_for(tiny_folder: Path, name: Any) -> None:
    runner = load_runner(tiny_folder, replace(CPU, dtype=name))
    assert runner.dtype == runner.summary["dtype"] == name
    element = 4 if name == "float32" else 2
    assert runner.memory_bytes == pytest.approx(element * runner.summary["bfloat16_bytes"] / 2, rel=0.05)
    runner.close()


def test_the_stored_type_decides_where_nothing_else_does() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu, torch.float16) is torch.bfloat16, "CPUs have no half precision"
    assert choose_dtype("auto", cuda, torch.float16) is torch.float16
    assert choose_dtype("auto", cpu, torch.float32) is torch.float32
    assert choose_dtype("float16", cpu, torch.float32) is torch.float16


def test_sixteen_bits_are_computed_in_thirty_two_where_the_cpu_has_no_units_for_them(tiny_folder: Path) -> None:
    source = open_source(model_files(tiny_folder))
    for name in ("bfloat16", "float16"):
        choices = choose(replace(CPU, dtype=name), source, torch.device("cpu"))  # type: ignore[arg-type]
        assert choices.compute is (choices.dtype if computes_halves(choices.dtype) else torch.float32)
    assert choose(replace(CPU, dtype="bfloat16"), source, torch.device("cuda")).compute is torch.bfloat16
    source.close()


def test_a_runner_tells_what_loading_came_to(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gpu_node.engine"):
        runner = load_runner(tiny_folder, EXACT)
    told = runner.summary
    assert (told["device"], told["layers"], told["compute"]) == ("cpu", "own", "float32")
    assert told["load_seconds"] > 0
    assert told["cache_blocks"] == 24
    assert runner.memory_bytes == pytest.approx((tiny_folder / "model.safetensors").stat().st_size, rel=0.1)
    assert re.search(r"(199|200|201)% of bfloat16", caplog.text)
    runner.close()


@pytest.mark.parametrize("layers", ["auto", "plain"])
def test_progress_grows_to_the_whole(tiny_folder: Path, layers: Any) -> None:
    seen: list[tuple[int, int]] = []
    load_runner(tiny_folder, replace(EXACT, layers=layers, progress=lambda *now: seen.append(now))).close()
    done = [one for one, _ in seen]
    assert done == sorted(set(done))
    assert len(done) > 4
    assert seen[-1][0] == seen[-1][1]


def test_another_template_may_take_the_place_of_the_models_own(tiny_folder: Path) -> None:
    from gpu_node.engine.sequence import Message

    runner = load_runner(tiny_folder, replace(EXACT, template="{{ messages[0]['content'] }}!"))
    assert runner.vocabulary.render([Message("user", "hi")]) == "hi!"
    runner.close()


def test_threads_are_set_when_asked_for(tiny_folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        load_runner(tiny_folder, replace(EXACT, threads=3)).close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_auto_takes_what_is_there() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


MEASURE = """
import re, sys, torch
from pathlib import Path
from gpu_node.engine.loader import *
torch.set_num_threads(1)
folder, small = Path(sys.argv[1]), Path(sys.argv[2])


def load(path, layers):
    return load_runner(path, LoadOptions("cpu", "float32", layers=layers, cache=CacheOptions(block_count=8)))


def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
for layers in ("auto", "plain"):
    load(small, layers).close()  # libraries are in memory now
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    runner = load(folder, layers)
    print((status("VmHWM") - before) / runner.memory_bytes)
    runner.close()
"""


MEASURE_PARTS = """
import re, sys, torch
from contextlib import closing
from pathlib import Path
from gpu_node.engine.attention import PagedAttention
from gpu_node.engine.layers.recipe import recipe_of
from gpu_node.engine.layers.stage import Share, layered_part
from gpu_node.engine.loader import *
from gpu_node.engine.products.choice import with_kernels
from gpu_node.engine.runner import _free
torch.set_num_threads(1)


def load(path, span):
    with closing(open_source(model_files(Path(path)))) as source:
        recipe = recipe_of(source.config)
        span = span or (0, recipe.layers)
        return layered_part(source, recipe, span, Share(span[1] - span[0], numerics, PagedAttention()))


def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
numerics = with_kernels(Numerics())
load(sys.argv[2], None).close()  # libraries are in memory now
for span in ((0, 3), (3, 7), (7, 9)):
    _free(numerics.device)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    part = load(sys.argv[1], span)
    print((status("VmHWM") - before) / part.holding.bytes)
    part.close()
    del part
if numerics.compiled is not None:
    numerics.compiled.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process's memory so")
def test_a_part_holds_no_more_than_its_own_weights(tiny_folder: Path, tmp_path: Path) -> None:
    """Nine layers of 13 MB, each part loaded alone."""
    from transformers import LlamaForCausalLM

    folder = tmp_path / "large"
    config = tiny_config(hidden_size=512, intermediate_size=1536, num_hidden_layers=9, num_attention_heads=8)
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    command = [sys.executable, "-c", MEASURE_PARTS, str(folder), str(tiny_folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert run.returncode == 0, run.stderr
    shares = [float(share) for share in run.stdout.split()]
    assert len(shares) == 3 and all(0.8 < share < 1.25 for share in shares), run.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process's memory so")
def test_loading_holds_no_second_copy(tiny_folder: Path, tmp_path: Path) -> None:
    """190 MB of weights; the peak of a process of its own, from which nothing can be hidden."""
    from transformers import LlamaForCausalLM

    folder = tmp_path / "large"
    config = tiny_config(hidden_size=768, intermediate_size=3072, num_hidden_layers=5, num_attention_heads=12)
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    command = [sys.executable, "-c", MEASURE, str(folder), str(tiny_folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert run.returncode == 0, run.stderr
    assert all(0.9 < float(share) < 1.25 for share in run.stdout.split()), run.stdout


def test_a_closed_runner_has_given_its_weights_back(tiny_folder: Path) -> None:
    runner: Runner = load_runner(tiny_folder, EXACT)
    runner.close()
    with pytest.raises(AssertionError):
        assert runner.cache is None
