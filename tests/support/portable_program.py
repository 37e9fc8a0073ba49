"""Print the hash of what each operation of the pipeline computes, two training steps and a few answers, as JSON.

test_portability.py runs it on this CPU and on emulated ones. Sizes are odd, so that each kernel's ends are used.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from howto.inference.config import Infer
from howto.modeling.config import Machine, ProfileMachine
from howto.modeling.torch_setup import set_up_torch
from howto.params import read_params

PARAMS = read_params(Path(__file__).parents[2] / "params.yaml")
Results = Iterator[tuple[str, Any]]


def main() -> None:
    """Print the hashes."""
    set_up_torch(PARAMS.section(Machine), ProfileMachine(device="cpu", precision="float32"))
    found = {}
    for part in (products, functions, attention, training_and_answers, evaluation):
        for name, value in part():
            found[name] = hashlib.sha256(as_bytes(value)).hexdigest()[:16]
    print(json.dumps(found))


def as_bytes(value: Any) -> bytes:
    """Return the bytes of a tensor, or the digits of all else."""
    is_tensor = hasattr(value, "detach")
    return bytes(value.detach().contiguous().numpy().tobytes()) if is_tensor else repr(value).encode()


def numbers(*shape: int) -> Any:
    """Return a tensor of numbers in -0.5..0.5, made by integers and one exact product."""
    import numpy as np
    import torch

    count = int(np.prod(shape))
    raw = np.random.SFC64(count).random_raw(count) >> np.uint64(40)
    return torch.from_numpy((raw.astype(np.float32) * 2.0**-24 - 0.5).reshape(shape))


def products() -> Results:
    """Compute the products of a LoRA layer and of the output head, forward and backward, small and large."""
    import torch

    for tokens, size_in, size_out in ((101, 145, 417), (37, 769, 96), (1, 145, 417), (67, 96, 1031), (5, 1, 3)):
        x, weight, grad = numbers(tokens, size_in), numbers(size_out, size_in), numbers(tokens, size_out)
        a, b = numbers(8, size_in), numbers(size_out, 8)
        shape = f"{tokens} x {size_in} x {size_out}"
        yield f"x @ w.T, {shape}", x @ weight.T
        yield f"grad @ w, {shape}", grad @ weight
        yield f"x[1:] @ w.T, {shape}", x[1:] @ weight.T
        yield f"a @ x.T, {shape}", a @ x.T
        yield f"b.T @ grad.T, {shape}", b.T @ grad.T
        yield f"addmm, {shape}", (x @ weight.T).addmm_((a @ x.T).T, b.T, alpha=2.0)
        yield f"linear with bias, {shape}", torch.nn.functional.linear(x, weight, numbers(size_out))
    yield "bmm", numbers(3, 71, 65) @ numbers(3, 65, 33)
    yield "bmm, transposed", numbers(3, 71, 65) @ numbers(3, 33, 65).transpose(1, 2)


def functions() -> Results:
    """Compute functions of single numbers, sums and random numbers. evaluation() has those of NumPy."""
    import numpy as np
    import torch

    x = numbers(97, 1031)  # so many that two threads share a sum
    for name in ("exp", "sigmoid", "sum"):
        yield name, getattr(x, name)()
    for name in ("softmax", "log_softmax", "logsumexp"):
        yield name, getattr(torch, name)(x * 20, dim=1)
    yield "log", (x + 0.75).log()
    yield "silu", torch.nn.functional.silu(x)
    yield "softmax, float64", torch.softmax(x * 20, dim=1, dtype=torch.float64).cumsum(dim=1)
    yield "rms norm", x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    yield "mean of columns", x.mean(dim=0)
    yield "norm", torch.linalg.vector_norm(x)
    for name in ("sin", "cos"):
        yield name, getattr(torch, name)(x * 100)
    for name in ("randn", "rand"):
        yield name, getattr(torch, name)(51, 33, generator=torch.Generator().manual_seed(0))
    yield "topk", torch.cat([part.double() for part in x.topk(2)])
    yield "NumPy's normal numbers", torch.from_numpy(np.random.default_rng(0).normal(size=1000))


def attention() -> Results:
    """Compute attention of rows in a pack, with its gradient; of a decode step; of the model's own."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from howto.modeling.packed_attention import packed_attention

    for ends in ([0, 37, 90, 101], [7, 37, 90]):
        parts = [numbers(1, heads, ends[-1], 24).requires_grad_() for heads in (9, 3, 3)]
        rows = {"row_ends": torch.tensor(ends, dtype=torch.int32), "longest_row": 60}
        attend: Any = packed_attention
        attended = attend(torch.nn.Identity(), *parts, None, **rows, scaling=0.2)[0]
        yield f"attention of {ends}", attended
        torch.autograd.backward(attended.square().sum())
        for name, tensor in zip(("query", "key", "value"), parts, strict=True):
            yield f"attention of {ends}, gradient of {name}", tensor.grad
    query, key, value = numbers(11, 3, 3, 24), numbers(11, 3, 67, 24), numbers(11, 3, 67, 24)
    visible = (torch.arange(67) <= torch.arange(50, 61)[:, None])[:, None, None]
    yield "attention of a step", scaled_dot_product_attention(query, key, value, attn_mask=visible)
    yield "attention of one row", scaled_dot_product_attention(query, key[:, :, :3], value[:, :, :3], is_causal=True)


def training_and_answers() -> Results:
    """Take two steps with dropout; compute greedy and sampled answers, and log-probabilities of references."""
    from types import SimpleNamespace

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from howto.inference.decoder import Decoder, Request
    from howto.inference.kv_cache import KVCache, use_kv_cache
    from howto.inference.references import mean_log_probabilities
    from howto.modeling.distributed.process_group import ProcessGroup
    from howto.training.forward import Engine
    from howto.training.lora import trained_weights
    from howto.training.trainer import Trainer
    from tests.support.models import SHARED, adapted, example_rows, train_profile

    torch.manual_seed(7)
    sizes = {"hidden_size": 60, "intermediate_size": 92, "num_hidden_layers": 2, "num_attention_heads": 6}
    settings = {"vocab_size": 211, "num_key_value_heads": 2, "initializer_range": 0.2, "tie_word_embeddings": True}
    model = adapted(LlamaForCausalLM(LlamaConfig(**sizes, **settings)))
    rows, profile = example_rows(15)[2:], train_profile(steps=2, batch_size=6, micro_batch_size=3)
    curve = Trainer(Engine(model, rows, SHARED, profile, 2), rows[:-2], rows[-2:], SHARED, profile).run()
    for name, weight in trained_weights(model).items():
        yield f"adapter, {name.split('.layers.')[-1]}", weight
    yield "losses", (curve.train, curve.validation)
    merged = model.merge_and_unload().requires_grad_(False).eval()
    merged.set_attn_implementation("sdpa")
    infer = PARAMS.section(Infer).model_copy(update={"max_new_tokens": 12})
    with torch.inference_mode():
        yield "logits", merged(input_ids=torch.tensor([rows[1].prompt]), use_cache=False).logits
        yield "the KV cache is used", use_kv_cache(merged, rows[0].prompt)
    requests = [Request(row) for row in rows]
    tokenizer = SimpleNamespace(clean_up_tokenization_spaces=False, decode=lambda tokens, **_: str(tokens))
    chat: Any = SimpleNamespace(ends={2}, tokenizer=tokenizer)
    for temperature in (0.0, 1.0):
        decoding = infer.model_copy(update={"temperature": temperature, "top_p": 0.9 if temperature else 1.0})
        cache = KVCache(merged, 5, 64)
        answers = Decoder(merged, cache, chat, decoding).decode(requests)
        yield f"answers at temperature {temperature}", sorted((one.request.row.id, one.text) for one in answers)
        log_probabilities = mean_log_probabilities(cache, rows, 211, ProcessGroup(torch.device("cpu")))
        yield "log-probabilities of references", log_probabilities


def evaluation() -> Results:
    """Compute intervals, a p-value and the nearest training rows."""
    from howto.evaluation.baselines import nearest_rows
    from howto.evaluation.significance import bootstrap_interval, permutation_p_value

    scores = [float(one) for one in numbers(61)]
    yield "interval", bootstrap_interval(scores, confidence=0.95, resamples=199, seed=0)
    yield "p-value", permutation_p_value([one + 0.03 for one in scores], resamples=999, seed=0)
    texts = [" ".join(f"w{round(float(one) * 40)}" for one in numbers(60 + at)[:9]) for at in range(40)]
    yield "nearest rows", nearest_rows(texts[:13], texts[13:])


if __name__ == "__main__":
    main()
