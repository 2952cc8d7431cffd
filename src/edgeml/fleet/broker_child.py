"""The amqtt broker as a process: ``python -m edgeml.fleet.broker_child HOST PORT``.

For a demo on loopback only. Everybody may connect; nothing is kept over a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys


async def serve(host: str, port: int) -> None:
    """Run the broker until SIGTERM or SIGINT."""
    from amqtt.broker import Broker

    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": address, "max_connections": 1000}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {}},
        }
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await broker.start()
    await ended.wait()
    # It waits for its clients now and then; there is nothing to save.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(broker.shutdown(), 1.0)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
