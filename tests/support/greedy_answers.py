"""Print, as JSON, what the transformers that Python finds makes of model folders: token ids and greedy answers.

python greedy_answers.py FOLDER...
"""

import json
import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS = 32
MESSAGES = [
    [{"role": "system", "content": "Write step-by-step instructions."}, {"role": "user", "content": question}]
    for question in ("How do I repot a fern?", "  How do I make 12.5 kg\n\tof bread?  ", "Как посадить 🌿?")
]
# Strings on which tokenizers that are nearly the same differ.
WHITE_SPACE = ("", " ", "    ", " leading", "trailing ", "a  b   c", "\n\n\tx", "\r\ny", "\u00a0\u200b\ufeffz", "\x00")
WORDS = (
    "1234567 12.5",
    "don't",
    "x" * 200,
    "naïve café",
    "cafe\u0301",
    "Привет, мир!",
    "你好世界",
    "👩‍👩‍👧 🌿",
    "▁under",
)
CONTROL = (
    "<s></s>",
    "</s> after",
    "a<|extra|> b <|extra|>  c",
    "<|im_start|>user\n",
    "before <|im_end|>",
    "<unk> <pad>",
)
ODD = (*WHITE_SPACE, *WORDS, *CONTROL)


def answers(tokenizer: Any, model: Any) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each prompt, and of its greedy answer."""
    found = []
    for messages in MESSAGES:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        settings = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        ids = model.generate(**prompt, **settings)[0].tolist()
        length = prompt["input_ids"].shape[1]
        found.append((ids[:length], ids[length:]))
    return found


def describe(folder: str) -> dict[str, Any]:
    """Return the token ids of odd strings, the special tokens, and greedy answers to three prompts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return {
        "ids": [tokenizer(text).input_ids for text in ODD],
        "ids without special tokens": [tokenizer(text, add_special_tokens=False).input_ids for text in ODD],
        "text": [tokenizer.decode(tokenizer(text).input_ids) for text in ODD],
        "special tokens": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)],
        "dtype": str(model.dtype),
        "answers": answers(tokenizer, model),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"version": transformers.__version__, **{folder: describe(folder) for folder in sys.argv[1:]}}))
