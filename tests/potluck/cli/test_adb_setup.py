"""`potluck adb setup` over a real adb server and fake phones: what is asked, pushed, changed, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from potluck.cli import app
from potluck.cli.adb_setup import Wish, changes_for, checked_model, free_bytes, set_up
from potluck.cli.reports import STOPPED
from potluck.errors import Misuse
from server.adb.server_link import ServerLink
from server.adb.states import Transport
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd
from tests.potluck.cli.conftest import SERIAL

SCRIPT, MODEL = "/sdcard/potluck/phone_setup.sh", "/sdcard/potluck/models/tiny.gguf"
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A script and a model, and the options that name them."""
    script, model = tmp_path / "phone_setup.sh", tmp_path / "tiny.gguf"
    script.write_text("echo set up\n")
    model.write_bytes(CONTENT)
    return ["--script", str(script), "--model-file", str(model)]


async def run(server: RealAdbServer, words: Sequence[str], said: str = "") -> Result:
    arguments = ["adb", "setup", *words, "--server", f"127.0.0.1:{server.port}"]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, said)


async def test_it_pushes_changes_and_opens_termux(server: RealAdbServer, phone: FakeAdbd, files: list[str]) -> None:
    result = await run(server, ["--yes", "--type", "--model", "tiny", *files])
    assert result.exit_code == 0, result.output
    services = phone.services
    assert services.files[SCRIPT] == b"echo set up\n" and services.files[MODEL] == CONTENT
    assert not [path for path in services.files if path.endswith(".part")]
    assert services.settings == {"settings_enable_monitor_phantom_procs": "false"}
    assert services.whitelist == {"com.termux"}
    assert "android.permission.READ_EXTERNAL_STORAGE" in services.granted
    assert "am start -n com.termux/.app.TermuxActivity" in services.log
    assert "input text bash%s/sdcard/potluck/phone_setup.sh%s--usb%stiny" in services.log

    again = await run(server, ["--yes", *files])
    assert "is there already" in again.output and again.output.count("done before") == 3


async def test_it_asks_first_and_a_no_changes_nothing(server: RealAdbServer, phone: FakeAdbd, files: list[str]) -> None:
    result = await run(server, files, "n\nn\nn\n")
    assert result.exit_code == 0, result.output
    services = phone.services
    assert services.settings == {} and services.whitelist == services.granted == set()
    assert result.output.count("left as it is") == 3
    assert "type this there" in result.output and "bash /sdcard/potluck/phone_setup.sh --usb" in result.output


async def test_nobody_there_to_answer_changes_nothing(server: RealAdbServer, phone: FakeAdbd, files: list[str]) -> None:
    result = await run(server, files)
    assert result.exit_code == 1
    assert phone.services.settings == {} and phone.services.whitelist == phone.services.granted == set()


async def test_ctrl_c_at_a_question_ends_it_at_once(server: RealAdbServer, phone: FakeAdbd, files: list[str]) -> None:
    pipe = asyncio.subprocess.PIPE
    words = [*files, "--server", f"127.0.0.1:{server.port}"]
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "potluck", "adb", "setup", *words, stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert program.stdout is not None
    await program.stdout.readuntil(b"[y/N]")
    program.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        await program.wait()  # while nothing is typed and stdin stays open
    _, said = await program.communicate()
    assert program.returncode in (1, STOPPED) and b"Traceback" not in said, said
    assert phone.services.settings == {} and phone.services.whitelist == set()


async def test_several_phones_are_asked_about_once_more_and_those_that_are_named_are_not(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    async with FakeAdbd("S2") as other, FakeAdbd("S3", trust=False) as stranger:
        await server.link.connect(other.address)
        await server.link.connect(stranger.address)
        refused = await run(server, files, "n\n")
        assert refused.exit_code == 1 and "Set up these 2 phones" in refused.output
        assert phone.services.files == other.services.files == {}

        named = await run(server, [SERIAL, phone.address, "--yes", *files])  # by its number and by its way: once
        assert named.exit_code == 0 and named.output.count("Termux is open") == 1, named.output
        assert SCRIPT in phone.services.files and other.services.files == {}

        both = await run(server, ["--yes", *files])
        assert both.exit_code == 0 and both.output.count("Termux is open") == 2, both.output
        assert SCRIPT in other.services.files
        untrusted = await run(server, [stranger.address, "--yes", *files])
        assert untrusted.exit_code == 1 and "tap Allow" in untrusted.output


async def test_one_phone_that_fails_does_not_keep_the_others_from_it(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    phone.services.packages.clear()
    async with FakeAdbd("S2") as other:
        await server.link.connect(other.address)
        result = await run(server, ["--yes", *files])
        assert result.exit_code == 1 and "Termux is not installed" in result.output
        assert phone.services.files == {} and other.services.files[MODEL] == CONTENT


async def test_no_phone_an_unknown_one_and_missing_files_are_sentences(
    server: RealAdbServer, files: list[str], tmp_path: Path
) -> None:
    none = await run(server, ["--yes", *files])
    assert none.exit_code == 1 and "USB debugging" in none.output
    unknown = await run(server, ["NOBODY", *files])
    assert unknown.exit_code == 2 and "no phone 'NOBODY'" in unknown.output
    missing = await run(server, ["--model-file", "nowhere.gguf", *files])
    assert missing.exit_code == 2 and "there is no file nowhere.gguf" in missing.output
    (tmp_path / "model.safetensors").touch()
    other_kind = await run(server, ["--model-file", str(tmp_path / "model.safetensors"), *files])
    assert other_kind.exit_code == 2 and "is no GGUF file, no folder" in other_kind.output
    script = await run(server, ["--script", str(tmp_path / "none.sh")])
    assert script.exit_code == 2 and "name it with --script" in script.output


async def test_a_folder_of_safetensors_and_a_model_of_a_store_arrive_as_they_lay_here(
    server: RealAdbServer, phone: FakeAdbd, files: list[str], tmp_path: Path
) -> None:
    folder, blob = tmp_path / "My model's", f"sha256-{'a' * 64}"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(CONTENT)
    store = tmp_path / "store"
    manifest = store / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"config": {"digest": blob.replace("-", ":")}, "layers": []}))
    (store / "blobs").mkdir()
    (store / "blobs" / blob).write_bytes(CONTENT)
    words = [*files[:2], "--yes", "--model-file", str(folder), "--model-file", str(store)]
    result = await run(server, words)
    assert result.exit_code == 0, result.output
    there = "/sdcard/potluck/models"
    pushed = {path: content for path, content in phone.services.files.items() if not path.endswith("/")}
    assert pushed == {
        SCRIPT: b"echo set up\n",
        f"{there}/My model's/config.json": b"{}",
        f"{there}/My model's/model.safetensors": CONTENT,
        f"{there}/blobs/{blob}": CONTENT,
        f"{there}/manifests/registry.ollama.ai/library/tiny/latest": manifest.read_bytes(),
    }
    again = await run(server, words)
    assert again.output.count("is there already") == 2 and again.exit_code == 0


@pytest.mark.parametrize("name", ["x; reboot", "--uninstall", "$(id)", "a b", "x'y"])
async def test_what_is_no_models_name_is_never_typed(
    server: RealAdbServer, phone: FakeAdbd, files: list[str], name: str
) -> None:
    result = await run(server, ["--yes", "--type", f"--model={name}", *files])
    assert result.exit_code == 2 and "no model's name" in result.output
    assert phone.services.log == []
    assert checked_model("hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M") and checked_model("") == ""


async def test_a_phone_without_room_is_told_before_anything_is_pushed(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    phone.services.free_bytes = 1 << 20
    result = await run(server, ["--yes", *files])
    assert result.exit_code == 1 and "0.0 GB free" in result.output and phone.services.files == {}


async def test_storage_that_fills_up_in_mid_file_is_the_phones_own_words_and_leaves_no_part(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    phone.services.full = True
    result = await run(server, ["--yes", *files])
    assert result.exit_code == 1 and "No space left on device" in result.output, result.output
    assert [path for path in phone.services.files if not path.endswith("/")] == []
    assert "bash /sdcard" not in result.output


async def test_a_file_has_its_name_only_when_it_is_whole(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    named: list[str] = []

    class Noted(dict[str, bytes]):
        def __setitem__(self, path: str, content: bytes) -> None:
            named.append(path)
            super().__setitem__(path, content)

    phone.services.files = Noted()
    assert (await run(server, ["--yes", *files])).exit_code == 0
    assert named == [f"{SCRIPT}.part", SCRIPT, f"{MODEL}.part", MODEL]


async def test_a_phone_that_keeps_less_than_it_was_sent_is_not_believed(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    class Short(dict[str, bytes]):
        def __setitem__(self, path: str, content: bytes) -> None:
            super().__setitem__(path, content[:4096])

    phone.services.files = Short()
    result = await run(server, ["--yes", *files])
    assert result.exit_code == 1 and f"has 4096 bytes on the phone instead of {len(CONTENT)}" in result.output
    assert MODEL not in phone.services.files and f"{MODEL}.part" not in phone.services.files


async def test_a_setting_that_the_phone_does_not_take_is_told(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    class Locked(dict[str, str]):
        def __setitem__(self, name: str, value: str) -> None:
            """As on phones whose maker has the last word."""

    phone.services.settings = Locked()
    result = await run(server, ["--yes", *files])
    assert result.exit_code == 0 and result.output.count("the phone did not take it") == 1
    assert "adb shell settings put global settings_enable_monitor_phantom_procs false" in result.output


async def test_a_push_that_breaks_off_is_a_sentence_and_the_next_one_goes_through(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    phone.services.sync_faults.break_off, phone.services.sync_faults.after_bytes = True, 100_000
    result = await run(server, ["--yes", *files])
    assert result.exit_code == 1 and "broke off in mid-file" in result.output, result.output
    assert MODEL not in phone.services.files
    phone.services.sync_faults.break_off = False
    assert (await run(server, ["--yes", *files])).exit_code == 0
    assert phone.services.files[MODEL] == CONTENT


async def test_a_phone_that_stalls_in_mid_file_ends_in_a_sentence(
    server: RealAdbServer, phone: FakeAdbd, tmp_path: Path
) -> None:
    phone.services.sync_faults.stall = True
    model = tmp_path / "tiny.gguf"
    model.write_bytes(bytes(4 << 20))
    link = ServerLink(port=server.port, patience=0.5)
    wish = Wish([(model, MODEL)], "", type_it=False, agree=lambda _: True)
    with pytest.raises(Misuse, match=r"no answer within 0\.5 s from the phone's sync service"):
        await set_up(link, Transport(phone.address, "device"), wish)
    assert MODEL not in phone.services.files


async def test_a_termux_that_cannot_be_opened_is_not_said_to_be_open(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    phone.services.am_error = "Activity class {com.termux/.app.TermuxActivity} does not exist."
    result = await run(server, ["--yes", "--type", *files])
    assert result.exit_code == 0 and "open Termux, type this there" in result.output
    assert not [command for command in phone.services.log if command.startswith("input")]


async def test_a_termux_of_the_play_store_is_warned_about(
    server: RealAdbServer, phone: FakeAdbd, files: list[str]
) -> None:
    phone.services.packages = {"com.termux": "com.android.vending", "com.termux.boot": "null"}
    assert "the Play Store's" in (await run(server, ["--yes", *files])).output


# Android 10, 11, 12, 12L, 13, 14
@pytest.mark.parametrize(("sdk", "commands"), [(29, 3), (30, 4), (31, 6), (32, 5), (33, 5), (34, 5)])
def test_each_android_gets_what_it_understands(sdk: int, commands: int) -> None:
    changes = changes_for(sdk)
    told = [command for change in changes for command in change.commands]
    assert len(told) == commands
    assert any("device_config" in command for command in told) == (sdk == 31)
    assert any("settings put" in command for command in told) == (sdk >= 32)
    assert any("MANAGE_EXTERNAL_STORAGE" in command for command in told) == (sdk >= 30)


def test_a_setting_is_as_wanted_only_when_the_phone_says_so() -> None:
    killer, doze, files = changes_for(34)
    assert killer.is_made("false\n") and not killer.is_made("null") and not killer.is_made("not false at all")
    assert doze.is_made("user,com.other,1\nuser,com.termux,10123\n") and not doze.is_made("user,com.termux.api,10\n")
    assert files.is_made("   android.permission.READ_EXTERNAL_STORAGE: granted=true, flags=[ x ]\n")
    assert not files.is_made("   android.permission.READ_EXTERNAL_STORAGE: granted=false\n")


@pytest.mark.parametrize(
    ("said", "free"),
    [
        ("Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/fuse 100 60 40 60% /storage/emulated\n", 40 << 10),
        ("Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/a long name\n 100 60 40 60% /sdcard", 40 << 10),
        ("df: /sdcard: Permission denied", None),
        ("", None),
        ("Filesystem 1K-blocks Used Available\n", None),
    ],
)
def test_what_is_free_is_read_or_not_known(said: str, free: int | None) -> None:
    assert free_bytes(said) == free
