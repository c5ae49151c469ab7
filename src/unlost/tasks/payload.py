"""The size of what is published: a warning above one limit, a refusal above another, before a byte is sent.

RabbitMQ closes the channel upon a message over its ``max_message_size`` (16 MiB by default from 4.0 on, 128
MiB before), and a quorum queue keeps every body in its log and in memory on each replica.
"""

from __future__ import annotations

import logging

from unlost.broker.errors import InvalidMessage
from unlost.config import Settings
from unlost.core.message import Outgoing

logger = logging.getLogger(__name__)


def guard(message: Outgoing, settings: Settings) -> None:
    """Look at a message's size; its content is shown to nobody.

    Raises:
        InvalidMessage: The broker would refuse it; nothing was sent.
    """
    body = message.body
    if len(body) * 4 <= settings.payload_warning:
        return
    size = len(body.encode()) if isinstance(body, str) else len(body)
    if size > settings.payload_limit:
        raise InvalidMessage(
            f"{message.describe()}: {size} bytes are more than payload_limit={settings.payload_limit}, so it "
            "was not sent. Store the data and send a reference; or raise payload_limit together with "
            "the broker's max_message_size."
        )
    if size > settings.payload_warning:
        logger.warning(
            "%s carries %d bytes, more than the %d of payload_warning: a queue keeps them on every replica; "
            "store the data and send a reference",
            message.describe(),
            size,
            settings.payload_warning,
        )
