"""Base and adapter of every architecture are trained and answer as transformers and PEFT do it, row by row."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from howto.core.errors import UserError
from howto.core.schema import Prediction, Row, read_rows
from howto.modeling.adapters.fused_lora import relative_error
from howto.modeling.collate import Example, encode
from howto.modeling.loading import load_base, load_chat
from howto.tools.cli import main
from howto.training.forward import Engine
from howto.training.lora import trained_weights
from tests.support.architectures import ARCHITECTURES, NEW_TOKENS, make_run
from tests.support.in_process import run_here, run_stage_here
from tests.support.models import SHARED, adapted, train_profile

STAGES = ("fetch_model", "train", "infer@base", "infer@adapter", "evaluate")
EXPERTS = ("mixtral", "qwen3_moe")  # PEFT adapts these, without dropout
CPU = torch.device("cpu")
RunOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, small_params: str) -> RunOf:
    """Return a function that gives the finished run of an architecture, which is made once. Read-only."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            make_run(folder, small_params, name)
            for stage in STAGES:
                done = run_stage_here(stage, folder)
                assert done.returncode == 0, f"{stage}: {done.stderr}"
            made[name] = folder
        return made[name]

    return run


def examples(folder: Path, split: str) -> list[Example]:
    rows = read_rows(folder / f"data/prepared/{split}.jsonl", Row)
    return encode(load_chat(folder / "models/base"), rows, 512, shorten=False)


def response_logits(model: PreTrainedModel | PeftModel, row: Example) -> torch.Tensor:
    """Return the logits [response tokens, vocabulary] of a row by itself."""
    ids = torch.tensor([[*row.prompt, *row.completion]])
    return model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_base_and_adapter_answer_as_generate_does(name: str, run_of: RunOf) -> None:
    folder = run_of(name)
    tokenizer = load_chat(folder / "models/base").tokenizer
    model = AutoModelForCausalLM.from_pretrained(folder / "models/base").eval()
    texts = {}
    for kind in ("base", "adapter"):
        if kind == "adapter":
            model = PeftModel.from_pretrained(model, folder / "models/adapter").eval()
        predictions = read_rows(folder / f"data/predictions/{kind}.jsonl", Prediction)
        for row, prediction in zip(examples(folder, "test"), predictions, strict=True):
            with torch.inference_mode():
                prompt = torch.tensor([row.prompt])
                (ids,) = model.generate(input_ids=prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
                loss = cross_entropy(response_logits(model, row), torch.tensor(row.completion)).item()
            assert prediction.text == tokenizer.decode(ids[len(row.prompt) :], skip_special_tokens=True).strip()
            assert prediction.reference_log_probability == pytest.approx(-loss, abs=1e-4)
        texts[kind] = [prediction.text for prediction in predictions]
        assert len(set(texts[kind])) > 1, "answers that depend on nothing would prove nothing"
    assert texts["base"] != texts["adapter"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_exported_model_gives_the_answers_of_the_adapter(name: str, run_of: RunOf, tmp_path: Path) -> None:
    folder = run_of(name)
    done = run_here(main, folder, "export", "--output", str(tmp_path / "exported"))
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    predictions = read_rows(folder / "data/predictions/adapter.jsonl", Prediction)
    for row, prediction in zip(examples(folder, "test"), predictions, strict=True):
        ids = model.generate(input_ids=torch.tensor([row.prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        assert tokenizer.decode(ids[len(row.prompt) :], skip_special_tokens=True).strip() == prediction.text


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradient_are_those_of_each_row_alone_in_peft(name: str, run_of: RunOf) -> None:
    folder = run_of(name)
    rows = examples(folder, "train")
    exclude = ["out_proj"] if name == "mamba" else None

    def model(dropout: float) -> PeftModel:
        torch.manual_seed(0)  # of the adapter's A
        return adapted(load_base(folder / "models/base", "float32", CPU), dropout=dropout, exclude_modules=exclude)

    def engine(dropout: float) -> Engine:
        shared = SHARED.model_copy(update={"lora": SHARED.lora.model_copy(update={"dropout": dropout})})
        return Engine(model(dropout), rows, shared, train_profile(micro_batch_size=4), pad=0)

    plain, total = model(0.0), torch.zeros(())
    for row in rows:
        total = total + cross_entropy(response_logits(plain, row), torch.tensor(row.completion), reduction="sum")
    expected = torch.autograd.grad(total, list(trained_weights(plain).values()), materialize_grads=True)

    ours = engine(0.0)
    weights = list(trained_weights(ours.model).values())
    for checkpointing in (False, True):
        ours.set_checkpointing(checkpointing)
        loss = sum((ours.loss(batch, seed=1) for batch in ours.batches(rows)), torch.zeros(()))
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
        assert relative_error(flat(found), flat(expected)) < 1e-4

    if name in EXPERTS:
        with pytest.raises(UserError, match=r"lora.dropout"):
            model(0.05)
        return
    with_dropout = engine(0.05)
    batch = next(with_dropout.batches(rows))
    losses = [with_dropout.loss(batch, seed=seed).item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def flat(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_stage_trains_on_that_loss(name: str, run_of: RunOf) -> None:
    """Before the first step the adapter changes nothing, so the first loss is that of the base."""
    folder = run_of(name)
    model, rows = load_base(folder / "models/base", "float32", CPU), examples(folder, "train")
    with torch.inference_mode():
        logits = torch.cat([response_logits(model, row) for row in rows])
    labels = torch.tensor([token for row in rows for token in row.completion])
    first = (folder / "metrics/train_loss.csv").read_text(encoding="utf-8").splitlines()[1]
    assert float(first.split(",")[-1]) == pytest.approx(cross_entropy(logits, labels).item(), abs=2e-5)
