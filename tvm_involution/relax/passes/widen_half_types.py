# SPDX-License-Identifier: Apache-2.0
"""Half types are how tensors lie in memory; what is computed of them is computed in float32.

TVM computes in the type of the input: a mean over 49 pixels in bfloat16 loses a digit of the two it has, a sum of 16384
values stops growing. So every operator is widened, save those that move values or round one result once.

Runs after the passes that lower convolutions and linear layers to packed products, which keep their sums in float32.
"""

from __future__ import annotations

from collections import defaultdict

import tvm
import tvm_ffi
from tvm import relax, te, topi

from ..constants import constant, to_float
from ..dtypes import HALF_TYPES, has_out_dtype, retyped, tensor_dtype, with_attribute
from ..operators import interpolation, involution, local_attention
from ..rewrite import rewrite_functions
from .convert_dtype import unrounded


def _names(words: str) -> frozenset[str]:
    return frozenset(f"relax.{word}" for word in words.split())


_MOVES = _names("""
    astype broadcast_to concat dynamic_strided_slice expand_dims flatten flip full full_like gather_elements gather_nd
    index_tensor layout_transform memory.view meshgrid nn.batch_flatten nn.pad nn.pixel_shuffle ones ones_like
    permute_dims repeat reshape reverse_sequence slice_scatter split squeeze stack strided_slice take tile tril triu
    where zeros zeros_like
""")
_ROUNDS_ONCE = _names("""
    abs add ceil clip divide equal floor greater greater_equal less less_equal maximum minimum
    multiply negative nn.leakyrelu nn.relu not_equal round sign subtract trunc
""")
# they keep their sums in float32 by themselves
_OURS = frozenset({*involution.OP_NAMES.values(), local_attention.OP_NAME, interpolation.OP_NAME})
_KEPT = _MOVES | _ROUNDS_ONCE | _OURS
# calls of what is a program already, and what is no computation
_PROGRAMS = ("relax.call_", "relax.builtin.", "relax.memory.", "relax.vm.", "relax.inspect.")
_POOLS = {f"relax.nn.{kind}_pool{rank}d": (kind, rank) for kind in ("avg", "max") for rank in (1, 2, 3)}


@tvm.transform.module_pass(opt_level=0, name="WidenHalfTypes")
class WidenHalfTypes:
    """Compute in float32; between two such operators, and what is done on the way, nothing is rounded."""

    def __init__(self, target: tvm.target.Target):
        # on CPUs maximum pooling, too: TVM 0.27 makes no vectors of a padded maximum of bfloat16
        exact = frozenset() if target.kind.name == "llvm" else frozenset(name for name in _POOLS if "max" in name)
        self.kept = _KEPT | exact

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those operators in float32."""
        return rewrite_functions(mod, _Widener(mod, self.kept))


@relax.expr_functor.mutator
class _Widener(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, kept: frozenset[str]):
        super().__init__(mod)
        self.kept = kept
        self.wide: set[relax.Var] = set()
        self.stay: set[relax.Var] = set()
        self.bound: relax.Var | None = None

    def visit_function_(self, func: relax.Function) -> relax.Function:
        self.wide, self.stay = _plan(func, self.kept)
        return super().visit_function_(func)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self.bound = binding.var
        super().visit_var_binding_(binding)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        assert self.bound is not None
        var, dtype = self.bound, _half_type(call)
        arguments = [self.visit_expr(arg) for arg in call.args]
        if var not in self.wide or dtype is None:
            return relax.Call(call.op, [self._rounded(arg) for arg in arguments], call.attrs, call.ty_args)
        stays = var in self.stay
        if _widens(call):
            return self._cast(arguments[0], dtype, "float32")
        if call.op.name in _POOLS:
            kind, rank = _POOLS[call.op.name]
            # the other users of the input keep it as it is, so the cast must not be a tensor of its own
            return self.builder_.call_te(
                pool,
                *arguments,
                call.attrs,
                kind,
                rank,
                "float32" if stays else dtype,
                primfunc_name_hint=f"{kind}_pool{rank}d",
            )
        attrs = retyped(call.attrs, {dtype: "float32"})
        if has_out_dtype(call):
            attrs = with_attribute(attrs, "out_dtype", tvm_ffi.dtype("float32"))
        # convolutions and matrix products read half types and sum in float32 by themselves
        if not has_out_dtype(call) or any(tensor_dtype(arg.ty) != dtype for arg in arguments):
            arguments = [self._cast(arg, dtype, "float32") for arg in arguments]
        result = self.builder_.emit(relax.Call(call.op, arguments, attrs, call.ty_args))
        return result if stays else self._round(result, var.ty)

    def _rounded(self, value: relax.Expr) -> relax.Expr:
        """Return `value`, a number as a constant, which programs hold and need not read."""
        number = unrounded(self.lookup_binding(value)) if isinstance(value, relax.Var) else None
        return value if number is None else constant(to_float(number), tensor_dtype(value.ty))

    def _cast(self, value: relax.Expr, old: str, new: str) -> relax.Expr:
        """Return a tensor of type `old`, or those of a tuple, in the type `new`."""
        if isinstance(value.ty, relax.TupleType):
            return relax.Tuple([self._cast(field, old, new) for field in self._fields(value)])
        if tensor_dtype(value.ty) != old:
            return value
        number = unrounded(self.lookup_binding(value)) if isinstance(value, relax.Var) else None
        return self.builder_.emit(relax.op.astype(value, new)) if number is None else number

    def _round(self, value: relax.Expr, ty: relax.Type) -> relax.Expr:
        """Return a tensor, or those of a tuple, in the types of `ty`."""
        if isinstance(ty, relax.TupleType):
            pairs = zip(self._fields(value), ty.fields, strict=True)
            return relax.Tuple([self._round(field, field_type) for field, field_type in pairs])
        wanted = tensor_dtype(ty)
        return value if tensor_dtype(value.ty) == wanted else self.builder_.emit(relax.op.astype(value, wanted))

    def _fields(self, value: relax.Expr) -> list[relax.Expr]:
        if isinstance(value, relax.Tuple):
            return list(value.fields)
        return [self.builder_.emit(relax.TupleGetItem(value, i)) for i in range(len(value.ty.fields))]


def _plan(func: relax.Function, kept: frozenset[str]) -> tuple[set[relax.Var], set[relax.Var]]:
    """Return the variables that are computed in float32, and those of them that stay so.

    What is kept as it is becomes float32 where widened operators alone take it: the scores of an attention are scaled
    and masked before their softmax. Save where it joins the program before it, whose output stays as it is.
    """
    calls = [
        (binding.var, binding.value)
        for block in func.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call)
    ]
    users: dict[relax.Var, list[relax.Var | None]] = defaultdict(list)
    for block in func.body.blocks:
        for binding in block.bindings:
            user = binding.var if isinstance(binding.value, relax.Call) else None
            for used in relax.analysis.free_vars(binding.value):
                users[used].append(user)
    for used in relax.analysis.free_vars(func.body.body):
        users[used].append(None)

    joins: set[relax.Var] = set()
    can_be_wide: set[relax.Var] = set()
    for var, call in calls:
        name, arguments = _operator(call), set(_variables(call))
        program = not name or name.startswith("relax.call_") or name in _OURS
        if program or (name in _ROUNDS_ONCE and joins & arguments):
            joins.add(var)
        if _is_widened(call, kept):
            can_be_wide.add(var)
        elif name in kept and var not in joins and _half_type(call) is not None:
            computed = _is_half(var) and name in _ROUNDS_ONCE
            can_be_wide |= {var} if computed or can_be_wide & arguments else set()
    wide: set[relax.Var] = set()
    for var, call in reversed(calls):
        taken = not _is_half(var) or (bool(users[var]) and all(user in wide for user in users[var]))
        if _is_widened(call, kept) or (var in can_be_wide and taken):
            wide.add(var)
    stay = {var for var in wide if _is_half(var) and users[var] and all(user in wide for user in users[var])}
    return wide, stay


def _is_half(var: relax.Var) -> bool:
    return tensor_dtype(var.ty) in HALF_TYPES


def _is_widened(call: relax.Call, kept: frozenset[str]) -> bool:
    name = _operator(call)
    if not name or name.startswith(_PROGRAMS) or (name in kept and not _widens(call)):
        return False
    return _half_type(call) is not None


def _operator(call: relax.Call) -> str:
    """Return the operator's name; an empty string where a function is called."""
    return call.op.name if isinstance(call.op, tvm.ir.Op) else ""


def _widens(call: relax.Call) -> bool:
    """Return whether `call` is the network's own cast from a half type to float32."""
    return call.op.name == "relax.astype" and tensor_dtype(call.ty) == "float32"


def _half_type(call: relax.Call) -> str | None:
    """Return the half type among the types of a call's arguments and output."""
    types = [call.ty, *(arg.ty for arg in call.args)]
    tensors = [field for ty in types for field in (ty.fields if isinstance(ty, relax.TupleType) else [ty])]
    return next((dtype for dtype in map(tensor_dtype, tensors) if dtype in HALF_TYPES), None)


def _variables(call: relax.Call) -> list[relax.Var]:
    return [var for arg in call.args for var in relax.analysis.free_vars(arg)]


def pool(x: te.Tensor, attrs: tvm.ir.Attrs, kind: str, rank: int, dtype: str) -> te.Tensor:
    arguments = {"count_include_pad": attrs.count_include_pad} if kind == "avg" else {}
    pooled = getattr(topi.nn, f"pool{rank}d")(
        topi.cast(x, "float32"),
        kernel=attrs.pool_size,
        stride=attrs.strides,
        dilation=attrs.dilation,
        padding=attrs.padding,
        pool_type=kind,
        ceil_mode=attrs.ceil_mode,
        layout=attrs.layout,
        **arguments,
    )
    return topi.cast(pooled, dtype)
