"""A second device for tests on machines that have none: ``with other_device(): x.to("other")``.

Tensors on ``"other"`` are CPU tensors in disguise. They hold real numbers, so losses, ``.item()`` and branches work;
mixing them with CPU tensors that have dimensions, drawing with a CPU generator, or calling ``.numpy()`` raises as it
does on CUDA. Importing this registers the device with torch for the whole process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("other")
_aten = torch.ops.aten
_MAY_CROSS = {_aten.copy_.default, _aten._local_scalar_dense.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten._index_put_impl_.default,
}
_FACTORIES = {"zeros", "ones", "full", "arange", "linspace", "empty", "eye", "tensor", "scalar_tensor", "lift_fresh"}
_LISTS = (list, tuple)
_NOISE = {"randn", "rand", "randint", "normal_", "randperm", "random_", "uniform_"}


class OtherGenerator(torch.Generator):
    """A generator of the CPU that says it is on ``other:0`` where it was made for that."""

    alive: ClassVar[set[int]] = set()  # those on "other", by their C++ objects, since operators see no subclass

    @staticmethod
    def __new__(cls, device: torch.device | str = "cpu") -> OtherGenerator:
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == "other":
            cls.alive.add(made._cdata)
        return made

    def __del__(self) -> None:
        self.alive.discard(self._cdata)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("other:0" if self._cdata in self.alive else "cpu")


class OtherTensor(torch.Tensor):
    """A CPU tensor that says it is on ``other:0``."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OtherTensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device="other:0",
        )

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OtherTensor({self.raw!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    tensors = _tensors((*args, *kwargs.values()) if kwargs else args)
    there = any([type(x) is OtherTensor for x in tensors])
    device, generator = kwargs.get("device"), kwargs.get("generator")
    target = there if device is None else torch.device(device).type == "other"
    if generator is not None and target and generator._cdata not in OtherGenerator.alive:
        raise RuntimeError(
            f"Expected a 'other' device type for generator but found {generator.device.type!r} in {func}"
        )
    traits = _traits(func)
    if traits.indexing:
        own, indices = args[0], [one for one in args[1] if one is not None]
        if not isinstance(own, OtherTensor) and any(isinstance(one, OtherTensor) for one in indices):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        tensors = [own, *(x for x in args[2:3] if isinstance(x, torch.Tensor))]
    elif traits.copies:
        tensors = []
    if there and not traits.may_cross and any([type(x) is not OtherTensor and x.dim() for x in tensors]):
        where = ["other" if isinstance(x, OtherTensor) else "cpu" for x in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {where} in {func}")
    plain = {name: _raw(x) for name, x in kwargs.items()} if kwargs else {}
    if target and device is not None:
        plain["device"] = "cpu"
    out = func(*[_raw(x) for x in args], **plain)
    if traits.may_cross:
        return args[0] if func is _aten.copy_.default else out
    if there and traits.aliases == "first":
        return args[0]
    if target:
        out = tree_map(_there, out) if isinstance(out, _LISTS) else _there(out)
    if there and target and traits.aliases == "some":
        return return_and_correct_aliasing(func, args, kwargs, out)
    return out


class _Traits(NamedTuple):
    """What `_run` asks of an operator, whose own hash takes longer than most of them."""

    indexing: bool
    copies: bool
    may_cross: bool
    aliases: str


_known: dict[int, _Traits] = {}


def _traits(func: Any) -> _Traits:
    if (found := _known.get(id(func))) is None:  # operators live as long as torch
        found = _Traits(func in _INDEXING, func is _aten._to_copy.default, func in _MAY_CROSS, _aliases(func))
        _known[id(func)] = found
    return found


def _aliases(func: Any) -> str:
    """What an operator returns: ``"none"`` of its arguments, the ``"first"``, changed in place, ``"some"`` or views."""
    returned = [one.alias_info for one in func._schema.returns if one.alias_info is not None]
    if not returned:
        return "none"
    first = func._schema.arguments[0].alias_info
    alone = len(func._schema.returns) == 1 and first is not None and first.is_write
    changed = alone and first.before_set == returned[0].before_set and torch.Tag.inplace_view not in func.tags
    return "first" if changed else "some"


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among the arguments of an operator, which are alone or in lists."""
    found: list[torch.Tensor] = []
    for x in values:
        if isinstance(x, torch.Tensor):
            found.append(x)
        elif isinstance(x, _LISTS):
            found += _tensors(x)
    return found


def _raw(x: Any) -> Any:
    kind = type(x)
    if kind is OtherTensor:
        return x.raw
    return [_raw(one) for one in x] if kind in _LISTS else x


def _there(x: Any) -> Any:
    return OtherTensor(x) if isinstance(x, torch.Tensor) else x


class _Uncompiled(TorchDispatchMode):
    """A mode without torch's wrapper that hides it from the compiler, which would be called at every operator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class other_device(_Uncompiled):
    """A block in which tensors can be on ``"other"``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Counting(_Uncompiled):
    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if _waits(func, args, kwargs or {}):
            self.waits[name] += 1
        if name in _FACTORIES | _NOISE and isinstance(out, torch.Tensor) and out.device.type == "cpu" and out.dim():
            self.made["noise" if name in _NOISE else name] += 1
        return out


def _waits(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the CPU has to wait for a result of the device, as on CUDA."""
    there = [isinstance(x, OtherTensor) for x in args]
    if func in (_aten._local_scalar_dense.default, _aten.nonzero.default):
        return there[0]
    if func is _aten._to_copy.default:
        return there[0] and kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "other"
    if func is _aten.copy_.default:
        return there[1] and not there[0]
    if func in _INDEXING:  # by truth values, whose number is that of rows
        return any(isinstance(x, OtherTensor) and x.dtype is torch.bool for x in args[1])
    return False


@contextmanager
def counted() -> Iterator[_Counting]:
    """
    A block that counts what makes tensors with dimensions on the CPU (``made``; ``"noise"`` and names of factories) and
    what waits for a result of the device (``waits``), by name.
    """
    with _Counting() as counting:
        yield counting


_library = torch.library.Library("aten", "IMPL")  # factories that C++ calls below the modes


def _empty_strided(
    size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> OtherTensor:
    return OtherTensor(torch.empty_strided(size, stride, dtype=dtype))


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> OtherTensor:
    return OtherTensor(torch.empty(size, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _raw(target).copy_(_raw(source))
    return target


_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
torch.Generator = OtherGenerator  # type: ignore[misc]
