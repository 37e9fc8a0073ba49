"""Answers to validation rows while training: scored as the adapter is, and without a trace in what is learnt."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from howto.core.errors import UserError
from howto.core.schema import Row, read_rows
from howto.modeling.chat import Chat
from howto.modeling.collate import Example, encode
from howto.modeling.distributed.process_group import ProcessGroup
from howto.modeling.loading import load_base, load_chat
from howto.training.answers import ValidationAnswers
from howto.training.checkpoints import Checkpoints
from howto.training.forward import Engine
from howto.training.lora import trained_weights
from howto.training.trainer import Curve, Trainer
from tests.support.models import SHARED, adapted, gpt2, train_profile

CPU = torch.device("cpu")
ALONE = ProcessGroup(CPU)


class Run:
    """A tiny model, its rows, and trainers that learn enough to answer in other ways after each epoch."""

    def __init__(self, folder: Path) -> None:
        self.base = folder / "models/base"
        self.rows = read_rows(folder / "data/prepared/train.jsonl", Row)
        self.chat: Chat = load_chat(self.base)
        self.examples = encode(self.chat, self.rows, 512, shorten=False)

    def engine(self, model: Any = None, **profile: Any) -> Engine:
        torch.manual_seed(0)
        peft = adapted(model or load_base(self.base, "float32", CPU), std=0.05)
        return Engine(peft, self.examples, SHARED, train_profile(**profile), self.chat.end)

    def answers(self, engine: Engine, count: int = 6, *, examples: list[Example] | None = None) -> ValidationAnswers:
        held_out = self.examples[40:56] if examples is None else examples
        return ValidationAnswers(engine, self.chat, self.rows, held_out, count=count, fsdp=False)

    def trainer(self, *, answers: bool = True, shared: dict[str, Any] | None = None, **profile: Any) -> Trainer:
        engine, params = self.engine(), SHARED.model_copy(update=shared or {})
        settings = train_profile(**{"steps": 12, "learning_rate": 2e-2, **profile})
        scorer = self.answers(engine) if answers else None
        return Trainer(engine, self.examples[:40], self.examples[40:56], params, settings, answers=scorer)


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return Run(finished)


@pytest.fixture(scope="module")
def scored(run: Run) -> Iterator[tuple[Trainer, Curve]]:
    trainer = run.trainer()
    yield trainer, trainer.run()


def rouge_l(curve: Curve) -> list[float]:
    return [score for *_, score in curve.validation if score is not None]


def expected_score(run: Run, engine: Engine, count: int) -> float:
    """Greedy answers of transformers' `generate`, one row at a time, scored by Google's package."""
    by_hash = sorted(run.examples[40:56], key=lambda one: hashlib.blake2b(one.id.encode()).digest())[:count]
    longest, scorer = max(len(one.completion) for one in by_hash), RougeScorer(["rougeL"], use_stemmer=False)
    outputs: dict[str, str] = {row.id: row.output for row in run.rows}
    scores: list[float] = []
    with engine.own_attention():
        for one in by_hash:
            settings: dict[str, Any] = {"max_new_tokens": longest, "do_sample": False, "eos_token_id": run.chat.end}
            ids = engine.model.generate(input_ids=torch.tensor([one.prompt]), pad_token_id=run.chat.end, **settings)
            text = run.chat.tokenizer.decode(ids[0, len(one.prompt) :], skip_special_tokens=True)
            scores.append(scorer.score(outputs[one.id], text)["rougeL"].fmeasure)
    return sum(scores) / count


@pytest.mark.parametrize("kind", ["llama", "gpt2", "checkpointing"])
def test_the_score_is_that_of_greedy_answers_with_the_adapter_as_it_is(run: Run, kind: str) -> None:
    model = gpt2(len(run.chat.tokenizer)) if kind == "gpt2" else None
    engine = run.engine(model, gradient_checkpointing=kind == "checkpointing")
    scorer = run.answers(engine)
    before = scorer.rouge_l(ALONE)
    assert before == pytest.approx(expected_score(run, engine, 6), abs=1e-12)
    with torch.no_grad():
        for name, weight in trained_weights(engine.model).items():
            weight.mul_(0.0 if "lora_B" in name else 1.0)
    assert scorer.rouge_l(ALONE) == pytest.approx(expected_score(run, engine, 6), abs=1e-12) != before


def test_answering_leaves_no_trace_in_the_weights_and_the_losses(run: Run, scored: tuple[Trainer, Curve]) -> None:
    trainer, curve = scored
    silent = run.trainer(answers=False)
    expected = silent.run()
    assert (curve.train, curve.kept_step) == (expected.train, expected.kept_step)
    assert [row[:3] for row in curve.validation] == [row[:3] for row in expected.validation]
    assert [row[3] for row in expected.validation] == [None] * 3 and len(set(rouge_l(curve))) > 1
    weights = trained_weights(silent._engine.model)
    assert all(torch.equal(weights[name], w) for name, w in trained_weights(trainer._engine.model).items())


def test_the_adapter_with_the_highest_rouge_l_is_kept_and_patience_follows_it(
    run: Run, scored: tuple[Trainer, Curve]
) -> None:
    scores = rouge_l(scored[1])
    trainer = run.trainer(shared={"keep": "best_rougeL"})
    curve = trainer.run()
    best = scores.index(max(scores))
    assert rouge_l(curve) == scores and curve.kept_rouge_l == max(scores)
    assert (curve.kept_step, curve.kept_loss) == (curve.validation[best][0], curve.validation[best][2])
    assert trainer._answers is not None and round(trainer._answers.rouge_l(ALONE), 6) == max(scores)
    still = run.trainer(shared={"keep": "best_rougeL", "patience": 2}, steps=100, learning_rate=1e-30).run()
    assert len(still.validation) == 3 and still.kept_step == 5


def test_a_resumed_run_has_the_scores_of_one_that_was_not_stopped(
    run: Run, scored: tuple[Trainer, Curve], tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    class KillingCheckpoints(Checkpoints):
        due = True

        def save(self, saved: int, tensors: dict[str, torch.Tensor], state: dict[str, object]) -> None:
            super().save(saved, tensors, state)
            if saved == 6:
                raise Killed

    with pytest.raises(Killed):
        run.trainer().run(KillingCheckpoints(tmp_path, "key"))
    resumed = run.trainer().run(Checkpoints(tmp_path, "key"))
    assert resumed.resumed_at == 6
    assert (resumed.validation, resumed.kept_rouge_l) == (scored[1].validation, scored[1].kept_rouge_l)


def test_rows_without_room_for_an_answer_are_left_out_and_no_row_at_all_is_refused(run: Run) -> None:
    engine = run.engine()
    with pytest.raises(UserError, match="validation_answers: expected validation rows, got none"):
        run.answers(engine, examples=[])
    longest, shortest = (pick(run.examples[40:56], key=len) for pick in (max, min))
    engine.base.config.max_position_embeddings = len(longest.prompt) + len(longest.completion) - 1
    scorer = run.answers(engine, examples=[longest, shortest])
    assert [request.row.id for request in scorer._requests] == [shortest.id]
    with pytest.raises(UserError, match=r"no prompt leaves room for answers of \d+ tokens"):
        run.answers(engine, examples=[longest])
