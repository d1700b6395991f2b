"""Phones on a cable (or wireless debugging): followed through an adb server, forwarded to, and put on the list.

`states` and `plan` decide, purely; `server_link` and `sync_service` speak to the adb server; `tracker`, `acquaintances`
and `care_reader` are the loops. adbutils brings the pinned adb binary. Its Python is not used: it has no async API, its
tracker ends with the server, and its push loses bytes where a connection with a time limit takes only part of a piece.
"""
