"""Several processes that learn one thing, as ``accelerate launch`` starts them: one global batch, a slice for each.

Every process draws the same batch from the same seed and computes the same loss; only networks are called on slices,
whose outputs are joined again. So numbers are those of one process up to the order of sums, whatever the loss is: slice
and join are each other's derivative, of any order. Gradients of the weights are sums over slices, which are added up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # that launchers set
DEPTH = 2  # of objects in which networks are looked for: a learner, and the models that it compares


def join() -> None:
    """
    Join the processes that ``accelerate launch`` has started, if it has.

    :raises ValueError: without the extra ``scale``, or when several were wanted and one was started
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if not any(int(os.environ.get(name, "1")) > 1 for name in SIZES):
        if on_cpu and "MASTER_ADDR" in os.environ:
            raise ValueError(
                "`accelerate launch --cpu` starts one process, whatever --num_processes is: give --multi_gpu instead, "
                "also where there is no GPU, or --mpirun_hostfile"
            )
        return
    try:
        import accelerate
    except ImportError as error:
        raise ValueError(f"several processes need the scale extra: pip install 'rrpolicy[scale]' ({error})") from error
    accelerate.PartialState(cpu=on_cpu or not torch.accelerator.is_available())


def current() -> Processes:
    """The processes that this one has joined, by :func:`join` or as a script makes an ``accelerate.Accelerator``."""
    module = sys.modules.get("accelerate")
    if module is None or not module.PartialState._shared_state:
        return Processes()
    state = module.PartialState()
    return Processes(state.process_index, state.num_processes, state.device)


@dataclass(frozen=True)
class Processes:
    """
    One of several processes that do the same; of one, nothing here does anything.

    :param rank: number of this one
    :param n: how many there are
    :param device: on which tensors are exchanged
    """

    rank: int = 0
    n: int = 1
    device: torch.device | str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and logs."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all are here."""
        if self.n > 1:
            self.total(torch.zeros(1))

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.n == 1:
            return values
        from accelerate.utils import reduce

        summed: Tensor = reduce(values.to(self.device), "sum")
        return summed.to(values.device)

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) of all processes, (n B, ...)."""
        from accelerate.utils import gather

        joined: Tensor = gather(rows.contiguous().to(self.device))
        return joined.to(rows.device)

    def stop(self, wanted: bool, signal_number: int = 0) -> tuple[bool, int]:
        """
        Whether any process wants to stop, and a signal that any has received.

        :param signal_number: received by this one; 0 for none
        """
        if self.n == 1:
            return wanted, signal_number
        found = self.gathered(torch.tensor([[float(wanted), float(signal_number)]])).amax(dim=0)
        return bool(found[0]), int(found[1])

    def check_same(self, module: nn.Module) -> None:
        """
        Compare what the processes begin with.

        :raises ValueError: when their weights differ
        """
        if self.n == 1:
            return
        mine = torch.stack([value.detach().double().sum().cpu() for value in module.parameters()])
        all_of_them = self.gathered(mine[None])
        if not torch.equal(all_of_them, all_of_them[:1].expand_as(all_of_them)):
            raise ValueError("the processes begin with different weights: seed whatever makes them")

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients of slices by those of the whole batch."""
        if self.n == 1:
            return
        gradients = [one.grad for one in parameters if one.grad is not None]
        whole = self.total(torch.cat([one.flatten() for one in gradients]))
        for gradient, part in zip(gradients, whole.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @contextmanager
    def sharing(self, owner: Any) -> Iterator[None]:
        """
        A block in which the networks of a learner, and of the models that it compares, are called on slices.

        :param owner: the learner
        :raises ValueError: at the end, when gradients were wanted of a network that was not called
        """
        if self.n == 1:
            yield
            return
        calls = _SlicedCalls(self)
        handles = []
        for module in {id(part): part for network in networks_of(owner) for part in network.modules()}.values():
            handles.append(module.register_forward_pre_hook(calls.before, with_kwargs=True))
            handles.append(module.register_forward_hook(calls.after, with_kwargs=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not calls.number:
            raise ValueError("the loss calls no network of the learner, so several processes cannot share it")


def networks_of(owner: Any, depth: int = DEPTH) -> list[nn.Module]:
    """The modules among an object's attributes, and among those of its score models."""
    found: list[nn.Module] = []
    for value in vars(owner).values():
        if isinstance(value, nn.Module):
            found.append(value)
        elif depth > 1 and hasattr(value, "eps") and hasattr(value, "__dict__"):
            found += networks_of(value, depth - 1)
    return found


# ---------------------------------------------------------------------- calls on slices


class _SlicedCalls:
    """Hooks of networks: the outermost call takes this process's slice of a batch and returns the whole output."""

    def __init__(self, processes: Processes) -> None:
        self.number = 0
        self._processes, self._depth, self._rows = processes, 0, 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._depth += 1
        if self._depth > 1:
            return None
        self.number += 1
        batches = [len(one) for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.ndim]
        self._rows = batches[0]
        return tuple(map(self._slice, args)), {name: self._slice(value) for name, value in kwargs.items()}

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        self._depth -= 1
        if self._depth or output is None:  # None: the call has raised
            return None
        if isinstance(output, Mapping):  # of diffusers
            return type(output)(**{name: self._whole(value) for name, value in output.items()})
        return self._whole(output)

    def _slice(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != self._rows:
            return value
        missing = -len(value) % self._processes.n  # slices have equal sizes; what the last rows give is dropped
        if missing:
            value = torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])
        return _Cut.apply(value, self._processes)

    def _whole(self, value: Any) -> Any:
        return _Join.apply(value, self._processes)[: self._rows] if isinstance(value, Tensor) else value


class _Cut(torch.autograd.Function):
    """Rows (n B, ...) that all processes have -> this one's (B, ...); the derivative of :class:`_Join`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        size = len(rows) // processes.n
        return rows[processes.rank * size : (processes.rank + 1) * size].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Join.apply(gradients[0], ctx.processes), None


class _Join(torch.autograd.Function):
    """Rows (B, ...) of each process -> those of all (n B, ...); the derivative of :class:`_Cut`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.gathered(rows.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Cut.apply(gradients[0], ctx.processes), None
