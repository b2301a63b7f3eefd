# SPDX-License-Identifier: Apache-2.0
"""Lay the tensors that share memory over each other's middle, so that a core's cache keeps its half.

Static planning starts all tensors of a block of memory at its first byte. Kernels give a core the first rows of each
tensor, so with tensors of several sizes an address belongs now to one core and now to the other, and each writes lines
that the other's cache holds. Where the cores share no cache (two chiplets, two sockets) that is slow: RedNet-50 takes
30 ms so and 25 where they do. Middle on middle, both cores keep their addresses.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx
from tvm_ffi import structural_walk

from ..rewrite import rewrite_functions
from ..sizes import tensor_bytes

# what the allocator aligns to, and kernels rely on
_ALIGNMENT = 64


@tvm.transform.module_pass(opt_level=0, name="CentreTensors")
class CentreTensors:
    """Give `relax.memory.alloc_tensor` an offset, for CPUs; runs right after `StaticPlanBlockMemory`.

    Only kernels read it (`lowering.AcceptOffsets`): what a packed function or the caller gets begins at the first byte.
    """

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with its tensors in the middle of their storage."""
        if self.target.kind.name != "llvm":
            return mod
        return rewrite_functions(mod, _Centre(mod))


@relax.expr_functor.mutator
class _Centre(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.kernels = {var for var, func in mod.functions_items() if isinstance(func, tirx.PrimFunc) and _is_own(func)}
        self.exposed: set[relax.Var] = set()

    def visit_function_(self, func: relax.Function) -> relax.Function:
        self.exposed |= _exposed(func, self.kernels)
        return super().visit_function_(func)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        name = getattr(getattr(binding.value, "op", None), "name", "")
        if name == "relax.memory.alloc_tensor" and binding.var not in self.exposed:
            binding = relax.VarBinding(binding.var, self._centred(binding.value))
        super().visit_var_binding_(binding)

    def _centred(self, call: relax.Call) -> relax.Call:
        storage, _, shape, dtype, *rest = call.args
        spare = int(self.lookup_binding(storage).args[0].values[0]) - tensor_bytes(call.ty)
        offset = tirx.const(spare // 2 // _ALIGNMENT * _ALIGNMENT, "int64")
        return relax.Call(call.op, [storage, offset, shape, dtype, *rest], call.attrs, call.ty_args)


def _is_own(func: tirx.PrimFunc) -> bool:
    """Return whether all of `func` is our code: a sort, for example, calls a function that knows no offsets."""
    names: list[str] = []
    structural_walk(func.body, (tvm.ir.Call, lambda call: names.append(str(getattr(call.op, "name", "")))))
    return not any("packed" in name for name in names)


def _exposed(func: relax.Function, kernels: set[tvm.ir.GlobalVar]) -> set[relax.Var]:
    """Return the variables that something else than a kernel gets, under any of their names."""
    same: dict[relax.Var, relax.Var] = {}
    found: set[relax.Var] = set()

    def expose(expr: relax.Expr) -> None:
        for var in relax.analysis.free_vars(expr):
            while var is not None and var not in found:
                found.add(var)
                var = same.get(var)

    for block in func.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Var):
                same[binding.var] = binding.value
            elif not isinstance(binding.value, relax.Call) or binding.value.op not in kernels:
                expose(binding.value)
    expose(func.body.body)
    return found
