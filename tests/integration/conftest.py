"""A real adb server and a tracker that follows it, for the stories of phones on cables."""

from tests.server.adb.lab import lab_fixture, server_fixture

__all__ = ["lab_fixture", "server_fixture"]
