"""Print the hash of what each operation of the pipeline computes, two training steps and a few answers, as JSON.

test_portable.py runs it on this CPU and on emulated ones. The sizes are odd, so that each kernel's ends are used.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from howto.core.config import Params
from howto.inference.config import Infer
from howto.modeling.config import Machine, ProfileMachine
from howto.modeling.torch_setup import set_up_torch
from howto.params import read_params
from howto.training.config import ProfileTrain, Train

VOCABULARY = 211
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Print the hashes, and on standard error how long each part takes."""
    params = read_params(ROOT / "params.yaml")
    set_up_torch(params.section(Machine), ProfileMachine(device="cpu", precision="float32"))
    found = {}
    for part in (products, functions, attention, training_and_answers, evaluation):
        start = time.monotonic()
        for name, value in part(params):
            found[name] = hashlib.sha256(as_bytes(value)).hexdigest()[:16]
        print(f"{part.__name__}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    print(json.dumps(found))


def as_bytes(value: Any) -> bytes:
    """Return the bytes of a tensor, or the digits of all else."""
    if hasattr(value, "detach"):
        return bytes(value.detach().contiguous().numpy().tobytes())
    return repr(value).encode()


def numbers(*shape: int) -> Any:
    """Return a tensor of numbers in -0.5..0.5, made by integers and one exact product."""
    import numpy as np
    import torch

    count = int(np.prod(shape))
    raw = np.random.SFC64(count).random_raw(count) >> np.uint64(40)
    return torch.from_numpy((raw.astype(np.float32) * 2.0**-24 - 0.5).reshape(shape))


def products(_: Params) -> Iterator[tuple[str, Any]]:
    """The products of a LoRA layer and of the output head, forward and backward, small and large."""
    import torch

    sizes = ((301, 145, 417), (37, 1537, 192), (1, 145, 417), (120, 96, 1031), (5, 1, 3))
    for tokens, size_in, size_out in sizes:
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


def functions(_: Params) -> Iterator[tuple[str, Any]]:
    """Functions of single numbers, and sums."""
    import numpy as np
    import torch
    from torch.nn import functional

    x = numbers(97, 1031)
    wanted: dict[str, Callable[[], Any]] = {
        "exp": x.exp,
        "log": (x + 0.75).log,
        "silu": lambda: functional.silu(x),
        "sigmoid": x.sigmoid,
        "softmax": lambda: torch.softmax(x * 20, dim=1),
        "log softmax": lambda: torch.log_softmax(x * 20, dim=1),
        "softmax, float64": lambda: torch.softmax(x * 20, dim=1, dtype=torch.float64).cumsum(dim=1),
        "logsumexp": lambda: (x * 20).logsumexp(dim=1),
        "rms norm": lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        "sum": x.sum,
        "mean of columns": lambda: x.mean(dim=0),
        "norm": lambda: torch.linalg.vector_norm(x),
        "sin": (x * 100).sin,
        "cos": (x * 100).cos,
        "normal": lambda: torch.randn(51, 33, generator=torch.Generator().manual_seed(0)),
        "uniform": lambda: torch.rand(51, 33, generator=torch.Generator().manual_seed(0)),
        "topk": lambda: torch.cat([part.double() for part in x.topk(2)]),
    }
    for name, compute in wanted.items():
        yield name, compute()
    array = x.numpy().astype(np.float64)
    for kind in (np.float32, np.float64):
        some = array.astype(kind)
        for name in ("exp", "log", "sqrt", "sin"):
            yield f"NumPy's {name}, {kind.__name__}", torch.from_numpy(getattr(np, name)(some + kind(0.6)))
        yield f"NumPy's sums, {kind.__name__}", torch.from_numpy(np.array([some.sum(), some.mean(), some.std()]))
    yield "NumPy's product, float64", torch.from_numpy(array @ array[:5].T)
    yield "NumPy's product with a vector", torch.from_numpy(array @ array[0])
    yield "NumPy's percentiles", torch.from_numpy(np.percentile(array, [2.5, 50, 97.5], axis=1))
    yield "NumPy's normal numbers", torch.from_numpy(np.random.default_rng(0).normal(size=1000))


def attention(_: Params) -> Iterator[tuple[str, Any]]:
    """Of rows in a pack, with its gradient; of a decode step; of the model's own."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from howto.modeling.packed_attention import packed_attention

    for ends, longest in (([0, 37, 90, 101], 53), ([7, 37, 90], 60)):
        length = ends[-1]
        query, key, value = numbers(1, 9, length, 24), numbers(1, 3, length, 24), numbers(1, 3, length, 24)
        for tensor in (query, key, value):
            tensor.requires_grad_()
        rows = torch.tensor(ends, dtype=torch.int32)
        attended = packed_attention(
            torch.nn.Identity(), query, key, value, None, row_ends=rows, longest_row=longest, scaling=0.2
        )[0]
        yield f"attention of {ends}", attended
        torch.autograd.backward(attended.square().sum())
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            yield f"attention of {ends}, gradient of {name}", tensor.grad
    query, key, value = numbers(11, 3, 3, 24), numbers(11, 3, 67, 24), numbers(11, 3, 67, 24)
    visible = (torch.arange(67) <= torch.arange(50, 61)[:, None])[:, None, None]
    yield "attention of a step", scaled_dot_product_attention(query, key, value, attn_mask=visible)
    yield "attention of one row", scaled_dot_product_attention(query, key[:, :, :3], value[:, :, :3], is_causal=True)


class Tokens:
    """A tokenizer as far as a decoder needs one."""

    eos_token_id = 2

    @staticmethod
    def decode(tokens: list[int], **_: Any) -> str:
        """Return the ids themselves."""
        return " ".join(map(str, tokens))


def training_and_answers(params: Params) -> Iterator[tuple[str, Any]]:
    """Two steps with dropout, greedy and sampled answers of what they gave, log-probabilities of references."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from howto.inference.decoder import Decoder, Request
    from howto.inference.kv_cache import KVCache, use_kv_cache
    from howto.inference.references import mean_log_probabilities
    from howto.modeling.collate import Example
    from howto.modeling.distributed.process_group import Group
    from howto.training.forward import Engine
    from howto.training.lora import add_adapter, trained_weights
    from howto.training.trainer import Trainer

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=60,
        intermediate_size=92,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    base = LlamaForCausalLM(config)
    ids = [int(one) for one in (numbers(1000) + 0.5) * (VOCABULARY - 4) + 3]
    places = [(at, at % 13 + 9, at % 29 + 5) for at in range(0, 900, 70)]
    rows = [Example(str(at), ids[at : at + one], [*ids[at + one : at + one + two], 2]) for at, one, two in places]
    shared = params.section(Train)
    profile = params.section(ProfileTrain).model_copy(
        update={"steps": 2, "epochs": None, "batch_size": 7, "micro_batch_size": 3}
    )
    model = add_adapter(base, shared.lora, Path("base"))
    curve = Trainer(Engine(model, rows, shared, profile, 2), rows[:-2], rows[-2:], shared, profile).run()
    for name, weight in trained_weights(model).items():
        yield f"adapter, {name.split('.layers.')[-1]}", weight
    yield "losses", (curve.train, curve.validation)
    merged = model.merge_and_unload().requires_grad_(False).eval()
    merged.set_attn_implementation("sdpa")
    infer = params.section(Infer).model_copy(update={"max_new_tokens": 12})
    with torch.inference_mode():
        yield "logits", merged(input_ids=torch.tensor([rows[1].prompt]), use_cache=False).logits
        yield "the KV cache is used", use_kv_cache(merged, rows[0].prompt)
    requests = [Request(row) for row in rows]
    for temperature in (0.0, 1.0):
        decoding = infer.model_copy(update={"temperature": temperature, "top_p": 0.9 if temperature else 1.0})
        cache = KVCache(merged, 5, 64)
        answers = Decoder(merged, cache, Tokens(), decoding).decode(requests)
        yield f"answers at temperature {temperature}", sorted((one.request.row.id, one.text) for one in answers)
        yield "log-probabilities of references", mean_log_probabilities(cache, rows, VOCABULARY, Group())


def evaluation(_: Params) -> Iterator[tuple[str, Any]]:
    """Intervals, p-value and the nearest training rows."""
    from howto.evaluation.baselines import nearest_rows
    from howto.evaluation.significance import bootstrap_interval, permutation_p_value

    scores = [float(one) for one in numbers(61)]
    yield "interval", bootstrap_interval(scores, confidence=0.95, resamples=999, seed=0)
    yield "p-value", permutation_p_value([one + 0.03 for one in scores], resamples=999, seed=0)
    texts = [" ".join(f"w{round(float(one) * 40)}" for one in numbers(60 + at)[:9]) for at in range(40)]
    yield "nearest rows", nearest_rows(texts[:13], texts[13:])


if __name__ == "__main__":
    main()
