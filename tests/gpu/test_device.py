# SPDX-License-Identifier: Apache-2.0
"""Compiled networks on a real GPU: values, streams, graphs and memory; without one, nothing here can be told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_rednet
from reference import relative_norm

import tvm_involution as ti
from tvm_involution.bench.machine_code import nvcc_present

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(not nvcc_present(), reason="needs nvcc"),
]
SIZE = (32, 48)
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}


@pytest.fixture(scope="module", params=list(TOLERANCE))
def network(request, tmp_path_factory):
    """`tiny_rednet` for this GPU, batches 1 and 4."""
    path = tmp_path_factory.mktemp("gpu") / "net.so"
    ti.compile(tiny_rednet(), "cuda", image_size=SIZE, batch=(1, 4), dtype=request.param).save(path)
    return ti.load(path)


def random_input(rng, network, batch):
    dtype = getattr(torch, network.metadata.dtype)
    return torch.from_numpy(rng.standard_normal((batch, 3, *SIZE))).to(dtype)


def check(network, x, actual):
    with torch.no_grad():
        expected = tiny_rednet().double()(x.double().cpu()).numpy()
    assert relative_norm(actual.double().cpu().numpy(), expected) < TOLERANCE[network.metadata.dtype]


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_equals_torch(rng, network, batch):
    x = random_input(rng, network, batch)
    actual = network(x.cuda())
    assert actual.is_cuda
    check(network, x, actual)


def test_numpy_goes_there_and_back(rng, network):
    if network.metadata.dtype == "bfloat16":
        pytest.skip("numpy has no bfloat16")
    x = random_input(rng, network, 4)
    actual = network(x.numpy())
    assert isinstance(actual, np.ndarray)
    check(network, x, torch.from_numpy(actual))


def test_graphs_follow_their_inputs(rng, network):
    """The first call captures; later ones, with other arrays at other addresses, replay."""
    assert network.metadata.cuda_graph
    results = [(x := random_input(rng, network, 4), network(x.cuda())) for _ in range(4)]
    for x, actual in results:
        check(network, x, actual)


def test_no_copy(rng, network):
    """torch allocates nothing for what crosses, and the result is not written over by the next call."""
    x = random_input(rng, network, 4).cuda()
    first = network(x)
    torch.cuda.synchronize()
    before, kept = torch.cuda.memory_stats()["allocation.all.allocated"], first.clone()
    network(x * 2)  # one allocation, of the product
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before <= 2
    assert torch.equal(first, kept)


def test_the_callers_stream(rng, network):
    """What the caller's stream has still to write is waited for, and what it does next sees the result."""
    x, late = random_input(rng, network, 4), torch.zeros(4, 3, *SIZE, dtype=getattr(torch, network.metadata.dtype))
    late, source = late.cuda(), x.cuda()
    network(late)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(source)
        doubled = network(late) * 2
    stream.synchronize()
    check(network, x, doubled / 2)


def test_a_library_for_another_gpu_is_refused(tmp_path):
    major, _ = torch.cuda.get_device_capability()
    other = "sm_75" if major != 7 else "sm_80"
    path = tmp_path / "other.so"
    ti.compile(tiny_rednet(), f'{{"kind": "cuda", "arch": "{other}"}}', image_size=SIZE).save(path)
    with pytest.raises(ti.UserError, match=f"was compiled for {other}, cuda:0 is sm_"):
        ti.load(path)


def test_a_gpu_that_is_not_there(tmp_path):
    path = tmp_path / "net.so"
    ti.compile(torch.nn.Conv2d(3, 16, 1).eval(), "cuda", image_size=(8, 8)).save(path)
    with pytest.raises(ti.UserError, match="no GPU cuda:99 on this machine"):
        ti.load(path, device="cuda:99")
