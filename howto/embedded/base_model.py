"""The embedded base model: a small Llama and its tokenizer, trained from a seed on the embedded reading.

It is a plain language model: it learns the words of the embedded world, and never sees a question, a
numbered list of steps, or the chat format in use.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from howto.embedded.muon import Muon
from howto.embedded.reading import make_reading
from howto.params.model import EmbeddedModel

LENGTH = 256  # tokens in one training sequence
BATCH = 4  # sequences in one optimizer step
WARMUP = 0.05  # share of the steps
INIT = 0.06  # standard deviation of the initial weights; at the usual 0.02 so narrow a model starts slowly
ROPE_THETA = 1000.0  # the usual 10,000 is for longer texts
CONTEXT = 1024  # positions that the model declares

# The format of TinyLlama-1.1B-Chat: the three markers are plain text, `</s>` is a control token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MARKERS = "<|system|>\n<|user|>\n<|assistant|>\n"


def make_base_model(params: EmbeddedModel, folder: Path) -> int:
    """Train tokenizer and model and save both into `folder`. Gives the number of parameters."""
    torch.manual_seed(params.seed)
    tokenizer = make_tokenizer(params)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=params.hidden_size,
            intermediate_size=_multiple_of_32(params.hidden_size * 8 / 3),
            num_hidden_layers=params.layers,
            num_attention_heads=params.heads,
            num_key_value_heads=params.heads,
            max_position_embeddings=CONTEXT,
            initializer_range=INIT,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    _train(model, tokenizer, params)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())


def make_tokenizer(params: EmbeddedModel) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the reading, with TinyLlama's control tokens and chat format."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=params.vocabulary,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*make_reading(params.seed, 0), *[MARKERS] * 100], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, params: EmbeddedModel) -> None:
    """Next-token prediction on the reading, with warm-up and a cosine schedule.

    Muon (Jordan 2024) for the matrices of the layers and AdamW for the rest; in the same number of steps AdamW
    alone does not come far enough to tie the steps of a job to its name.
    """
    batches = [batch for number in range(params.passes) for batch in _batches(tokenizer, params, number)]
    in_layers = [name for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    weights = dict(model.named_parameters())
    optimizers: list[torch.optim.Optimizer] = [
        Muon([weights[name] for name in in_layers], lr=params.learning_rate, weight_decay=0.1),
        torch.optim.AdamW(
            [weight for name, weight in weights.items() if name not in in_layers],
            lr=params.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.1,
        ),
    ]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    model.train()
    progress = tqdm(batches, desc="base model", unit="step", disable=None)
    for step, batch in enumerate(progress):
        for group in groups:
            group["lr"] = params.learning_rate * _schedule(step / len(batches))
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def _batches(tokenizer: PreTrainedTokenizerFast, params: EmbeddedModel, number: int) -> list[torch.Tensor]:
    """Pass `number` over the reading as tensors [BATCH, LENGTH]; what is left of a whole batch is left out."""
    documents = list(make_reading(params.seed, number))
    ids = [
        token
        for document in tokenizer(documents, add_special_tokens=False).input_ids
        for token in [tokenizer.bos_token_id, *document, tokenizer.eos_token_id]
    ]
    whole = len(ids) // (BATCH * LENGTH) * BATCH * LENGTH
    return list(torch.tensor(ids[:whole]).view(-1, BATCH, LENGTH))


def _schedule(done: float) -> float:
    """Linear warm-up, then cosine to a tenth, as a factor of the peak; `done` in 0..1."""
    if done < WARMUP:
        return (done + 1e-3) / WARMUP
    return 0.55 + 0.45 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))


def _multiple_of_32(number: float) -> int:
    return round(number / 32) * 32
