"""Without dropout the engine has the losses of TRL and transformers, step by step, on the same rows."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from benchmarks.train import run_peer
from howto.core.schema import Row, read_rows
from howto.modeling.collate import encode
from howto.modeling.loading import load_base, load_chat
from howto.training.forward import Engine
from howto.training.lora import add_adapter
from howto.training.trainer import Trainer, epoch_order
from tests.support.models import SHARED, train_profile


@pytest.mark.parametrize("peer", ["trl_default", "transformers"])
def test_thirty_steps_have_the_losses_of_a_peer(finished: Path, peer: str) -> None:
    base = finished / "models/base"
    lora = SHARED.lora.model_copy(update={"dropout": 0.0})
    shared = SHARED.model_copy(update={"lora": lora, "warmup_ratio": 0.0, "weight_decay": 0.01})
    profile = train_profile(steps=30, learning_rate=5e-3, micro_batch_size=4)
    rows = read_rows(finished / "data/prepared/train.jsonl", Row)
    examples = encode(load_chat(base), rows, 512, shorten=False)[:80]  # ten full batches
    order = [row for epoch in (1, 2, 3) for row in epoch_order(examples, shared.seed, epoch)]

    def model() -> PeftModel:
        torch.manual_seed(shared.seed)
        return add_adapter(load_base(base, "float32", torch.device("cpu")), lora, base)

    engine = Engine(model(), examples, shared, profile, pad=2)
    ours = [loss for *_, loss in Trainer(engine, examples, [], shared, profile).run().train]
    run = run_peer(peer, model(), order, shared, profile, base)
    assert len(ours) == 30 and ours[-1] < 0.95 * ours[0]
    assert ours == pytest.approx(run.losses, rel=1e-3)
