"""Small tokenizers and chat templates with the quirks of real ones."""

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support import tiny

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Phi-3: the template writes a line end after each marker, which markers that strip to their right swallow.
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Gemma: there is no system role, and texts are trimmed.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# A vision model: a message is a list of parts, and a text by itself is dropped.
PARTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 3: today's date is in the system message.
DATED = (
    "{% set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    "{% macro day(form) %}{{ strftime_now(form) }}{% endmacro %}"
    "{{ '<|im_start|>Today: ' + date + ', ' + day('%Y-%m-%d') + '\n' }}" + CHATML
)
# Mistral 7B: a space before the answer, and the end of sequence right behind it.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
SILENT = CHATML.replace("{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}")


def token(content: str, **flags: Any) -> AddedToken:
    return AddedToken(content, **{"normalized": False, "special": True, **flags})


def byte_level(tokens: list[AddedToken], template: str, **names: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, as of GPT-2, Qwen or Llama 3."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return _trained(bpe, tokens, template, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **names)


def sentencepiece(tokens: list[AddedToken], template: str, **names: str) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer as of Llama 2, Mistral 7B or Phi-3: a space before the first word, bytes for the rest."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _trained(bpe, [token("<unk>"), token("<s>"), *tokens], template, unk_token="<unk>", bos_token="<s>", **names)


def unigram(tokens: list[AddedToken], template: str, **names: str) -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer, which knows its control tokens also as pieces of text, and normalises to NFKC."""
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    return _trained(model, [token("<unk>"), *tokens], template, unk_token="<unk>", **names)


def _trained(bare: Tokenizer, tokens: list[AddedToken], template: str, **names: Any) -> PreTrainedTokenizerFast:
    texts = [text for row in tiny.rows() for text in row.values()]
    settings: dict[str, Any] = {
        "vocab_size": 900,
        "special_tokens": [one for one in tokens if one.special],
        "show_progress": False,
    }
    if "initial_alphabet" in names:
        settings["initial_alphabet"] = names.pop("initial_alphabet")
    if isinstance(bare.model, models.Unigram):
        trainer: Any = trainers.UnigramTrainer(**{**settings, "vocab_size": 300}, unk_token="<unk>")
    else:
        trainer = trainers.BpeTrainer(**settings)
    bare.train_from_iterator([*texts, tiny.INSTRUCTION, "user\nassistant\nsystem\nmodel\n" * 9], trainer)
    if isinstance(bare.normalizer, normalizers.Sequence) and isinstance(bare.model, models.BPE):  # SentencePiece's
        learned = json.loads(bare.to_str())["model"]
        vocabulary = {piece: id for id, piece in enumerate([*learned["vocab"], *(f"<0x{n:02X}>" for n in range(256))])}
        merges = [tuple(pair) for pair in learned["merges"]]
        bare.model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    bare.add_tokens([one for one in tokens if not one.special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = template
    return tokenizer
