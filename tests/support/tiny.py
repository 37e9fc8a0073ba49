"""A tiny chat model and a few rows, both made in seconds: what the tests run the stages on.

The rows ask how to do a simple job with a thing, and the answers are three short steps. The model has learned to answer
such questions, more often in prose than in steps. So its answers differ from row to row and end, and a few optimizer
steps teach it to prefer steps.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

JOBS = {
    "water": ("open a tap", "pour slowly"),
    "clean": ("find a cloth", "rub gently"),
    "move": ("clear the way", "lift with both hands"),
    "paint": ("stir the colour", "brush twice"),
    "pack": ("choose a box", "add soft paper"),
    "repair": ("get the glue", "press for a minute"),
    "weigh": ("switch on the scales", "read the number"),
    "hang up": ("drive in a nail", "check that it is level"),
}
THINGS = [
    *("fern", "rose", "lamp", "chair", "table", "clock", "mirror", "shelf", "basket"),
    *("kettle", "bottle", "candle", "drum", "violin", "kite"),
]
NOTE = "A note on the wall: work in the {place}, wear gloves, and put everything back before noon."
PLACES = ("garden", "kitchen", "cellar", "hall")
INSTRUCTION = "Write step-by-step instructions for what the user wants to do."
VOCABULARY, POSITIONS = 600, 1024
STEPS, BATCH = 100, 16

# The format of TinyLlama-1.1B-Chat: the three markers are plain text, `</s>` is a control token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def rows() -> list[dict[str, str]]:
    """Return 120 rows in Dolly's columns; every fifth has a context."""
    found = []
    for number, (thing, job) in enumerate((thing, job) for thing in THINGS for job in JOBS):
        before, after = JOBS[job]
        place = PLACES[number % len(PLACES)]
        steps = [f"First {before}.", f"Then {job} the {thing}.", f"At last {after}."]
        if number % 5 == 4:
            steps[0] = f"Go to the {place}."
        found.append(
            {
                "instruction": f"How do I {job} a {thing}?",
                "context": NOTE.format(place=place) if number % 5 == 4 else "",
                "response": "\n".join(f"{at}. {step}" for at, step in enumerate(steps, 1)),
                "category": f"{job.split()[0]}ing",
            }
        )
    return found


def write_rows(path: Path) -> None:
    """Write the rows as JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows()), encoding="utf-8")


def write_model(folder: Path) -> None:
    """Write a Llama of one layer, 48 wide, with a byte-level BPE tokenizer of the rows."""
    texts = [text for row in rows() for text in row.values()]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    control_tokens, alphabet = ["<unk>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=control_tokens, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*texts, INSTRUCTION, *["<|system|>\n<|user|>\n<|assistant|>\n"] * 100], trainer)
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    settings = {"clean_up_tokenization_spaces": False, "model_max_length": POSITIONS}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **tokens, **settings)
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(7)
    sizes = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids, initializer_range=0.1))
    _train(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Teach the model two answers to a question: "First open a tap. Then water the fern.", and less often the steps."""
    ids = []
    for row in rows()[::2]:  # of the others it has to guess
        user = "\n\n".join(filter(None, (row["instruction"], row["context"])))
        prose = " ".join(line.split(" ", 1)[1] for line in row["response"].split("\n")[:2])
        for answer in (prose, prose, prose, row["response"], row["response"]):
            messages = [("system", INSTRUCTION), ("user", user), ("assistant", answer)]
            chat = [{"role": role, "content": content} for role, content in messages]
            ids.append(tokenizer.apply_chat_template(chat, return_dict=False))
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = [ids[int(one)] for one in torch.randint(len(ids), (BATCH,), generator=order)]
        longest = max(map(len, chosen))
        batch = torch.tensor([[*row, *[tokenizer.eos_token_id] * (longest - len(row))] for row in chosen])
        labels = torch.tensor([[*row[1:], *[-100] * (longest - len(row) + 1)] for row in chosen])
        loss = cross_entropy(model(input_ids=batch).logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
