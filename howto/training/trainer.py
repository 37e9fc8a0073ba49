"""The training loop: one adapter, in place, the same bytes every time, also when it was killed on the way.

Nothing that a step needs is left over from the steps before but the weights, the optimizer's moments and the losses so
far: the order of an epoch's rows is drawn from the seed and the epoch, dropout from the seed and the step. So a
checkpoint holds those three, and a run that goes on from one ends as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from howto.modeling.async_copy import read_later
from howto.modeling.collate import Batch, Example, steps_of_epoch
from howto.modeling.distributed.process_group import Group
from howto.training.config import ProfileTrain, Train
from howto.training.lora import make_optimizer, trained_weights
from howto.training.lr_schedule import learning_rate_factor

if TYPE_CHECKING:
    from howto.training.checkpoints import Checkpoints
    from howto.training.forward import Engine

REFRESH = 2.0  # seconds between two looks at the curve


@dataclass
class Curve:
    """How a run went. Losses are in nats a response token: a row for each step, and one for each validation."""

    train: list[tuple[int, float, float, float]] = field(default_factory=list)  # step, epoch, learning rate, loss
    validation: list[tuple[int, float, float]] = field(default_factory=list)  # step, epoch, loss
    kept_step: int = 0
    kept_loss: float | None = None
    tokens: int = 0  # real ones, prompts and responses, of all steps
    resumed_at: int = 0  # step
    resumed_tokens: int = 0

    @property
    def kept_epoch(self) -> float:
        """The epoch after which the adapter is kept as it was then; a fraction if in the midst of one."""
        return self.train[self.kept_step - 1][1]

    def validations_since_kept(self) -> int:
        """How many validations came after the one whose adapter is kept."""
        return sum(step > self.kept_step for step, _, _ in self.validation)


class Trainer:
    """Trains the adapter of a model.

    One optimizer step takes `batch_size` rows; its loss is the mean over all their response tokens, however they are
    cut into micro-batches.
    """

    def __init__(
        self,
        engine: Engine,
        train_set: list[Example],
        validation_set: list[Example],
        shared: Train,
        profile: ProfileTrain,
        *,
        group: Group | None = None,
    ) -> None:
        """`train_set` has one row at least. Every process of the `group` is given all rows."""
        self._group = group or Group()
        self._engine = engine
        self._train_set, self._validation_set = train_set, validation_set
        self._shared, self._profile = shared, profile
        self._weights = trained_weights(engine.model)
        for weight in self._weights.values():  # for good: a captured step adds to them in their places
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        self._gradients = [weight.grad for weight in self._weights.values() if weight.grad is not None]
        self._optimizer = make_optimizer(engine.model, shared, profile)
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        self._kept: dict[str, torch.Tensor] = {}
        self._epoch, self._order = -1, [[train_set[0]]]
        self.curve = Curve()
        self.trainable = sum(weight.numel() for weight in self._weights.values())
        self.steps_per_epoch = math.ceil(len(train_set) / profile.batch_size)
        self.steps = profile.steps or self.steps_per_epoch * (profile.epochs or 0)

    def run(
        self,
        checkpoints: Checkpoints | None = None,
        watch: Callable[[Curve], None] | None = None,
    ) -> Curve:
        """Train to the end, and leave the adapter as it was at the validation that `keep` says.

        `watch` sees the curve every few seconds, and at the end.

        Raises:
            UserError: the loss is not finite (the message names step and rows), or there are checkpoints
                of another number of processes.
        """
        # Of several processes only the first one needs to have them on its disk.
        found = self._group.of_first(checkpoints.newest() if checkpoints and self._group.rank == 0 else None)
        if found:
            self._restore(*found)
        looked = started = time.monotonic()
        tokens_before = self.curve.tokens
        # A step's loss is read when the next step has been handed to the device, which so never waits for it.
        under_way: tuple[Callable[[], float], list[Example]] | None = None
        with tqdm(
            total=self.steps,
            initial=self._done,
            desc="train",
            unit="step",
            disable=None if self._group.rank == 0 else True,
        ) as progress:
            while self._done < self.steps and not self._is_patience_over():
                step = self._done + (under_way is not None)
                pause = under_way is not None and (self._is_validation(step) or bool(checkpoints and checkpoints.due))
                ahead = None if pause else self._step(step)
                if under_way:
                    self._note(*under_way)
                under_way = ahead
                if pause and self._is_validation(step):
                    self._validate()
                if pause and checkpoints and checkpoints.due and step < self.steps:
                    checkpoints.save(step, self._tensors(), asdict(self.curve))
                self._show(progress, self.curve.tokens - tokens_before, time.monotonic() - started)
                if watch and time.monotonic() - looked > REFRESH:
                    watch(self.curve)
                    looked = time.monotonic()
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._kept[name])
        if watch:
            watch(self.curve)
        return self.curve

    @property
    def _done(self) -> int:
        """Steps whose loss is known."""
        return len(self.curve.train)

    def _is_validation(self, done: int) -> bool:
        """Whether the validation rows are looked at after so many steps."""
        every = self._shared.validate_every or self.steps_per_epoch
        return done == self.steps or done % self.steps_per_epoch == 0 or done % every == 0

    def _is_patience_over(self) -> bool:
        patience = self._shared.patience
        return patience is not None and self.curve.validations_since_kept() >= patience

    def _rows(self, step: int) -> list[Example]:
        """The rows of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            order = steps_of_epoch(self._train_set, self._profile.batch_size, self._shared.seed, epoch + 1)
            self._epoch, self._order = epoch, list(order)
        return self._order[place]

    def _step(self, step: int) -> tuple[Callable[[], float], list[Example]]:
        """Take an optimizer step; what gives the mean loss of its response tokens, and its rows."""
        rows = self._rows(step)
        factor = self._factor(step)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        tokens = sum(len(row.completion) for row in rows)
        total = torch.zeros((), device=self._engine.device)
        torch._foreach_zero_(self._gradients)
        for number, (batch, counts) in enumerate(self._batches(rows)):
            seed = _seed(self._shared.seed, step, number * self._group.size + self._group.rank)
            loss = self._engine.loss(batch, seed=seed) / tokens
            torch.autograd.backward(loss if counts else loss * 0)
            if counts:
                total += loss.detach()
        self._group.add_up([total, *self._gradients])
        torch.nn.utils.clip_grad_norm_(self._weights.values(), self._shared.max_grad_norm)
        self._optimizer.step()
        return read_later(total), rows

    def _batches(self, rows: list[Example]) -> Iterator[tuple[Batch, bool]]:
        """Yield this process's batches of the rows, and whether they count.

        A base that is shared out is put together by all at once: where another process has a batch more, this one goes
        along with one that does not count.
        """
        own = self._group.share(sorted(rows, key=len))
        for batch in self._engine.batches(own):
            yield batch, True
        if self._profile.fsdp:
            size = self._profile.micro_batch_size
            most = math.ceil(len(rows) / self._group.size)
            for _ in range(math.ceil(most / size) - math.ceil(len(own) / size)):
                yield next(self._engine.batches(rows[:1])), False

    def _note(self, loss: Callable[[], float], rows: list[Example]) -> None:
        """Put the loss of the next step of the curve down."""
        step, value = self._done, loss()
        if not math.isfinite(value):
            raise self._group.stop(
                f"train: the loss is {value} in step {step + 1} (rows {', '.join(row.id for row in rows)}); "
                "lower the learning rate in params.yaml, or look at these rows in data/prepared/train.jsonl"
            )
        rate = self._profile.learning_rate * self._factor(step)
        self.curve.train.append((step + 1, self._epochs(step + 1), round(rate, 10), round(value, 6)))
        self.curve.tokens += sum(map(len, rows))

    def _factor(self, step: int) -> float:
        return learning_rate_factor(self._shared.schedule, self._shared.warmup_ratio, step, self.steps)

    def _epochs(self, done: int) -> float:
        return round(done / self.steps_per_epoch, 4)

    def _validate(self) -> None:
        """Measure the loss on the validation rows, and keep the adapter as it is now if that is wanted."""
        loss: float | None = None
        if self._validation_set:
            loss = round(self.mean_loss(self._validation_set), 6)
            if not math.isfinite(loss):
                raise self._group.stop(
                    f"train: the validation loss is {loss} after step {self._done}; "
                    "lower the learning rate in params.yaml"
                )
            self.curve.validation.append((self._done, self._epochs(self._done), loss))
        best = self.curve.kept_loss
        if self._shared.keep == "last" or loss is None or best is None or loss < best:
            self.curve.kept_step, self.curve.kept_loss = self._done, loss
            self._kept = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def mean_loss(self, examples: list[Example]) -> float:
        """Mean loss in nats a response token over all examples, without dropout."""
        with torch.inference_mode():
            total = torch.zeros((), device=self._engine.device)
            for batch, counts in self._batches(examples):
                loss = self._engine.loss(batch)
                if counts:
                    total += loss
            self._group.add_up([total])
            return total.item() / sum(len(example.completion) for example in examples)

    def _show(self, progress: Any, tokens: int, seconds: float) -> None:
        """Move the bar; `tokens` were learnt from in these `seconds`."""
        if progress.disable or self._done == progress.n:
            return
        _, epoch, rate, loss = self.curve.train[-1]
        told = f"epoch {epoch:.2f}, loss {loss:.3f}, lr {rate:.2e}, {tokens / max(seconds, 1e-6):,.0f} tok/s"
        progress.set_postfix_str(told, refresh=False)
        progress.update(self._done - progress.n)

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"weight/{name}": weight.detach() for name, weight in self._weights.items()}
        tensors |= {f"kept/{name}": weight for name, weight in self._kept.items()}
        for name, weight in self._weights.items():
            for key, value in self._optimizer.state[weight].items():
                tensors[f"optimizer/{key}/{name}"] = value
        return tensors

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Go on where the run stood that saved these."""
        rows = {key: [tuple(row) for row in state[key]] for key in ("train", "validation")}
        self.curve = Curve(**{**state, **rows})
        self.curve.resumed_at, self.curve.resumed_tokens = self._done, self.curve.tokens
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(tensors[f"weight/{name}"])
                if f"kept/{name}" in tensors:
                    self._kept[name] = tensors[f"kept/{name}"].to(weight.device)
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    value = tensors[f"optimizer/{key}/{name}"]
                    # The count of steps stays where AdamW keeps it: on the CPU, unless its kernels are fused.
                    self._optimizer.state[weight][key] = value.to(
                        weight.device if key != "step" or self._optimizer.defaults["fused"] else "cpu"
                    )


def _seed(seed: int, step: int, batch: int) -> int:
    """The seed of the dropout in a micro-batch of a step."""
    return int.from_bytes(hashlib.blake2b(f"dropout {seed} {step} {batch}".encode(), digest_size=7).digest(), "big")
