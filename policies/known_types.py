"""What a checkpoint may name: the policy types and processor steps of this project and of LeRobot 0.6.1, by reading.

A new release of LeRobot adds types and steps here; until then its users name them in `allow=`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
BATCH, DEVICE, TOKENIZER = "to_batch_processor", "device_processor", "tokenizer_processor"
INSTRUCTION_TOKENIZER = "pi05_compact_instruction_tokenizer"
INSTRUCTION_EMBEDDING = "vag_instruction_embedding"
CONVERT_ACTIONS, RESTORE_ACTIONS = "vag_convert_actions", "vag_restore_actions"
RELATIVE, ABSOLUTE = "relative_actions_processor", "absolute_actions_processor"

BEFORE = (BATCH, DEVICE, NORMALIZER)  # of every policy
AFTER = (UNNORMALIZER, DEVICE)
PALIGEMMA = "google/paligemma-3b-pt-224"


@dataclass(frozen=True)
class PolicyType:
    """What LeRobot's code for a type needs and does.

    before, after: steps that its pre- and post-processor must have. if_set: more of them, where a field of the config
    is on. repositories: what its code names beside the defaults of its fields. remote_code: it hands
    `trust_remote_code=True` to a loader; or the name of the field whose value it does that with. pads: statistics are
    wider than the features. fixed: fields that are set before anything is built, so that nothing is downloaded which
    is in the file.
    """

    before: tuple[str, ...] = BEFORE
    after: tuple[str, ...] = AFTER
    if_set: Mapping[str, str] = MappingProxyType({})
    repositories: tuple[str, ...] = ()
    remote_code: bool | str = False
    pads: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)


_MASKED = ("molmoact2_masked_normalizer", "molmoact2_masked_unnormalizer")
_RELATIVE = {RELATIVE: "use_relative_actions", ABSOLUTE: "use_relative_actions"}

POLICY_TYPES: dict[str, PolicyType] = {
    "act": PolicyType(),
    "diffusion": PolicyType(),
    "diffusion_compact": PolicyType(),
    "eo1": PolicyType(before=(*BEFORE, "eo1_conversation_template_processor", "eo1_qwen_processor")),
    "evo1": PolicyType(
        before=(*BEFORE, "evo1_pad_state_processor", "evo1_pad_action_processor"),
        after=(*AFTER, "evo1_action_processor"),
        pads=True,
    ),
    "fastwam": PolicyType(
        if_set={"fastwam_action_toggle_processor": "toggle_action_dimensions"}, fixed={"base_model_id": None}
    ),
    "gaussian_actor": PolicyType(remote_code="vision_encoder_name"),
    # Its own loader puts the steps together.
    "groot": PolicyType(before=(), after=(), remote_code=True),
    "lingbot_va": PolicyType(),
    "molmoact2": PolicyType(
        before=(BATCH, DEVICE, _MASKED[0], "molmoact2_clamp_normalized", "molmoact2_pack_inputs"),
        after=(DEVICE, _MASKED[1], "molmoact2_clamp_action"),
    ),
    "multi_task_dit": PolicyType(before=(*BEFORE, TOKENIZER)),
    "pi0": PolicyType(
        before=(*BEFORE, "pi0_new_line_processor", TOKENIZER), if_set=_RELATIVE, repositories=(PALIGEMMA,)
    ),
    "pi05": PolicyType(
        before=(*BEFORE, "pi05_prepare_state_tokenizer_processor_step", TOKENIZER),
        if_set=_RELATIVE,
        repositories=(PALIGEMMA,),
    ),
    "pi05_compact": PolicyType(before=(*BEFORE, INSTRUCTION_TOKENIZER), fixed={"vision_weights": None}),
    "pi0_fast": PolicyType(
        before=(*BEFORE, "pi0_fast_prepare_state_tokenizer_processor_step", TOKENIZER, "action_tokenizer_processor"),
        if_set=_RELATIVE,
        repositories=(PALIGEMMA,),
        remote_code=True,
    ),
    "smolvla": PolicyType(before=(*BEFORE, "smolvla_new_line_processor", TOKENIZER), fixed={"load_vlm_weights": False}),
    "tdmpc": PolicyType(),
    "vag_policy": PolicyType(),
    "vla_jepa": PolicyType(
        if_set={
            "vla_jepa_clip_actions": "clip_normalized_actions",
            "vla_jepa_pre_snap_gripper": "pre_snap_gripper_action",
            "vla_jepa_binarize_gripper": "binarize_gripper_action",
        }
    ),
    "vqbet": PolicyType(),
    "wall_x": PolicyType(before=(*BEFORE, "wall_x_task_processor"), remote_code=True),
    "xvla": PolicyType(
        before=(*BEFORE, TOKENIZER, "xvla_image_to_float", "xvla_imagenet_normalize", "xvla_add_domain_id")
    ),
}
# Of every type. Where a checkpoint came from and goes to is no matter of whoever loads it, nor is it for a file to say
# that a compiler is started.
FIXED: dict[str, Any] = {
    "device": "cpu",
    "pretrained_backbone_weights": None,
    "pretrained_path": None,
    "pretrained_revision": None,
    "repo_id": None,
    "push_to_hub": False,
    "compile_model": False,
}

_NORMALIZATION = frozenset({"eps", "features", "norm_map", "normalize_observation_keys"})
_MASKED_NORMALIZATION = _NORMALIZATION | {"normalization_masks"}
_IMAGES = frozenset({"image_keys"})
_JOINTS = frozenset({"joint_signs", "joint_offsets"})
_GRIPPER = frozenset({"gripper_dim", "threshold"})
_PREPARE = frozenset({"max_state_dim", "task_key"})

# Registered steps that policies are made of, and the keys of their configs: no objects, no code.
STEPS: dict[str, frozenset[str]] = {
    "rename_observations_processor": frozenset({"rename_map"}),
    BATCH: frozenset(),
    "to_batch_processor_action": frozenset(),
    "to_batch_processor_observation": frozenset(),
    "to_batch_processor_complementary_data": frozenset(),
    DEVICE: frozenset({"device", "float_dtype"}),
    NORMALIZER: _NORMALIZATION,
    UNNORMALIZER: _NORMALIZATION,
    TOKENIZER: frozenset({"tokenizer_name", "max_length", "task_key", "padding_side", "padding", "truncation"}),
    "action_tokenizer_processor": frozenset(
        {
            *("action_tokenizer_name", "trust_remote_code", "max_action_tokens", "fast_skip_tokens"),
            "paligemma_tokenizer_name",
        }
    ),
    RELATIVE: frozenset({"enabled", "exclude_joints", "action_names"}),
    ABSOLUTE: frozenset({"enabled"}),
    INSTRUCTION_TOKENIZER: frozenset({"length", "buckets"}),
    INSTRUCTION_EMBEDDING: frozenset({"width", "path"}),
    CONVERT_ACTIONS: frozenset({"representation", "reference"}),
    RESTORE_ACTIONS: frozenset(),
    "eo1_conversation_template_processor": frozenset({"input_features", "chunk_size"}),
    "eo1_qwen_processor": frozenset({"processor_name", "image_min_pixels", "image_max_pixels", "use_fast_processor"}),
    "evo1_pad_state_processor": frozenset({"max_state_dim"}),
    "evo1_pad_action_processor": frozenset({"max_action_dim"}),
    "evo1_action_processor": frozenset(
        {
            *("action_dim", "binarize_gripper", "gripper_index", "gripper_threshold"),
            *("gripper_below_threshold_value", "gripper_above_threshold_value"),
        }
    ),
    "fastwam_action_toggle_processor": frozenset({"toggle_dimensions"}),
    "groot_n1_7_pack_inputs_v1": frozenset(
        {
            *("state_horizon", "action_horizon", "valid_action_horizon", "video_horizon", "max_state_dim"),
            *("max_action_dim", "language_key", "formalize_language", "embodiment_tag", "embodiment_mapping"),
            *("normalize_min_max", "state_dropout_prob", "clip_outliers", "use_percentiles", "video_modality_keys"),
            *("raw_stats", "modality_config"),
        }
    ),
    "groot_n1_7_vlm_encode_v1": frozenset(
        {
            *("model_name", "image_crop_size", "image_target_size", "shortest_image_edge", "crop_fraction"),
            *("use_albumentations", "letter_box_transform", "device"),
        }
    ),
    "groot_n1_7_action_decode_v1": frozenset(
        {
            *("env_action_dim", "raw_stats", "modality_config", "use_percentiles", "use_relative_action"),
            "action_decode_transform",
        }
    ),
    "groot_action_unpack_unnormalize_v2": frozenset(
        {
            *("env_action_dim", "normalize_min_max", "clip_normalized_action", "libero_gripper_action"),
            "libero_gripper_binarize",
        }
    ),
    "molmoact2_masked_normalizer": _MASKED_NORMALIZATION,
    "molmoact2_masked_unnormalizer": _MASKED_NORMALIZATION,
    "molmoact2_clamp_normalized": frozenset({"normalization_masks"}),
    "molmoact2_clamp_action": frozenset(),
    "molmoact2_state_frame_transform": _JOINTS,
    "molmoact2_action_frame_transform": _JOINTS,
    "molmoact2_pack_inputs": frozenset(
        {
            *("checkpoint_path", "checkpoint_revision", "checkpoint_force_download", "action_mode"),
            *("discrete_action_tokenizer", "image_keys", "allow_image_key_fallback", "setup_type", "control_mode"),
            *("normalize_language", "add_setup_tokens", "add_control_tokens", "num_state_tokens"),
            *("max_sequence_length", "chunk_size", "max_action_dim", "env_action_dim"),
        }
    ),
    "pi0_new_line_processor": frozenset(),
    "pi05_prepare_state_tokenizer_processor_step": _PREPARE,
    "pi0_fast_prepare_state_tokenizer_processor_step": _PREPARE,
    "smolvla_new_line_processor": frozenset(),
    "vla_jepa_clip_actions": frozenset(),
    "vla_jepa_pre_snap_gripper": _GRIPPER,
    "vla_jepa_binarize_gripper": _GRIPPER,
    "wall_x_task_processor": frozenset(),
    "xvla_image_scale": _IMAGES,
    "xvla_image_to_float": _IMAGES | {"validate_range"},
    "xvla_imagenet_normalize": _IMAGES,
    "xvla_add_domain_id": frozenset({"domain_id"}),
    "xvla_rotation_6d_to_axis_angle": frozenset({"expected_action_dim"}),
}

# Text fields of configs and steps that choose a way of doing something, or are read as text. Every other one is taken
# to name a repository or a directory.
WORDS = frozenset(
    {
        *("vision_backbone", "feedforward_activation", "noise_scheduler_type", "beta_schedule", "prediction_type"),
        *("compile_mode", "scheduler_name", "action_act", "dtype", "attn_implementation", "training_stage"),
        *("vlm_dtype", "action_head", "torch_dtype", "rand_device", "storage_device", "embodiment_tag"),
        *("action_decode_transform", "video_backend", "report_to", "attn_mode", "text_encoder_device"),
        *("camera_layout", "action_mode", "inference_action_mode", "lora_bias", "model_dtype"),
        *("discrete_loss_token_weighting", "objective", "integration_method", "timestep_sampling_strategy"),
        *("tokenizer_padding", "tokenizer_padding_side", "paligemma_variant", "action_expert_variant"),
        *("attention_mode", "pad_language_to", "action_model_type", "prediction_mode", "vision_attn_implementation"),
        *("padding", "padding_side", "device", "float_dtype", "rtc_config", "normalization_mapping", "norm_map"),
        *("vlm_config", "florence_config", "video_dit_config", "action_dit_config", "concurrency"),
        *("discrete_critic_network_kwargs", "actor_learner_config", "raw_stats", "modality_config"),
        *("video_scheduler", "action_scheduler", "loss", "sample", "method", "order"),
        *("input_features", "output_features", "features", "representation"),
    }
)
TEXTS = frozenset(
    {
        *("license", "tags", "task_field", "embodiment_id_field", "prompt_template", "negative_prompt"),
        *("special_action_token", "embodied_action_token", "relative_exclude_joints", "action_feature_names"),
        *("obs_cam_keys", "image_keys", "dataset_feature_names", "dataset_stats", "norm_tag", "setup_type"),
        *("control_mode", "reinit_modules", "domain_feature_key", "task_key", "rename_map", "exclude_joints"),
        *("action_names", "normalize_observation_keys", "normalization_masks", "language_key"),
        *("embodiment_mapping", "video_modality_keys"),
        # Of vag_policy: vag_core checks the first, and reads a video model only where it lies and if it is the right
        # one; of a text encoder on this disk nothing is run, see `toolkit.data.text`.
        *("generator", "canvas", "instruction_encoder"),
    }
)
