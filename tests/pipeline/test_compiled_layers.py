"""Compiled layers give the gradients of other layers, to the same bytes twice, in few kernels.

They are traced as on a GPU, with FlashAttention's operator inside a layer, and compiled for a CPU, where the compiler
fuses the same operations. All layers share their code, except that the first one, whose input has no gradient, needs
some of its own. A layer's forward and backward pass are 24 products, 15 fused kernels and 2 of attention.
"""

import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch._inductor import config as inductor
from torch._inductor.graph import GraphLowering
from transformers import LlamaConfig, LlamaForCausalLM

from howto.core.schema import Row
from howto.inference.kv_cache import KVCache
from howto.modeling.chat import Chat
from howto.modeling.distributed.process_group import ProcessGroup
from howto.training.answers import ValidationAnswers
from howto.training.forward import Engine
from howto.training.lora import trained_weights
from howto.training.trainer import Trainer
from tests.support.flash_on_cpu import as_on_a_gpu
from tests.support.models import SHARED, adapted, example_rows, train_profile

# Of a layer: kernels, and numbers that are read or written for each token and hidden unit, as the compiler counts.
KERNELS, NUMBERS = 43, 185
HIDDEN_SIZE = 128  # other sizes are in TinyLlama's proportions
PROFILE = train_profile(batch_size=3, micro_batch_size=3)
ROWS = example_rows(30)


def make_engine(*, compiled: bool) -> Engine:
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN_SIZE, "intermediate_size": HIDDEN_SIZE * 11 // 4, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=50, **sizes, **heads, initializer_range=0.1)
    model = adapted(LlamaForCausalLM(config).eval().requires_grad_(False), dropout=0.5)
    shared = SHARED.model_copy(update={"lora": SHARED.lora.model_copy(update={"dropout": 0.5})})
    engine = Engine(model, example_rows(6), shared, PROFILE, 0, compiled=compiled)
    assert engine.is_compiled == compiled
    return engine


def gradients(engine: Engine, seed: int | None) -> list[torch.Tensor]:
    engine.model.zero_grad()
    for batch in engine.batches([*ROWS[:3], *ROWS[-3:]]):  # of two lengths
        torch.autograd.backward(engine.loss(batch, seed=seed))
    found = [weight.grad.clone() for weight in engine.model.parameters() if weight.grad is not None]
    assert len(found) == 2 * 7 * 3  # A and B of each linear layer
    return found


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_gpu(patch)
        yield


@pytest.fixture(scope="module")
def graphs() -> Iterator[list[tuple[int, float]]]:
    """The kernels of each compiled graph, and the bytes that they move."""
    found: list[tuple[int, float]] = []
    codegen = GraphLowering.codegen

    def counted(self: GraphLowering) -> Any:
        code = codegen(self)
        kernel = r"^\s+(?:(?:\w+ = )?torch\.ops\.torch_attn\.|extern_kernels\.|cpp_fused)\w*(?:\.\w+)?\("
        found.append((len(re.findall(kernel, code[0].value, re.MULTILINE)), self.count_bytes()[0]))
        return code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphLowering, "codegen", counted)
        yield found


@pytest.fixture(scope="module")
def compiled(graphs: list[tuple[int, float]]) -> Engine:
    """An engine whose layers are compiled here. Only g++ is spared code that it has compiled before."""
    torch._dynamo.reset()
    with inductor.patch({"fx_graph_cache": False, "cpp.vec_isa_ok": True}):  # no trial of each instruction set
        return make_engine(compiled=True)


def test_without_dropout_gradients_are_those_of_other_layers(compiled: Engine) -> None:
    assert compiled._layers is not None
    with compiled._layers.eager():
        found = gradients(compiled, None)
    assert_close(found, gradients(make_engine(compiled=False), None))


def test_with_dropout_gradients_are_those_of_the_same_masks_and_the_same_bytes_twice(compiled: Engine) -> None:
    once, twice, other = (gradients(compiled, seed) for seed in (1, 1, 2))
    for gradient, same, different in zip(once, twice, other, strict=True):
        assert torch.equal(gradient, same) and not torch.equal(gradient, different)
    assert compiled._layers is not None
    with compiled._layers.eager():
        assert_close(once, gradients(compiled, 1))


def test_a_layer_is_compiled_once_and_stays_within_its_budget(
    compiled: Engine, graphs: list[tuple[int, float]]
) -> None:
    assert len(graphs) == 4  # forward and backward, of the first layer and of all others
    lengths = set()
    for count in (2, 12, 30):  # the engine has tried two rows, whose length in a pack is the hidden size
        for batch in compiled.batches(ROWS[:count]):
            torch.autograd.backward(compiled.loss(batch, seed=0))
            lengths.add(batch.input_ids.shape[1])
    assert {HIDDEN_SIZE, 2 * HIDDEN_SIZE} < lengths
    assert len(graphs) == 4
    tokens = HIDDEN_SIZE  # that the code was made for
    kernels, moved = (sum(values) for values in zip(*graphs[2:], strict=True))
    assert KERNELS / 2 < kernels <= KERNELS
    assert NUMBERS / 2 < moved / (tokens * HIDDEN_SIZE * 4) <= NUMBERS


class Numbers:
    """In place of a chat: a text is the numbers of its tokens, and the token 7 ends an answer."""

    ends, end, clean_up_tokenization_spaces = frozenset({7}), 7, False

    @property
    def tokenizer(self) -> "Numbers":
        return self

    def prompt_ids(self, _: Row) -> list[int]:
        return list(range(10, 30))

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(map(str, ids))


def scorer(engine: Engine) -> ValidationAnswers:
    rows = [
        Row(id=one.id, category="", instruction="", input="", context="", output=Numbers().decode(one.completion))
        for one in ROWS[:6]
    ]
    return ValidationAnswers(engine, cast(Chat, Numbers()), rows, ROWS[:6], count=6, fsdp=False)


def test_answers_with_compiled_layers_score_as_with_others(compiled: Engine) -> None:
    alone = ProcessGroup(torch.device("cpu"))
    scores = [scorer(engine) for engine in (compiled, make_engine(compiled=False))]
    assert all(isinstance(one._generator._cache, KVCache) for one in scores)
    assert scores[0].rouge_l(alone) == scores[1].rouge_l(alone) > 0


def test_training_with_validations_gives_the_same_bytes_twice_and_compiles_nothing_more(
    compiled: Engine, graphs: list[tuple[int, float]]
) -> None:
    before, runs = len(graphs), []
    for has_answers in (False, True):
        engine, nine = make_engine(compiled=True), PROFILE.model_copy(update={"steps": 9})
        answers = scorer(engine) if has_answers else None
        curve = Trainer(engine, ROWS[6:], ROWS[:6], SHARED, nine, answers=answers).run()
        assert all((rouge_l is not None) == has_answers for *_, rouge_l in curve.validation)
        assert [step for step, *_ in curve.validation] == [8, 9]  # 8 steps an epoch
        weights = trained_weights(engine.model).values()
        losses = [loss for _, _, loss, _ in curve.validation]
        runs.append((losses, [weight.detach().numpy().tobytes() for weight in weights]))
    assert runs[0] == runs[1]
    assert len(graphs) == before
