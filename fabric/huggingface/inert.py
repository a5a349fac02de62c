"""Settings of config.json without effect on what is computed here, and the naming of those that nobody knows."""

from __future__ import annotations

from fabric.fields import Fields, named
from fabric.notices import notice


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Settings of every class that change nothing that is computed here: housekeeping, training, generation, other tasks.
INERT = _names(
    """
    block_dim block_mlp_init_scale block_norm_eps block_out_init_scale block_use_swiglu block_use_xavier_init conv_dim
    conv_dim_out conv_use_xavier_init num_heads use_pos_enc
    _attn_implementation_autoset _name_or_path _sliding_window_pattern add_cross_attention architectures
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length max_window_layers min_length
    model_max_length model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type pruned_heads remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    router_aux_loss_coef output_router_logits
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class
    top_k top_p torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    transformers_weights use_cache
    """
)
OF_IMAGES = _names(
    """
    boi_token_index eoi_token_index image_token_index mm_tokens_per_image text_config vision_config
    boi_token_id eoi_token_id image_token_id multimodal_projector_bias projector_hidden_act spatial_merge_size
    vision_feature_layer
    """
)


def name_unknown(c: Fields, known: frozenset[str]) -> None:
    """Settings that transformers' class does not have either; those that ask for nothing are passed over."""
    unknown = [key for key in c.rest() if key not in INERT | known and c.values[key] not in (False, "", [], {})]
    if unknown:
        count = "1 setting is" if len(unknown) == 1 else f"{len(unknown)} settings are"
        notice(f"{c.where}: {count} unknown and not used: {c.prefix}{named(unknown)}")
