"""Base and adapter of every architecture answer as transformers and PEFT do, or the pipeline stops before training."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from howto.core.schema import Prediction, Row, input_of, read_rows, write_rows
from howto.modeling.loading import load_chat
from tests.support.architectures import ARCHITECTURES, write_architecture
from tests.support.in_process import edit_params, run_stage_here

STAGES = ("fetch_model", "train", "infer@base", "infer@adapter", "evaluate")
NEW_TOKENS = 12
INSTRUCTION = "Write steps."


def rows(count: int, name: str) -> list[Row]:
    texts = [(f"How do I {name} {'a big ' * (n % 3)}boat?", "Note: row north." * (n % 4 == 3)) for n in range(count)]
    return [
        Row(
            id=f"{name}{number}",
            category="boats",
            instruction=INSTRUCTION,
            input=input_of(intent, context),
            context=context,
            output="1. Sit.\n2. Row." + " Rest." * (number % 3),
        )
        for number, (intent, context) in enumerate(texts)
    ]


def make_run(folder: Path, params: str, name: str, **settings: Any) -> None:
    """Write what the stages from `fetch_model` on read, for the model of an architecture."""
    write_architecture(folder / "model", name, **settings)
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    for old, new in {
        f"source: {re.search(r'source: (/.*/model)', params)[1]}\n": "source: ./model\n",  # type: ignore[index]
        "epochs: 1 ": "steps: 2 ",
        "learning_rate: 1.0e-2 ": "learning_rate: 1.0e-1 ",
        "micro_batch_size: 8  ": "micro_batch_size: 4  ",
        "max_new_tokens: 48  ": f"max_new_tokens: {NEW_TOKENS}  ",
        "dropout: 0.05 ": "dropout: 0.0 ",
    }.items():
        edit_params(folder, old, new)
    if name == "mamba":
        edit_params(folder, "exclude_modules: null ", "exclude_modules: [out_proj] ")
    for split, count in {"train": 6, "validation": 2, "test": 6}.items():
        write_rows(folder / f"data/prepared/{split}.jsonl", rows(count, split))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, small_params: str) -> Callable[[str], Path]:
    """Return the finished run of an architecture, which is made once. Read-only."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            make_run(folder, small_params, name)
            for stage in STAGES:
                done = run_stage_here(stage, folder)
                assert done.returncode == 0, f"{stage}: {done.stderr}"
            made[name] = folder
        return made[name]

    return make


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_base_and_adapter_answer_as_generate_does(name: str, run_of: Callable[[str], Path]) -> None:
    folder = run_of(name)
    chat = load_chat(folder / "models/base")
    base = AutoModelForCausalLM.from_pretrained(folder / "models/base").eval()
    found: dict[str, list[str]] = {}
    for model in ("base", "adapter"):
        if model == "adapter":
            base = PeftModel.from_pretrained(base, folder / "models/adapter").eval()
        predictions = read_rows(folder / f"data/predictions/{model}.jsonl", Prediction)
        expected = []
        for row, prediction in zip(read_rows(folder / "data/prepared/test.jsonl", Row), predictions, strict=True):
            prompt = chat.prompt_ids(row)
            settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": True}
            with torch.inference_mode():
                (ids,) = base.generate(input_ids=torch.tensor([prompt]), **settings)
            answer = chat.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
            expected.append(answer)
            completion = chat.completion_ids(row)
            with torch.inference_mode():
                logits = base(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            mean = logits.log_softmax(1).gather(1, torch.tensor(completion)[:, None]).mean().item()
            assert prediction.reference_log_probability == pytest.approx(mean, abs=1e-4)
        found[model] = [prediction.text for prediction in predictions]
        assert found[model] == expected
    assert found["base"] != found["adapter"]
    assert len(set(found["base"])) > 1
