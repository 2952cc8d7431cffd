"""A fleet on a real broker: good versions stay, a poor one is stopped at the canary."""

import json

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from edgeml.messages import topics
from edgeml.messages.payloads import BlockReply, BlockRequest, decode, encode
from tests.support.fleet_server import MqttDevices, fleet_server
from tests.support.fleetlet import tiny_bundle

QUICK = ("--soak", "0.5", "--min-labels", "30", "--yes", "--wait")


def edgeml(server, *words):
    command = LazyGroup(COMMANDS, name="edgeml")
    return run(command, [*words, "--server", server.url, "--data", str(server.data)])


def test_three_versions(tmp_path, capsys):
    names = [f"cam-{i}" for i in range(4)]
    with fleet_server(tmp_path) as server:
        for number in (1, 2, 3):
            bundle = tiny_bundle(tmp_path / "made", "kws", f"{number}.0.0", seed=number)
            assert edgeml(server, "registry", "push", str(bundle.path)) == 0
        with MqttDevices(server, names) as devices:
            while sum(row.online for row in server.client.devices()) < 4:
                pass  # each round is a request to the server
            devices.accuracies = {"1.0.0": 0.9, "2.0.0": 0.95, "3.0.0": 0.4}
            first = ("fleet", "deploy", "kws@1.0.0", "--to", "all", "--strategy", "all-at-once")
            assert edgeml(server, *first, *QUICK) == 0
            assert edgeml(server, "fleet", "deploy", "kws@2.0.0", "--to", "all", *QUICK) == 0
            assert set(devices.versions().values()) == {"2.0.0"}
            capsys.readouterr()
            third = ("fleet", "deploy", "kws@3.0.0", "--to", "all", *QUICK)
            assert edgeml(server, *third) == 1
            said = capsys.readouterr().err
            assert "labels gate: accuracy 40.0%" in said
            assert set(devices.versions().values()) == {"2.0.0"}
            assert edgeml(server, *third, "--json") == 1
            error = json.loads(capsys.readouterr().out)["error"]
            assert "quarantined" in error["message"]
            told = [len(d.accepted) for d in devices.devices.values()]
            assert sorted(told) == [2, 2, 2, 4]  # only the canary ever heard of version 3
            _fetch(server, devices)
            release = ("registry", "release", "kws@3.0.0", "--reason", "wrong labels")
            assert edgeml(server, *release, "--dry-run") == 0
            assert server.client.version("kws", "3.0.0").row.quarantined
            assert edgeml(server, *release, "--yes") == 0
            assert not server.client.version("kws", "3.0.0").row.quarantined
            assert edgeml(server, *release, "--yes") == 2
            before = {row.device: row.wanted for row in server.client.devices()}
            assert server.stop() == 0
            server.start()  # another port: the database is the truth, the devices are elsewhere
            assert {row.device: row.wanted for row in server.client.devices()} == before
            assert server.ready["password"] == ""


def _fetch(server, devices):
    """A device asks for the bundle over the broker."""
    import queue

    digest = server.client.versions("kws")[0].digest
    got = queue.SimpleQueue()
    link = devices.devices["cam-0"].link
    link.subscribe(topics.down("default", "cam-0", "block"), got.put)
    asked = BlockRequest(7, "blob", digest, 0, 1 << 20)
    link.publish(topics.up("default", "cam-0", "block"), encode(asked))
    reply = decode(got.get(timeout=20).payload, BlockReply)
    assert (reply.request, reply.name, reply.total) == (7, digest, len(reply.data))
