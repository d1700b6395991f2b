"""A node's id stays for its folder and port, and no two nodes of a machine share one."""

from __future__ import annotations

from pathlib import Path

from gpu_node.identity import FILE_NAME, SECRET_BYTES, identity_of, kept_secret

HERE = ("0.0.0.0", 8765)


def test_the_id_stays_and_the_incarnation_grows(tmp_path: Path) -> None:
    first, second = identity_of(tmp_path, HERE, "tower"), identity_of(tmp_path, HERE, "tower")
    assert first.node_id == second.node_id
    assert len(first.node_id) == 16
    assert second.incarnation >= first.incarnation
    assert first.name == "tower"
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_nodes_of_one_folder_differ_by_port_and_those_of_any_port_always(tmp_path: Path) -> None:
    ids = [identity_of(tmp_path, ("0.0.0.0", port)).node_id for port in (8765, 8767, 0, 0)]
    assert len(set(ids)) == 4


def test_nodes_that_share_a_folder_differ_by_machine_and_by_address(tmp_path: Path) -> None:
    seats = [("0.0.0.0", "attic"), ("0.0.0.0", "cellar"), ("10.0.0.1", "attic"), ("127.0.0.1", "attic")]
    ids = {identity_of(tmp_path, (host, 8765), "same", machine).node_id for host, machine in seats * 2}
    assert len(ids) == len(seats)


def test_other_folders_are_other_nodes(tmp_path: Path) -> None:
    assert identity_of(tmp_path / "a", HERE).node_id != identity_of(tmp_path / "b", HERE).node_id


def test_a_file_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"short")
    made = kept_secret(tmp_path / FILE_NAME)
    assert len(made) == SECRET_BYTES
    assert kept_secret(tmp_path / FILE_NAME) == made


def test_where_nothing_can_be_kept_the_node_starts_all_the_same(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert identity_of(blocked, HERE).node_id != identity_of(blocked, HERE).node_id


def test_without_a_name_it_has_the_hosts(tmp_path: Path) -> None:
    assert identity_of(tmp_path, HERE, machine="attic").name == "attic"
    assert identity_of(tmp_path, HERE, machine="").name == "node"
    assert identity_of(tmp_path, HERE).name
