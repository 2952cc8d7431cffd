"""Real brokers on loopback, and a proxy that can cut a connection.

``with real_broker("mosquitto") as broker`` gives one that ends with the block; ``broker.stop()``,
``broker.start()``, ``broker.restart()`` and ``broker.wipe()`` do what they say.
"""

import contextlib
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from edgeml.fleet.broker import EmbeddedBroker


class RealBroker(EmbeddedBroker):
    """The broker that users get, with what tests need besides."""

    def __init__(self, kind):
        self.folder = Path(tempfile.mkdtemp(prefix="edgeml-broker-"))
        super().__init__("127.0.0.1", 0, self.folder, kind)

    def restart(self):
        self.stop()
        self.start()

    def wipe(self):
        """Restart without anything that was kept."""
        self.stop()
        (self.folder / "mosquitto.db").unlink(missing_ok=True)
        self.start()


@contextlib.contextmanager
def real_broker(kind="mosquitto"):
    """A running broker: ``mosquitto`` or ``amqtt``."""
    broker = RealBroker(kind)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
        shutil.rmtree(broker.folder)


class Proxy:
    """A TCP proxy on a free loopback port. ``cut()`` resets its connections and refuses new ones.

    ``change`` may be set to a function from bytes that flow to the client to other bytes.
    """

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = True
        self._closed = False
        self._sockets = set()
        self._threads = []
        self.change = None
        self._spawn(self._accept)

    def cut(self):
        """Break every connection without a goodbye."""
        self._open = False
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def restore(self):
        self._open = True

    def close(self):
        self._closed = True
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._open:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._sockets |= {client, server}
            self._spawn(self._pump, client, server, False)
            self._spawn(self._pump, server, client, True)

    def _pump(self, source, sink, to_client):
        try:
            while data := source.recv(65536):
                if to_client and self.change is not None:
                    data = self.change(data)
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        if not to_client:
            return
        self._sockets -= {source, sink}
        source.close()
        sink.close()
