"""Profiles of our own, with few candidates: what is tested is not how many there are."""

import pytest


@pytest.fixture(scope="session")
def own_profile(tmp_path_factory):
    """Return a function that writes a profile and returns its path."""
    folder = tmp_path_factory.mktemp("profiles")

    def write(name, more="", runtimes="'onnxruntime', 'litert'", precisions="'fp32', 'int8'"):
        path = folder / f"{name}.toml"
        path.write_text(
            f"name = '{name}'\ntitle = 't'\ndescription = 'd'\nkind = 'cpu'\ntarget = 'cpu'\n"
            f"runtimes = [{runtimes}]\nprecisions = [{precisions}]\n{more}\n"
            "[match]\nmachine = ['x86_64', 'aarch64']\n"
        )
        return str(path)

    return write
