"""agent.toml."""

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import UsageError
from edgeml_agent import config
from edgeml_agent.config import AgentConfig, Broker
from edgeml_agent.serve.settings import Settings

EXAMPLE = Path(__file__).parents[2] / "agent" / "agent.example.toml"
MINIMAL = 'device = "d"\nfleet = "f"\nstate = "s"\nroot = "r"\n[broker]\nhost = "h"\n'


def test_the_example_decodes_and_shows_every_key():
    found = config.load(EXAMPLE, {})
    assert found.device == "cam-0001"
    assert found.tags == {"site": "hamburg", "line": "3"}
    document = tomllib.loads(EXAMPLE.read_text())
    assert set(document) == {field.name for field in msgspec.structs.fields(AgentConfig)}
    for name in ("broker", "telemetry", "slots"):
        kind = type(getattr(found, name))
        assert set(document[name]) == {field.name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("devise = 1\n" + MINIMAL, "devise", "did you mean 'device'?"),
        (MINIMAL + "prt = 1\n", "prt", "did you mean 'port'?"),
        (MINIMAL + "[serve]\nhtp = ''\n", "htp", "did you mean 'http'?"),
        (MINIMAL.replace('"d"', '"a/b"'), "'a/b' is not a name", "1 to 64"),
        (MINIMAL + "port = 0\n", "broker.port is 0", ""),
        (MINIMAL + "[telemetry]\nwindow_seconds = 0\n", "window_seconds is 0", ""),
        (MINIMAL + "[slots]\nmin_requests = -1\n", "negative", ""),
        (MINIMAL + '[serve]\nhttp = "0.0.0.0:80"\n', "open to other machines", "set a token"),
        (MINIMAL.replace('host = "h"', "host = 7"), "Expected `str`", "agent.example.toml"),
        ("device = ", "is not TOML", ""),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message, hint):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        config.load(path, {})
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        config.load(tmp_path / "none.toml")


def test_paths_are_relative_to_the_file_and_variables_win(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(MINIMAL)
    found = config.load(path, {})
    assert (found.state, found.root) == (str(tmp_path / "s"), str(tmp_path / "r"))
    found = config.load(
        path,
        {
            "EDGEML_AGENT_STATE": "/elsewhere",
            "EDGEML_AGENT_BROKER_HOST": "b",
            "EDGEML_AGENT_BROKER_PORT": "1234",
        },
    )
    assert (found.state, found.broker) == ("/elsewhere", Broker("b", 1234))
    with pytest.raises(UsageError, match="EDGEML_AGENT_BROKER_PORT is 'x'"):
        config.load(path, {"EDGEML_AGENT_BROKER_PORT": "x"})


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=30)


@given(names, names, texts, st.dictionaries(texts, texts, max_size=4), st.integers(1, 65535))
def test_what_is_written_is_read(device, fleet, host, tags, port):
    made = AgentConfig(
        device=device,
        fleet=fleet,
        state="/s",
        root="/r",
        broker=Broker(host, port),
        tags=tags,
        serve=Settings(http="127.0.0.1:0"),
    )
    document = tomllib.loads(config.dump(made, "a comment"))
    assert msgspec.convert(document, AgentConfig) == made
