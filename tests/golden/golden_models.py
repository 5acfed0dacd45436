"""The tiny random models that the golden fixtures are made of, one table entry per fixture.

Sizes are as small as they can be while every part of an architecture still does something: windows
shorter than a sequence, more groups than may be chosen, scaled rotary frequencies, clamps that bite.
"""

import dataclasses
import math

import torch
import transformers

COMMON = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
)

ATTENTION = r"layers\.0\.self_attn\.[qkvo]_proj\.weight"
DENSE_GRADS = (
    r"embed_tokens\.weight|lm_head\.weight|model\.norm\.weight|layers\.0\.input_layernorm\.weight|"
    + ATTENTION
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One fixture: the configuration class and values, and which gradients are kept."""

    config_class: str
    values: dict
    grads: str  # regular expression over parameter names, `re.search`
    router: str = ""  # regular expression of the modules that choose experts
    seed: int = 1


def _spec(config_class, grads="", router="", seed=1, **values):
    merged = {**COMMON, **values}
    expression = DENSE_GRADS + ("|" + grads if grads else "")
    return Spec(config_class, merged, expression, router, seed)


def specs():
    """All fixtures by folder name."""
    return {
        "llama": _spec("LlamaConfig", r"layers\.1\.mlp\.\w+\.weight", num_key_value_heads=4),
        # original_max_position_embeddings puts one frequency into each of llama3's three bands.
        "llama_rope_llama3": _spec(
            "LlamaConfig",
            r"layers\.1\.mlp\.down_proj\.weight",
            tie_word_embeddings=True,
            head_dim=16,
            rope_theta=500000.0,
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=48,
            ),
        ),
        "mistral": _spec(
            "MistralConfig", r"layers\.1\.mlp\.up_proj\.weight", sliding_window=7, head_dim=8
        ),
        "qwen2": _spec("Qwen2Config", r"layers\.[01]\.self_attn\.[qkv]_proj\.bias"),
        "qwen3": _spec("Qwen3Config", r"layers\.0\.self_attn\.[qk]_norm\.weight", head_dim=16),
        "mixtral": _spec(
            "MixtralConfig",
            r"layers\.1\.block_sparse_moe\.(gate|experts\.[03]\.w[123])\.weight",
            r"block_sparse_moe\.gate$",
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=None,
        ),
        "qwen2_moe": _qwen2_moe(norm_topk_prob=False, mlp_only_layers=[]),
        "qwen2_moe_norm_topk": _qwen2_moe(norm_topk_prob=True, mlp_only_layers=[0]),
        "qwen3_moe": _spec(
            "Qwen3MoeConfig",
            r"layers\.0\.self_attn\.[qk]_norm\.weight|"
            r"layers\.1\.mlp\.(gate|experts\.[05]\.\w+)\.weight",
            r"mlp\.gate$",
            head_dim=16,
            num_experts=8,
            num_experts_per_tok=3,
            moe_intermediate_size=16,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
        ),
        "olmoe": _spec(
            "OlmoeConfig",
            r"layers\.0\.self_attn\.[qk]_norm\.weight|"
            r"layers\.1\.mlp\.(gate|experts\.[05]\.down_proj)\.weight",
            r"mlp\.gate$",
            intermediate_size=16,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            clip_qkv=1.2,
        ),
        # transformers 4.57 leaves out the softmax scale that the released V2 code derives from
        # mscale_all_dim, so V2 has plain rotary frequencies here and V3 carries yarn.
        "deepseek_v2": _deepseek(
            "DeepseekV2Config",
            n_group=4,
            topk_group=2,
            topk_method="group_limited_greedy",
            norm_topk_prob=False,
            routed_scaling_factor=4.0,
        ),
        "deepseek_v3": _deepseek(
            "DeepseekV3Config",
            n_group=2,
            topk_group=1,
            scoring_func="sigmoid",
            topk_method="noaux_tc",
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            rope_scaling=dict(
                type="yarn",
                factor=40.0,
                beta_fast=32,
                beta_slow=1,
                mscale=1.0,
                mscale_all_dim=0.8,
                original_max_position_embeddings=64,
            ),
        ),
        "gpt_oss": _spec(
            "GptOssConfig",
            r"layers\.0\.self_attn\.(sinks|[qkvo]_proj\.bias)|"
            r"layers\.1\.mlp\.(router\.(weight|bias)|experts\.(gate_up|down)_proj(_bias)?)",
            r"mlp\.router$",
            intermediate_size=16,
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=7,
            layer_types=["sliding_attention", "full_attention"],
            rope_theta=150000.0,
            max_position_embeddings=131072,
            rope_scaling=dict(
                rope_type="yarn",
                factor=32.0,
                beta_fast=32.0,
                beta_slow=1.0,
                truncate=False,
                original_max_position_embeddings=4096,
            ),
        ),
    }


def _qwen2_moe(**values):
    return _spec(
        "Qwen2MoeConfig",
        r"layers\.0\.self_attn\.[qkv]_proj\.bias|layers\.1\.mlp\.(gate|experts\.[05]\.down_proj|"
        r"shared_expert\.up_proj|shared_expert_gate)\.weight",
        r"mlp\.gate$",
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        decoder_sparse_step=1,
        **values,
    )


def _deepseek(config_class, **values):
    return _spec(
        config_class,
        r"layers\.1\.self_attn\.(q_a_proj|q_a_layernorm|q_b_proj|kv_a_proj_with_mqa|kv_a_layernorm|"
        r"kv_b_proj)\.weight|layers\.0\.mlp\.down_proj\.weight|"
        r"layers\.2\.mlp\.(gate|experts\.[05]\.down_proj|shared_experts\.down_proj)\.weight",
        r"mlp\.gate$",
        num_hidden_layers=3,
        num_key_value_heads=4,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        vocab_size=80,
        intermediate_size=32,
        moe_intermediate_size=12,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=12,
        rms_norm_eps=1e-6,
        **values,
    )


def build(spec):
    """The model of `spec` with eager attention, f32, every parameter randomised from its seed."""
    config = getattr(transformers, spec.config_class)(**spec.values)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    randomise(model, spec.seed)
    return model


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            normal(tensor, *_std_and_mean(name, tensor, model.config))
        for name, tensor in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                # Not negative: the released code masks unchosen groups with -inf, transformers
                # with 0, which are the same only while every biased score is above 0.
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.3)
    model.tie_weights()


def _std_and_mean(name, tensor, config):
    """Scales that keep activations near one and put logits far from uniform."""
    if "norm" in name.rsplit(".", 2)[-2]:
        return 0.3, 1.0
    if name.endswith("sinks"):
        return 1.0, 0.0
    if name.endswith("bias"):
        return 0.3, 0.0
    if "embed_tokens" in name:
        return (0.5 if config.tie_word_embeddings else 1.0), 0.0
    fused = name.endswith(("experts.gate_up_proj", "experts.down_proj"))  # gpt_oss: [E, in, out]
    fan_in = tensor.shape[1] if fused else tensor.shape[-1]
    if name.endswith("experts.gate_up_proj"):
        return 4.0 / math.sqrt(fan_in), 0.0  # gpt_oss clamps at 7: some values have to reach it
    if name.endswith("experts.down_proj"):
        return 0.2 / math.sqrt(fan_in), 0.0
    if "lm_head" in name:
        return 2.5 / math.sqrt(fan_in), 0.0
    return 1.3 / math.sqrt(fan_in), 0.0
