"""The forward pass of training, as fast as the model allows, and checked against the model's own.

Three things are replaced: attention (row by row, see `packing`), logits (only where there is a label, see `loss`), and
the adapters' arithmetic (see `lean`). Two rows are computed both ways before anything is trained, so that a model which
is built otherwise than those that this was written for is not trained on a wrong loss.
"""

from __future__ import annotations

import math
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

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative, of a summed loss


class Engine:
    """A model with a fresh adapter, ready to be trained."""

    def __init__(self, model: PeftModel, examples: list[Example], shared: Train, profile: ProfileTrain, pad: int):
        """`examples` are the training rows; `pad` is the id of the token that fills up rows that are not packed.

        Raises:
            Stop: this model's rows cannot be packed.
        """
        self.model, self.base = model, model.get_base_model()
        self.device = next(model.parameters()).device
        self._pad, self._packing = pad, shared.packing
        self._size = profile.micro_batch_size
        self._fused = False
        model.eval()
        probe = sorted(examples, key=len)[:2]
        wanted = self._reference(probe)
        if shared.packing:
            self._pack(probe, wanted)
        self._dropout = use_lean_layers(model, shared.lora.dropout)
        self._fused = has_plain_head(self.base)
        self._fused = self._fused and self._is_right(probe, wanted)
        self.checkpointing = profile.gradient_checkpointing
        self.keep_activations(not self.checkpointing)

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
        return response_loss(self.base, batch, fused=self._fused)

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
