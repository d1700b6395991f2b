"""Writes the code of a kernel: vectors, loops and memory as values that know their operators.

What is written is LLVM's language, for any processor: eight-lane vectors become whatever the machine has. Products may
be fused with sums and sums of lanes taken in any order, but no operation is told that NaN or infinity cannot come, so
both travel on to the logits. Addresses are 64-bit integers; nothing is checked here. Must not know what a kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

LANES = 8
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, F32 = ir.HalfType(), ir.FloatType()
POINTER = ir.PointerType()
BYTES = {I8: 1, I16: 2, I32: 4, I64: 8, HALF: 2, F32: 4}
FLOATING = ("nsz", "contract")


def lanes(element: Any, count: int = LANES) -> Any:
    return ir.VectorType(element, count)


@dataclass(frozen=True, slots=True)
class Value:
    """A number or a vector in a register. A Python number on the other side becomes a constant of the same type."""

    emitter: Emitter
    raw: Any

    @property
    def type(self) -> Any:
        return self.raw.type

    @property
    def element(self) -> Any:
        return self.type.element if isinstance(self.type, ir.VectorType) else self.type

    @property
    def floating(self) -> bool:
        return self.element in (F32, HALF)

    def __add__(self, other: Value | float) -> Value:
        return self._either("add", "fadd", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._either("sub", "fsub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._either("mul", "fmul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._either("", "fdiv", other)

    def __floordiv__(self, other: Value | int) -> Value:
        return self._either("udiv", "", other)

    def __mod__(self, other: Value | int) -> Value:
        return self._either("urem", "", other)

    def __and__(self, other: Value | int) -> Value:
        return self._either("and_", "", other)

    def __or__(self, other: Value | int) -> Value:
        return self._either("or_", "", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self._either("shl", "", other)

    def __rshift__(self, other: Value | int) -> Value:
        """Without sign."""
        return self._either("lshr", "", other)

    def __lt__(self, other: Value | float) -> Value:
        return self._compared("<", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._compared(">", other)

    def __ge__(self, other: Value | float) -> Value:
        return self._compared(">=", other)

    def equals(self, other: Value | float) -> Value:
        return self._compared("==", other)

    def _compared(self, operator: str, other: Value | float) -> Value:
        builder, right = self.emitter.builder, self.emitter.like(self, other).raw
        compare = builder.fcmp_ordered if self.floating else builder.icmp_signed
        return Value(self.emitter, compare(operator, self.raw, right))

    def _either(self, integer: str, floating: str, other: Value | float) -> Value:
        right = self.emitter.like(self, other).raw
        if self.floating:
            return Value(self.emitter, getattr(self.emitter.builder, floating)(self.raw, right, flags=FLOATING))
        return Value(self.emitter, getattr(self.emitter.builder, integer)(self.raw, right))


class Emitter:
    """The body of one function `name(arguments*, part, parts)`; every argument is a 64-bit integer."""

    def __init__(self, name: str, triple: str) -> None:
        self.module = ir.Module(name)
        self.module.triple = triple
        kind = ir.FunctionType(ir.VoidType(), (POINTER, I64, I64))
        self.function = ir.Function(self.module, kind, name)
        entry = self.function.append_basic_block("entry")
        start = self.function.append_basic_block("start")
        self._entry = ir.IRBuilder(entry)
        self._entry.position_before(self._entry.branch(start))
        self.builder = ir.IRBuilder(start)
        self.part, self.parts = (Value(self, argument) for argument in self.function.args[1:])

    def finish(self) -> str:
        self.builder.ret_void()
        return str(self.module)

    @property
    def arguments_address(self) -> Value:
        return Value(self, self.builder.ptrtoint(self.function.args[0], I64))

    def argument(self, index: int) -> Value:
        return self.load(self.arguments_address + 8 * index, I64)

    def arguments(self, count: int) -> tuple[Value, ...]:
        return tuple(self.argument(index) for index in range(count))

    # -- values

    def float_bits(self, argument: Value) -> Value:
        """A single-precision number whose bits an argument carries."""
        return self.cast(self.narrow(argument, I32), F32)

    def constant(self, kind: Any, number: float) -> Value:
        if isinstance(kind, ir.VectorType):
            return Value(self, ir.Constant(kind, [ir.Constant(kind.element, number)] * kind.count))
        return Value(self, ir.Constant(kind, number))

    def integer(self, number: int) -> Value:
        return self.constant(I64, number)

    def like(self, model: Value, number: Value | float) -> Value:
        if isinstance(number, Value):
            return number
        return self.constant(model.type, float(number) if model.floating else int(number))

    def splat(self, scalar: Value, count: int = LANES) -> Value:
        empty = ir.Constant(lanes(scalar.type, count), ir.Undefined)
        first = self.builder.insert_element(empty, scalar.raw, ir.Constant(I32, 0))
        return self.shuffle(Value(self, first), None, [0] * count)

    def counting(self, count: int = LANES) -> Value:
        return Value(self, ir.Constant(lanes(I64, count), list(range(count))))

    def shuffle(self, left: Value, right: Value | None, order: Sequence[int]) -> Value:
        other = right.raw if right is not None else ir.Constant(left.type, ir.Undefined)
        mask = ir.Constant(lanes(I32, len(order)), list(order))
        return Value(self, self.builder.shuffle_vector(left.raw, other, mask))

    def lane(self, vector: Value, index: int) -> Value:
        return Value(self, self.builder.extract_element(vector.raw, ir.Constant(I32, index)))

    def cast(self, value: Value, kind: Any) -> Value:
        """The same bits."""
        return Value(self, self.builder.bitcast(value.raw, kind))

    def widen(self, value: Value, kind: Any, signed: bool = False) -> Value:
        if value.floating:
            return Value(self, self.builder.fpext(value.raw, kind))
        return Value(self, (self.builder.sext if signed else self.builder.zext)(value.raw, kind))

    def narrow(self, value: Value, kind: Any) -> Value:
        return Value(self, (self.builder.fptrunc if value.floating else self.builder.trunc)(value.raw, kind))

    def number(self, value: Value, kind: Any) -> Value:
        """A signed integer as a floating number."""
        return Value(self, self.builder.sitofp(value.raw, kind))

    def select(self, condition: Value, yes: Value, no: Value | float) -> Value:
        return Value(self, self.builder.select(condition.raw, yes.raw, self.like(yes, no).raw))

    def larger(self, left: Value, right: Value) -> Value:
        """`right` where either is NaN."""
        return self.select(left > right, left, right)

    def smaller(self, left: Value, right: Value) -> Value:
        return self.select(left < right, left, right)

    def fused(self, left: Value, right: Value, addend: Value) -> Value:
        return self.call("llvm.fma", left.type, (left, right, addend))

    def root(self, value: Value) -> Value:
        return self.call("llvm.sqrt", value.type, (value,))

    def magnitude(self, value: Value) -> Value:
        return self.call("llvm.fabs", value.type, (value,))

    def call(self, intrinsic: str, result: Any, operands: Sequence[Value], suffix: str | None = None) -> Value:
        """`suffix`: how the intrinsic's name ends; None: with the type of the result."""
        name = f"{intrinsic}.{_mangled(result)}" if suffix is None else intrinsic + suffix
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        return Value(self, self.builder.call(self._declared(name, kind), [operand.raw for operand in operands]))

    def total(self, vector: Value) -> Value:
        """The sum of all lanes, by halves."""
        while vector.type.count > 1:
            half = vector.type.count // 2
            low, high = range(half), range(half, 2 * half)
            vector = self.shuffle(vector, None, low) + self.shuffle(vector, None, high)
        return self.lane(vector, 0)

    def maximum(self, vector: Value) -> Value:
        while vector.type.count > 1:
            half = vector.type.count // 2
            low, high = range(half), range(half, 2 * half)
            vector = self.larger(self.shuffle(vector, None, low), self.shuffle(vector, None, high))
        return self.lane(vector, 0)

    def totals(self, vectors: Sequence[Value]) -> Value:
        """The sums of four vectors of eight lanes as one vector of four, with shuffles that they share."""
        pairs = []
        for left, right in (vectors[:2], vectors[2:]):
            even = self.shuffle(left, right, (0, 8, 2, 10, 4, 12, 6, 14))
            odd = self.shuffle(left, right, (1, 9, 3, 11, 5, 13, 7, 15))
            pairs.append(even + odd)
        low = self.shuffle(pairs[0], pairs[1], (0, 1, 8, 9, 4, 5, 12, 13))
        high = self.shuffle(pairs[0], pairs[1], (2, 3, 10, 11, 6, 7, 14, 15))
        both = low + high
        return self.shuffle(both, None, range(4)) + self.shuffle(both, None, range(4, 8))

    # -- memory

    def load(self, address: Value, kind: Any) -> Value:
        pointer = self.builder.inttoptr(address.raw, POINTER)
        return Value(self, self.builder.load(pointer, align=1, typ=kind))

    def store(self, address: Value, value: Value) -> None:
        self.builder.store(value.raw, self.builder.inttoptr(address.raw, POINTER), align=1)

    def prefetch(self, address: Value) -> None:
        pointer = Value(self, self.builder.inttoptr(address.raw, POINTER))
        options = tuple(self.constant(I32, number) for number in (0, 3, 1))
        self.call("llvm.prefetch.p0", ir.VoidType(), (pointer, *options), suffix="")

    def room(self, kind: Any, count: int) -> Value:
        """Memory of this call, uninitialised; its address."""
        pointer = self._entry.alloca(ir.ArrayType(kind, count))
        pointer.align = 64
        return Value(self, self.builder.ptrtoint(pointer, I64))

    def variable(self, initial: Value) -> Variable:
        variable = Variable(self, self._entry.alloca(initial.type), initial.type)
        variable.set(initial)
        return variable

    # -- flow

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """Runs while index + step <= stop: a remainder shorter than a step is not visited."""
        index = self.variable(self._whole(start))
        end = self._whole(stop) - (step - 1)
        head, body, after = (self.function.append_basic_block(name) for name in ("head", "body", "after"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        current = index.get()
        self.builder.cbranch((current < end).raw, body, after)
        self.builder.position_at_end(body)
        yield current
        index.set(current + step)
        self.builder.branch(head)
        self.builder.position_at_end(after)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.builder.if_then(condition.raw):
            yield

    @contextmanager
    def forever(self) -> Iterator[Callable[[Value], None]]:
        """Until what it gives is called with a condition that holds."""
        head, after = (self.function.append_basic_block(name) for name in ("again", "left"))

        def leave(condition: Value) -> None:
            rest = self.function.append_basic_block("stayed")
            self.builder.cbranch(condition.raw, after, rest)
            self.builder.position_at_end(rest)

        self.builder.branch(head)
        self.builder.position_at_end(head)
        yield leave
        self.builder.branch(head)
        self.builder.position_at_end(after)

    def peek(self, address: Value) -> Value:
        """A counter that other threads increase, and all that they wrote before they did."""
        pointer = self.builder.inttoptr(address.raw, POINTER)
        return Value(self, self.builder.load_atomic(pointer, "acquire", 8, typ=I64))

    def increase(self, address: Value) -> Value:
        """By one, telling other threads what was written before; what it was."""
        pointer = self.builder.inttoptr(address.raw, POINTER)
        return Value(self, self.builder.atomic_rmw("add", pointer, self.integer(1).raw, "acq_rel"))

    def invoke(self, kernel: Value, arguments: Value, part: Value, parts: Value) -> None:
        """Another kernel by its address."""
        callee = self.builder.inttoptr(kernel.raw, self.function.function_type.as_pointer())
        passed = self.builder.inttoptr(arguments.raw, POINTER)
        self.builder.call(callee, [passed, part.raw, parts.raw])

    def relax(self, is_x86: bool) -> None:
        """Tells the processor that a loop only waits."""
        nothing = ir.VoidType()
        if is_x86:
            self.call("llvm.x86.sse2.pause", nothing, (), suffix="")
        else:
            self.call("llvm.aarch64.hint", nothing, (self.constant(I32, 1),), suffix="")

    def give_way(self) -> None:
        """The core goes to whoever else wants it."""
        self.builder.call(self._declared("sched_yield", ir.FunctionType(I32, ())), ())

    def share(self, count: Value, granule: int = 1) -> tuple[Value, Value]:
        """Where this part's share of `count` pieces begins and ends; borders lie on multiples of the granule."""
        granules = (count + (granule - 1)) // granule
        begin, end = ((granules * part // self.parts) * granule for part in (self.part, self.part + 1))
        return begin, self.smaller(end, count)

    def _whole(self, number: Value | int) -> Value:
        return number if isinstance(number, Value) else self.integer(number)

    def _declared(self, name: str, kind: Any) -> Any:
        known = self.module.globals.get(name)
        return known if known is not None else ir.Function(self.module, kind, name)


@dataclass(frozen=True, slots=True)
class Variable:
    """A value that changes; it ends up in a register."""

    emitter: Emitter
    pointer: Any
    kind: Any

    def get(self) -> Value:
        return Value(self.emitter, self.emitter.builder.load(self.pointer, typ=self.kind))

    def set(self, value: Value) -> None:
        self.emitter.builder.store(value.raw, self.pointer)


def _mangled(kind: Any) -> str:
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_mangled(kind.element)}"
    return {F32: "f32", HALF: "f16"}.get(kind) or f"i{kind.width}"
