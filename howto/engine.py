"""The forward pass of training, as fast as the model allows, and checked against the model's own.

Three things are replaced: attention (row by row, see `packing`), logits (only where there is a label, see `loss`), and
the adapters' arithmetic (see `lean`). Two rows are computed both ways before anything is trained, so that a model which
is built otherwise than those that this was written for is not trained on a wrong loss.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from howto.batches import Batch, Example, collate, micro_batches
from howto.lean import use_lean_layers
from howto.loss import has_plain_head, response_loss
from howto.packing import attend_row_by_row
from howto.params.train import ProfileTrain, Train
from howto.stop import Stop

if TYPE_CHECKING:
    from peft import PeftModel

    from howto.compiled import HashedDropout
    from howto.step_graphs import TrainingGraphs

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative, of a summed loss


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
            Stop: this model's rows cannot be packed.
        """
        self.model, self.base = model, model.get_base_model()
        self.device = next(model.parameters()).device
        self._pad, self._packing = pad, shared.packing
        self._size = profile.micro_batch_size
        self._fused = False
        self._graphs: TrainingGraphs | None = None
        if (
            self.device.type == "cuda"
        ):  # passes are captured on the stream that they ran on, which may not be the default
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            torch.cuda.set_stream(stream)
        model.eval()
        probe = sorted(examples, key=len)[:2]
        wanted = self._reference(probe)
        if shared.packing:
            self._pack(probe, wanted)
        compiled = self.device.type == "cuda" and not profile.fsdp if compiled is None else compiled
        dropout = self._compiled(probe, shared.lora.dropout) if compiled else None
        self._is_compiled = dropout is not None
        self._dropout = dropout or use_lean_layers(model, shared.lora.dropout)
        self._fused = has_plain_head(self.base)
        self._fused = self._fused and self._is_right(probe, wanted)
        self.checkpointing = profile.gradient_checkpointing
        self.keep_activations(not self.checkpointing)
        fits = self._is_compiled and self._fused and shared.packing and not (self.checkpointing or profile.fsdp)
        if self.device.type == "cuda" and fits:
            from howto.step_graphs import TrainingGraphs

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
            self._dropout.seed = seed
        graphs = self._graphs if training and torch.is_grad_enabled() else None
        hidden = graphs.hidden(batch) if graphs and graphs.is_ready else None
        return response_loss(self.base, batch, fused=self._fused, hidden=hidden)

    def keep_activations(self, yes: bool) -> None:
        """Whether the layers' activations are kept for the way back; else they are computed again."""
        # transformers before 5.20 says gradient checkpointing.
        verb = "activation" if hasattr(self.base, "activation_checkpointing_enable") else "gradient"
        if yes:
            getattr(self.base, f"{verb}_checkpointing_disable")()
        else:
            getattr(self.base, f"{verb}_checkpointing_enable")({"use_reentrant": False})

    def _reference(self, probe: list[Example]) -> float:
        """The summed loss of rows, computed one by one by the model's own forward pass."""
        with torch.no_grad():
            losses = [response_loss(self.base, collate([row], self._pad, self.device), fused=False) for row in probe]
        return math.fsum(loss.item() for loss in losses)

    def _is_right(self, probe: list[Example], wanted: float) -> bool:
        with torch.no_grad():
            found = math.fsum(self.loss(batch).item() for batch in self.batches(probe))
        return abs(found - wanted) <= TOLERANCE[self.base.dtype] * max(1.0, abs(wanted))

    def _compiled(self, probe: list[Example], rate: float) -> HashedDropout | None:
        """Compile the layers, and try them on two rows, forward and backward; None if that does not work here."""
        from howto.compiled import compile_layers, uncompile_layers

        (batch,) = self.batches(probe[:1])
        try:
            dropout = self._dropout = compile_layers(self.model, rate, batch.model_inputs())
            torch.autograd.backward(self.loss(batch, seed=0))
            self.model.zero_grad()
        except (RuntimeError, OSError) as error:  # no C compiler, or a model that cannot be traced
            first = str(error).strip().splitlines()[0]
            print(f"train: the layers are not compiled, and so are slower ({first})", file=sys.stderr)
            uncompile_layers(self.model)
            return None
        finally:
            self.model.eval()
        return dropout

    def _pack(self, probe: list[Example], wanted: float) -> None:
        try:
            attend_row_by_row(self.base)
            right = self._is_right(probe, wanted)
        except (ValueError, TypeError):
            right = False
        if not right:
            raise Stop(
                f"params.yaml: train.packing: rows of a {type(self.base).__name__} cannot stand one behind the other "
                "without seeing each other; set it to false"
            )
