"""Tiny models with random weights of many architectures, as folders that the pipeline can fetch.

All have one tokenizer of ASCII characters with a ChatML-like template. What makes an architecture special (windows,
caps, learned positions, experts, biases) is in its settings, small enough that rows of a few dozen tokens reach it.
"""

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from howto.core.schema import Row, input_of, write_rows
from tests.support.in_process import edit_params

NEW_TOKENS = 12  # of an answer
WINDOW = 24  # tokens that a windowed layer sees, fewer than any row has
POSITIONS = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {
    "text_config": {**SIZES, "vocab_size": 99, "query_pre_attn_scalar": 16, "sliding_window": WINDOW},
    "vision_config": {**EYES, "image_size": 28, "patch_size": 14},
    **{
        "tie_word_embeddings": False,
        "mm_tokens_per_image": 4,
        "image_token_index": 90,
        "boi_token_index": 91,
        "eoi_token_index": 92,
    },
}
GRANITE = {"embedding_multiplier": 6.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 4.0}

# By name: transformers' model type, and settings beside SIZES.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": 4096}),
    "mistral_window": ("mistral", {"sliding_window": WINDOW}),
    "qwen2": ("qwen2", {}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {**ALTERNATING, "query_pre_attn_scalar": 16, "final_logit_softcapping": 4.0}),
    "gemma3": ("gemma3_text", {**ALTERNATING, "query_pre_attn_scalar": 16}),
    "gemma3_vision": ("gemma3", VISION),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "gpt2": ("gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.0}),
    "bloom": ("bloom", {"max_position_embeddings": None, "tie_word_embeddings": False}),
    "mpt": ("mpt", {"max_position_embeddings": None, "max_seq_len": POSITIONS}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.25, "use_qkv_bias": True}),
    "granite": ("granite", GRANITE),
    "falcon": ("falcon", {"head_dim": None, "multi_query": True}),
    "falcon_alibi": ("falcon", {"head_dim": None, "alibi": True}),
    "mixtral": ("mixtral", {"num_local_experts": 4, **EXPERTS}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, **EXPERTS}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 4, **EXPERTS, "shared_expert_intermediate_size": 32}),
    "olmo2": ("olmo2", {}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "gpt_oss": ("gpt_oss", {**ALTERNATING, "num_local_experts": 4, **EXPERTS}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}),
    "mamba": ("mamba", {"max_position_embeddings": None}),  # recurrent
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of printable ASCII characters and the line end, with the control tokens of ChatML.

    Each token is a visible character, so that other tokens are another text.
    """
    printable = [chr(byte) for byte in range(33, 127)]
    bpe = Tokenizer(models.BPE({letter: number for number, letter in enumerate([*printable, "\u0120", "\u010a"])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>", "<pad>")])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<pad>")
    made.chat_template = CHAT_TEMPLATE
    return made


def architecture(name: str, **more: Any) -> PreTrainedModel:
    """Return the model of an architecture, in evaluation mode; `more` changes its configuration."""
    kind, settings = ARCHITECTURES[name]
    tokens = tokenizer()
    ids = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, "bos_token_id": None}
    values = {"vocab_size": len(tokens), **SIZES, **settings, **more}
    config = AutoConfig.for_model(kind, **ids, **{key: value for key, value in values.items() if value is not None})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # far from the small numbers of an untrained model, which hide mistakes
        for weight in model.parameters():
            if weight is model.get_input_embeddings().weight:
                weight.normal_(std=0.1)  # small beside what layers add, so that no model repeats its last token
            elif weight.ndim > 1:
                weight.normal_(std=0.4)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def write_architecture(folder: Path, name: str, **more: Any) -> None:
    """Write the folder of a model, as `architecture` makes it, with its tokenizer."""
    architecture(name, **more).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def rows(count: int, name: str) -> list[Row]:
    """Return rows of growing lengths; every fourth has a context."""
    texts = [(f"How do I {name} {'a big ' * (n % 3)}boat?", "Note: row north." * (n % 4 == 3)) for n in range(count)]
    return [
        Row(
            id=f"{name}{number}",
            category="boats",
            instruction="Write steps.",
            input=input_of(intent, context),
            context=context,
            output="1. Sit.\n2. Row." + " Rest." * (number % 3),
        )
        for number, (intent, context) in enumerate(texts)
    ]


def make_run(folder: Path, params: str, name: str, **settings: Any) -> None:
    """Write what the stages from `fetch_model` on read, for the model of an architecture."""
    write_architecture(folder / "model", name, **settings)
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    for old, new in {
        f"source: {re.search(r'source: (/.*/model)', params)[1]}\n": "source: ./model\n",  # type: ignore[index]
        "epochs: 1 ": "steps: 2 ",
        "learning_rate: 1.0e-2 ": "learning_rate: 3.0e-2 ",
        "micro_batch_size: 8  ": "micro_batch_size: 4  ",
        "max_new_tokens: 48  ": f"max_new_tokens: {NEW_TOKENS}  ",
        "dropout: 0.05 ": "dropout: 0.0 ",
    }.items():
        edit_params(folder, old, new)
    if name == "mamba":
        edit_params(folder, "exclude_modules: null ", "exclude_modules: [out_proj] ")
    for split, count in {"train": 6, "validation": 2, "test": 6}.items():
        write_rows(folder / f"data/prepared/{split}.jsonl", rows(count, split))
