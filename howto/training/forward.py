"""The forward pass of training, as fast as the model allows, and checked against the model's own.

Attention is computed row by row (`packed_attention`), logits only where there is a label (`loss`), and LoRA layers in
fewer steps (`fused_lora`, and on a GPU `compiled_layers`). Before anything is trained, a few rows are computed both
ways, so that a model of another kind is not trained on a wrong loss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from howto.core.errors import UserError, is_out_of_memory, one_line
from howto.modeling.adapters.fused_lora import HIDDEN_STATE_TOLERANCE, relative_error, use_fused_lora
from howto.modeling.collate import Batch, Example, collate, pack
from howto.modeling.context_window import exceeded_window
from howto.modeling.packed_attention import use_packed_attention
from howto.training.config import ProfileTrain, Train
from howto.training.lora import trained_weights
from howto.training.loss import has_plain_head, response_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from howto.training.compiled_layers import CompiledLayers
    from howto.training.step_graphs import TrainingGraphs

# Largest relative error between two ways to compute the same: of gradients as a norm, and of a summed loss.
GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.15}
LOSS_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 1e-2}
GPU_PROBE_ROWS = 8
TILE_TOKENS = 128  # a GPU's matrix products compute whole tiles


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
        """Prepare the model for the training rows `examples`; `pad` is the id of the token that fills padded rows.

        `compiled` is whether to compile the decoder layers; by default on a GPU, except with FSDP. Raise UserError if
        the model is not causal, or rows in batches have other hidden states than each has by itself.
        """
        self.model, self.base = model, model.get_base_model()
        self.device = next(model.parameters()).device
        self.checkpointing = profile.gradient_checkpointing
        self._pad, self.packing, self._micro_batch_size = pad, shared.packing, profile.micro_batch_size
        self._own_attention = self.base.config._attn_implementation
        self._layers: CompiledLayers | None = None
        self.graphs: TrainingGraphs | None = None
        if self.device.type == "cuda":  # a pass is captured on the stream it ran on, which must not be the default one
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            torch.cuda.set_stream(stream)
        model.eval()
        self.set_checkpointing(self.checkpointing)  # before layers are compiled: it would compile them again
        # On a GPU rows of median length are computed both ways, on a CPU the two shortest.
        by_length, start = sorted(examples, key=len), max(0, (len(examples) - GPU_PROBE_ROWS) // 2)
        probe = by_length[:2] if self.device.type == "cpu" else by_length[start : start + GPU_PROBE_ROWS]
        if (window := exceeded_window(self.base.config, len(by_length[-1]))) >= len(probe[-1]):
            probe.append(next(row for row in by_length if len(row) > window))
        kind = type(self.base).__name__
        with nonzero_adapter(model):
            expected = self._own_states(probe)
            if not self._is_causal(probe[0], expected):
                raise UserError(f"train: {kind} is not causal: a token changes those before it. Take another base.")
            if self.packing and not self._pack(probe, expected):
                self.packing = False
                print(f"train: slower, because rows of {kind} are padded: they cannot be packed", file=sys.stderr)
            if not self.packing and not self._has_states(probe, expected):
                raise UserError(f"train: in a padded batch, rows of {kind} depend on each other. Take another base.")
            self._dropout = use_fused_lora(model, shared.lora.dropout)
            if not self._has_states(probe, expected):
                raise UserError(f"train: LoRA layers of {kind} give other results than PEFT's. Report this.")
            self.has_fused_loss = has_plain_head(self.base) and self._is_loss_right(probe[:1])
            if not self.has_fused_loss:
                print("train: slower, because the model's own forward pass computes the loss", file=sys.stderr)
            if compiled or (compiled is None and self.device.type == "cuda" and not profile.fsdp):
                self._compile(probe, expected, shared.lora.dropout)
        fits_graphs = self.is_compiled and self.has_fused_loss and self.packing
        if fits_graphs and self.device.type == "cuda" and not (self.checkpointing or profile.fsdp):
            from howto.training.step_graphs import TrainingGraphs

            weights = [weight for weight in model.parameters() if weight.requires_grad]
            self.graphs = TrainingGraphs(self.base.get_decoder(), weights, profile.micro_batch_size, shared.max_length)

    def batches(self, rows: list[Example]) -> Iterator[Batch]:
        """Yield the rows in batches for one forward pass each, sorted by length so that little is padded."""
        by_length = sorted(rows, key=len)
        for start in range(0, len(rows), self._micro_batch_size):
            part = by_length[start : start + self._micro_batch_size]
            if not self.packing:
                yield collate(part, self._pad, self.device)
            elif self.device.type == "cpu":
                yield pack(part, self.device, share_prefix=True)
            else:  # FlashAttention supports no shared prefix
                yield pack(part, self.device, multiple=TILE_TOKENS)

    def loss(self, batch: Batch, *, seed: int | None = None) -> torch.Tensor:
        """Return the loss as `response_loss` does, with dropout drawn from `seed`; without a seed there is none.

        Layers that are not plain LoRA layers draw from torch's generator, which gets the seed too.
        """
        training = seed is not None
        if self.model.training != training:
            self.model.train(training)
        if seed is not None:
            torch.manual_seed(seed)
            if self._layers:
                self._layers.draw_masks(seed)
            else:
                self._dropout.seed = seed
        graphs = self.graphs if training and torch.is_grad_enabled() else None
        hidden = graphs.hidden_states(batch) if graphs and graphs.is_ready else None
        return response_loss(self.base, batch, fused=self.has_fused_loss, hidden=hidden)

    @property
    def is_compiled(self) -> bool:
        """Whether the layers' training passes are compiled."""
        return self._layers is not None

    def set_checkpointing(self, enabled: bool) -> None:
        """Set whether the layers' activations are computed again in the backward pass, and not kept until then."""
        # Before transformers 5.20 it was called gradient checkpointing.
        kind = "activation" if hasattr(self.base, "activation_checkpointing_enable") else "gradient"
        if enabled:
            getattr(self.base, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(self.base, f"{kind}_checkpointing_disable")()

    def _pack(self, probe: list[Example], expected: torch.Tensor) -> bool:
        """Let the model attend within packed rows, if that gives the hidden states that it should."""
        try:
            use_packed_attention(self.base)
            if self._has_states(probe, expected):
                return True
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:  # attention of its own kind
            if is_out_of_memory(error):
                raise
        self.base.set_attn_implementation(self._own_attention)
        return False

    @contextmanager
    def own_attention(self) -> Iterator[None]:
        """Let the model attend in its own way for a while, to unpacked rows and without dropout."""
        self.model.eval()
        in_training = self.base.config._attn_implementation
        self.base.set_attn_implementation(self._own_attention)
        try:
            yield
        finally:
            self.base.set_attn_implementation(in_training)

    def _compile(self, probe: list[Example], expected: torch.Tensor, rate: float) -> None:
        """Compile the layers and compare them with those before, forward and backward; undo it if that fails."""
        from howto.training.compiled_layers import CompiledLayers

        limit, gradient = GRADIENT_TOLERANCE[self.base.dtype], self._gradient(probe)
        (batch,) = self.batches(probe[:1])
        try:
            self._layers = CompiledLayers(self.model, rate, batch.model_inputs())
            with self._layers.eager():
                if not (self._has_states(probe, expected) and relative_error(self._gradient(probe), gradient) <= limit):
                    raise RuntimeError("grouped LoRA layers give other results")
                gradient = self._gradient(probe, seed=0)
            if not relative_error(self._gradient(probe, seed=0), gradient) <= limit:  # also if there is a NaN
                raise RuntimeError("compiled layers give other results")
        except (RuntimeError, OSError) as error:  # no C compiler, or a model that cannot be traced
            print(f"train: slower, because the layers are not compiled ({one_line(error)})", file=sys.stderr)
            if self._layers:
                self._layers.undo()
            self._layers = None
        finally:
            self.model.eval()

    def _own_states(self, rows: list[Example]) -> torch.Tensor:
        """Return the hidden states that the model itself gives to each row alone.

        Raise UserError if it fails, as some routers of experts do with an adapter.
        """
        try:
            return response_states(self.base, (collate([row], self._pad, self.device) for row in rows))
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            problem = f"{type(self.base).__name__} cannot compute a row with its adapter ({one_line(error)})"
            raise UserError(f"train: {problem}. Leave out layers with train.lora.exclude_modules.") from None

    def _is_causal(self, row: Example, expected: torch.Tensor) -> bool:
        """Return whether the hidden states of a row, the first in `expected`, do not depend on its last token."""
        other = 1 if row.completion[-1] == 0 else 0
        found = self._own_states([replace(row, completion=[*row.completion[:-1], other])])
        return relative_error(found, expected[: len(found)]) <= HIDDEN_STATE_TOLERANCE[self.base.dtype]

    def _has_states(self, probe: list[Example], expected: torch.Tensor) -> bool:
        """Return whether rows in batches have the hidden states that the model itself gives to each alone."""
        found = response_states(self.base, self.batches(probe))
        return relative_error(found, expected) <= HIDDEN_STATE_TOLERANCE[self.base.dtype]

    def _is_loss_right(self, probe: list[Example]) -> bool:
        """Return whether the loss is that of the logits of the model's own forward pass."""
        (batch,) = self.batches(probe)
        with torch.no_grad():
            found, expected = (response_loss(self.base, batch, fused=fused).item() for fused in (True, False))
        return abs(found - expected) <= LOSS_TOLERANCE[self.base.dtype] * max(1.0, abs(expected))

    def _gradient(self, probe: list[Example], seed: int | None = None) -> torch.Tensor:
        """Return the gradient of the rows' summed loss, of all trained weights in one vector."""
        weights = list(trained_weights(self.model).values())
        total = torch.zeros(sum(weight.numel() for weight in weights), dtype=weights[0].dtype, device=self.device)
        for batch in self.batches(probe):
            parts = torch.autograd.grad(self.loss(batch, seed=seed), weights)
            total += torch.cat([part.flatten() for part in parts])
        return total


@torch.no_grad()
def response_states(base: PreTrainedModel, batches: Iterable[Batch]) -> torch.Tensor:
    """Return the last hidden states [response tokens, hidden size] that the loss reads, in float32 or more."""
    decoder = base.get_decoder()
    states = [
        decoder(**batch.model_inputs(), use_cache=False).last_hidden_state.flatten(0, 1)[batch.label_positions]
        for batch in batches
    ]
    found = torch.cat(states)
    return found.to(torch.promote_types(found.dtype, torch.float32))


@contextmanager
def nonzero_adapter(model: PeftModel) -> Iterator[None]:
    """Put small random numbers into B for a while: a fresh adapter's B is 0, which would hide a wrong computation."""
    weights: list[torch.Tensor] = [weight for name, weight in trained_weights(model).items() if "lora_B" in name]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for number, weight in enumerate(weights):
            weight.normal_(std=0.02, generator=torch.Generator(weight.device).manual_seed(number))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
