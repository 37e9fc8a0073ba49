"""An adapter does what params ask for, and comes back from disk as it was trained."""

from functools import partial
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
from tests.support.models import SHARED, example_rows, gpt2, llama, train_profile


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


def test_an_init_that_peft_cannot_compute_for_gpt2_is_an_error() -> None:
    with pytest.raises(UserError, match=r"init: olora does not support GPT2LMHeadModel"):
        add_adapter(gpt2(50), SHARED.lora.model_copy(update={"init": "olora"}), Path("base"))


@pytest.mark.parametrize("layers", [None, [1]])
def test_all_linear_layers_get_an_adapter_and_the_head_does_not_whatever_the_layers_are_called(
    layers: list[int] | None,
) -> None:
    gpt2_layers = {f"h.{n}.{name}" for n in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    model = add_adapter(gpt2(50), SHARED.lora.model_copy(update={"layers": layers}), Path("base"))
    found = {name.removeprefix("transformer.") for name in model.targeted_module_names}
    assert found == {name for name in gpt2_layers if layers is None or name.startswith("h.1.")}


SETTINGS: list[dict[str, object]] = [
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4.0}},
    {"layers": [0], "exclude_modules": ["down_proj"], "init": "gaussian"},
    {"plus_ratio": 2.0, "init": "orthogonal"},
    {"init": "olora"},
    {"init": "pissa"},
    {"rslora": True},
    {"dora": True},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "lm_head"], "init": "pissa"},
]
GPT2_SETTINGS: list[dict[str, object]] = [
    {},
    {"target_modules": ["c_attn", "lm_head"], "init": "orthogonal"},
    {"target_modules": ["c_fc"], "rslora": True},
    {"init": "pissa"},
    {"dora": True},
]


@pytest.mark.parametrize(
    ("kind", "settings"), [*(("llama", one) for one in SETTINGS), *(("gpt2", one) for one in GPT2_SETTINGS)], ids=str
)
def test_a_saved_adapter_on_the_original_base_is_the_model_that_was_trained(
    tmp_path: Path, kind: str, settings: dict[str, object]
) -> None:
    lora = Lora.model_validate({**SHARED.lora.model_dump(), **settings})
    shared, profile, rows = SHARED.model_copy(update={"lora": lora}), train_profile(steps=4), example_rows(12)
    make = partial(gpt2, 50) if kind == "gpt2" else partial(llama, 50, tied=True)
    base = make()
    base.config.save_pretrained(tmp_path / "base")
    model = add_adapter(base, lora, tmp_path / "base")
    initial = tmp_path / "initial" if lora.init in INITS_THAT_CHANGE_THE_BASE else None
    if initial:
        save_adapter(model, initial)
    trainer = Trainer(Engine(model, rows, shared, profile, pad=2), rows, rows, shared, profile)
    before = trainer.mean_loss(rows)
    assert (trainer.run().kept_loss or 0) < before
    save_adapter(model, tmp_path / "saved", initial)
    loaded = PeftModel.from_pretrained(make(), str(tmp_path / "saved")).eval()
    model.eval()
    with torch.no_grad():
        for row in rows[-3:]:
            batch = pack([row], torch.device("cpu"))
            found, expected = loaded(input_ids=batch.input_ids).logits, model(**batch.model_inputs()).logits
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
