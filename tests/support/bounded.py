"""No wait for a process without an end."""

import contextlib
import threading


@contextlib.contextmanager
def killed_after(process, seconds=120):
    """Kill a process when the block takes longer, or fails; what reads from it then goes on."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
