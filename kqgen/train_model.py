"""A network prepared for training: an ordinary module that computes with codewords and int8 maps.

In training mode it is the simulation, with gradients, and looks after its codes by itself: every so many steps kernels take their nearest
codewords, and dead codewords are given to the kernels served worst. In eval mode it is the integer reference: its outputs are those of the
generated C, number by number. A network that does not compile is simulated in eval mode too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

from kqgen import oracle
from kqgen.errors import InputError
from kqgen.intgraph import IntGraph
from kqgen.train_assign import reassign, revive, soften
from kqgen.train_blueprint import Blueprint
from kqgen.train_integers import Trained, to_integers, weight_of
from kqgen.train_modules import BatchNormSwitch, FakeQuant, IndexedWeight, LearnedCodebook

_LATE_BATCH = 250
_EARLY_STEPS, _LOOK_EVERY = 100, 8
_EARLY_MOMENTUM, _LATE_MOMENTUM = 0.02, 0.1


@dataclass(frozen=True, slots=True)
class Tempo:
    """When training does what.

    Attributes:
        total_steps: of the whole run; None when it is not known: codes are then renewed to the end.
        period_steps: between two renewals of the codes: each step, or every so many where looking up all kernels is dear.
        revival_steps: between two looks for codewords that no kernel uses; a multiple of `period_steps`.
        revival_part: of the steps, at the start: later a revived codeword would harm more than it can still learn.
        soft_part: of the steps, at the start: each kernel is a mixture of its nearest codewords, ever harder.
        frozen_part: of the steps, at the end: codes stay; codewords, scales and batch norms go on learning.
        settled_part: of the steps, at the very end: batch norm statistics and map ranges stay too.
        cap: largest part of a layer's codes renewed at once.
        temperature: of the mixture at the start, in squared distances between kernels of unit variance; it falls to a hundredth.

    Raises:
        InputError: a part that is not within 0 and 1.
    """

    total_steps: int | None = None
    period_steps: int = 1
    revival_steps: int = 100
    revival_part: float = 0.5
    soft_part: float = 0.0
    frozen_part: float = 0.2
    settled_part: float = 0.05
    cap: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("revival_part", "soft_part", "frozen_part", "settled_part", "cap"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name.replace('_', ' ')} is no part of the whole", found=str(value), wanted="0 to 1")

    def fraction(self, step: int) -> float:
        """How much of the run is done before `step`; 0 when its length is not known."""
        return 0.0 if self.total_steps is None else step / max(1, self.total_steps)


class KqModule(nn.Module):
    """A network in training; see `prepare`.

    Attributes:
        net: the simulation, operators on parametrised weights.
        blueprint: what it was made of.
        books: parameter name of each indexed weight -> name of its codebook.
        tempo: when codes are renewed.
        step: training steps taken.
    """

    def __init__(self, net: fx.GraphModule, blueprint: Blueprint, books: Mapping[str, str], reasons: Mapping[str, str]) -> None:
        super().__init__()
        self.net = net
        self.blueprint = blueprint
        self.books, self.reasons = dict(books), dict(reasons)
        self.tempo = Tempo()
        self.step = 0
        self._cache: tuple[tuple[object, ...], Trained] | None = None
        self._phase = ""
        self._changed: torch.Tensor | float = 0.0
        self._books = [module for module in net.modules() if isinstance(module, LearnedCodebook)]
        self._quants = [module for module in net.modules() if isinstance(module, FakeQuant)]

    def __deepcopy__(self, memo: dict[int, Any]) -> KqModule:
        import copy  # noqa: PLC0415

        twin = KqModule(copy.deepcopy(self.net, memo), self.blueprint, self.books, self.reasons)
        twin.tempo, twin.step = self.tempo, self.step
        twin.train(self.training)
        return twin

    def get_extra_state(self) -> dict[str, int]:
        """The step, kept in the state dict."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Goes on at the step of the state dict."""
        self.step = int(state["step"])
        self._phase = ""

    def forward(self, *inputs: torch.Tensor) -> Any:
        """What the module given to `prepare` returns, computed with codewords and int8 maps."""
        if self.training:
            self._turn()
            self._look(self.step)
            self.step += 1
            return self._shaped(self._computed(inputs))
        self.check_ranges()
        if self.blueprint.refusal is not None:
            return self._shaped(self._computed(inputs))
        return self._shaped(self._exact(inputs))

    def _computed(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        for book in self._books:
            book.forget()
        outputs: tuple[torch.Tensor, ...] = self.net(*inputs)
        return outputs

    def simulate(self, *inputs: torch.Tensor) -> Any:
        """The simulation in eval mode: fast on any device, and within a step or two of the integers."""
        was = self.net.training
        self.net.eval()
        try:
            return self._shaped(self._computed(inputs))
        finally:
            self.net.train(was)

    def check_ranges(self) -> None:
        """Refuses a model that has seen neither calibration nor a batch: its maps have no steps yet.

        Raises:
            InputError: so it is.
        """
        if not all(bool(quant.seen) for quant in self._quants):
            raise InputError(
                "the ranges of the maps are not known yet",
                wanted="one batch in training mode, or calibration inputs",
                do="train the model, or kq.prepare(..., calibration=inputs)",
            )

    def trained(self) -> Trained:
        """The integers as the network is now; found anew only after a change.

        Raises:
            UnsupportedError: the network does not compile.
        """
        key = self._key()
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, to_integers(self.net, self.blueprint, self.books, self.reasons))
        return self._cache[1]

    def _key(self) -> tuple[object, ...]:
        """Changes with the network; the step stands for optimisers that write past the version counter, as param.data.add_() does."""
        return (self.step, *((id(tensor), tensor._version) for tensor in (*self.net.parameters(), *self.net.buffers())))

    def indexed(self) -> Iterator[tuple[str, IndexedWeight, nn.Parameter]]:
        """Parameter name, parametrisation and latent kernels of every indexed layer."""
        for parameter in self.books:
            made, latent = weight_of(self.net, parameter)
            assert isinstance(made, IndexedWeight)
            yield parameter, made, latent

    def codebooks(self) -> dict[str, LearnedCodebook]:
        """The codebooks by name."""
        return {self.books[parameter]: made.book for parameter, made, _ in self.indexed()}

    def changed_codes(self) -> float:
        """The part of all codes that the last renewal changed."""
        return float(self._changed)

    def enter(self, phase: str) -> None:
        """Switches gradients, statistics and ranges to a phase: soft, hard, frozen or settled."""
        for _, _, latent in self.indexed():
            latent.requires_grad_(phase in ("soft", "hard"))
        for module in self.net.modules():
            if isinstance(module, BatchNormSwitch):
                module.frozen = phase == "settled"
        if phase != "soft":
            for _, made, latent in self.indexed():
                if made.temperature > 0:
                    soften(made, latent, 0.0)
                    reassign(made, latent)
        self._phase = phase

    def _look(self, step: int) -> None:
        """Ranges are looked at in every step at first, then in every eighth: they move slowly, and looking costs a pass over the map."""
        early = step < _EARLY_STEPS
        watching = self._phase != "settled" and (early or step % _LOOK_EVERY == 0)
        for module in self._quants:
            module.observing = watching
            module.momentum = _EARLY_MOMENTUM if early else _LATE_MOMENTUM

    def phase(self, step: int | None = None) -> str:
        """The phase of a step, of the next one when none is given."""
        done, tempo = self.tempo.fraction(self.step if step is None else step), self.tempo
        if tempo.total_steps is None or done < 1 - tempo.frozen_part:
            return "soft" if tempo.total_steps is not None and done < tempo.soft_part else "hard"
        return "settled" if done >= 1 - tempo.settled_part else "frozen"

    def _turn(self) -> None:
        phase = self.phase()
        if phase != self._phase:
            self.enter(phase)
        if phase in ("soft", "hard") and self.step % self.tempo.period_steps == 0 and (self.step > 0 or phase == "soft"):
            self.renew(phase)

    def renew(self, phase: str = "hard") -> None:
        """Nearest codewords for all kernels, within the tempo's cap, and work for dead codewords."""
        members: dict[str, list[tuple[IndexedWeight, torch.Tensor]]] = {}
        changed: torch.Tensor | float = 0.0
        kernels = 0
        for parameter, made, latent in self.indexed():
            changed = changed + reassign(made, latent, self.tempo.cap) * len(made.codes)
            kernels += len(made.codes)
            members.setdefault(self.books[parameter], []).append((made, latent))
        self._changed = changed / max(1, kernels)
        if self.step % self.tempo.revival_steps == 0 and self.tempo.fraction(self.step) < self.tempo.revival_part:
            for layers in members.values():
                revive(layers[0][0].book, layers)
        if phase == "soft":
            part = self.tempo.fraction(self.step) / self.tempo.soft_part
            for _, made, latent in self.indexed():
                soften(made, latent, self.tempo.temperature * 0.01**part)

    def _shaped(self, outputs: tuple[torch.Tensor, ...]) -> Any:
        spec = self.blueprint.program.call_spec.out_spec
        return outputs if spec is None else _pytree.tree_unflatten(list(outputs), spec)

    def _exact(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        graph = self.trained().integers
        device = inputs[0].device
        parts = [
            run_integers(graph, [each[start : start + _LATE_BATCH] for each in inputs])
            for start in range(0, max(1, len(inputs[0])), _LATE_BATCH)
        ]
        shapes = output_shapes(self.blueprint.program)
        return tuple(
            torch.cat([part[number] for part in parts]).reshape(-1, *shape).to(device) for number, shape in enumerate(shapes)
        )


def output_shapes(program: ExportedProgram) -> list[tuple[int, ...]]:
    """Shapes of a program's outputs without the batch axis."""
    last = next(node for node in reversed(program.graph.nodes) if node.op == "output")
    return [tuple(int(size) for size in node.meta["val"].shape[1:]) for node in last.args[0]]


def run_integers(graph: IntGraph, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The real values of an integer graph's outputs, each (N, c, h, w) float32 on the CPU, for inputs as PyTorch takes them; with
    channels last where PyTorch delivers them so."""
    if len(inputs) != len(graph.inputs):
        raise InputError(f"{graph.name} takes {len(graph.inputs)} inputs", found=str(len(inputs)))
    arrays = [given.detach().float().cpu().numpy() for given in inputs]
    codes = {tensor.name: oracle.input_codes(tensor, array) for tensor, array in zip(graph.inputs, arrays, strict=True)}
    made = oracle.run(graph, codes)
    reals = [oracle.dequantise(graph.tensor(name), made[name]) for name in graph.outputs]
    planes = [
        each if name in graph.channels_last else each.transpose(0, 3, 1, 2) for name, each in zip(graph.outputs, reals, strict=True)
    ]
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in planes]
