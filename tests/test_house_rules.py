"""What holds for every tracked file: no trace of one machine, no package index, no weights, readable sizes."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LARGEST_BYTES = 1 << 20
LONGEST_FILE = 400
LONGEST_FUNCTION = 80
# Put together here, so that this file does not hold what it looks for.
INDEXES = ("py" + "pi", "python" + "hosted", "npm" + "js", "down" + "load.pytorch", "deb" + "ian")
INDEX_ADDRESS = re.compile(r"://[a-z0-9.-]*(" + "|".join(INDEXES) + r")[a-z0-9]*\.")
# What a phone has under proot-distro is the same on every phone.
HOME_OF_SOMEBODY = re.compile(
    r"(?<![\w.])/(ho" + r"me/[a-z][\w-]*|Us" + r"ers/[a-z][\w-]*|ro" + r"ot)/(?!\.ollama|mobile-llm)"
)
WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".pkl", ".whl")
SOURCE = ("wire", "transport", "server", "gpu_node", "potluck", "scripts")


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    kept = [path for path in ROOT.rglob("*") if not any(part.startswith((".", "__")) for part in path.parts)]
    return [path for path in kept if path.is_file()]


FILES = _tracked()
TEXTS = {path: data.decode() for path in FILES if b"\0" not in (data := path.read_bytes())}
PYTHON = {path: text for path, text in TEXTS.items() if path.suffix == ".py"}


def _lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_there_is_something_to_look_at() -> None:
    assert len(TEXTS) > 50
    assert ROOT / "LICENSE" in TEXTS


def test_no_path_of_one_machine() -> None:
    assert _lines_with(HOME_OF_SOMEBODY) == []
    assert _lines_with(re.compile(re.escape(f"{ROOT}/"))) == []


def test_no_address_of_a_package_index() -> None:
    assert _lines_with(INDEX_ADDRESS) == []


@pytest.mark.parametrize(
    "line",
    ["https://files.py" + "thonhosted.org/x", "http://mirror.py" + "pi.example/simple", "https://deb.deb" + "ian.org"],
)
def test_an_address_of_an_index_would_be_seen(line: str) -> None:
    assert INDEX_ADDRESS.search(line)


@pytest.mark.parametrize("line", ["see /ho" + "me/anna/potluck", "open('/Us" + "ers/ben/x')", "cd /ro" + "ot/x"])
def test_a_path_of_one_machine_would_be_seen(line: str) -> None:
    assert HOME_OF_SOMEBODY.search(line)


def test_no_weights_and_nothing_large() -> None:
    large = [path.name for path in FILES if path.stat().st_size > LARGEST_BYTES or path.suffix in WEIGHTS]
    assert large == []


def test_texts_end_with_a_line_end_and_have_no_carriage_returns() -> None:
    recorded = ROOT / "tests" / "recordings"  # byte for byte as they were
    texts = {path: text for path, text in TEXTS.items() if recorded not in path.parents and text}
    assert [str(path) for path, text in texts.items() if "\r" in text or not text.endswith("\n")] == []


def test_files_of_source_can_be_read_in_one_go() -> None:
    lengths = {str(path.relative_to(ROOT)): text.count("\n") for path, text in PYTHON.items()}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_can_be_read_in_one_go() -> None:
    long = []
    for path, text in PYTHON.items():
        if path.relative_to(ROOT).parts[0] not in SOURCE:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines")
    assert long == []


def test_every_module_of_source_says_what_it_is() -> None:
    modules = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in SOURCE and PYTHON[path].strip()]
    assert [str(path.relative_to(ROOT)) for path in modules if not ast.get_docstring(ast.parse(PYTHON[path]))] == []


def test_the_licence_is_the_apache_one() -> None:
    text = TEXTS[ROOT / "LICENSE"]
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
