# SPDX-License-Identifier: Apache-2.0
"""Calling a loaded library: what goes in, what comes out, what is refused."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from library_fixture import PICTURE_SIZE, affine_library, build_library, colour_library, pair_library
from torch._subclasses.fake_tensor import FakeTensorMode
from tvm import relax

import tvm_involution as ti
from tvm_involution import CompiledNetwork, UserError
from tvm_involution.runtime import TensorSpec
from tvm_involution.runtime.ffi import tvm_ffi
from tvm_involution.runtime.fresh_outputs import FreshOutputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def affine(folder: Path) -> CompiledNetwork:
    return ti.load(affine_library(folder / "affine.so"))


@pytest.fixture(scope="module")
def pair(folder: Path) -> CompiledNetwork:
    return ti.load(pair_library(folder / "pair.so"))


def expected(x: np.ndarray, scale: float = 2.0) -> np.ndarray:
    return scale * np.asarray(x, np.float64) + 1


@pytest.mark.parametrize("sizes", [(1, 8), (8,), (3, 5), (1,)])
def test_every_batch(folder: Path, rng: np.random.Generator, sizes: tuple[int, ...]) -> None:
    net = ti.load(affine_library(folder / "sizes.so", batch_sizes=sizes))
    for batch in (1, 2, 3, 5, 8, 9, 17):
        x = rng.standard_normal((batch, 4), np.float32)
        y = net(x)
        assert (y.shape, y.dtype) == ((batch, 4), np.float32)
        np.testing.assert_allclose(y, expected(x), rtol=1e-6, atol=1e-6)


def test_outputs_belong_to_the_caller(affine: CompiledNetwork, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 4), np.float32)
    first = affine(x)
    kept = first.copy()
    second = affine(x + 1)
    np.testing.assert_array_equal(first, kept)
    second += 1
    np.testing.assert_array_equal(affine(x), kept)


def test_several_inputs_and_outputs(pair: CompiledNetwork, rng: np.random.Generator) -> None:
    for batch in (1, 5, 9):
        a, b = rng.standard_normal((2, batch, 4), np.float32)
        total, product = pair(a, b)
        np.testing.assert_array_equal(total, a + b)
        np.testing.assert_array_equal(product, a * b)
        by_name = pair.run(a, b)
        assert list(by_name) == ["sum", "product"]
        np.testing.assert_array_equal(by_name["product"], product)


def test_run_names_a_single_output(affine: CompiledNetwork) -> None:
    outputs = affine.run(np.zeros((2, 4), np.float32))
    assert {name: value.shape for name, value in outputs.items()} == {"y": (2, 4)}


@pytest.mark.parametrize("batch", [1, 3, 8, 11])
def test_nan_and_infinity_stay(affine: CompiledNetwork, rng: np.random.Generator, batch: int) -> None:
    x = rng.standard_normal((batch, 4), np.float32)
    x[0, 1], x[-1, 2] = np.nan, np.inf
    y = affine(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    np.testing.assert_array_equal(np.isposinf(y), np.isposinf(x))


@pytest.mark.parametrize("batch", [1, 5, 8, 10])
def test_torch_in_torch_out(affine: CompiledNetwork, batch: int) -> None:
    x = torch.randn(batch, 4, requires_grad=True)
    y = affine(x)
    assert isinstance(y, torch.Tensor) and y.dtype == torch.float32
    torch.testing.assert_close(y, 2 * x.detach() + 1)
    y += 1


_LAYOUTS = {
    "misaligned": lambda rng: rng.standard_normal(33, np.float32)[1:].reshape(8, 4),
    "strided": lambda rng: rng.standard_normal((16, 12), np.float32)[::2, ::3],
    "transposed": lambda rng: rng.standard_normal((4, 8), np.float32).T,
    "reversed": lambda rng: rng.standard_normal((8, 4), np.float32)[:, ::-1],
    "expanded": lambda rng: np.broadcast_to(rng.standard_normal((1, 4), np.float32), (8, 4)),
    "meaningless stride": lambda rng: np.lib.stride_tricks.as_strided(
        rng.standard_normal(4, np.float32), (1, 4), (4000, 4)
    ),
    "read-only": lambda rng: np.frombuffer(rng.bytes(128), np.uint8).astype(np.float32).reshape(32, 4)[:8],
    "subclass": lambda rng: rng.standard_normal((8, 4), np.float32).view(np.matrix),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("layout", _LAYOUTS)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_any_memory(affine: CompiledNetwork, rng: np.random.Generator, kind: str, layout: str) -> None:
    x = _LAYOUTS[layout](rng)
    if layout == "read-only":
        x.flags.writeable = False
    before = x.copy()
    if kind == "numpy":
        y = affine(x)
        assert type(y) is np.ndarray
    else:
        y = affine(torch.from_numpy(x if layout != "reversed" else x.copy()))
    np.testing.assert_allclose(y, expected(x), rtol=1e-6)
    np.testing.assert_array_equal(x, before)


def aligned(*shape: int) -> torch.Tensor:
    """Random numbers on a boundary of 64 bytes, which would be taken without a copy."""
    room = torch.randn(16 + int(np.prod(shape)))
    start = -room.data_ptr() % 64 // 4
    return room[start : start + int(np.prod(shape))].reshape(shape)


def test_lazy_bits_of_torch(affine: CompiledNetwork, rng: np.random.Generator) -> None:
    """A negative and a conjugate are bits beside the memory."""
    for batch in (1, 3, 8):
        x = torch._neg_view(aligned(batch, 4))
        assert x.is_neg()
        torch.testing.assert_close(affine(x), 2 * x.resolve_neg() + 1)
        z = torch.complex(aligned(batch, 4), aligned(batch, 4)).conj()
        torch.testing.assert_close(affine(z.imag), 2 * z.imag.resolve_neg() + 1)


@pytest.mark.filterwarnings("ignore")  # of prototypes
@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("sparse_coo; convert it: .to_dense", lambda x: x.to_sparse()),
        ("sparse_csr; convert it: .to_dense", lambda x: x.to_sparse_csr()),
        ("_mkldnn; convert it", lambda x: x.to_mkldnn()),
        ("quantized; convert it", lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)),
        ("nested; pad it", lambda x: torch.nested.nested_tensor([x[0]])),
        ("nested; pad it", lambda x: torch.nested.nested_tensor([x[0]], layout=torch.jagged)),
        ("without memory", lambda x: torch._efficientzerotensor(x.shape)),
        ("without memory", lambda x: FakeTensorMode().from_tensor(x)),
        ("without memory", lambda x: torch.masked.masked_tensor(x, x > 0)),
        ("must be float32, got complex64", lambda x: torch.complex(x, x)),
        ("must be float32, got bool", lambda x: x > 0),
        ("masked array", lambda x: np.ma.masked_array(x.numpy(), x.numpy() > 0)),
        ("must be float32, got object", lambda x: x.numpy().astype(object)),
        ("must be float32, got >f4", lambda x: x.numpy().astype(">f4")),
        ("must be float32, got bool", lambda x: x.numpy() > 0),
        ("got float32", lambda x: np.float32(3)),
    ],
)
def test_what_is_no_plain_array(affine: CompiledNetwork, what: str, make: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(UserError, match=what) as caught:
        affine(make(torch.rand(1, 4)))
    assert "\n" not in str(caught.value)


def test_under_a_transform_of_torch(affine: CompiledNetwork) -> None:
    x = torch.rand(3, 1, 4)
    for call in (lambda: torch.vmap(affine)(x), lambda: torch.func.grad(lambda v: affine(v).sum())(x[0])):
        with pytest.raises(UserError, match="without memory"):
            call()


def test_numbers_without_axes_and_truth_values(folder: Path, rng: np.random.Generator) -> None:
    net = ti.load(
        build_library(
            folder / "scalar.so",
            lambda x, s, m: relax.Tuple([relax.op.where(m, relax.op.multiply(x, s), x), relax.op.logical_not(m)]),
            inputs=(
                TensorSpec("x", ("batch", 4), "float32"),
                TensorSpec("s", (), "float32"),
                TensorSpec("m", ("batch", 4), "bool"),
            ),
            outputs=(TensorSpec("y", ("batch", 4), "float32"), TensorSpec("n", ("batch", 4), "bool")),
        )
    )
    for batch in (1, 5, 8):
        x, s = rng.standard_normal((batch, 4), np.float32), np.array(3, np.float32)
        m = x > 0
        for y, n in (net(x, s, m), net(*map(torch.from_numpy, (x, s, m)))):
            np.testing.assert_array_equal(y, np.where(m, 3 * x, x))
            np.testing.assert_array_equal(n, ~m)
            assert str(n.dtype).removeprefix("torch.") == "bool"


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_outputs_share_memory_with_nothing(folder: Path, rng: np.random.Generator, kind: str) -> None:
    """Inputs, weights and other outputs come out as copies: who writes into one changes nothing else."""
    weight = rng.standard_normal((2, 4), np.float32)

    def body(x: relax.Var) -> relax.Expr:
        y = relax.op.add(x, relax.const(1.0, "float32"))
        w = relax.const(weight)
        return relax.Tuple([x, relax.op.reshape(x, (2, 2, 2)), w, relax.op.reshape(w, (8,)), y, y])

    shapes = [("batch", 4), (2, 2, 2), (2, 4), (8,), ("batch", 4), ("batch", 4)]
    net = ti.load(
        build_library(
            folder / f"alias-{kind}.so",
            body,
            batch_sizes=(2,),
            outputs=tuple(TensorSpec(f"y{i}", shape, "float32") for i, shape in enumerate(shapes)),
        )
    )
    for _ in range(4):
        x = aligned(2, 4)
        before = x.numpy().copy()
        wanted = [before, before.reshape(2, 2, 2), weight, weight.reshape(8), before + 1, before + 1]
        outputs = net(x if kind == "torch" else x.numpy())
        for number, output in enumerate(outputs):
            np.testing.assert_array_equal(output, wanted[number])
            output += 1
            for other in range(number + 1, 6):
                np.testing.assert_array_equal(outputs[other], wanted[other])
        np.testing.assert_array_equal(x.numpy(), before)


def test_fresh_outputs_are_not_copied(affine: CompiledNetwork) -> None:
    tracker = FreshOutputs([4], [4])
    results = [tvm_ffi.from_dlpack(np.zeros(4, np.float32)) for _ in range(5)]
    assert tracker.which(results[:1], results[4:]) == [False]
    assert tracker.which(results[1:2], results[4:]) == [True]
    assert tracker.which(results[2:3], results[4:]) == [True]
    assert tracker.which(results[3:4], results[3:4]) == [False]


def test_batch_on_another_axis(folder: Path, rng: np.random.Generator) -> None:
    """The first tensor is the network's own; the batch is an axis in the middle, of which a picture has two entries."""
    net = ti.load(
        build_library(
            folder / "middle.so",
            lambda w, x: relax.Tuple([relax.op.multiply(w, x), relax.op.permute_dims(x, [2, 1, 0])]),
            inputs=(TensorSpec("w", (1, 1, 1), "float32"), TensorSpec("x", (3, "2*batch", 2), "float32")),
            outputs=(TensorSpec("y", (3, "2*batch", 2), "float32"), TensorSpec("z", (2, "2*batch", 3), "float32")),
        )
    )
    w = rng.standard_normal((1, 1, 1), np.float32)
    for batch in (1, 3, 8, 9):
        x = rng.standard_normal((3, 2 * batch, 2), np.float32)
        for y, z in (net(w, x), net(torch.from_numpy(w), torch.from_numpy(x))):
            np.testing.assert_array_equal(y, w * x)
            np.testing.assert_array_equal(z, x.transpose(2, 1, 0))
    with pytest.raises(UserError, match=r"input 'x' must have shape \(3, 2\*batch, 2\).*, got \(2, 2, 2\)"):
        net(w, np.zeros((2, 2, 2), np.float32))
    with pytest.raises(UserError, match=r"got \(3, 5, 2\)"):
        net(w, np.zeros((3, 5, 2), np.float32))


def test_an_input_for_the_whole_batch(folder: Path, rng: np.random.Generator) -> None:
    net = ti.load(
        build_library(
            folder / "whole.so",
            lambda w, x: relax.op.multiply(w, x),
            inputs=(TensorSpec("w", (1, 4), "float32"), TensorSpec("x", ("batch", 4), "float32")),
            outputs=(TensorSpec("y", ("batch", 4), "float32"),),
        )
    )
    w = rng.standard_normal((1, 4), np.float32)
    for batch in (1, 3, 8, 10):
        x = rng.standard_normal((batch, 4), np.float32)
        np.testing.assert_array_equal(net(w, x), w * x)


def test_an_output_for_the_whole_batch(folder: Path, rng: np.random.Generator) -> None:
    net = ti.load(
        build_library(
            folder / "mean.so",
            lambda x: relax.Tuple([x, relax.op.mean(x, axis=0, keepdims=True)]),
            outputs=(TensorSpec("x", ("batch", 4), "float32"), TensorSpec("m", (1, 4), "float32")),
            mixed_by="mean over the pictures",
        )
    )
    x = rng.standard_normal((8, 4), np.float32)
    np.testing.assert_allclose(net(x)[1], x.mean(0, keepdims=True), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"takes batches of 1 or 8 alone, got 3; .*mean over the pictures"):
        net(x[:3])


def test_two_libraries_side_by_side(folder: Path, affine: CompiledNetwork, rng: np.random.Generator) -> None:
    other = ti.load(affine_library(folder / "other.so", scale=-3.0))
    x = rng.standard_normal((5, 4), np.float32)
    for _ in range(3):
        np.testing.assert_allclose(affine(x), expected(x), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(other(x), expected(x, -3.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["replaced", "overwritten"])
def test_same_path_again_is_the_new_library(folder: Path, rng: np.random.Generator, how: str) -> None:
    path = affine_library(folder / "again.so")
    other = affine_library(folder / "again-other.so", scale=5.0)
    x = rng.standard_normal((8, 4), np.float32)
    old = ti.load(path)
    before = old(x)
    if how == "replaced":
        os.replace(other, path)
    else:
        shutil.copyfile(other, path)
    np.testing.assert_allclose(ti.load(path)(x), expected(x, 5.0), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(old(x), before)


def test_loading_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = affine_library(tmp_path / "affine.so")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    net = ti.load(path)
    path.unlink()
    assert not list((tmp_path / "temporary").iterdir())
    assert net(np.zeros((1, 4), np.float32)).tolist() == [[1.0] * 4]


def test_many_threads_call_at_once(affine: CompiledNetwork, pair: CompiledNetwork, rng: np.random.Generator) -> None:
    inputs = [rng.standard_normal((1 + i % 9, 4), np.float32) for i in range(60)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda x: (affine(x), pair(x, x)[1]), inputs))
    for x, (scaled, squared) in zip(inputs, results, strict=True):
        np.testing.assert_allclose(scaled, expected(x), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(squared, x * x)


def test_a_forked_process_can_run(affine: CompiledNetwork) -> None:
    x = np.ones((8, 4), np.float32)
    affine(x)
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).alarm(20)
        os._exit(0 if np.array_equal(affine(x), 2 * x + 1) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(folder: Path, rng: np.random.Generator, dtype: str) -> None:
    net = ti.load(colour_library(folder / f"{dtype}.so", dtype))
    numpy_type = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    for batch in (1, 8, 10):
        x = rng.standard_normal((batch, 3, *PICTURE_SIZE)).astype(numpy_type)
        y = net(x)
        assert y.dtype == numpy_type and y.shape == (batch, 3)
        np.testing.assert_allclose(y.astype(np.float64), x.astype(np.float64).mean((2, 3)), atol=4e-3)
        tensor = torch.from_numpy(x.view(np.int16)).view(getattr(torch, dtype))
        np.testing.assert_array_equal(net(tensor).view(torch.int16).numpy(), y.view(np.int16))


@pytest.mark.parametrize(
    ("shape", "got"), [((4,), r"\(4,\)"), ((2, 5), r"\(2, 5\)"), ((2, 4, 1), r"\(2, 4, 1\)"), ((), r"\(\)")]
)
@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["numpy", "torch"])
def test_wrong_shape(affine: CompiledNetwork, make, shape: tuple[int, ...], got: str) -> None:
    dtype = np.float32 if make is np.zeros else torch.float32
    with pytest.raises(UserError, match=r"input 'x' must have shape \(batch, 4\).*, got " + got):
        affine(make(shape, dtype=dtype))


def test_empty_batch(affine: CompiledNetwork) -> None:
    with pytest.raises(UserError, match=r"batch of at least 1, got \(0, 4\)"):
        affine(np.zeros((0, 4), np.float32))


def test_wrong_dtype(affine: CompiledNetwork) -> None:
    with pytest.raises(UserError, match=r"'x' must be float32, got float64; convert it: \.astype\(\"float32\"\)"):
        affine(np.zeros((1, 4)))
    with pytest.raises(UserError, match=r"got float16; convert it: \.to\(torch\.float32\)"):
        affine(torch.zeros(1, 4, dtype=torch.float16))
    with pytest.raises(UserError, match="got >f4"):
        affine(np.zeros((1, 4), ">f4"))


def test_wrong_number_or_kind_of_inputs(affine: CompiledNetwork, pair: CompiledNetwork) -> None:
    x = np.zeros((1, 4), np.float32)
    with pytest.raises(UserError, match=r"takes 2 inputs \(a, b\), got 1"):
        pair(x)
    with pytest.raises(UserError, match="got nothing"):
        affine()
    with pytest.raises(UserError, match="got list"):
        affine(x.tolist())
    with pytest.raises(UserError, match="got ndarray, Tensor"):
        pair(x, torch.from_numpy(x))
    with pytest.raises(UserError, match=r"input 'b' .* got \(2, 4\)"):
        pair(x, np.zeros((2, 4), np.float32))


def test_tensor_elsewhere(affine: CompiledNetwork) -> None:
    with pytest.raises(UserError, match=r'runs on cpu, got a tensor on meta; move it: \.to\("cpu"\)'):
        affine(torch.zeros(1, 4, device="meta"))


_NO_DEVICES = ["gpu", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "cpu:", "", "cuda:²", "cuda:9999999999", 3, b"cpu"]


@pytest.mark.parametrize("device", _NO_DEVICES)
def test_unknown_device(folder: Path, device: str) -> None:
    path = affine_library(folder / "device.so")
    with pytest.raises(UserError, match=r"unknown device .*; expected cpu, cuda or cuda:N"):
        ti.load(path, device)


@pytest.mark.parametrize("device", [None, "cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)], ids=str)
def test_the_cpu(folder: Path, device: object) -> None:
    net = ti.load(affine_library(folder / "device.so"), device)  # type: ignore[arg-type]
    assert net.device == ("cpu", 0) and net.device_name == "cpu"


def test_device_of_another_target(folder: Path) -> None:
    with pytest.raises(UserError, match="compiled for cpu and cannot run on cuda"):
        ti.load(affine_library(folder / "device.so"), torch.device("cuda:1"))
    with pytest.raises(UserError, match="compiled for cpu and cannot run on cuda; compile it again with --target cuda"):
        ti.load(affine_library(folder / "device.so"), "cuda")
    with pytest.raises(UserError, match="compiled for cuda and cannot run on cpu"):
        ti.load(affine_library(folder / "cuda.so", device_type="cuda"), "cpu")


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize("device", [None, "cuda", "cuda:1"])
def test_cuda_library_without_gpu(folder: Path, device: str | None) -> None:
    path = affine_library(folder / "cuda.so", device_type="cuda")
    with pytest.raises(UserError, match=r"no (NVIDIA driver|GPU)") as caught:
        ti.load(path, device)
    assert "\n" not in str(caught.value)


def test_warm_up_calls_every_batch_size(small_library, monkeypatch):
    network, called = ti.load(small_library), []
    call = type(network)._call
    monkeypatch.setattr(
        type(network), "_call", lambda self, form, size, *rest: called.append(size) or call(self, form, size, *rest)
    )
    network.warm_up()
    assert called == [1, 4]
