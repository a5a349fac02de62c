"""Small checkpoints as transformers saves them, with a tokenizer as `tokenizers` trains it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = [
    "The harbour master counts 12345 boats; they're late, and the fog isn't lifting.",
    "Wir zählen 7 Boote.\n\nЛодка №3 стоит у причала.  日本語のテキスト, emoji 🚤🚤!",
    "def f(x):\n    return x ** 2  # twice\n",
] * 8  # fmt: skip
TEXTS = [*CORPUS[:3], "", " leading", "trailing  ", "it's 2026\r\n\r\nnow", "<|im_start|>user", "naïve café"]
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
LLAMA3_SCALING = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.5, 1.9, 2.4], "long_factor": [1.0, 1.6, 2.5, 6.0, 14.0, 32.0],
}  # fmt: skip
MINISTRAL = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0,
    "beta_slow": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3,
}  # fmt: skip
VOCAB = 400
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama3_scaling": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_SCALING}),
    "llama_with_biases": ("Llama", {"attention_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen3moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "granite": (
        "Granite",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 8.0},
    ),
    "olmo2": ("Olmo2", {"tie_word_embeddings": False}),
    "exaone4": (
        "Exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "rope_parameters": LLAMA3_SCALING},
    ),
    "gemma2": (
        "Gemma2",
        {
            "num_hidden_layers": 3,
            "sliding_window": 16,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma4": (
        "Gemma4",
        {
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "sliding_window": 16,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": VOCAB,
            "final_logit_softcapping": 4.0,
        },
    ),
    "lfm2": ("Lfm2", {"num_hidden_layers": 3, "full_attn_idxs": [1], "intermediate_size": 300}),
    "bitnet": ("BitNet", {"tie_word_embeddings": True}),
    "mistral3": ("Ministral3", {"head_dim": 32, "rope_parameters": MINISTRAL}),
    "phi3": (
        "Phi3",
        {
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 512,
            "rope_parameters": LONGROPE,
        },
    ),
    "qwen35": (
        "Qwen3_5",
        {
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "tie_word_embeddings": True,
        },
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "gemma3": ("Gemma3", {"num_hidden_layers": 7, "sliding_window": 16, "query_pre_attn_scalar": 16}),
}


def tokenizer(folder: Path, kind: str = "llama3") -> Any:
    """Trains a byte-level BPE that cuts words as `kind` does, saves it, and returns it as transformers has it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from fabric.huggingface.bpe import GPT4O, LLAMA3, QWEN2, QWEN35, TEKKEN

    level = pre_tokenizers.ByteLevel
    split = {"llama3": LLAMA3, "qwen2": QWEN2, "qwen35": QWEN35, "tekken": TEKKEN, "gpt4o": GPT4O}
    made = Tokenizer(models.BPE())
    if kind in split:
        steps = [pre_tokenizers.Split(Regex(split[kind]), "isolated"), level(add_prefix_space=False, use_regex=False)]
        made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif kind == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level(add_prefix_space=False)])
    else:
        made.pre_tokenizer = level(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 10, special_tokens=SPECIALS, initial_alphabet=level.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)
    return fast


def spm_json(folder: Path, prefix: bool, lines: bool = False) -> Any:
    """A SentencePiece vocabulary as a tokenizer.json: what Gemma and Llama 2 come with. `lines`: no piece spans two."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    space = normalizers.Replace(" ", "▁")
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    cuts = [pre_tokenizers.Split("▁", "merged_with_next")]  # while training: no piece spans two words
    if lines:
        cuts.append(pre_tokenizers.Split(Regex("\n+"), "isolated"))
    made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    trainer = trainers.BpeTrainer(vocab_size=130, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    told = json.loads(made.to_str())
    learned = sorted(told["model"]["vocab"], key=told["model"]["vocab"].get)
    tokens = [*SPECIALS[:3], *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    told["model"] |= {
        "vocab": {token: i for i, token in enumerate(tokens)}, "byte_fallback": True, "unk_token": "<unk>",
        "fuse_unk": True,
    }  # fmt: skip
    told["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(told))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS[:3]])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return fast


def spm_model(folder: Path, prefix: bool) -> Any:
    """A tokenizer.model as SentencePiece trains it, and nothing beside it."""
    import sentencepiece

    for old in (*folder.glob("tokenizer*"), *folder.glob("chat_template*")):
        old.unlink()
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(line for text in CORPUS for line in text.splitlines()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=390, model_type="bpe",
        byte_fallback=True, add_dummy_prefix=prefix, remove_extra_whitespaces=False, hard_vocab_limit=False,
        normalization_rule_name="identity", user_defined_symbols=["<|im_start|>"], minloglevel=2,
    )  # fmt: skip
    corpus.unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def checkpoint(folder: Path, name: str, seed: int = 0, dtype: str = "float32", **settings: Any) -> Any:
    """Saves a random model of a kind with its tokenizer, and returns it in float32. `settings` are the kind's own but
    for these."""
    import torch
    import transformers

    cls, extra = KINDS[name]
    torch.manual_seed(seed)
    text = cls in ("Gemma3", "Gemma4", "Qwen3_5")
    config = getattr(transformers, f"{cls}TextConfig" if text else f"{cls}Config")(**{**COMMON, **extra, **settings})
    model = getattr(transformers, f"{cls}ForCausalLM")(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():  # also norms and biases, which begin as ones and zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
            if cls == "Gemma4" and "q_norm" in path:  # which stands for the factor of scores
                parameter.mul_(0.25)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer(folder)
    return load(folder)


def load(folder: Path) -> Any:
    """A saved model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any, tokens: list[int]) -> Any:
    """(len(tokens), vocabulary), float32."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def edit(path: Path, **values: Any) -> None:
    """Changes keys of a JSON file."""
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, **values}))
