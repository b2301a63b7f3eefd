# SPDX-License-Identifier: Apache-2.0
"""`torch.compile(module, backend="tvm_involution")`: right, or in eager and said."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
import warnings
from importlib.metadata import entry_points

import pytest
import torch
from reference import relative_norm
from torch import nn

import tvm_involution as ti
from tvm_involution.dynamo import backend


class Network(nn.Module):
    """A convolution and an involution, of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.involution = ti.nn.Involution2d(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.involution(torch.relu(self.norm(self.conv(x))))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr("tvm_involution.dynamo.libraries._said", set())


@pytest.fixture
def made(caplog):
    """Return how many libraries were made so far."""
    caplog.set_level(logging.INFO, "tvm_involution")
    return lambda: sum("compiled a graph" in record.message for record in caplog.records)


@pytest.fixture
def compiled(tmp_path):
    def compile(module, dynamic=None, **options):
        options = {"cache": str(tmp_path / "cache"), **options}
        return torch.compile(module, backend=backend, dynamic=dynamic, options=options)

    return compile


def close(actual, expected, most=1e-5):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    return relative_norm(actual.double().numpy(), expected.double().numpy()) < most


def test_torch_finds_it():
    (found,) = entry_points(group="torch_dynamo_backends", name="tvm_involution")
    assert found.load() is backend


def test_sizes_layouts_and_weights_that_change(compiled, made, rng):
    network = Network().eval()
    exact, fast = copy.deepcopy(network).double(), compiled(network)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for count, shape in enumerate([(2, 3, 20, 24), (3, 3, 17, 9)], 1):
            x = torch.randn(shape)
            assert close(fast(x), exact(x.double()).float()) and made() == count
        channels_last = x.contiguous(memory_format=torch.channels_last)
        assert close(fast(channels_last), exact(x.double()).float()) and made() == count
        network.conv.weight.mul_(-2)
        exact.conv.weight.mul_(-2)
        assert close(fast(x), exact(x.double()).float()) and made() == count + 1
    with torch.inference_mode():
        assert close(fast(x), exact(x.double()).float())


def test_types(compiled):
    network, x = Network().eval(), torch.randn(2, 3, 12, 10)
    with torch.no_grad():
        expected = network(x)
        assert close(compiled(network, dtype="bfloat16")(x), expected, 1e-2)  # float32 in, float32 out
        half = copy.deepcopy(network).bfloat16()
        assert close(compiled(half)(x.bfloat16()), expected.bfloat16(), 1e-2)


def test_graph_breaks_numbers_and_none(compiled, made):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            x = self.first(x)
            if x.sum() > 0:
                x = x * 2
            y = self.second(x)
            return {"y": y, "height": y.shape[2], "none": None, "again": [y, torch.tanh(y)]}

    module = Breaks()
    fast = compiled(module, dynamic=True)
    with torch.no_grad():
        for size in (9, 11):
            x = torch.randn(2, 3, size, 8)
            actual, expected = fast(x), module(x)
            assert actual["height"] == expected["height"] and actual["none"] is None
            assert close(actual["y"], expected["y"]) and close(actual["again"][1], expected["again"][1])
    assert made() == 4


def writes(x):
    x.mul_(2)
    return x.sum(1)


def views(x):
    return x.flatten(1)[:, 1:], torch.relu(x)


def factors(x):
    return torch.linalg.svd(x)[1] + 1


@pytest.mark.parametrize(
    "function, said",
    [
        (writes, "writes into what it is given"),
        (views, "a view of what it is given"),
        (factors, r"svd.*not supported.*test_backend.py:\d+: return torch.linalg.svd"),
    ],
)
def test_what_runs_in_eager_says_so_once(function, said, compiled, made):
    fast, x = compiled(function), torch.randn(3, 4, 5)
    one, other = x.clone(), x.clone()
    with torch.no_grad():
        with pytest.warns(UserWarning, match=said):
            fast(one)
        function(other)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            actual, expected = fast(one), function(other)
    for a, e in zip(*(y if isinstance(y, tuple) else (y,) for y in (actual, expected)), strict=True):
        assert torch.equal(a, e)
    assert made() == 0 and torch.equal(one, other)


def test_gradients_run_in_eager(compiled, made):
    network, x = Network(), torch.randn(1, 3, 8, 8)
    fast = compiled(network)
    with pytest.warns(UserWarning, match="for inference"):
        fast(x).sum().backward()
    assert network.conv.weight.grad is not None and made() == 0
    network.eval()
    with torch.no_grad():  # the same object serves afterwards
        assert close(fast(x), network(x)) and made() == 1


@pytest.mark.parametrize("module", [nn.BatchNorm2d(3), nn.Dropout(0.5)])
def test_training_mode(module, compiled, made):
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad(), pytest.warns(UserWarning, match="runs in eager"):
        y = compiled(module)(x)
    assert made() == 0 and not torch.allclose(x, y, 1e-3) and getattr(module, "num_batches_tracked", 1) == 1


@pytest.mark.parametrize(
    "options, said",
    [({"dtyp": "float16"}, "unknown option 'dtyp'"), ({"dtype": "int3"}, "'int3'"), ({"cache": 3}, "must be a string")],
)
def test_bad_options(options, said):
    with torch.no_grad(), pytest.raises(Exception, match=said):
        torch.compile(nn.ReLU(), backend=backend, options=options)(torch.ones(3))


def test_a_mode_of_inductor():
    with torch.no_grad(), pytest.raises(Exception, match="mode='max-autotune'"):
        torch.compile(nn.ReLU(), backend=backend, mode="max-autotune")(torch.ones(3))


PROCESS = """
import logging, sys, torch
import tvm_involution as ti
from tvm_involution.dynamo import backend
logging.basicConfig(level=logging.INFO, format="%(message)s")
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), ti.nn.Involution2d(16, 3)).eval()
with torch.no_grad():
    torch.compile(module, backend=backend, options={"cache": sys.argv[1]})(torch.ones(1, 3, 9, 9))
print("compiler" if "tvm_involution.compiler" in sys.modules else "no compiler")
"""


def test_the_next_process_takes_the_library(tmp_path):
    def run():
        command = [sys.executable, "-W", "ignore", "-c", PROCESS, str(tmp_path / "cache")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stderr.count("compiled a graph"), done.stdout.split("\n")[0]

    assert run() == (1, "compiler")
    assert run() == (0, "no compiler")


def test_a_damaged_library_is_made_again(compiled, made, tmp_path):
    module, x = nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for count in (1, 2):
            torch._dynamo.reset()
            assert close(compiled(module)(x), module(x)) and made() == count
            (file,) = (tmp_path / "cache").iterdir()
            file.write_bytes(file.read_bytes()[:-1000])


def test_a_folder_that_others_can_write_to_is_not_used(compiled, tmp_path, made):
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    with torch.no_grad():
        compiled(nn.Conv2d(3, 8, 3))(torch.ones(1, 3, 8, 8))
    assert made() == 1 and not list((tmp_path / "cache").iterdir())
