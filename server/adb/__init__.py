"""Phones on a cable (or wireless debugging): followed through an adb server, forwarded to, and put on the list.

`states` and `plan` decide, purely; `server_link` speaks to the adb server; `tracker` and `care_reader` are the loops.
adbutils has no async API and its device tracker ends with the server, so the loops speak the server's own few words
over asyncio; adbutils brings the pinned adb binary and pushes files for the command line, where blocking is right.
"""
