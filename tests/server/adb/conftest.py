"""The lab's fixtures: a real adb server, a tracker that follows it, an Ollama."""

from tests.server.adb.lab import lab_fixture, ollama_fixture, server_fixture

__all__ = ["lab_fixture", "ollama_fixture", "server_fixture"]
