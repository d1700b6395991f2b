"""What a folder says about its model, and what is refused."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from gpu_node.errors import ModelError
from gpu_node.model_folder import ORIGIN_FILE, describe, model_files, sampled_digest, weight_files
from tests.fakes.tiny_model import CHAT_TEMPLATE, CONTEXT, write_tiny_model


def test_a_folder_describes_its_model(tiny_folder: Path) -> None:
    from safetensors.torch import load_file

    model = describe(tiny_folder)
    tensors = load_file(tiny_folder / "model.safetensors")
    assert (model.family, model.quantisation) == ("llama", "F32")
    assert (model.context_length, model.embedding_length) == (CONTEXT, 32)
    assert model.parameter_count == sum(tensor.numel() for tensor in tensors.values())
    assert model.parameter_size.endswith("K")
    assert model.template.strip() == CHAT_TEMPLATE
    assert {tensor.name for tensor in model.tensors} == set(tensors)
    assert model.size_bytes == (tiny_folder / "model.safetensors").stat().st_size


def test_the_digest_is_of_the_content_wherever_it_lies(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    assert describe(copy).digest == describe(tiny_folder).digest
    other = write_tiny_model(tmp_path / "other", seed=1)
    assert describe(other).digest != describe(tiny_folder).digest
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert describe(copy).digest != describe(tiny_folder).digest


def test_a_gguf_file_describes_its_model(tiny_folder: Path, tiny_gguf: Path) -> None:
    model, folder = describe(tiny_gguf), describe(tiny_folder)
    assert (model.family, model.quantisation, model.format) == ("llama", "F32", "gguf")
    assert (model.context_length, model.embedding_length) == (CONTEXT, 32)
    assert model.parameter_count == folder.parameter_count
    assert model.template == CHAT_TEMPLATE
    assert {"blk.0.attn_q.weight", "token_embd.weight"} <= {tensor.name for tensor in model.tensors}
    for key in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "intermediate_size", "vocab_size"):
        assert model.config[key] == folder.config[key]
    assert model.digest == sampled_digest(tiny_gguf)
    assert model.size_bytes == tiny_gguf.stat().st_size


def test_a_folder_of_the_store_leads_to_its_file(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / ORIGIN_FILE).write_text(json.dumps({"weights": str(tiny_gguf), "digest": "d" * 64}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    files = model_files(tmp_path)
    assert (files.weights, files.tokenizer, files.is_gguf) == (tiny_gguf, tmp_path, True)
    model = describe(tmp_path)
    assert (model.digest, model.quantisation, model.tokenizer["eos_token"]) == ("d" * 64, "F32", "<|im_end|>")


def test_files_of_other_kinds_lead_where_they_are(tiny_folder: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    assert model_files(tiny_folder).weights == tiny_folder
    assert model_files(tiny_gguf).tokenizer is None
    with pytest.raises(ModelError, match=r"no config\.json"):
        model_files(tmp_path)


def test_a_sampled_digest_sees_beginning_end_and_size(tmp_path: Path) -> None:
    path, size = tmp_path / "w", 2_000_000
    digests = set()
    for data in (bytes(size), b"x" + bytes(size - 1), bytes(size - 1) + b"x", bytes(size + 1)):
        path.write_bytes(data)
        digests.add(sampled_digest(path))
    assert len(digests) == 4


def test_pickle_without_safetensors_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "p", ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="can run any code"):
        describe(copy)


def test_a_folder_that_lacks_something_says_what(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        weight_files(tmp_path)
    copy = shutil.copytree(tiny_folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match=r"holds no \.safetensors file"):
        weight_files(copy)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "one.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"two\.safetensors is missing"):
        weight_files(copy)


@pytest.mark.parametrize("data", [b"", b"\x01", struct.pack("<Q", 1 << 50), struct.pack("<Q", 4) + b"{,}}"])
def test_a_torn_weight_file_is_one_sentence(tiny_folder: Path, tmp_path: Path, data: bytes) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "m")
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        describe(copy)


def test_a_config_that_is_no_json_is_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "m")
    (copy / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="JSON object"):
        describe(copy)


@pytest.mark.parametrize(
    "header",
    ["[]", '{"a": 1}', '{"a": {"dtype": "F32"}}', '{"a": {"dtype": "F32", "shape": "x"}}', "[" * 100_000],
)
def test_a_header_of_another_kind_is_one_sentence(header: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "other")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        describe(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../b"}}])
def test_an_index_names_files_beside_it(index: dict[str, object], tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "indexed")
    (tmp_path / "b").touch()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="does not say which files"):
        describe(folder)


def test_more_layers_than_tensors_are_refused_before_they_are_built(
    tiny_folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(ModelError, match="claims 1000000000 layers"):
        describe(folder)
    data = tiny_gguf.read_bytes()
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4  # behind the name, the type of the value
    lying = tmp_path / "tower.gguf"
    lying.write_bytes(data[:at] + struct.pack("<I", 10**9) + data[at + 4 :])
    with pytest.raises(ModelError, match="claims 1000000000 layers"):
        describe(lying)
