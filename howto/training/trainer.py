"""The training loop: it trains one adapter in place, to the same bytes every time, also when it was killed and resumed.

A step depends on the steps before it only through the weights, the optimizer's moments and the curve: the order of an
epoch's rows is drawn from the seed and the epoch, dropout from the seed and the step. A checkpoint holds these three.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from howto.modeling.async_copy import async_tolist
from howto.modeling.collate import Batch, Example
from howto.modeling.distributed.process_group import ProcessGroup
from howto.training.config import ProfileTrain, Train
from howto.training.lora import make_optimizer, trained_weights
from howto.training.lr_schedule import learning_rate_factor

if TYPE_CHECKING:
    from howto.training.answers import ValidationAnswers
    from howto.training.checkpoints import Checkpoints
    from howto.training.forward import Engine

WATCH_SECONDS = 2.0  # between two calls of `watch`


@dataclass
class Curve:
    """How a run went. Losses are in nats a response token: a row for each step, and one for each validation."""

    train: list[tuple[int, float, float, float]] = field(default_factory=list)  # step, epoch, learning rate, loss
    validation: list[tuple[int, float, float, float | None]] = field(default_factory=list)  # step, epoch, loss, ROUGE-L
    kept_step: int = 0
    kept_loss: float | None = None
    kept_rouge_l: float | None = None
    tokens: int = 0  # of prompts and responses of all steps, without padding
    resumed_at: int = 0  # step
    resumed_tokens: int = 0

    @property
    def kept_epoch(self) -> float:
        """The epoch, or fraction of epochs, after which the adapter was kept."""
        return self.train[self.kept_step - 1][1]


class Trainer:
    """Trains the adapter of a model.

    One optimizer step takes `batch_size` rows. Its loss is the mean over all their response tokens, however they are
    cut into micro-batches and shared among processes.
    """

    def __init__(
        self,
        engine: Engine,
        train_set: list[Example],
        validation_set: list[Example],
        shared: Train,
        profile: ProfileTrain,
        *,
        group: ProcessGroup | None = None,
        answers: ValidationAnswers | None = None,
    ) -> None:
        """`train_set` has at least one row. Every process of the `group` gets all rows.

        `answers` are scored after each validation.
        """
        self._group = group or ProcessGroup(engine.device)
        self._engine, self._train_set, self._validation_set = engine, train_set, validation_set
        self._shared, self._profile, self._answers = shared, profile, answers
        self.answer_seconds = 0.0  # for validation answers
        self._weights = trained_weights(engine.model)
        for weight in self._weights.values():  # these stay: a captured step adds to the same memory
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        self._gradients = [weight.grad for weight in self._weights.values() if weight.grad is not None]
        self._optimizer = make_optimizer(engine.model, shared, profile)
        self._peak_rates = [parameters["lr"] for parameters in self._optimizer.param_groups]
        self._kept_adapter: dict[str, torch.Tensor] = {}
        self._epoch, self._order = -1, train_set
        self.curve = Curve()
        self.trainable = sum(weight.numel() for weight in self._weights.values())
        self.steps_per_epoch = math.ceil(len(train_set) / profile.batch_size)
        self.steps = profile.steps or self.steps_per_epoch * (profile.epochs or 0)

    def run(self, checkpoints: Checkpoints | None = None, watch: Callable[[Curve], None] | None = None) -> Curve:
        """Train to the end, and leave the adapter as it was at the validation that `train.keep` chooses.

        Of several processes only the first has `checkpoints`, and `watch`, which gets the curve every few seconds and
        at the end. Raise UserError if a loss is not finite (the message names step and rows), or if the checkpoints
        were made by another number of processes.
        """
        if found := self._group.broadcast(checkpoints.newest() if checkpoints else None):
            self._restore(*found)
        start = watched = time.monotonic()
        pending: tuple[Callable[[], float], list[Example]] | None = None  # a step whose loss was not read yet
        hide_bar = None if self._group.rank == 0 else True  # None: hide it unless in a terminal
        with tqdm(total=self.steps, initial=self._done, desc="train", unit="step", disable=hide_bar) as bar:
            while self._done < self.steps and not self._is_patience_over():
                # A GPU never waits for the host: it gets the next step before the host reads the loss of this one.
                launched = self._done + (pending is not None)
                validate = pending is not None and self._is_validation(launched)
                save = checkpoints if pending and checkpoints and checkpoints.due else None
                following = None if validate or save else self._step(launched)
                if pending:
                    self._record(*pending)
                pending = following
                if validate:
                    self._validate()
                if save and launched < self.steps:
                    save.save(launched, self._checkpoint(), asdict(self.curve))
                self._show(bar, time.monotonic() - start)
                if watch and time.monotonic() - watched > WATCH_SECONDS:
                    watch(self.curve)
                    watched = time.monotonic()
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._kept_adapter[name])
        if watch:
            watch(self.curve)
        return self.curve

    def _step(self, step: int) -> tuple[Callable[[], float], list[Example]]:
        """Take optimizer step `step`, from 0; return what reads the mean loss of its response tokens, and its rows."""
        rows = self._rows(step)
        for parameters, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            parameters["lr"] = peak * self._rate_factor(step)
        tokens = sum(len(row.completion) for row in rows)
        total = torch.zeros((), device=self._engine.device)
        torch._foreach_zero_(self._gradients)
        for number, (batch, counts) in enumerate(self._batches(rows)):
            seed = _dropout_seed(self._shared.seed, step, number * self._group.size + self._group.rank)
            loss = self._engine.loss(batch, seed=seed) / tokens
            torch.autograd.backward(loss if counts else loss * 0)
            if counts:
                total += loss.detach()
        self._group.all_reduce([total, *self._gradients])
        torch.nn.utils.clip_grad_norm_(self._weights.values(), self._shared.max_grad_norm)
        self._optimizer.step()
        return async_tolist(total), rows

    def _rows(self, step: int) -> list[Example]:
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, epoch_order(self._train_set, self._shared.seed, epoch + 1)
        start = number * self._profile.batch_size
        return self._order[start : start + self._profile.batch_size]

    def _batches(self, rows: list[Example]) -> Iterator[tuple[Batch, bool]]:
        """Yield this process's batches of the rows, and whether they count.

        With FSDP all processes gather a layer's weights together. So where another process has a batch more, this one
        computes one that does not count.
        """
        own = self._group.shard(sorted(rows, key=len))
        for batch in self._engine.batches(own):
            yield batch, True
        if self._profile.fsdp:
            size, most = self._profile.micro_batch_size, math.ceil(len(rows) / self._group.size)
            for _ in range(math.ceil(most / size) - math.ceil(len(own) / size)):
                yield next(self._engine.batches(rows[:1])), False

    def _record(self, read_loss: Callable[[], float], rows: list[Example]) -> None:
        """Add the loss of the next step to the curve."""
        step, loss = self._done, read_loss()
        self._check_finite(loss, f"loss in step {step + 1} (rows {', '.join(row.id for row in rows)})")
        rate = self._profile.learning_rate * self._rate_factor(step)
        self.curve.train.append((step + 1, self._epochs(step + 1), round(rate, 10), round(loss, 6)))
        self.curve.tokens += sum(map(len, rows))

    def _validate(self) -> None:
        """Measure loss and answers on the validation rows, and keep the adapter if `train.keep` says so."""
        loss: float | None = None
        rouge_l: float | None = None
        if self._validation_set:
            loss = round(self.mean_loss(self._validation_set), 6)
            self._check_finite(loss, f"validation loss after step {self._done}")
            if self._answers:
                start = time.monotonic()
                rouge_l = round(self._answers.rouge_l(self._group), 6)
                self.answer_seconds += time.monotonic() - start
            self.curve.validation.append((self._done, self._epochs(self._done), loss, rouge_l))
        if self._shared.keep == "last" or not self._validations_since_best():
            self.curve.kept_step, self.curve.kept_loss, self.curve.kept_rouge_l = self._done, loss, rouge_l
            self._kept_adapter = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def mean_loss(self, examples: list[Example]) -> float:
        """Return the mean loss, in nats a response token, over all examples, without dropout."""
        with torch.inference_mode():
            total = torch.zeros((), device=self._engine.device)
            for batch, counts in self._batches(examples):
                loss = self._engine.loss(batch)
                if counts:
                    total += loss
            self._group.all_reduce([total])
            return total.item() / sum(len(example.completion) for example in examples)

    def _check_finite(self, loss: float, what: str) -> None:
        if not math.isfinite(loss):
            raise self._group.common_error(
                f"train: expected a finite {what}, got {loss}. Lower learning_rate in params.yaml, or look at the rows "
                "in data/prepared/."
            )

    @property
    def _done(self) -> int:
        """The number of steps whose loss was read."""
        return len(self.curve.train)

    def _is_validation(self, done: int) -> bool:
        every = self._shared.validate_every or self.steps_per_epoch
        return done == self.steps or done % self.steps_per_epoch == 0 or done % every == 0

    def _is_patience_over(self) -> bool:
        return self._shared.patience is not None and self._validations_since_best() >= self._shared.patience

    def _validations_since_best(self) -> int:
        """The number of validations after the one with the highest ROUGE-L if it decides, else the lowest loss."""
        by_rouge_l = self._shared.keep == "best_rougeL"
        values = [-(rouge_l or 0.0) if by_rouge_l else loss for _, _, loss, rouge_l in self.curve.validation]
        return len(values) - 1 - values.index(min(values)) if values else 0

    def _rate_factor(self, step: int) -> float:
        return learning_rate_factor(self._shared.schedule, self._shared.warmup_ratio, step, self.steps)

    def _epochs(self, done: int) -> float:
        return round(done / self.steps_per_epoch, 4)

    def _show(self, bar: Any, seconds: float) -> None:
        """Move the progress bar; the run has taken so many seconds since it started or resumed."""
        if not bar.disable and self._done > bar.n:
            _, epoch, rate, loss = self.curve.train[-1]
            speed = (self.curve.tokens - self.curve.resumed_tokens) / max(seconds, 1e-6)
            shown = f"epoch {epoch:.2f}, loss {loss:.3f}, lr {rate:.2e}, {speed:,.0f} tok/s"
            if self.curve.validation:
                *_, loss, rouge_l = self.curve.validation[-1]
                shown += f", validation {loss:.3f}" + ("" if rouge_l is None else f", ROUGE-L {rouge_l:.3f}")
            bar.set_postfix_str(shown, refresh=False)
            bar.update(self._done - bar.n)

    def _checkpoint(self) -> dict[str, torch.Tensor]:
        tensors = {f"weight/{name}": weight.detach() for name, weight in self._weights.items()}
        tensors |= {f"kept/{name}": weight for name, weight in self._kept_adapter.items()}
        for name, weight in self._weights.items():
            tensors |= {f"{key}/{name}": value for key, value in self._optimizer.state[weight].items()}
        return tensors

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint's tensors and curve."""
        rows = {key: [tuple(row) for row in state[key]] for key in ("train", "validation")}
        self.curve = Curve(**{**state, **rows})
        self.curve.resumed_at, self.curve.resumed_tokens = self._done, self.curve.tokens
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(tensors[f"weight/{name}"])
                if f"kept/{name}" in tensors:
                    self._kept_adapter[name] = tensors[f"kept/{name}"].to(weight.device)
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    self._optimizer.state[weight][key] = tensors[f"{key}/{name}"].to(weight.device)


def epoch_order(rows: list[Example], seed: int, epoch: int) -> list[Example]:
    """Return the rows in the order in which an epoch, from 1, takes them."""
    order = list(rows)
    random.Random(f"order {seed} {epoch}").shuffle(order)
    return order


def _dropout_seed(seed: int, step: int, batch: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"dropout {seed} {step} {batch}".encode(), digest_size=7).digest(), "big")
