"""The reference pages list what the code has: every field, key, path and family, and no other."""

import re
import textwrap
import tomllib
from pathlib import Path

import msgspec
import pytest
from fastapi.routing import APIRoute

from edgeml import errors, manifest
from edgeml.bundle import oci
from edgeml.fleet.api import create_app
from edgeml.hardware import HardwareProfile
from edgeml.tensors import TensorSpec
from edgeml_agent import config, transitions
from edgeml_converters import comparison, results, sweep, sweep_file

DOCS = Path(__file__).resolve().parents[2] / "docs"
REFERENCE = DOCS / "reference"
BUNDLE = (
    manifest.Manifest, TensorSpec, manifest.Variant, manifest.Binding, manifest.Evidence,
    manifest.Tolerance, manifest.BlobRef, manifest.Lineage, manifest.Step, manifest.Score,
)  # fmt: skip
CONVERT = (
    results.ConvertResult, results.ProfileResult, results.Candidate, results.Latency,
    results.Speedup, results.AtThreads, results.Timed, results.Drop,
    results.Int8Coverage, results.Layer, results.Score,
)  # fmt: skip
COMPARE = (
    comparison.Comparison, comparison.Side, comparison.Loss, comparison.Limit, sweep.SweepResult,
    sweep.Done,
)  # fmt: skip


def section(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.S | re.M)
    assert found, f"no section '{heading}'"
    return found[1]


def first_cells(text: str) -> list[str]:
    """Return every `word` in the first cells of the tables in a text."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize(
    ("page", "kind"),
    [("bundle-format.md", k) for k in BUNDLE]
    + [("convert-json.md", k) for k in CONVERT]
    + [("compare-json.md", k) for k in COMPARE],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_every_field_of_a_struct_is_listed(page: str, kind: type[msgspec.Struct]) -> None:
    listed = first_cells(section((REFERENCE / page).read_text(), kind.__name__))
    fields = [field.encode_name for field in msgspec.structs.fields(kind)]
    assert sorted(listed) == sorted(fields)


def test_the_media_types_of_a_bundle_are_listed() -> None:
    text = section((REFERENCE / "bundle-format.md").read_text(), "Media types")
    listed = set(re.findall(r"`(application/[^`]+)`", text))
    assert listed == {
        oci.OCI_MANIFEST, oci.ARTIFACT, oci.CONFIG, oci.MANIFEST, oci.WEIGHT, oci.DATASET,
        oci.DOC, oci.DRIFT,
    }  # fmt: skip
    assert oci.TITLE in text
    assert oci.FILEPATH in text


def keys(kind: type[msgspec.Struct], prefix: str = "") -> dict[str, str]:
    """Return the dotted keys of a configuration with their defaults as the page writes them."""
    found = {}
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found |= keys(field.type, f"{prefix}{field.name}.")
            continue
        found[prefix + field.name] = default(field)
    return found


def default(field: msgspec.structs.FieldInfo) -> str:
    """Return a field's default as the page writes it."""
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT:
        return "none"
    if isinstance(field.default, str):
        return f"`{field.default}`" if field.default else "empty"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def test_every_key_of_the_agent_is_listed_with_its_default() -> None:
    text = (REFERENCE / "agent-config.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \|", text, re.M))
    assert rows == keys(config.AgentConfig)
    variables = dict(re.findall(r"^\| `(EDGEML_\w+)` \| `([^`]+)` \|", text, re.M))
    assert variables == {name: key for name, (key, _kind) in config._ENVIRONMENT.items()}


def test_every_family_of_errors_is_listed_with_its_code_and_parent() -> None:
    text = (REFERENCE / "errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (?:`(\w+)`)? ?\|", text, re.M)
    expected = {
        (name, str(kind.exit_code), kind.__base__.__name__.replace("Exception", ""))
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.EdgemlError)
    }
    assert set(rows) == expected


class Nothing:
    """Stands where routes are only listed, never called."""

    def __getattr__(self, name: str) -> object:
        return Nothing()

    def __call__(self, *_args: object, **_options: object) -> object:
        return Nothing()


def test_every_path_of_the_fleet_is_listed() -> None:
    app = create_app(Nothing())
    paths = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    text = (REFERENCE / "fleet-api.md").read_text()
    assert set(re.findall(r"^\| ([A-Z]+) \| `([^`]+)` \|", text, re.M)) == paths


def test_the_table_of_transitions_is_the_one_of_the_code() -> None:
    text = (DOCS / "explanation" / "updates-and-rollback.md").read_text()
    page = re.search(r"^phase .*?(?=^```)", text, re.S | re.M)
    code = re.search(r"^    phase .*?(?=^\S)", transitions.__doc__ or "", re.S | re.M)
    assert page
    assert code
    assert page[0].rstrip() == textwrap.dedent(code[0]).rstrip()
    head, *rows = page[0].splitlines()
    checked = [line for line in rows if line.split()[0] in {*transitions.Phase} - {"idle"}]
    assert len(checked) == len(transitions.Phase) - 1
    for line in checked:
        check_row(line, head.split())


def check_row(line: str, head: list[str]) -> None:
    """Check one row of the printed table against TABLE, COUNTED and QUARANTINE."""
    name, *cells = line.split()
    phase = transitions.Phase(name)
    for happening, cell in zip(head[1:], cells, strict=True):
        key = (phase, transitions.Happening(happening))
        assert transitions.TABLE.get(key) == (None if cell == "-" else cell.rstrip("+!")), key
        assert (key in transitions.COUNTED) == cell.endswith("+"), key
        assert (key in transitions.QUARANTINE) == cell.endswith("!"), key


def test_the_budgets_of_a_how_to_are_keys_of_a_profile() -> None:
    text = (DOCS / "how-to" / "convert-a-model.md").read_text()
    block = re.search(r"```toml\n(.*?)```", text, re.S)
    assert block
    budgets = tomllib.loads(block[1])["budgets"]
    known = {f.name: f.type for f in msgspec.structs.fields(HardwareProfile)}
    assert set(budgets) <= {f.name for f in msgspec.structs.fields(known["budgets"])}


def test_the_sweep_of_a_how_to_can_be_read_and_its_keys_are_listed() -> None:
    text = (DOCS / "how-to" / "compare-and-sweep.md").read_text()
    block = re.search(r"```toml\n(.*?)```", text, re.S)
    assert block
    read = msgspec.convert(tomllib.loads(block[1]), sweep_file.Sweep)
    assert len(read.model) == 2
    fields = {field.encode_name for field in msgspec.structs.fields(sweep_file.Options)}
    listed = set(first_cells(text.partition("These keys may stand")[2].partition("## ")[0]))
    assert listed == fields


def test_decisions_have_numbers_of_their_own() -> None:
    numbers = [path.name[:4] for path in sorted((DOCS / "decisions").glob("*.md"))]
    assert len(set(numbers)) == len(numbers)
    for path in (DOCS / "decisions").glob("*.md"):
        assert path.read_text().startswith(f"# {int(path.name[:4])}. "), path.name
