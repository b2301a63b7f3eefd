# SPDX-License-Identifier: Apache-2.0
"""What TVM's own converters get wrong, one by one, against torch in float64; all of them compiled as one network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import relative_norm
from torch import Tensor
from torch.nn import functional

import tvm_involution as ti
from tvm_involution.frontend.conversions import CONVERTERS
from tvm_involution.frontend.importer import export_module, import_exported_program

ROWS, COLUMNS = torch.tensor([1, 2, 0]), torch.tensor([0, -3, 4])
MASK = torch.arange(9) % 2 == 0


def put_under_masks(x: Tensor) -> Tensor:
    y = x.clone()
    y[y > 1] = 0.5
    y[x[:, :, 0, 0] < 0] = 2.0
    return y


def put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, ROWS, :, COLUMNS] = 7.0
    y[:, :, 0] += 1
    y[..., -1] = x[..., 0]
    return y


CASES: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "last element": lambda x: x[..., -1],
    "select from the end": lambda x: x.select(1, -1),
    "slice from the end": lambda x: x[:, -3:, ..., 1:-1:3],
    "slice beyond the end": lambda x: x[:, -30:2, 5:99],
    "indices zipped behind slices": lambda x: x[:, :, ROWS, COLUMNS],
    "indices zipped between slices": lambda x: x[:, ROWS, COLUMNS],
    "indices zipped as columns": lambda x: x[:, :, ROWS[:, None], COLUMNS[:, None]],
    "indices broadcast": lambda x: x[:, :, ROWS[:, None], COLUMNS],
    "indices around a slice": lambda x: x[:, ROWS, :, COLUMNS],
    "indices in front": lambda x: x[ROWS % 2, COLUMNS % 3],
    "index of two axes": lambda x: x[:, torch.stack([ROWS, COLUMNS % 4])],
    "mask known at compile time": lambda x: x * MASK + torch.where(MASK, x, 2.0),
    "permute by negative axes": lambda x: x.permute(0, -1, -3, -2),
    "amin": lambda x: x.amin((-1, 1)),
    "amax of nothing named": lambda x: x.amax(),
    "min along": lambda x: tuple(x.min(-1)),
    "max along": lambda x: tuple(x.max(1, keepdim=True)),
    "prod along": lambda x: x.prod(-2),
    "product of nothing": lambda x: x[:, :0].prod(1),
    "matrices with nothing to sum": lambda x: x @ torch.zeros(9, 0, dtype=x.dtype) @ torch.zeros(0, 2, dtype=x.dtype),
    "any along": lambda x: (x > 1).any(2).float(),
    "all along": lambda x: (x > -1).all(-1).float(),
    "any of numbers": lambda x: x.relu().any(1).float(),
    "clamp by tensors": lambda x: x.clamp(x[:, :1] - 0.1, x.mean((2, 3), keepdim=True) + 0.5),
    "selu": functional.selu,
    "celu": lambda x: functional.celu(x, 0.7),
    "elu": lambda x: functional.elu(x, 1.7),
    "leaky with a negative slope": lambda x: functional.leaky_relu(x, -0.3),
    "round to even": lambda x: (x * 2).round() / 2,
    "round to tens": lambda x: (x * 100).round(decimals=-1),
    "log1p of little": lambda x: torch.log1p(x.abs() * 1e-6),
    "expm1 of little": lambda x: torch.expm1(x * 1e-6),
    "add with alpha": lambda x: torch.add(x, x[:1], alpha=3),
    "average with a divisor": lambda x: functional.avg_pool2d(x, 3, 2, 1, divisor_override=4),
    "average rounded up": lambda x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "padded around": lambda x: functional.pad(x, (2, 3, 1, 0), mode="circular"),
    "cropped and padded around": lambda x: functional.pad(x, (-1, 2, 3, -2), mode="circular"),
    "padded and cropped by reflection": lambda x: functional.pad(x, (-2, 3, 2, -1), mode="reflect"),
    "padded by the border": lambda x: functional.pad(x, (1, 0, 4, 2), mode="replicate"),
    "average without padding": lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average of volumes": lambda x: functional.avg_pool3d(x, (2, 3, 3), (1, 2, 2), (1, 1, 1)),
    "average of volumes without padding": lambda x: functional.avg_pool3d(x, 3, 2, 1, True, False),
    "maximum and where": lambda x: functional.max_pool2d(x, 3, 2, 1, return_indices=True),
    "maximum rounded up": lambda x: functional.max_pool2d(x, 2, 2, ceil_mode=True),
    "adaptive maximum": lambda x: functional.adaptive_max_pool2d(x, (2, 4)),
    "unpooled": lambda x: functional.max_unpool2d(
        *functional.max_pool2d(x, 2, 2, return_indices=True), 2, 2, 0, (9, 9)
    ),
    "batch norm by the batch": lambda x: functional.batch_norm(x, None, None, training=True),
    "grid sample": lambda x: functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1) / 2, align_corners=False),
    "grid sample of the border": lambda x: functional.grid_sample(
        x, x[:, :2, :4].permute(0, 2, 3, 1), "nearest", "border", align_corners=True
    ),
    "linear of one axis": lambda x: functional.interpolate(x[0], scale_factor=1.7, mode="linear"),
    "nearest of one axis": lambda x: functional.interpolate(x[0], 13),
    "bilinear by factors": lambda x: functional.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"),
    "bilinear by corners": lambda x: functional.interpolate(x, (5, 12), mode="bilinear", align_corners=True),
    "bilinear to one column": lambda x: functional.interpolate(x, (5, 1), mode="bilinear", align_corners=True),
    "nearest by factors": lambda x: functional.interpolate(x, scale_factor=1.3),
    "bicubic": lambda x: functional.interpolate(x, (5, 12), mode="bicubic"),
    "trilinear": lambda x: functional.interpolate(x[None], (3, 5, 12), mode="trilinear"),
    "unfold": lambda x: functional.unfold(x, (3, 2), 2, 1, (2, 1)),
    "fold": lambda x: functional.fold(functional.unfold(x, 3, padding=1), 9, 3, padding=1),
    "windows": lambda x: x.unfold(2, 3, 2).unfold(-2, 4, 3),
    "strided": lambda x: x.as_strided((2, 3, 4), (7, 1, 20), 5),
    "diagonal": lambda x: x.diagonal(-2, 1, -1),
    "written": put,
    "written under masks": put_under_masks,
    "scattered": lambda x: x.scatter(2, x.argsort(2)[:, :, :4], x[:, :, 5:] * 10),
    "added up": lambda x: x.scatter_add(3, (x.abs() * 4).long().clamp(max=8), x),
    "counted": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5])).float(),
    "softmax of few columns": lambda x: x[0, 0, :, :5].softmax(0),
    "distances": lambda x: torch.cdist(x[0], x[1], p=1.5),
    "lines": lambda x: x * torch.linspace(-1, 1, 9) + torch.arange(9) // 2,
}


class Cases(torch.nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        return {name: case(x) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ti.CompiledNetwork:
    path: Path = tmp_path_factory.mktemp("conversions") / "cases.so"
    ti.compile((Cases(), torch.zeros(2, 4, 9, 9))).save(path)
    return ti.load(path)


def test_right_values(network, rng):
    x = torch.from_numpy(rng.standard_normal((2, 4, 9, 9)).astype(np.float32))
    expected = Cases()(x.double())
    actual = iter(network(x))
    wrong = []
    for name, values in expected.items():
        for value in values if isinstance(values, tuple) else (values,):
            got = next(actual)
            if got.shape != value.shape or (value.numel() and relative_norm(got.numpy(), value.numpy()) > 1e-5):
                wrong.append(name)
    assert not wrong


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ti.CompiledNetwork:
    """Rows of an embedding, and of a tensor by indices that may count from the end; both by indices at run time."""

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 3)
            self.embedding.weight = torch.nn.Parameter(torch.arange(15.0).reshape(5, 3))

        def forward(self, at: Tensor) -> tuple[Tensor, ...]:
            weight = self.embedding.weight
            return (
                self.embedding(at),
                weight[at],
                weight.gather(0, at[:, None].expand(-1, 3)),
                weight.index_select(0, at),
            )

    path = tmp_path_factory.mktemp("conversions") / "table.so"
    ti.compile((Table(), torch.zeros(4, dtype=torch.int64))).save(path)
    return ti.load(path)


def test_indices_at_run_time_count_from_the_end_where_torch_lets_them(table):
    rows = table(torch.tensor([-1, 0, -5, 3]))[1]
    assert rows[:, 0].tolist() == [12, 0, 0, 9]


def test_indices_out_of_range_read_nothing_outside(table):
    """torch raises; compiled code takes the first or the last."""
    for rows in table(torch.tensor([2**40, 0, -(2**40), 7])):
        assert rows[:, 0].tolist() == [12, 0, 0, 12]


def test_an_index_known_to_be_out_of_range_is_refused():
    class Outside(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.gather(1, torch.full((1, 1), 9))

    with pytest.raises(ti.UserError, match=r"aten.gather.default: .*out of range: 9 to 9 for a size of 4 \(.*gather"):
        import_exported_program(export_module(Outside(), [torch.zeros(1, 4)]))


def test_a_result_of_another_shape_or_dtype_is_refused(monkeypatch):
    """Whatever a converter returns, what torch says comes out is what must come out."""

    class Tanh(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.tanh()

    program = export_module(Tanh(), [torch.zeros(1, 4)])
    for strange, words in (
        (lambda operation, x: operation.reshape(x, (4,)), r"float32\[4\] where torch has float32\[1, 4\]"),
        (lambda operation, x: operation.cast(x, "int32"), r"int32\[1, 4\] where torch has float32\[1, 4\]"),
    ):
        monkeypatch.setitem(CONVERTERS, "tanh.default", strange)
        with pytest.raises(ti.UserError, match=r"aten.tanh.default: it was imported as " + words + r" \(.*x.tanh\(\)"):
            import_exported_program(program)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda x: x[x > 0], "makes a shape that depends on values"),
        (lambda x: x + torch.rand(4), "draws random numbers"),
        (
            lambda x: torch.linalg.svdvals(x) + torch.special.i0(x).sum(),
            "aten._linalg_svd.default, aten.i0.default are",
        ),
        (lambda x: x @ x.reshape(3, 5), r"shape '\[3, 5\]' is invalid for input of size 16 \(.*x.reshape\(3, 5\)"),
        (lambda x: x if x.sum() > 0 else -x, "data-dependent expression.*use torch.where"),
        (lambda x: x.missing, "AttributeError: .*missing"),
    ],
)
def test_the_true_reason_is_given(forward, words):
    class Strange(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    with pytest.raises(ti.UserError, match=words) as error:
        import_exported_program(export_module(Strange(), [torch.zeros(4, 4)]))
    assert "\n" not in str(error.value) and f"({__file__}:" in str(error.value)
