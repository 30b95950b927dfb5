"""The origins of numbers that are not finite, by running a function step by step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Names under which primitives that only wrap a program have it in their parameters.
_WRAPPERS = ("jaxpr", "call_jaxpr")


@dataclasses.dataclass(frozen=True)
class Origin:
    """An operation that made numbers that are not finite out of finite ones.

    Attributes:
      operation: The primitive's name.
      where: Module of the network and line of the code.
      shape: Shape of the result.
      bad: Number of the result's values that are not finite.
      rows: Their indices along the result's first axis.
      inputs: Shape and largest magnitude of each input.
    """

    operation: str
    where: str
    shape: tuple[int, ...]
    bad: int
    rows: tuple[int, ...]
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        """All of it in one line, for people."""
        size = int(np.prod(self.shape))
        return (
            f"{self.operation} in {self.where}: {self.bad} of {size} numbers are not"
            f" finite; from {', '.join(self.inputs) or 'nothing'}"
        )


def origins(function: Callable[..., Any], *args: Any) -> list[Origin]:
    """The operations behind the outputs of a function that are not finite.

    Infinities that are meant, and do not reach an output, are not among them. Every
    operation runs by itself, so this is slow; a `while` loop is one operation.

    Args:
      function: A function of arrays that JAX can trace.
      *args: Its arguments.

    Returns:
      In the order in which they ran; none if all outputs are finite.
    """
    closed = jax.make_jaxpr(function)(*args)
    trace = _Trace()
    outputs = trace.run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return trace.origins(outputs)


@dataclasses.dataclass
class _Value:
    """An array, and the operation that made it, if it is not finite."""

    array: Any
    maker: int | None = None


class _Trace:
    """A run of a program that notes the operations whose results are not all finite.

    An operation is *bad* if its result has numbers that are not finite. Bad operations
    are numbered in the order in which they run; `_parents` has, for each, the numbers
    of the bad operations that made its inputs.
    """

    def __init__(self) -> None:
        self._bad: list[Origin] = []
        self._parents: list[list[int]] = []

    def run(self, jaxpr: core.Jaxpr, consts: Any, args: Any) -> list[_Value]:
        """Runs a program.

        Args:
          jaxpr: The program.
          consts: Values of its constants.
          args: Values of its inputs.

        Returns:
          Its outputs.
        """
        return self._run(jaxpr, [*map(_Value, consts)], [*map(_Value, args)], "")

    def origins(self, outputs: list[_Value]) -> list[Origin]:
        """The bad operations that the outputs come from and whose inputs are finite."""
        seen: set[int] = set()
        waiting = [value.maker for value in outputs if value.maker is not None]
        while waiting:
            maker = waiting.pop()
            if maker not in seen:
                seen.add(maker)
                waiting += self._parents[maker]
        return [self._bad[i] for i in sorted(seen) if not self._parents[i]]

    def _run(
        self, jaxpr: Any, consts: list[_Value], args: list[_Value], outer: str
    ) -> list[_Value]:
        values: dict[Any, _Value] = {}
        values.update(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> _Value:
            return _Value(atom.val) if isinstance(atom, core.Literal) else values[atom]

        last_use = {
            atom: i
            for i, equation in enumerate(jaxpr.eqns)
            for atom in equation.invars
            if not isinstance(atom, core.Literal)
        }
        for atom in jaxpr.outvars:
            if not isinstance(atom, core.Literal):
                last_use[atom] = len(jaxpr.eqns)
        for i, equation in enumerate(jaxpr.eqns):
            inputs = [read(atom) for atom in equation.invars]
            outputs = self._operation(equation, inputs, outer)
            values.update(zip(equation.outvars, outputs, strict=True))
            for atom in [atom for atom in values if last_use.get(atom, -1) <= i]:
                del values[atom]
        return [read(atom) for atom in jaxpr.outvars]

    def _operation(
        self, equation: Any, inputs: list[_Value], outer: str
    ) -> list[_Value]:
        where = "/".join(
            part for part in (outer, str(equation.source_info.name_stack)) if part
        )
        if equation.primitive.name == "cond":
            which, *inputs = inputs
            branch = equation.params["branches"][int(which.array)]
            consts = [*map(_Value, branch.consts)]
            return self._run(branch.jaxpr, consts, inputs, where)
        if equation.primitive.name == "scan":
            return self._scan(equation.params, inputs, where)
        inner = _wrapped(equation)
        if inner is not None:
            program, consts = inner
            return self._run(program, [*map(_Value, consts)], inputs, where)
        results = _run_alone(equation, [value.array for value in inputs])
        return [self._noted(equation, inputs, result, where) for result in results]

    def _scan(
        self, params: dict[str, Any], inputs: list[_Value], where: str
    ) -> list[_Value]:
        """Runs a scan, one round after the other."""
        first, last = _places_of_carry(params)
        fixed, carry, stacked = inputs[:first], inputs[first:last], inputs[last:]
        program = params["jaxpr"]
        rounds = range(params["length"])
        stacks = []
        for i in reversed(rounds) if params["reverse"] else rounds:
            here = [_Value(value.array[i], value.maker) for value in stacked]
            consts = [*map(_Value, program.consts)]
            outputs = self._run(program.jaxpr, consts, [*fixed, *carry, *here], where)
            carry = outputs[: len(carry)]
            stacks.append(outputs[len(carry) :])
        if params["reverse"]:
            stacks.reverse()
        return [*carry, *(_stack(values) for values in zip(*stacks, strict=True))]

    def _noted(
        self, equation: Any, inputs: list[_Value], result: Any, where: str
    ) -> _Value:
        bad = _not_finite(result)
        if not bad.any():
            return _Value(result)
        parents = [value.maker for value in inputs if value.maker is not None]
        self._parents.append(parents)
        self._bad.append(
            Origin(
                operation=str(equation.primitive.name),
                where=" at ".join(filter(None, (where, _line(equation)))),
                shape=tuple(np.shape(result)),
                bad=int(bad.sum()),
                rows=tuple(
                    np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)).tolist()
                )
                if bad.ndim
                else (),
                inputs=tuple(_described(value.array) for value in inputs),
            )
        )
        return _Value(result, len(self._bad) - 1)


def _run_alone(equation: Any, arrays: list[Any]) -> list[Any]:
    """The results of one operation, as a program of its own."""
    given = {
        atom: array
        for atom, array in zip(equation.invars, arrays, strict=True)
        if not isinstance(atom, core.Literal)
    }
    names = core.DebugInfo(
        traced_for="origins",
        func_src_info=str(equation.primitive.name),
        arg_names=None,
        result_paths=None,
    )
    program = core.Jaxpr(
        [], list(given), equation.outvars, [equation], debug_info=names
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, []))(*given.values())


def _stack(values: tuple[_Value, ...]) -> _Value:
    """The outputs of a scan's rounds, as one array."""
    makers = [value.maker for value in values if value.maker is not None]
    array = jnp.stack([value.array for value in values])
    return _Value(array, makers[0] if makers else None)


def _wrapped(equation: Any) -> tuple[Any, Any] | None:
    """The program inside a primitive that does nothing but run it once."""
    for name in _WRAPPERS:
        inner = equation.params.get(name)
        if isinstance(inner, core.ClosedJaxpr):
            return inner.jaxpr, inner.consts
        if isinstance(inner, core.Jaxpr):
            return inner, []
    return None


def _not_finite(array: Any) -> np.ndarray:
    """True for every number that is not finite."""
    if not jnp.issubdtype(jnp.result_type(array), jnp.inexact):
        return np.zeros((), bool)
    return np.asarray(~jnp.isfinite(array))


def _described(array: Any) -> str:
    dtype = jnp.result_type(array)
    text = f"{dtype}{list(np.shape(array))}"
    if jnp.issubdtype(dtype, jnp.number) and np.size(array):
        text += f" up to {float(jnp.max(jnp.abs(array))):.3g}"
    return text


def _line(equation: Any) -> str:
    """The innermost line that is not JAX's or Flax's."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if not any(f"/{name}/" in frame.file_name for name in ("jax", "flax", "optax")):
            return f"{frame.file_name}:{frame.line_num}"
    return ""


def _places_of_carry(params: dict[str, Any]) -> tuple[int, int]:
    """Where, among a scan's inputs, the carried values begin and end."""
    if "num_consts" in params:
        first, count = params["num_consts"], params["num_carry"]
    else:  # since JAX 0.11
        first, count = (len(part) for part in params["ft_in"].unpack()[:2])
    return first, first + count
