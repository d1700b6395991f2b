"""What a fake adb daemon can do on its phone: run the few commands that we send, lead to a port, keep files."""

from __future__ import annotations

import asyncio
import shlex
import stat
import struct
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: {usb}
  status: {status}
  health: 2
  present: true
  level: {level}
  scale: 100
  voltage: 4100
  temperature: {tenths}
  technology: Li-ion
"""
THERMAL = """IsStatusOverride: false
Thermal Status: {status}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=31.0, mType=3, mName=skin, mStatus={status}}}
"""
FILE_MODE = stat.S_IFREG | 0o644
FOLDER_MODE = stat.S_IFDIR | 0o755
Told = str | tuple[str, int] | None  # what a program prints; with its status; None: it does not know these words


class Stream:
    """One stream of the transport: written piece by piece, each after the last was taken."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]], most: int) -> None:
        self.reader = asyncio.StreamReader()
        self.ready = asyncio.Event()
        self._write, self._most = write, most
        self._open = True

    def feed(self, piece: bytes) -> None:
        self.reader.feed_data(piece)

    def close(self) -> None:
        if self._open:
            self._open = False
            self.reader.feed_eof()
            self.ready.set()

    async def write(self, content: bytes) -> None:
        for start in range(0, len(content), self._most):
            if not self._open:
                raise ConnectionResetError("the other side has closed the stream")
            self.ready.clear()
            await self._write(content[start : start + self._most])
            await self.ready.wait()


@dataclass
class SyncFaults:
    """What goes wrong with files. `after_bytes` of a file the phone stalls, or its daemon breaks off."""

    stall: bool = False
    break_off: bool = False
    after_bytes: int = 0


class Services:
    def __init__(self, serialno: str, model: str, ports: dict[int, int]) -> None:
        self.ports = ports
        self.log: list[str] = []
        self.files: dict[str, bytes] = {}
        self.settings: dict[str, str] = {}
        self.ram_bytes = 8 << 30
        self.free_bytes = 20 << 30
        self.full = False  # the storage, though `df` says otherwise
        self.sync_faults = SyncFaults()
        self.boot = str(uuid.uuid5(uuid.NAMESPACE_OID, serialno))  # the same by both ways to a phone
        self.addresses: list[str] = []  # in Wi-Fi
        self.whitelist: set[str] = set()
        self.granted: set[str] = set()
        self.am_error = ""
        self.packages = {"com.termux": "null"}  # and who installed each
        self.properties = {
            "ro.serialno": serialno,
            "ro.product.model": model,
            "ro.build.version.release": "14",
            "ro.build.version.sdk": "34",
            "ro.product.cpu.abi": "arm64-v8a",
            "ro.board.platform": "gs201",
            "ro.hardware": "panther",
        }
        self._programs = self._installed()
        self.dumps: dict[str, str] = {}
        self.tell_battery()
        self.tell_heat()

    def _installed(self) -> dict[str, Callable[[list[str]], Told]]:
        return {
            "echo": lambda words: " ".join(words) + "\n",
            "getprop": self._getprop,
            "cat": self._cat,
            "ip": self._ip,
            "dumpsys": self._dumpsys,
            "settings": self._settings,
            "device_config": self._settings,
            "pm": self._pm,
            "appops": self._appops,
            "am": self._am,
            "input": lambda _: "",
            "df": self._df,
            "mv": self._mv,
            "rm": self._rm,
            "mkdir": self._mkdir,
        }

    def tell_battery(self, level: int = 80, celsius: float = 25.0, charging: bool = True) -> None:
        status = 2 if charging else 3
        usb = str(charging).lower()
        self.dumps["battery"] = BATTERY.format(usb=usb, status=status, level=level, tenths=round(celsius * 10))

    def tell_heat(self, status: int = 0) -> None:
        self.dumps["thermalservice"] = THERMAL.format(status=status)

    async def run(self, service: str, stream: Stream, accept: Callable[[], None]) -> None:
        """Serve the stream to its end. Not to accept it is to refuse it."""
        kind, _, rest = service.partition(":")
        if kind == "tcp":
            await self._lead(int(rest), stream, accept)
        elif kind == "sync":
            accept()
            await self._sync(stream)
        elif kind.startswith("shell,v2"):
            accept()
            said, status = self.command(rest)
            await stream.write(struct.pack("<BI", 1, len(said)) + said)
            await stream.write(struct.pack("<BIB", 3, 1, status))
        elif kind.startswith(("shell", "exec")):
            accept()
            await stream.write(self.command(rest)[0])

    def command(self, text: str) -> tuple[bytes, int]:
        """What it prints and its status."""
        self.log.append(text)
        said, status = "", 0
        for part in filter(str.strip, text.split(";")):
            words = [word.replace("$?", str(status)) for word in shlex.split(part)]
            told, status = self._one(words)
            said += told
        return said.encode(), status

    def _one(self, words: list[str]) -> tuple[str, int]:
        told = self._programs.get(words[0], _unknown)(words[1:])
        return (told, 0) if isinstance(told, str) else told or _missing(words[0])

    def _getprop(self, words: list[str]) -> Told:
        return self.properties.get(words[0], "") + "\n"

    def _cat(self, words: list[str]) -> Told:
        if words != ["/proc/sys/kernel/random/boot_id", "/proc/meminfo"]:
            return None
        return f"{self.boot}\nMemTotal:        {self.ram_bytes // 1024} kB\nMemFree:          204800 kB\n"

    def _ip(self, words: list[str]) -> Told:
        lines = [f"{n}: wlan0    inet {one}/24 brd + scope global\n" for n, one in enumerate(self.addresses, 2)]
        return "".join(["1: lo    inet 127.0.0.1/8 scope host lo\n", *lines]) if words == ["-o", "addr"] else None

    def _dumpsys(self, words: list[str]) -> Told:
        match words:
            case ["deviceidle", "whitelist", change]:
                self.whitelist.add(change.lstrip("+"))
                return f"Added: {change.lstrip('+')}\n"
            case ["deviceidle", "whitelist"]:
                return "".join(f"user,{name},10123\n" for name in self.whitelist)
            case ["package", name]:
                granted = "".join(f"    {each}: granted=true\n" for each in sorted(self.granted))
                return f"Packages:\n  Package [{name}]\n{granted}"
            case [name]:
                return self.dumps.get(name, f"Can't find service: {name}\n")
        return None

    def _settings(self, words: list[str]) -> Told:
        """Of `settings` and of `device_config`; a value counts whatever it stands in."""
        match words:
            case ["get", _, name]:
                return self.settings.get(name, "null") + "\n"
            case ["put", _, name, value]:
                self.settings[name] = value
                return ""
            case ["set_sync_disabled_for_tests", value]:
                self.settings["sync_disabled"] = value
                return ""
        return None

    def _pm(self, words: list[str]) -> Told:
        match words:
            case ["list", "packages", "-i", name]:
                found = [f"package:{key}  installer={by}\n" for key, by in self.packages.items() if name in key]
                return "".join(found)
            case ["grant", _, permission]:
                self.granted.add(permission)
                return ""
        return None

    def _appops(self, words: list[str]) -> Told:
        match words:
            case ["set", "--uid", _, operation, "allow"]:
                self.granted.add(operation)
                return ""
        return None

    def _am(self, words: list[str]) -> Told:
        if words[:1] != ["start"]:
            return None
        return (f"Starting: Intent\nError type 3\nError: {self.am_error}\n", 1) if self.am_error else ""

    def _df(self, words: list[str]) -> Told:
        head = "Filesystem     1K-blocks     Used Available Use% Mounted on\n"
        return f"{head}/dev/fuse      52428800 31457280 {self.free_bytes // 1024:9} 60% {words[-1]}\n"

    def _mv(self, words: list[str]) -> Told:
        self.files[words[-1]] = self.files.pop(words[-2])
        return ""

    def _rm(self, words: list[str]) -> Told:
        self.files.pop(words[-1], None)
        return ""

    def _mkdir(self, words: list[str]) -> Told:
        self.files.setdefault(words[-1].rstrip("/") + "/", b"")
        return ""

    async def _lead(self, port: int, stream: Stream, accept: Callable[[], None]) -> None:
        """To the real port behind the phone's; refused where there is none."""
        if port not in self.ports:
            return
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[port])
        except OSError:
            return
        accept()
        tasks = [asyncio.create_task(_pour_in(stream, writer)), asyncio.create_task(_pour_out(reader, stream))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.transport.abort()  # before anything is waited for: the wait may be cancelled, too
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sync(self, stream: Stream) -> None:
        while True:
            name, size = struct.unpack("<4sI", await stream.reader.readexactly(8))
            if name == b"QUIT":
                return
            path = (await stream.reader.readexactly(size)).decode()
            if name == b"STAT":
                await stream.write(b"STAT" + struct.pack("<3I", *self._stat(path)))
            elif name == b"LIST":
                await self._list(path.rstrip("/") + "/", stream)
            elif name == b"SEND":
                await self._receive(path.rpartition(",")[0], stream)
            elif name == b"RECV":
                await self._tell_file(path, stream)
            else:
                await _fail(stream, f"unknown command {name!r}")
                return

    def _stat(self, path: str) -> tuple[int, int, int]:
        """Mode, size and time; zeros for what is not there."""
        if path in self.files:
            return FILE_MODE, len(self.files[path]), int(time.time())
        folder = path.rstrip("/") + "/"
        return (FOLDER_MODE, 0, int(time.time())) if any(name.startswith(folder) for name in self.files) else (0, 0, 0)

    async def _list(self, folder: str, stream: Stream) -> None:
        inside = {path.removeprefix(folder).partition("/")[0] for path in self.files if path.startswith(folder)}
        for name in sorted(inside - {""}):
            content = name.encode()
            await stream.write(b"DENT" + struct.pack("<4I", *self._stat(folder + name), len(content)) + content)
        await stream.write(b"DONE" + bytes(16))

    async def _receive(self, path: str, stream: Stream) -> None:
        content = bytearray()
        while True:
            name, size = struct.unpack("<4sI", await stream.reader.readexactly(8))
            if name == b"DONE":  # its number is the time of the file
                break
            content += await stream.reader.readexactly(size)
            if len(content) >= self.sync_faults.after_bytes:
                if self.sync_faults.stall:
                    await asyncio.get_running_loop().create_future()
                if self.sync_faults.break_off:
                    raise ConnectionResetError("the daemon was killed")
        self.files[path] = bytes(content)[:4096] if self.full else bytes(content)
        if self.full:
            await _fail(stream, "couldn't write to file: No space left on device")
        else:
            await stream.write(b"OKAY" + bytes(4))

    async def _tell_file(self, path: str, stream: Stream) -> None:
        if path not in self.files:
            await _fail(stream, "No such file or directory")
            return
        content = self.files[path]
        for start in range(0, len(content), 65536):
            piece = content[start : start + 65536]
            await stream.write(b"DATA" + struct.pack("<I", len(piece)) + piece)
        await stream.write(b"DONE" + bytes(4))


def _unknown(_: list[str]) -> Told:
    return None


def _missing(program: str) -> tuple[str, int]:
    return f"/system/bin/sh: {program}: inaccessible or not found\n", 127


async def _fail(stream: Stream, words: str) -> None:
    await stream.write(b"FAIL" + struct.pack("<I", len(words)) + words.encode())


async def _pour_in(stream: Stream, writer: asyncio.StreamWriter) -> None:
    while piece := await stream.reader.read(65536):
        writer.write(piece)
        await writer.drain()


async def _pour_out(reader: asyncio.StreamReader, stream: Stream) -> None:
    while piece := await reader.read(65536):
        await stream.write(piece)
