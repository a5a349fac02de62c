"""Which metadata keys of an architecture change what is computed. A reader asks for those it computes with; of the
rest, some have no effect here, some ask for what only other architectures do, and others are unknown.

The names are those of llama.cpp's and gguf-py's key tables, without the architecture in front.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from fabric.fields import Fields, named, short
from fabric.notices import notice
from fabric.weights.gguf import GGUF


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


INERT = _names("""
    context_length decoder_start_token_id expert_chunk_feed_forward_length expert_feed_forward_length expert_gating_func
    expert_group_count expert_group_scale expert_group_used_count expert_shared_feed_forward_length expert_weights_norm
    expert_weights_scale experts_per_group pooling_type tensor_data_layout vocab_size
    attention.group_norm_epsilon attention.layer_norm_epsilon
    rope.scaling.finetuned rope.scaling.original_context_length rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    """)
"""Known, and without effect on a decoder with RMS norms, without experts; those of YaRN are read where RoPE has it."""

OF_WINDOWS = _names("""
    attention.key_length_swa attention.value_length_swa attention.sliding_window_pattern rope.dimension_count_swa
    rope.freq_base_swa
    """)
"""Without effect where no layer has a window."""

FOREIGN = _names("""
    activation_sparsity_scale altup.active_idx altup.num_inputs attn_logit_softcapping block_size convnext.block_count
    convnext.embedding_length conv_group_size decision.block_count decoder_block_count deepstack_mapping dense_2_feat_in
    dense_2_feat_out dense_3_feat_in dense_3_feat_out embedding_length_out embedding_length_per_layer_input
    embedding_scale expert_latent_length features_length final_logit_softcapping full_attention_interval
    hash_layer_count hidden_activation interleave_moe_layer_step leading_dense_block_count logit_scale
    moe_every_n_layers moe_latent_size n_deepstack_layers
    nextn_predict_layers norm_before_fc norm_before_residual num_loops posnet.block_count posnet.embedding_length
    proj_query rescale_every_n_layers residual_scale router_logit_softcapping selector_rank selector_top_k
    skip_loop_final_norm swiglu_clamp_exp swiglu_clamp_shexp swin_norm target_hidden_size target_layers
    time_decay_extra_dim time_mix_extra_dim token_shift_count use_parallel_residual
    attention.causal attention.clamp_kqv attention.compress_ratios attention.compress_rope_freq_base
    attention.decay_lora_rank attention.gate_lora_rank attention.group_norm_groups attention.iclr_lora_rank
    attention.key_length_mla attention.key_length_mla_swa attention.kv_lora_rank attention.kv_lora_rank_swa
    attention.max_alibi_bias attention.output_group_count attention.output_lora_rank attention.output_scale
    attention.q_lora_rank attention.recurrent_layers attention.relative_buckets_count attention.rope_pattern
    attention.scale attention.shared_kv_layers attention.sliding_window attention.temperature_length
    attention.temperature_scale attention.value_expert_count attention.value_expert_used_count
    attention.value_length_mla attention.value_length_mla_swa attention.value_residual_mix_lora_rank
    attention.value_scale rope.dimension_sections rope.scaling.alpha rope.scaling.yarn_attn_factor
    rope.scaling.yarn_ext_factor rope.scaling.yarn_log_multiplier
    """)
"""Known, and computed with by some architectures: refused unless the value asks for nothing."""

FOREIGN_FAMILIES = (
    "activation.", "adapters.", "attention.indexer.", "attn_res.", "classifier.", "hrm.", "hyper_connection.", "kda.",
    "ple.", "shortconv.", "ssm.", "wkv.",
)  # fmt: skip

_ONES = _names("""
    attention.output_scale attention.value_scale embedding_scale logit_scale residual_scale rope.scaling.alpha
    rope.scaling.yarn_attn_factor
    """)
_NOTHING: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_ONES, (0, 1.0)),
    "attention.causal": (True,),
    "rope.scaling.yarn_ext_factor": (0, -1.0),
}
_EXPERTS = ("expert_count", "expert_used_count", "expert_shared_count")


class Keys(Fields):
    """The metadata of a model's own architecture. Use it with `with`: where the block ends, every key that nobody asked
    for is passed over because it has no effect, refused because it has one, or named in one line.
    """

    def __init__(self, gguf: GGUF) -> None:
        start = f"{gguf.architecture}."
        own = {key[len(start) :]: gguf.metadata[key] for key in gguf.metadata if key.startswith(start)}
        super().__init__(own, gguf.name, f"metadata {start}")
        self.architecture = gguf.architecture
        self.windows = False  # whether some layers see recent tokens only
        self.own_yarn = False  # whether YaRN has bounds of its own, and less than its usual effect on the magnitude
        self.layered = False  # whether layers may have sizes of their own, which the architecture reads and checks
        self.longrope = False  # whether RoPE's frequencies may be divided by LongRoPE's factors

    def __enter__(self) -> Keys:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._check_rest()

    def _check_rest(self) -> None:
        unknown = []
        for key in self.rest():
            if key in INERT or (key in OF_WINDOWS and not self.windows):
                continue
            if key in FOREIGN or key in OF_WINDOWS or key.startswith(FOREIGN_FAMILIES):
                self._check_asks_for_nothing(key)
            else:
                unknown.append(f"{self.architecture}.{key}")
        if unknown:
            count = f"{len(unknown)} metadata keys are" if len(unknown) > 1 else "1 metadata key is"
            notice(f"{self.where}: {count} unknown and not used: {named(unknown)}")

    def check_dense(self) -> None:
        """DataError for a mixture of experts, before its tensors are missed."""
        for key in _EXPERTS:
            if (count := self.get(key)) not in (None, 0):
                raise self.error(key, f"is {short(count)}: mixtures of experts are not supported")

    def _check_asks_for_nothing(self, key: str) -> None:
        nothing = _NOTHING.get(key, (0, False, ""))
        self.only(key, *nothing, why=f"is not supported in a {self.architecture} model", each=True)
