"""Work in child processes with bounds on time and memory.

Libraries that build and run models crash, hang and eat memory on some models. Here that costs one
candidate, with its reason, and never the run. A job is a value: it goes to the child as bytes, and
its result comes back the same way.

Children start warm: for every kind of work there is one server process that has imported what such
work needs, and each job is a copy of it (``fork``). A copy costs milliseconds where imports cost
seconds, and it still begins as clean as a new process: what it allocates, breaks or leaves behind
ends with it, so that no job's bytes or figures depend on the jobs before. ``pool`` is the side
that asks, ``server`` the one that copies itself, ``wire`` what lies between.
"""

from edgeml_converters.jobs.pool import (
    Conversation,
    JobError,
    Limits,
    Pool,
    resident_bytes,
    run_job,
)
from edgeml_converters.jobs.wire import NO_SPACE, Channel

__all__ = [
    "NO_SPACE",
    "Channel",
    "Conversation",
    "JobError",
    "Limits",
    "Pool",
    "resident_bytes",
    "run_job",
]
