"""The confirming publisher: a publish that returns is a message the broker has taken over.

Publisher confirms, ``mandatory``, delivery tags matched to messages, a confirm timeout that always
exists (https://www.rabbitmq.com/docs/confirms). A channel about which anything is in doubt is thrown
away. An attempt whose confirm did not come is repeated under the same message id: the consumer's ledger
absorbs the copy.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import timedelta

from kombu import Connection
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

from unlost.broker.attempts import Attempts
from unlost.broker.errors import BrokerUnavailable, ConfirmUnknown, Refused
from unlost.broker.pool import Pool
from unlost.broker.window import Patience, Published, Window
from unlost.core.message import Outgoing

#: What may be otherwise a moment later.
_PASSING = (BrokerUnavailable, Refused, ConfirmUnknown)

#: Seconds between attempts; drawn at random up to these, so that publishers do not come back together.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0


class Publisher:
    """Publishes messages and says of each whether it is confirmed. Safe across threads and forks.

    Args:
        source: Connection parameters; several hosts (``url;url``) are tried in turn.
        confirm_timeout: How long to wait for one confirm before the channel is given up.
        patience: How long to go on trying once the broker was reached.
        connect_patience: How long to go on trying while nothing could be sent at all.
        confirms: Off only for the runs that prove that confirms are needed.
    """

    def __init__(
        self,
        source: Connection,
        *,
        confirm_timeout: timedelta = timedelta(seconds=10),
        patience: timedelta = timedelta(seconds=30),
        connect_patience: timedelta = timedelta(seconds=8),
        confirms: bool = True,
    ) -> None:
        self._confirm_timeout = confirm_timeout
        self._patience = patience
        self._connect_patience = connect_patience
        self._confirms = confirms
        self._pool = Pool(source, confirm_timeout)

    def __repr__(self) -> str:
        return f"Publisher({self._pool!r})"

    def publish(self, message: Outgoing, *, patience: timedelta | None = None) -> None:
        """Publish a message and return when the broker has confirmed that it is queued.

        Args:
            message: What to publish; its AMQP message id stays the same over all attempts.
            patience: How long to go on trying, reached or not; the publisher's own when not given.

        Raises:
            Unroutable: No queue is bound, or the exchange does not exist; nothing is stored.
            Refused: A queue refused it, or the broker blocks publishers; nothing is stored there.
            InvalidMessage: The broker cannot take it as it is; nothing is stored.
            AccessRefused: Wrong user, password, vhost or permission.
            BrokerUnavailable: No connection; nothing was sent.
            ConfirmUnknown: An attempt went out and no confirm came.

        Crash safety:
            A crash before the return leaves the message stored or not; publish again under the same id.
        """
        attempts = Attempts(
            patience=(patience or self._patience).total_seconds(),
            connect_patience=(patience or self._connect_patience).total_seconds(),
        )
        try:
            with attempts.judged():
                self._publish_patiently(message, attempts)
        except ConfirmUnknown as exc:
            exc.sent_by(self.publish)
            raise

    def publish_many(
        self, messages: Iterable[Outgoing], *, window: int = 1000, patience: timedelta | None = None
    ) -> Iterator[Published]:
        """Publish messages with many in flight, and say of each what became of it.

        Args:
            messages: Consumed lazily, never more than ``window`` ahead of what was handed out.
            window: How many may be without an outcome at once; memory is bounded by them.
            patience: How long to go on while nothing gets through (to an address, if its queue refuses),
                before messages fail; the publisher's own when not given.

        Yields:
            The outcome of each message, in the order of the input: never an exception for a message, so
            that one that fails harms no other.

        Raises:
            ValueError: The window holds no message.
            RuntimeError: The iterator was carried over a fork.
            Exception: Whatever the input raises, once all that it gave before has been handed out.

        Crash safety:
            A crash, or an iterator that is closed early, leaves what was taken and not handed out stored
            or not; publish it again under the same ids. Messages that are sent again may come behind
            later ones.
        """
        sending = self.window(window, patience=patience)
        return _outcomes(sending, messages)

    def window(self, size: int = 1000, *, patience: timedelta | None = None) -> Window:
        """Open a window to put messages into one by one; its user closes it.

        Raises:
            ValueError: The size is below 1.
        """
        return Window(
            self._pool,
            size=size,
            patience=Patience(
                confirm=self._confirm_timeout,
                publish=patience or self._patience,
                connect=patience or self._connect_patience,
            ),
            publish=self.publish,
            confirms=self._confirms,
        )

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def _publish_patiently(self, message: Outgoing, attempts: Attempts) -> None:
        try:
            # Nearly always enough, so it does not pay for what only a failure needs.
            self._try(message, attempts)
        except _PASSING:
            if attempts.are_over():
                raise
        else:
            return
        time.sleep(random.uniform(0, _FIRST_PAUSE))  # noqa: S311 - no secret
        for attempt in Retrying(
            retry=retry_if_exception_type(_PASSING),
            stop=attempts.are_over,
            wait=wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
            reraise=True,
        ):
            with attempt:
                self._try(message, attempts)

    def _try(self, message: Outgoing, attempts: Attempts) -> None:
        with attempts.remembered():
            self._publish_once(message, attempts.time_to_connect())

    def _publish_once(self, message: Outgoing, connect_timeout: timedelta) -> None:
        link = self._pool.borrow(connect_timeout)
        try:
            link.publish(message, self._confirm_timeout, confirm=self._confirms)
        except BrokerUnavailable:
            # Found dead. So are the other idle ones, as a rule: a broker that restarted closed them all.
            self._pool.discard(link)
            self._pool.close()
            raise
        except ConfirmUnknown:
            self._pool.discard(link)
            self._pool.avoid(link.place)
            raise
        except BaseException:
            # Whatever it was, the channel may be closed or owe us a confirm: never use it again.
            self._pool.discard(link)
            raise
        self._pool.give_back(link)


def _outcomes(window: Window, messages: Iterable[Outgoing]) -> Iterator[Published]:
    broken: Exception | None = None
    source = iter(messages)
    with closing(window):
        while broken is None:
            try:
                message = next(source)
            except StopIteration:
                break
            except Exception as exc:  # noqa: BLE001 - raised again below, once the others are settled
                broken = exc
            else:
                window.put(message)
                yield from window.settled()
        window.settle()
        yield from window.settled()
    if broken is not None:
        raise broken
