"""The protocol between a GPU node and its clients: bytes in, events out; events in, bytes out.

Nothing here opens a socket, waits, starts a thread or reads a clock, so any driver can use it and every state can be
tested with byte strings. Only the standard library is imported; compression and a faster checksum come from the driver.
"""
