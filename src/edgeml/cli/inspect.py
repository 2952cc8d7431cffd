"""``edgeml inspect``: what a bundle or a model file holds."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeml.plugins import load_object
from edgeml.report.figures import size

if TYPE_CHECKING:
    from edgeml.bundle import Bundle
    from edgeml.tensors import TensorSpec

#: An SQNR is cut here by ``edgeml convert``: nothing differs.
_SAME_DB = 150.0
_INSPECT_MODEL = "edgeml_converters.inspect:inspect_model"


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle or a model file holds."""
    if is_bundle(path):
        from edgeml.bundle import Bundle

        bundle = Bundle.open(path)
        if as_json:
            click.echo(json.dumps(bundle_page(bundle)))
        else:
            _print_bundle(bundle)
        return
    found: dict[str, object] = load_object(_INSPECT_MODEL, extra="convert")(path)
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print_model(path, found)


def is_bundle(path: Path) -> bool:
    """Tell whether a path is meant as a bundle: by its ending, its layout, or as a tar."""
    if path.suffix == ".edgeml" or (path / "oci-layout").exists() or (path / "index.json").exists():
        return True
    try:
        with path.open("rb") as stream:
            block = stream.read(tarfile.BLOCKSIZE)
    except OSError:
        return False
    return block[257:262] == b"ustar"


def bundle_page(bundle: Bundle) -> dict[str, object]:
    """Return what ``--json`` prints of a bundle."""
    import msgspec

    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "digest": bundle.digest,
        "size_bytes": sum(ref.size for ref in {ref.digest: ref for ref in bundle.layers}.values()),
        "missing": [ref.path for ref in bundle.layers if not bundle.has(ref)],
        "manifest": msgspec.to_builtins(bundle.manifest),
        "measured": measured(bundle),
    }


def measured(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Return variant -> its figures as ``edgeml convert`` measured them (one of its candidates).

    Empty when the bundle holds no measurements, or they are not here.
    """
    import msgspec

    ref = bundle.manifest.measurements
    if ref is None or not bundle.has(ref):
        return {}
    told = msgspec.json.decode(bundle.read(ref))
    found: dict[str, dict[str, Any]] = {}
    for result in told.get("results", ()) if isinstance(told, dict) else ():
        for one in result.get("candidates", ()):
            found[f"{result['profile']}.{one['runtime']}.{one['recipe']}"] = one
    return {v.id: found[v.id] for v in bundle.manifest.variants if v.id in found}


def _figures(one: dict[str, Any]) -> str:
    """Return the figures of a candidate in one line; what is not known is left out."""
    from edgeml.report import figures

    parts: list[str] = []
    if one.get("latency_ms"):
        parts.append(f"p50 {figures.milliseconds(one['latency_ms']['p50'])} ms")
    if one.get("speedup"):
        gain = figures.ratio(one["speedup"]["value"], one["speedup"]["interval"])
        parts.append(f"{gain} x as fast as the source")
    if one.get("metric"):
        told = figures.score(one["metric"]["value"], one["metric"]["interval"])
        parts.append(f"{one['metric']['name']} {told}")
    if one.get("sqnr_db") is not None:
        same = one["sqnr_db"] >= _SAME_DB
        parts.append("outputs equal bit for bit" if same else f"SQNR {one['sqnr_db']:.1f} dB")
    if one.get("coverage"):
        seen = one["coverage"]
        parts.append(f"{seen['int8']} of {seen['weighted']} products in int8")
    if one.get("memory_bytes") is not None:
        parts.append(f"memory {figures.size(one['memory_bytes'])}")
    return ", ".join(parts)


def _tensor(spec: TensorSpec) -> str:
    axes = ", ".join("?" if n == -1 else str(n) for n in spec.shape)
    return f"{spec.name} {spec.dtype} [{axes}]"


def _print_bundle(bundle: Bundle) -> None:
    manifest, lineage = bundle.manifest, bundle.manifest.lineage
    known = measured(bundle)
    click.echo(f"{manifest.name} {manifest.version}")
    click.echo(f"digest   {bundle.digest}")
    for title, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            click.echo(f"{title:<8} {_tensor(spec)}")
    if manifest.score:
        score = manifest.score
        low, high = score.interval
        click.echo(
            f"score    {score.name} {score.value:.4f} [{low:.4f}, {high:.4f}] on {score.n} samples"
        )
    if manifest.labels:
        more = " ..." if len(manifest.labels) > 10 else ""
        click.echo(f"labels   {len(manifest.labels)}: {', '.join(manifest.labels[:10])}{more}")
    click.echo("\nvariants")
    for variant in manifest.variants:
        click.echo(f"  {variant.id}")
        evidence = f"{variant.evidence.state} by {variant.evidence.by}"
        host = f" on {variant.evidence.host}" if variant.evidence.host else ""
        threads = f"threads {variant.threads}, {variant.precision}, {size(variant.size)}"
        click.echo(f"    {threads}, {variant.entry}\n    {evidence}{host}")
        if variant.id in known:
            click.echo(f"    {_figures(known[variant.id])}")
        for step in lineage.steps.get(variant.id, ()):
            click.echo(f"    pass {step.name} {json.dumps(step.options, default=str)}")
    click.echo("\nblobs")
    for ref in bundle.layers:
        note = "" if bundle.has(ref) else "  (missing)"
        click.echo(f"  {size(ref.size):>10}  {ref.path}{note}")
    click.echo("\nlineage")
    click.echo(f"  source {lineage.source} {lineage.source_digest}")
    click.echo(f"  data   {lineage.data_digest or 'none'}")
    click.echo(f"  seed   {lineage.seed}")
    click.echo(f"  tools  {', '.join(f'{k} {v}' for k, v in sorted(lineage.tools.items()))}")
    for parent in lineage.parents:
        click.echo(f"  parent {parent}")


def _print_model(path: Path, found: dict[str, object]) -> None:
    click.echo(str(path))
    for key, value in found.items():
        label = key.replace("_", " ")
        if isinstance(value, dict):
            click.echo(f"{label}:" if value else f"{label}: none")
            for name, item in value.items():
                click.echo(f"  {name}: {_line(item, named=True)}")
        elif isinstance(value, list | tuple):
            click.echo(f"{label}:" if value else f"{label}: none")
            for item in value:
                click.echo(f"  {_line(item)}")
        elif key.endswith("_bytes") and isinstance(value, int):
            click.echo(f"{label.removesuffix(' bytes')}: {size(value)}")
        else:
            click.echo(f"{label}: {_word(value)}")


def _word(value: object) -> object:
    """Return how a single value is told to people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in ("", None) else value


def _line(item: object, named: bool = False) -> str:
    """Return one line for an item, a tensor among them; ``named`` keeps the names of its parts."""
    if isinstance(item, dict) and named:
        told = {key.replace("_", " "): value for key, value in item.items() if value != []}
        return ", ".join(
            f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in told.items()
        )
    if isinstance(item, dict):
        return "  ".join(
            f"({_line(value, named=True)})" if isinstance(value, dict) else str(value)
            for value in item.values()
        )
    return str(item)
