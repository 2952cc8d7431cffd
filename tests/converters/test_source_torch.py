"""A torch module that a function returns is exported first; without torch the line to install."""

import importlib.util
import sys
import textwrap

import numpy as np
import onnx
import pytest

from edgeml.cli.group import LazyGroup, run
from edgeml.cli.table import COMMANDS
from edgeml.errors import MissingPackageError, ModelError, UsageError
from edgeml.plugins import load_user_object
from edgeml_converters.source import Source
from edgeml_converters.source.torch_export import is_callable
from tests.support.models import mlp

HAS_TORCH = importlib.util.find_spec("torch") is not None

#: Stands in for torch where it is not: tensors are arrays, and the exporter writes what it is told.
FAKE = """
import contextlib, types
import numpy as np

class Tensor:
    def __init__(self, array): self.array = np.asarray(array, np.float32)
    ndim = property(lambda self: self.array.ndim)
    shape = property(lambda self: self.array.shape)
    def numpy(self, force=False): return self.array

class Module:
    training = True
    def eval(self): self.training = False
    def train(self, mode=True): self.training = mode

nn = types.SimpleNamespace(Module=Module)
no_grad = contextlib.nullcontext
backends = types.SimpleNamespace()
def cat(tensors): return Tensor(np.concatenate([t.array for t in tensors]))
asked = []
class _Onnx:
    def export(self, module, inputs, path, **options):
        assert not module.training
        asked.append(options)
        if options["dynamo"]: raise AssertionError("onnxscript is not here")
        if module.fails: raise RuntimeError("no symbolic\\nfor aten::magic")
        with open(path, "wb") as file: file.write(module.data)
onnx = _Onnx()
"""

MODULES = """
import numpy as np
import torch

class Net(torch.nn.Module):
    fails = False
    data = open({path!r}, "rb").read()
    def __call__(self, x):
        import onnxruntime
        session = onnxruntime.InferenceSession(self.data, providers=["CPUExecutionProvider"])
        return torch.Tensor(session.run(None, {{"x": x.array}})[0] * {factor})

def example(): return torch.Tensor(np.ones((1, 4)))
def make():
    return {{"module": Net(), "inputs": example(), "input_names": ["x"], "output_names": ["y"]}}
def pair(): return Net(), example()
def bare(): return Net()
def number(): return 3
def unknown(): return {{"module": Net(), "input": example()}}
def texts(): return Net(), "x"
def names(): return {{"module": Net(), "inputs": example(), "input_names": ["x", "z"]}}
def opset(): return {{"module": Net(), "inputs": example(), "opset": "17"}}
def broken(): raise ValueError("no checkpoint")
def untraceable():
    net = Net(); net.fails = True
    return {{"module": net, "inputs": example(), "input_names": ["x"]}}
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder with a fake torch and a user's file; returns a function that names a function."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "torch.py").write_text(FAKE)
    onnx.save(mlp(), tmp_path / "net.onnx")
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def name(function, factor=1.0):
        path = tmp_path / "nets.py"
        path.write_text(MODULES.format(path=str(tmp_path / "net.onnx"), factor=factor))
        return f"{path}:{function}"

    yield name
    sys.modules.pop("torch", None)


def test_a_function_is_no_file(tmp_path):
    assert is_callable("nets:make")
    assert is_callable("my/nets.py:make")
    assert not is_callable("model.onnx")
    assert not is_callable("folder/model.onnx")
    assert not is_callable("C:\\models\\model.onnx")
    odd = tmp_path / "a:b"
    odd.write_bytes(b"")
    assert not is_callable(odd)


def test_a_module_is_exported_compared_and_opened(modules):
    source = Source.open(modules("make"))
    assert source.path.name == "nets.py:make"
    assert [s.name for s in source.inputs] == ["x"]
    assert source.inputs[0].shape == (-1, 4)
    assert any("training mode" in warning for warning in source.warnings)
    (options,) = sys.modules["torch"].asked
    assert options["dynamic_axes"] == {"x": {0: "batch"}, "y": {0: "batch"}}
    assert options["dynamo"] is False


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("bare", "without example inputs"),
        ("number", "returned a int"),
        ("unknown", "unknown key 'input'"),
        ("texts", "'inputs' is str"),
        ("names", "2 input_names for 1 inputs"),
        ("opset", "opset '17'"),
        ("broken", "failed: ValueError: no checkpoint"),
        ("makes", "has no function 'makes'"),
    ],
)
def test_what_a_function_may_not_return(modules, function, message):
    with pytest.raises(UsageError) as caught:
        Source.open(modules(function))
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_what_cannot_be_exported_or_differs_is_one_line(modules):
    with pytest.raises(ModelError, match="no symbolic for aten::magic"):
        Source.open(modules("untraceable"))
    with pytest.raises(ModelError, match="differs from the module by"):
        Source.open(modules("make", factor=1.5))


@pytest.fixture
def no_torch(monkeypatch):
    """Make torch a package that is not installed, also where it is."""
    monkeypatch.setitem(sys.modules, "torch", None)


def test_without_torch_the_line_to_install_is_given(tmp_path, monkeypatch, capsys, no_torch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("import torch\ndef make(): ...\n")
    for name in ("nets:make", "nets.py:make"):
        with pytest.raises(MissingPackageError, match="'torch' is not installed") as caught:
            Source.open(name)
        assert caught.value.hint == "pip install torch"
    words = ["convert", "nets.py:make", "--profile", "cpu-x86-64"]
    assert run(LazyGroup(COMMANDS, name="edgeml"), words) == 3
    assert "pip install torch" in capsys.readouterr().err


def test_a_file_that_is_not_there_or_breaks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"there is no file 'nets\.py'"):
        load_user_object("nets.py:make", "model")
    (tmp_path / "nets.py").write_text("import helper_beside\nmake = helper_beside.make\n")
    (tmp_path / "helper_beside.py").write_text("def make(): return 7\n")
    assert load_user_object("nets.py:make", "model")() == 7
    (tmp_path / "bad.py").write_text("1/0\n")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        load_user_object("bad.py:make", "model")


if HAS_TORCH:  # it is an option, which only some machines have

    def test_a_real_module_of_torch(tmp_path, monkeypatch):
        (tmp_path / "real_nets.py").write_text(
            textwrap.dedent("""
            import torch
            from torch import nn
            def make():
                torch.manual_seed(0)
                net = nn.Sequential(
                    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
                )
                example = torch.randn(1, 3, 16, 16)
                return {"module": net, "inputs": example, "input_names": ["image"]}
            """)
        )
        source = Source.open(f"{tmp_path / 'real_nets.py'}:make")
        assert source.inputs[0].shape == (-1, 3, 16, 16)
        assert np.all([s.shape[0] == -1 for s in source.outputs])
        assert any("training mode" in warning for warning in source.warnings)
