"""A data plane without a runtime, for tests of the supervisor: starts in a few milliseconds.

``python tiny_plane.py SOCKET JOURNAL``; the journal gets a line for each version that it serves.
What a version does is in its name: ``-golden`` fails its golden samples, ``-load`` does not load,
``-crash`` ends the process when it is staged, ``-trial`` ends it in the trial, ``-loop`` ends it
whenever it is asked for counts, ``-errors`` answers most requests with an error. It ends when the
supervisor hangs up, or dies before it has called.
"""

import hashlib
import json
import os
import socket
import sys
from pathlib import Path

serving, staged, old = {}, {}, {}


def status():
    found = {}
    for slot, ref in serving.items():
        found[slot] = {"ref": ref, "variant": "cpu.tiny", "placement": "cpu"}
        if "-errors" in ref["version"]:
            found[slot] |= {"requests": 1, "errors": {"device": 9}}
    return found


def answer(request):
    slot, kind = request.get("slot"), request["type"]
    version = request.get("ref", {}).get("version", "")
    if kind == "stage":
        if not Path(request["bundle"], "index.json").is_file():
            return {"ok": False, "error": f"no bundle at {request['bundle']}", "kind": "load"}
        try:
            for blob in Path(request["bundle"], "blobs", "sha256").iterdir():
                if hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
                    return {"ok": False, "error": f"{blob.name} is damaged", "kind": "load"}
        except OSError as error:  # it is being mended
            return {"ok": False, "error": str(error), "kind": "load"}
        if "-crash" in version:
            os._exit(7)
        for reason in ("golden", "load"):
            if f"-{reason}" in version:
                return {"ok": False, "error": f"wrong by {reason}", "kind": reason}
        staged[slot] = request["ref"]
    elif kind == "switch":
        if slot not in staged:
            return {"ok": False, "error": "nothing is staged", "kind": "state"}
        if slot in serving:
            old[slot] = serving[slot]
        serving[slot] = staged.pop(slot)
        with Path(sys.argv[2]).open("a") as journal:
            journal.write(serving[slot]["version"] + "\n")
    elif kind == "settle":
        old.pop(slot, None)
    elif kind == "revert":
        if slot in staged:
            staged.pop(slot)
        elif slot in old:
            serving[slot] = old.pop(slot)
        else:
            return {"ok": False, "error": "nothing to go back to", "kind": "state"}
    elif kind == "clear":
        for part in (serving, staged, old):
            part.pop(slot, None)
    elif kind == "probe":
        if "-trial" in serving[slot]["version"]:
            os._exit(8)
    elif kind == "observe":
        if any("-loop" in ref["version"] for ref in serving.values()):
            os._exit(9)
        window = [{"slot": s, "ref": r, "seconds": 1.0, "requests": 1} for s, r in serving.items()]
        return {"ok": True, "windows": window}
    return {"ok": True}


def main():
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(sys.argv[1])
    server.listen(1)
    server.settimeout(0.5)
    parent = os.getppid()
    while True:
        try:
            connection, _ = server.accept()
            break
        except TimeoutError:
            if os.getppid() != parent or parent == 1:
                return
    connection.settimeout(None)
    with connection, connection.makefile("rwb") as stream:
        for line in stream:
            request = json.loads(line)
            reply = {"slots": {}, **answer(request)}
            reply["slots"] = status()
            stream.write(json.dumps(reply).encode() + b"\n")
            stream.flush()
            if request["type"] == "quit":
                return


main()
