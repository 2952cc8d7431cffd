"""Bundle: packed, opened, carried by skopeo, unpacked; and what must be refused."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest

from edgeml.bundle import Bundle, blob_ref, layers, manifest_layer, pack, write_layout
from edgeml.bundle.paths import check_paths
from edgeml.bundle.store import blob_name
from edgeml.digest import sha256_bytes, sha256_tree
from edgeml.errors import BundleError, EdgemlError, NotTrustedError
from edgeml.manifest import BlobRef
from tests.golden.make_bundle import HERE, sample

INT8, FP32 = "cpu-x86-64.onnxruntime.int8", "cpu-x86-64.onnxruntime.fp32"


@pytest.fixture(params=["folder", "tar"])
def bundle(request, tmp_path):
    return pack(*sample(), tmp_path / ("b" if request.param == "folder" else "b-1.0.0.edgeml"))


def test_pack_and_open_agree(bundle):
    manifest, files = sample()
    again = Bundle.open(bundle.path)
    again.check()
    assert again.manifest == manifest
    assert again.digest == bundle.digest == sha256_bytes(again.oci_manifest)
    for ref in manifest.blobs():
        assert again.has(ref)
        assert again.read(ref) == files[ref.path]
    assert manifest_layer(again.oci_manifest).path == "manifest.json"
    assert {ref.path for ref in layers(again.oci_manifest)} == {*files, "manifest.json"}


def test_bytes_are_a_function_of_the_input(tmp_path):
    for kind in ("a", "b"):
        manifest, files = sample()
        pack(
            manifest, dict(reversed(list(files.items()))) if kind == "b" else files, tmp_path / kind
        )
        pack(manifest, files, tmp_path / f"{kind}.edgeml")
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")
    assert (tmp_path / "a.edgeml").read_bytes() == (tmp_path / "b.edgeml").read_bytes()
    assert Bundle.open(tmp_path / "a").digest == Bundle.open(tmp_path / "a.edgeml").digest


def skopeo(*words):
    done = subprocess.run(["skopeo", *map(str, words)], capture_output=True, text=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_skopeo_carries_it(bundle, tmp_path):
    kind = "oci" if bundle.path.is_dir() else "oci-archive"
    source = f"{kind}:{bundle.path}"
    assert skopeo("inspect", "--raw", source) == bundle.oci_manifest
    for number, target in enumerate(("oci", "oci-archive")):
        path = tmp_path / f"copy{number}"
        skopeo("copy", "--quiet", source, f"{target}:{path}:latest")
        copy = Bundle.open(path)
        copy.check()
        assert copy.digest == bundle.digest


@pytest.mark.parametrize("variant", [None, INT8, FP32])
def test_unpack(bundle, tmp_path, variant):
    folder = bundle.unpack(tmp_path / "out", variant)
    manifest, files = sample()
    got = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    wanted = files if variant is None else {ref.path for ref in bundle.needed([variant])}
    assert got == {*wanted, "manifest.json"}
    assert all((folder / path).read_bytes() == files[path] for path in wanted)
    assert msgspec.json.decode((folder / "manifest.json").read_bytes(), type=type(manifest)) == (
        manifest
    )


def test_needed_leaves_out_what_a_device_does_not_need(bundle):
    paths = {ref.path for ref in bundle.needed([FP32])}
    assert paths == {"variants/fp32/model.onnx", "golden.npz", "drift.bin"}
    with pytest.raises(BundleError, match="no variant") as error:
        bundle.needed(["cpu-x86-64.onnxruntime.fp23"])
    assert "fp32" in error.value.hint


def test_unpack_refuses_a_folder_in_use_and_takes_an_empty_one(bundle, tmp_path):
    (tmp_path / "used").mkdir()
    bundle.unpack(tmp_path / "used")
    with pytest.raises(BundleError, match="exists already"):
        bundle.unpack(tmp_path / "used")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="exists already"):
        bundle.unpack(tmp_path / "link")


def test_a_layout_fills_up_blob_by_blob(bundle, tmp_path):
    folder = tmp_path / "part"
    write_layout(folder, bundle.oci_manifest)
    first = manifest_layer(bundle.oci_manifest)
    with pytest.raises(BundleError, match="fetch it first|not in"):
        Bundle.open(folder)
    (folder / blob_name(first.digest)).write_bytes(bundle.read(first))
    part = Bundle.open(folder)
    assert part.digest == bundle.digest
    needed = part.needed([FP32])
    assert not any(part.has(ref) for ref in needed)
    with pytest.raises(BundleError, match="not in"):
        part.unpack(tmp_path / "out", FP32)
    assert not (tmp_path / "out").exists()
    for ref in needed:
        (folder / blob_name(ref.digest)).write_bytes(bundle.read(ref))
    part.unpack(tmp_path / "out", FP32)
    with pytest.raises(BundleError):
        part.check()
    write_layout(folder, bundle.oci_manifest)
    assert all(Bundle.open(folder).has(ref) for ref in needed)


def test_every_flipped_byte_of_a_blob_is_found(tmp_path):
    manifest, files = sample()
    bundle = pack(manifest, files, tmp_path / "b")
    blobs = list((tmp_path / "b" / "blobs" / "sha256").iterdir())
    assert len(blobs) == len(files) + 3
    for blob in blobs:
        good = blob.read_bytes()
        for bad in (bytes([good[0] ^ 1]) + good[1:], good[:-1], good + b" "):
            blob.write_bytes(bad)
            with pytest.raises(NotTrustedError):
                Bundle.open(bundle.path).check()
        blob.write_bytes(good)
    Bundle.open(bundle.path).check()


def test_a_damaged_blob_leaves_nothing_unpacked(tmp_path):
    bundle = pack(*sample(), tmp_path / "b")
    ref = bundle.manifest.drift
    (bundle.path / blob_name(ref.digest)).write_bytes(b"x" * ref.size)
    with pytest.raises(NotTrustedError):
        bundle.unpack(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_golden_bundles_open_for_ever(tmp_path):
    found = sorted(HERE.glob("bundle-*.edgeml"))
    assert found
    for path in found:
        bundle = Bundle.open(path)
        bundle.check()
        bundle.unpack(tmp_path / path.stem)
    first = Bundle.open(HERE / "bundle-0.1.0.edgeml")
    assert first.digest == (
        "sha256:30431833b94a73dbfd28b956854fe8e079d01fad4d82eaac6e79e8e060254d25"
    )
    assert (first.manifest.name, len(first.manifest.variants)) == ("golden", 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Has Space"}, "name"),
        ({"name": ""}, "name"),
        ({"version": "1.0"}, "SemVer"),
        ({"version": "01.0.0"}, "SemVer"),
        ({"version": "1.0.0\n"}, "SemVer"),
        ({"schema": 99}, "schema"),
        ({"variants": "twice"}, "one id"),
        ({"golden": BlobRef("sha256:0", 1, "g")}, "digest"),
        ({"inputs": ()}, "binds"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(tmp_path, change, message):
    manifest, files = sample()
    if change.get("variants") == "twice":
        change = {"variants": manifest.variants[:1] * 2}
    with pytest.raises(BundleError, match=message):
        pack(msgspec.structs.replace(manifest, **change), files, tmp_path / "b")
    assert not any(tmp_path.iterdir())


def test_files_must_be_those_of_the_manifest(tmp_path):
    manifest, files = sample()
    with pytest.raises(BundleError, match="no such file"):
        pack(manifest, {k: v for k, v in files.items() if k != "drift.bin"}, tmp_path / "b")
    with pytest.raises(BundleError, match="does not name") as error:
        pack(manifest, {**files, "drif.bin": b""}, tmp_path / "b")
    assert "drift.bin" in error.value.hint
    with pytest.raises(BundleError, match="manifest says"):
        pack(manifest, {**files, "drift.bin": b"other"}, tmp_path / "b")
    with pytest.raises(BundleError, match="cannot read"):
        pack(manifest, {**files, "drift.bin": tmp_path / "none"}, tmp_path / "b")
    assert not any(tmp_path.iterdir())
    (tmp_path / "b").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        pack(manifest, files, tmp_path / "b")


@pytest.mark.parametrize(
    "path",
    [
        *["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\\b", "C:x", "a\nb", "a\0b"],
        *["x" * 300, "a/" * 20 + "a", "\ud800"],
    ],
)
def test_unsafe_paths_are_refused(path):
    with pytest.raises(BundleError):
        blob_ref(path, b"")


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "A"], ["a", "a/b"], ["a/b", "a"]])
def test_paths_in_each_others_way_are_refused(paths):
    with pytest.raises(BundleError, match="twice"):
        check_paths(paths)


def _tar(path, members):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _info(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "info",
    [
        _info("../escape"),
        _info("/abs"),
        _info("blobs/sha256/short"),
        _info("index.json", tarfile.SYMTYPE, "/etc/passwd"),
        _info("index.json", tarfile.LNKTYPE, "oci-layout"),
        _info("index.json", tarfile.CHRTYPE),
        _info("index.json", tarfile.FIFOTYPE),
        _info("index.json", tarfile.GNUTYPE_SPARSE),
        _info("etc", tarfile.DIRTYPE),
        _info("x" * 150),
    ],
    ids=lambda info: info.name[:12],
)
def test_hostile_members_are_refused(tmp_path, info):
    with pytest.raises(BundleError):
        Bundle.open(_tar(tmp_path / "x.edgeml", [(info, b"")]))


def test_more_hostile_files(tmp_path):
    with pytest.raises(BundleError, match="no bundle"):
        Bundle.open(tmp_path / "none")
    for data in (b"", b"x" * 10_000, b"\0" * 512, b"PK\3\4" * 500):
        (tmp_path / "x.edgeml").write_bytes(data)
        with pytest.raises(BundleError):
            Bundle.open(tmp_path / "x.edgeml")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x09" * 300)
    with pytest.raises(BundleError, match="is not a bundle") as caught:
        Bundle.open(tmp_path / "model.onnx")
    assert "edgeml convert" in caught.value.hint
    info = _info("index.json")
    info.size = 1 << 40
    (tmp_path / "x.edgeml").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(BundleError, match="cut short"):
        Bundle.open(tmp_path / "x.edgeml")
    with pytest.raises(BundleError, match="twice"):
        Bundle.open(_tar(tmp_path / "x.edgeml", [(_info("index.json"), b"")] * 2))


@pytest.mark.parametrize(
    "index",
    [
        b"[" * 100_000,
        b'{"schemaVersion":2,"manifests":' + b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b"{}",
        b'{"schemaVersion":2,"manifests":[]}',
        b'{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:../..","size":1}]}',
        b'{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        b'"digest":"sha256:' + b"0" * 64 + b'","size":1}]}',
        b" " * ((1 << 20) + 1),
    ],
)
def test_a_hostile_index_is_refused(tmp_path, index):
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(BundleError):
        Bundle.open(tmp_path)


def test_links_and_pipes_in_a_folder_are_refused(tmp_path):
    bundle = pack(*sample(), tmp_path / "b")
    blob = bundle.path / blob_name(bundle.manifest.drift.digest)
    shutil.copy(blob, tmp_path / "real")
    blob.unlink()
    blob.symlink_to(tmp_path / "real")
    with pytest.raises(BundleError):
        Bundle.open(bundle.path).check()
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(BundleError):
        Bundle.open(bundle.path).check()


def test_an_image_that_is_no_bundle_is_refused(tmp_path):
    image = {
        "schemaVersion": 2,
        "config": {"mediaType": "c", "digest": "sha256:" + "0" * 64, "size": 2},
        "layers": [],
    }
    with pytest.raises(BundleError, match="layers of type"):
        write_layout(tmp_path / "x", msgspec.json.encode(image))
    assert not (tmp_path / "x").exists()


def test_one_blob_under_many_paths_is_a_bomb(tmp_path):
    image = msgspec.json.decode(pack(*sample(), tmp_path / "b").oci_manifest)
    layer = image["layers"][-1]
    for number in range(100):
        title = {"org.opencontainers.image.title": f"copy/{number}"}
        image["layers"].append({**layer, "annotations": title})
    with pytest.raises(BundleError, match="more than 64 paths"):
        layers(msgspec.json.encode(image))
    image["layers"] *= 100
    with pytest.raises(BundleError, match="expected 4096|at most"):
        layers(msgspec.json.encode(image))


def test_reading_stays_typed(tmp_path):
    bundle = pack(*sample(), tmp_path / "x.edgeml")
    Path(bundle.path).unlink()
    with pytest.raises(EdgemlError):
        bundle.check()
