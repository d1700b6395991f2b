"""The asyncio side of `wire/`, for both roles: sockets, TLS, streams that tasks wait on, and the choice to compress.

Imported by the GPU node, the gateway and the client library alike, so it imports none of them: only the standard
library, `wire`, lz4, and isal where it is installed. Plain code starts at `driver.Driver` and `streams.Stream`.
"""
