"""An adapter does what params ask for, and comes back from disk as it was trained."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from howto.core.errors import UserError
from howto.modeling.collate import pack
from howto.training.config import INITS_THAT_CHANGE_THE_BASE, Lora
from howto.training.forward import Engine
from howto.training.lora import add_adapter, save_adapter
from howto.training.trainer import Trainer
from tests.support.models import SHARED, example_rows, llama, train_profile


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj", "query"]}, r"target_modules: expected .*down_proj.*q_proj.*, got query"),
        ({"rank_pattern": {"keys": 4}}, r"rank_pattern: .* got keys"),
        ({"layers": [0, 7]}, r"layers: expected numbers from 0 to 1, got \[7\]"),
    ],
)
def test_a_name_or_number_of_no_layer_is_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_adapter(llama(50), SHARED.lora.model_copy(update=changes), Path("base"))


SETTINGS: list[dict[str, object]] = [
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4.0}},
    {"layers": [0], "exclude_modules": ["down_proj"], "init": "gaussian"},
    {"plus_ratio": 2.0, "init": "orthogonal"},
    {"init": "olora"},
    {"init": "pissa"},
    {"rslora": True},
    {"dora": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_saved_adapter_on_the_original_base_is_the_model_that_was_trained(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    lora = Lora.model_validate({**SHARED.lora.model_dump(), **settings})
    shared, profile, rows = SHARED.model_copy(update={"lora": lora}), train_profile(steps=4), example_rows(12)
    base = llama(50)
    base.config.save_pretrained(tmp_path / "base")
    model = add_adapter(base, lora, tmp_path / "base")
    initial = tmp_path / "initial" if lora.init in INITS_THAT_CHANGE_THE_BASE else None
    if initial:
        save_adapter(model, initial)
    trainer = Trainer(Engine(model, rows, shared, profile, pad=2), rows, rows, shared, profile)
    before = trainer.mean_loss(rows)
    assert (trainer.run().kept_loss or 0) < before
    save_adapter(model, tmp_path / "saved", initial)
    loaded = PeftModel.from_pretrained(llama(50), str(tmp_path / "saved")).eval()
    model.eval()
    with torch.no_grad():
        for row in rows[-3:]:
            batch = pack([row], torch.device("cpu"))
            found, expected = loaded(input_ids=batch.input_ids).logits, model(**batch.model_inputs()).logits
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
