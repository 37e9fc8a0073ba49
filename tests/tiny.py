"""A tiny chat model and a few rows of this project's own data: what the tests run the stages on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parent.parent
ROWS = sorted((ROOT / "data/howto").glob("*.jsonl"))
FROM_EACH = 10  # rows of each domain
VOCABULARY = 600
POSITIONS = 1024
STEPS, BATCH, LENGTH = 300, 8, 128

# The format of TinyLlama-1.1B-Chat: the three markers are plain text, `</s>` is a control token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MARKERS = "<|system|>\n<|user|>\n<|assistant|>\n"


def write_rows(path: Path) -> None:
    """Write the first rows of each domain as JSON lines."""
    lines = [line for file in ROWS for line in file.read_text(encoding="utf-8").splitlines()[:FROM_EACH]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_model(folder: Path) -> None:
    """Write a Llama of one layer, 32 wide, that has read the rows for a second, with a byte-level BPE tokenizer."""
    texts = [text for file in ROWS for line in file.read_text(encoding="utf-8").splitlines() for text in _texts(line)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *[MARKERS] * 100], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
            initializer_range=0.06,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    ids = [token for ids in tokenizer(texts, add_special_tokens=False).input_ids for token in ids]
    _train(model, torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train(model: LlamaForCausalLM, sequences: torch.Tensor) -> None:
    """Predict the next token of `sequences` [n, LENGTH], so that the model writes words and not one token for ever."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(STEPS):
        batch = sequences[torch.arange(step * BATCH, (step + 1) * BATCH) % len(sequences)]
        loss = model(input_ids=batch, labels=batch).loss
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def _texts(line: str) -> list[str]:
    return [text for text in json.loads(line).values() if text]
