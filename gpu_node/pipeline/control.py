"""The control link as orders: one frame each, in both directions. Thin; which orders there are is the codec's."""

from __future__ import annotations

from typing import Any

from gpu_node.pipeline.ends import LinkSettings
from gpu_node.pipeline.errors import LinkFault
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.order_codec import MESSAGE_BYTES, OrderCodec
from gpu_node.pipeline.orders_lending import CODEC
from wire.errors import BadPayload
from wire.tensors import DType, TensorFlags, TensorHeader

# The head's. Beats come from a thread beside whatever computes; see `Busy` for what holds them up.
CONTROL_SETTINGS = LinkSettings(frame_bytes=MESSAGE_BYTES)
# The worker's: a head that is gone closes the link, and one that is busy for seconds still needs its workers.
WORKER_SETTINGS = LinkSettings(frame_bytes=MESSAGE_BYTES, silence_seconds=15.0)


class ControlLink:
    """Any thread may send; one receives."""

    def __init__(self, link: Link, codec: OrderCodec = CODEC) -> None:
        self.link, self._codec = link, codec

    def send(self, order: Any) -> None:
        """Raises `LinkError`, and `OutOfBounds` for what the other side would refuse."""
        data = self._codec.pack(order)
        self.link.send(TensorHeader(DType.UINT8, (len(data),), len(data), flags=TensorFlags.LAST), data)

    def receive(self, within_seconds: float | None = None) -> Any:
        """The next order. Raises `LinkError`; what is no order ends the link."""
        frame = self.link.receive(within_seconds=within_seconds)
        try:
            return self._codec.unpack(frame.data)
        except BadPayload as error:
            raise self.link.fail(LinkFault(str(error))) from error
