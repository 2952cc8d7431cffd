"""Link over MQTT with paho.

MQTT 5 is tried first. A broker that refuses it, closes the connection (RabbitMQ before 3.13) or
says nothing (amqtt, which waits for the rest of what it cannot read) is asked again in 3.1.1, and
so on in turn, ever more patiently, until one is taken. Sessions are opened with
``clean_start=False``: mosquitto queues for a session that was opened otherwise, but does not
save it to disk.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any, Final, Literal

from paho.mqtt.client import (
    MQTT_ERR_SUCCESS,
    Client,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
)
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgeml.errors import InternalError
from edgeml.link.base import ConnectionHandler, Handler, LinkMessage, Will
from edgeml.link.match import dispatch, tell
from edgeml.messages.payloads import MAX_PAYLOAD

logger = logging.getLogger(__name__)

Protocol = Literal["auto", "5", "3.1.1"]
#: Topic, header and properties that a packet holds beside its payload.
_PACKET_OVERHEAD: Final = 64 << 10
#: Messages that wait inside paho while connected; what is beyond is refused.
_MAX_QUEUED: Final = 1000
#: Seconds between looks at how paho's thread fares.
_LOOK: Final = 0.5
#: Seconds that a broker has for its first answer before the other protocol is tried.
_PATIENCE: Final = 2.0


class MqttLink:
    """A connection to an MQTT broker that comes back by itself (see ``edgeml.link.base.Link``).

    Args:
        host: Name or address of the broker.
        port: Its port.
        client_id: Our id; also the name of the session.
        will: What the broker says for us when we are gone.
        protocol: ``5``, ``3.1.1``, or ``auto`` for the first that the broker takes.
        session_expiry: Seconds for which the broker keeps our session while we are away
            (MQTT 5; in 3.1.1 the broker decides).
        keepalive: Seconds between signs of life.
        username: For brokers that ask for one.
        password: Belongs to ``username``.
        backoff: Shortest and longest wait between attempts, in seconds. The wait doubles from
            a random start, so that a fleet does not come back in step.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        will: Will | None = None,
        *,
        protocol: Protocol = "auto",
        session_expiry: int = 7 * 24 * 3600,
        keepalive: int = 30,
        username: str | None = None,
        password: str | None = None,
        backoff: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        """Keep the settings; ``open`` connects."""
        self._host, self._port, self._client_id, self._will = host, port, client_id, will
        self._session_expiry, self._keepalive = session_expiry, keepalive
        self._account, self._backoff = (username, password), backoff
        self._auto = protocol == "auto"
        self._five = protocol != "3.1.1"
        self._subscriptions: list[tuple[str, Handler]] = []
        self._connection_handlers: list[ConnectionHandler] = []
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._keeper: threading.Thread | None = None
        self._loop_thread = 0  # identity of the thread that runs the handlers
        self._connected = threading.Event()
        self._answered = False  # whether this attempt got an answer to its CONNECT
        self._asked = 0.0  # when it was sent; 0 when there is no socket
        self._changes = 0  # of protocol since the last connection
        self._asked_for: set[str] = set()  # by that packet
        self._subscribing: int | None = None  # packet that subscribes us after a connect
        self._rebuild = threading.Event()
        self._closing = threading.Event()

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now."""
        return self._connected.is_set()

    @property
    def protocol(self) -> str:
        """The protocol in use, or tried next: ``5`` or ``3.1.1``."""
        return "5" if self._five else "3.1.1"

    def subscribe(self, pattern: str, handler: Handler) -> None:
        """Hand every message that fits ``pattern`` to ``handler``, now and after reconnects."""
        with self._lock:
            self._subscriptions.append((pattern, handler))
            client = self._client
        if client is not None and self.connected:
            client.subscribe(pattern, qos=1)

    def on_connection(self, handler: ConnectionHandler) -> None:
        """Call ``handler(True)`` after every connect, ``handler(False)`` after every loss."""
        with self._lock:
            self._connection_handlers.append(handler)

    def open(self) -> None:
        """Start to connect, and return at once.

        Raises:
            InternalError: The link is open, or was closed.
        """
        with self._lock:
            if self._keeper is not None or self._closing.is_set():
                raise InternalError("a link is opened once")
            name = f"link-{self._client_id}"
            self._keeper = threading.Thread(target=self._keep, name=name, daemon=True)
            self._keeper.start()

    def wait_connected(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for a connection; tell whether there is one."""
        return self._connected.wait(timeout)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        qos: int = 1,
        expiry: int | None = None,
    ) -> bool:
        """Send a message; False when there is no connection or too much waits already.

        Raises:
            InternalError: The payload is longer than ``MAX_PAYLOAD``.
        """
        if len(payload) > MAX_PAYLOAD:
            raise InternalError(
                f"payload of {len(payload)} bytes for '{topic}', expected at most {MAX_PAYLOAD}"
            )
        with self._lock:
            client = self._client
        if client is None or not self.connected:
            return False
        properties = None
        if expiry is not None and self._five:
            properties = _properties(PacketTypes.PUBLISH, MessageExpiryInterval=expiry)
        info = client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        return info.rc == MQTT_ERR_SUCCESS

    def close(self) -> None:
        """Disconnect gracefully (the will is not sent) and join the threads."""
        with self._lock:
            self._closing.set()
            keeper = self._keeper
        self._rebuild.set()
        # A handler may close its own link; the thread that it runs on cannot wait for itself.
        if keeper is not None and threading.get_ident() != self._loop_thread:
            keeper.join()

    # -- the keeper's thread: one client per protocol -------------------------------------------

    def _keep(self) -> None:
        """Run a client until the link is closed or the other protocol is to be tried."""
        shortest, longest = self._backoff
        wait = 0.0
        while not self._closing.wait(wait):
            self._rebuild.clear()
            client = self._build()
            with self._lock:
                self._client = client
            client.connect_async(self._host, self._port, self._keepalive, **self._connect_options())
            client.loop_start()
            self._watch(client)
            client.disconnect()
            client.loop_stop()
            # The first change of protocol is immediate; a broker that takes neither is spared.
            wait = 0.0 if self._changes <= 1 else min(max(shortest, 2 * wait), longest)
        self._lose("closed")

    def _watch(self, client: Client) -> None:
        """Wait until the client is not wanted any more."""
        patience = min(_PATIENCE * 2**self._changes, self._backoff[1])
        while not self._closing.is_set() and not self._rebuild.wait(_LOOK):
            # Starting the loop does nothing while it runs. Where a packet that paho cannot read
            # has ended its thread, the connection is of no more use.
            if client.loop_start() == MQTT_ERR_SUCCESS:
                logger.error("%s:%d sent what is not MQTT; connecting anew", self._host, self._port)
                self._lose("not MQTT")
                return
            asked = self._asked
            if asked and not self._answered and time.monotonic() - asked > patience:
                self._other_protocol()

    def _build(self) -> Client:
        version = MQTTProtocolVersion.MQTTv5 if self._five else MQTTProtocolVersion.MQTTv311
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=version,
            clean_session=None if self._five else False,
            manual_ack=True,
        )
        shortest, longest = self._backoff
        client.reconnect_delay_set(  # declared as int, and only added to a clock
            random.uniform(0.5, 1.5) * shortest,  # type: ignore[arg-type]
            random.uniform(0.8, 1.2) * longest,  # type: ignore[arg-type]
        )
        client.max_queued_messages_set(_MAX_QUEUED)
        client.max_inflight_messages_set(100)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        if self._account[0] is not None:
            client.username_pw_set(*self._account)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        return client

    def _connect_options(self) -> dict[str, Any]:
        if not self._five:
            return {}
        properties = _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=self._session_expiry,
            MaximumPacketSize=MAX_PAYLOAD + _PACKET_OVERHEAD,
        )
        return {"clean_start": False, "properties": properties}

    # -- paho's thread --------------------------------------------------------------------------

    def _on_socket_open(self, client: Client, userdata: object, sock: object) -> None:
        self._answered = False
        self._asked = time.monotonic()

    def _on_socket_close(self, client: Client, userdata: object, sock: object) -> None:
        self._asked = 0.0

    def _on_connect(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._loop_thread = threading.get_ident()
        self._answered = True
        if reason.is_failure:
            logger.warning("%s:%d refuses us: %s", self._host, self._port, reason)
            if str(reason) == "Unsupported protocol version":
                self._other_protocol()
            return
        with self._lock:
            patterns = list(dict.fromkeys(pattern for pattern, _ in self._subscriptions))
            self._asked_for = set(patterns)
        if not patterns:
            self._gain()
            return
        # Connected means subscribed: a broker may take what we publish before it has seen to
        # our subscriptions (amqtt does), and the reply would be lost.
        _, self._subscribing = client.subscribe([(pattern, 1) for pattern in patterns])

    def _on_subscribe(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                logger.warning("%s:%d refuses a subscription: %s", self._host, self._port, reason)
        if mid == self._subscribing:
            self._gain()

    def _gain(self) -> None:
        """Note that there is a connection."""
        with self._lock:
            self._changes = 0
            self._subscribing = None
            self._connected.set()
            late = {pattern for pattern, _ in self._subscriptions} - self._asked_for
            client, handlers = self._client, list(self._connection_handlers)
        if client is not None and late:
            client.subscribe([(pattern, 1) for pattern in sorted(late)])
        logger.info("connected to %s:%d by MQTT %s", self._host, self._port, self.protocol)
        tell(handlers, True)

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._loop_thread = threading.get_ident()
        if not self._answered and not self._closing.is_set():
            self._other_protocol()
        self._lose(str(reason))

    def _lose(self, reason: str) -> None:
        """Note, once, that there is no connection."""
        with self._lock:
            if not self._connected.is_set():
                return
            self._connected.clear()
            handlers = list(self._connection_handlers)
        logger.info("connection to %s:%d is gone: %s", self._host, self._port, reason)
        tell(handlers, False)

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        try:
            self._hand_out(message)
        finally:
            client.ack(message.mid, message.qos)

    def _hand_out(self, message: MQTTMessage) -> None:
        if len(message.payload) > MAX_PAYLOAD:
            logger.warning("dropped a message of %d bytes", len(message.payload))
            return
        try:
            arrived = LinkMessage(message.topic, bytes(message.payload), message.retain)
        except UnicodeDecodeError:
            logger.warning("dropped a message on a topic that is not UTF-8")
            return
        with self._lock:
            subscriptions = list(self._subscriptions)
        if not dispatch(subscriptions, arrived):
            logger.warning("dropped a message on '%s' that nobody asked for", message.topic)

    def _other_protocol(self) -> None:
        """Try the other protocol next, when we may choose."""
        if self._auto and not self._rebuild.is_set():
            self._five = not self._five
            self._changes += 1
            self._rebuild.set()


def _properties(packet: int, **values: int) -> Properties:
    """Return the MQTT 5 properties of a packet."""
    properties = Properties(packet)  # type: ignore[no-untyped-call]  # paho gives it no types
    for name, value in values.items():
        setattr(properties, name, value)
    return properties
