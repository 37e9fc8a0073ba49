"""The forward pass of training, as fast as the model allows, and checked against the model's own.

Three things are replaced: attention (row by row, see `packing`), logits (only where there is a label, see `loss`), and
the adapters' arithmetic (see `lean`, and on a GPU `compiled`). A few rows are computed both ways before anything is
trained, with an adapter that is not zero, so that a model which is built otherwise than those that this was written for
is not trained on a wrong loss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from howto.core.errors import UserError
from howto.modeling.collate import Batch, Example, collate, micro_batches
from howto.modeling.fused_lora import OF_STATES, distance, use_lean_layers
from howto.modeling.packed_attention import attend_row_by_row
from howto.training.config import ProfileTrain, Train
from howto.training.lora import trained_weights
from howto.training.loss import has_plain_head, response_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from howto.training.compiled_layers import CompiledLayers
    from howto.training.step_graphs import TrainingGraphs

# How far two ways of computing the same may be apart: gradients as relative norm, and a summed loss. See OF_STATES.
OF_GRADIENTS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.15}
OF_LOSS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 1e-2}
PROBED = 8  # rows on a GPU


class Engine:
    """A model with a fresh adapter, ready to be trained."""

    def __init__(
        self,
        model: PeftModel,
        examples: list[Example],
        shared: Train,
        profile: ProfileTrain,
        pad: int,
        *,
        compiled: bool | None = None,
    ) -> None:
        """`examples` are the training rows; `pad` is the id of the token that fills up rows that are not packed.

        `compiled` says whether the decoder layers are compiled; by default they are on a GPU, but for a shared base.

        Raises:
            UserError: this model's rows cannot be packed.
        """
        self.model, self.base = model, model.get_base_model()
        self.device = next(model.parameters()).device
        self._pad, self._packing = pad, shared.packing
        self._size = profile.micro_batch_size
        self._layers: CompiledLayers | None = None
        self._graphs: TrainingGraphs | None = None
        if self.device.type == "cuda":  # passes are captured on the stream that they ran on, which is not the default
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            torch.cuda.set_stream(stream)
        model.eval()
        self.checkpointing = profile.gradient_checkpointing
        self.keep_activations(not self.checkpointing)  # before layers are compiled: they would be compiled again
        probe = probe_rows(examples, self.device)
        with nonzero_adapter(model):
            wanted = response_states(self.base, (collate([row], pad, self.device) for row in probe))
            if shared.packing:
                self._pack(probe, wanted)
            self._dropout = use_lean_layers(model, shared.lora.dropout)
            if not self._is_right(probe, wanted):
                raise UserError(f"train: the adapters of a {type(self.base).__name__} are not computed as PEFT does")
            self._fused = has_plain_head(self.base) and self._is_loss_right(probe[:1])
            if not self._fused:
                print("train: the loss is computed by the model's own forward pass, and so is slower", file=sys.stderr)
            compiled = self.device.type == "cuda" and not profile.fsdp if compiled is None else compiled
            if compiled:
                self._compile(probe, wanted, shared.lora.dropout)
        fits = self.is_compiled and self._fused and shared.packing and not (self.checkpointing or profile.fsdp)
        if self.device.type == "cuda" and fits:
            from howto.training.step_graphs import TrainingGraphs

            weights = [weight for weight in model.parameters() if weight.requires_grad]
            self._graphs = TrainingGraphs(self.base.get_decoder(), weights, self._size, shared.max_length)

    def batches(self, rows: list[Example]) -> Iterator[Batch]:
        """The rows in batches for one forward pass each."""
        return micro_batches(rows, self._size, self._pad, self.device, packing=self._packing)

    def loss(self, batch: Batch, *, seed: int | None = None) -> torch.Tensor:
        """As `response_loss`. The dropout is drawn from `seed`; without one there is none.

        What is neither a plain LoRA layer nor on this CPU draws from torch's generator, which is set to the seed too.
        """
        training = seed is not None
        if self.model.training != training:
            self.model.train(training)
        if seed is not None:
            torch.manual_seed(seed)
            (self._layers or self._dropout).seed = seed
        graphs = self._graphs if training and torch.is_grad_enabled() else None
        hidden = graphs.hidden(batch) if graphs and graphs.is_ready else None
        return response_loss(self.base, batch, fused=self._fused, hidden=hidden)

    @property
    def is_compiled(self) -> bool:
        """Whether the layers' training passes are compiled."""
        return self._layers is not None

    def keep_activations(self, yes: bool) -> None:
        """Whether the layers' activations are kept for the way back; else they are computed again."""
        # transformers before 5.20 says gradient checkpointing.
        verb = "activation" if hasattr(self.base, "activation_checkpointing_enable") else "gradient"
        if yes:
            getattr(self.base, f"{verb}_checkpointing_disable")()
        else:
            getattr(self.base, f"{verb}_checkpointing_enable")({"use_reentrant": False})

    def _is_right(self, probe: list[Example], wanted: torch.Tensor) -> bool:
        """Whether rows in batches have the hidden states that the model itself gives to each alone."""
        return distance(response_states(self.base, self.batches(probe)), wanted) <= OF_STATES[self.base.dtype]

    def _is_loss_right(self, probe: list[Example]) -> bool:
        """Whether the loss is the same as by the logits of the model's own forward pass."""
        (batch,) = self.batches(probe)
        with torch.no_grad():
            found, wanted = (response_loss(self.base, batch, fused=fused).item() for fused in (True, False))
        return abs(found - wanted) <= OF_LOSS[self.base.dtype] * max(1.0, abs(wanted))

    def _gradient(self, probe: list[Example], seed: int | None = None) -> torch.Tensor:
        """The gradient of the rows' summed loss, of all trained weights in one."""
        weights = list(trained_weights(self.model).values())
        total = torch.zeros(sum(weight.numel() for weight in weights), dtype=weights[0].dtype, device=self.device)
        for batch in self.batches(probe):
            parts = torch.autograd.grad(self.loss(batch, seed=seed), weights)
            total += torch.cat([part.flatten() for part in parts])
        return total

    def _compile(self, probe: list[Example], wanted: torch.Tensor, rate: float) -> None:
        """Compile the layers, and compare them with those before, forward and backward; undo it if that fails here."""
        from howto.training.compiled_layers import CompiledLayers

        limit, gradient = OF_GRADIENTS[self.base.dtype], self._gradient(probe)
        (batch,) = self.batches(probe[:1])
        try:
            self._layers = CompiledLayers(self.model, rate, batch.model_inputs())
            with self._layers.eager():
                if not self._is_right(probe, wanted) or not distance(self._gradient(probe), gradient) <= limit:
                    raise RuntimeError("adapters that are computed together give something else")
                gradient = self._gradient(probe, seed=0)
            if not distance(self._gradient(probe, seed=0), gradient) <= limit:
                raise RuntimeError("compiled layers give something else")
        except (RuntimeError, OSError) as error:  # no C compiler, or a model that cannot be traced
            first = str(error).strip().splitlines()[0]
            print(f"train: the layers are not compiled, and so are slower ({first})", file=sys.stderr)
            if self._layers:
                self._layers.undo()
            self._layers = None
        finally:
            self.model.eval()

    def _pack(self, probe: list[Example], wanted: torch.Tensor) -> None:
        try:
            attend_row_by_row(self.base)
            right = self._is_right(probe, wanted)
        except (ValueError, TypeError):
            right = False
        if not right:
            raise UserError(
                f"params.yaml: train.packing: a {type(self.base).__name__} does not support packed sequences. "
                "Set it to false."
            )


def probe_rows(examples: list[Example], device: torch.device) -> list[Example]:
    """Return the rows that are computed both ways, by length: on a GPU some of median length, else the two shortest."""
    by_length = sorted(examples, key=len)
    if device.type == "cpu":
        return by_length[:2]
    start = max(0, (len(by_length) - PROBED) // 2)
    return by_length[start : start + PROBED]


@torch.no_grad()
def response_states(base: PreTrainedModel, batches: Iterable[Batch]) -> torch.Tensor:
    """Return the last hidden states [response tokens, hidden size] that the loss is computed of, in float32 or more."""
    decoder = base.get_decoder()
    states = [
        decoder(**batch.model_inputs(), use_cache=False).last_hidden_state.flatten(0, 1)[batch.places]
        for batch in batches
    ]
    found = torch.cat(states)
    return found.to(torch.promote_types(found.dtype, torch.float32))


@contextmanager
def nonzero_adapter(model: PeftModel) -> Iterator[None]:
    """Put small random numbers into B for a while: a fresh adapter's B is 0, which would hide a wrong computation."""
    weights = [weight for name, weight in trained_weights(model).items() if "lora_B" in name]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for number, weight in enumerate(weights):
            weight.normal_(std=0.02, generator=torch.Generator(weight.device).manual_seed(number))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in zip(weights, before, strict=True):
                weight.copy_(values)
