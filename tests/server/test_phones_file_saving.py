"""The fleet file as it is written: whole or not at all, with what stood around it, and with nobody's edit lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from server.nodes import NodeId, NodeSpec
from server.phones_entry import entry_of, spec_of
from server.phones_file import edit, load, save
from tests.server.test_phones_file import fits_schema

SPECS = (
    spec_of({"host": "a"}),
    spec_of({"host": "b", "weight": "auto", "model": ["x", "y"], "tags": ["t"], "enabled": False, "name": "Ä"}),
    spec_of({"host": "r", "kind": "relay"}),
    spec_of({"host": "r", "kind": "relay", "port": 11434, "tls": True}),
    spec_of({"host": "s", "kind": "relay", "tls": "certificate.pem"}),
    spec_of({"host": "::1", "kind": "openai", "port": 8000, "continues_final_message": True, "model": "x"}),
)


def test_what_is_saved_is_read_again(tmp_path: Path):
    path = tmp_path / "phones.json"
    save(path, SPECS)
    assert load(path) == SPECS
    assert json.loads(path.read_text())[0] == {"host": "a"}
    assert os.listdir(tmp_path) == ["phones.json"]


def test_mode_link_and_schema_stay(tmp_path: Path):
    real, link = tmp_path / "real.json", tmp_path / "phones.json"
    real.write_text('{"$schema": "docs/phones.schema.json", "phones": []}')
    real.chmod(0o640)
    link.symlink_to(real)
    save(link, SPECS)
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert json.loads(real.read_text())["$schema"] == "docs/phones.schema.json"
    assert load(link) == SPECS


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "phones.json"
    save(path, SPECS)
    broken = NodeSpec(NodeId("x"), "\ud800", "ollama", "x", 1)  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        save(path, [broken])
    assert load(path) == SPECS and os.listdir(tmp_path) == ["phones.json"]


def test_who_reads_while_it_is_written_has_the_old_file_whole(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "10.0.0.1"}]')
    with path.open() as reader:
        save(path, SPECS)
        assert reader.read() == '[{"host": "10.0.0.1"}]'
    assert load(path) == SPECS


def test_what_an_editor_saves_in_the_middle_of_a_change_is_kept(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "10.0.0.1"}]')
    seen: list[list[str]] = []

    def change(specs: tuple[NodeSpec, ...]) -> list[NodeSpec]:
        seen.append([spec.host for spec in specs])
        if len(seen) == 1:
            path.write_text('[{"host": "10.0.0.1"}, {"host": "10.0.0.2"}]')
        return [*specs, NodeSpec(NodeId("x"), "x", "ollama", "10.0.0.3", 11434)]

    edit(path, change)
    assert seen == [["10.0.0.1"], ["10.0.0.1", "10.0.0.2"]]
    assert [spec.host for spec in load(path)] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert os.listdir(tmp_path) == ["phones.json"]


def test_who_writes_on_and_on_is_given_way(tmp_path: Path):
    path = tmp_path / "phones.json"
    numbers = iter(range(100))

    def change(specs: tuple[NodeSpec, ...]) -> tuple[NodeSpec, ...]:
        path.write_text(f'[{{"host": "10.0.0.{next(numbers)}"}}]')
        return SPECS

    with pytest.raises(OSError, match="others write"):
        edit(path, change)
    assert load(path)[0].host == "10.0.0.4" and os.listdir(tmp_path) == ["phones.json"]


def test_a_change_that_changes_nothing_writes_nothing(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text('[{"port": 11434, "host": "10.0.0.1"}]')
    edit(path, lambda specs: specs)
    assert path.read_text() == '[{"port": 11434, "host": "10.0.0.1"}]'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_of_the_file_stays_its_owner(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text("[]")
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    save(path, SPECS)
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 2345, 0o640)


@pytest.mark.parametrize("spec", SPECS)
def test_an_entry_means_its_node_and_the_node_its_entry(spec: NodeSpec):
    entry = entry_of(spec)
    assert spec_of(entry) == spec and fits_schema([entry])
