"""What the report says about each command: texts, and where the numbers in them come from."""

from __future__ import annotations

# command -> title, what the step does, clauses of the sentence about one run (a clause without its value is left out)
STORY: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "demo": (
        "Summary",
        "The whole story once, at a size that two CPU cores finish in minutes. The generator was trained on every "
        "collected episode, while the policies get only a few of them as real data: what pretraining on generated "
        "episodes adds may come from there.",
        (),
    ),
    "collect": (
        "Collect",
        "A scripted operator with human-like noise records episodes; only those that succeed are kept.",
        (
            "{episodes} episodes",
            "kept from {attempts} attempts",
            "{frames} frames",
            "{episodes_per_minute} a minute",
        ),
    ),
    "import": (
        "Import",
        "Recordings in another layout become a dataset: actions and states exactly, pictures as near-lossless video.",
        ("{episodes} episodes", "{frames} frames", "{layout} layout", "{fps} frames per second"),
    ),
    "export": (
        "Export",
        "A dataset becomes one HDF5 file that other toolkits read.",
        ("{episodes} episodes", "{frames} frames", "{bytes} bytes"),
    ),
    "inspect": (
        "Inspect",
        "A dataset is read whole. Problems break training or lie about the data; warnings are worth a look.",
        ("{episodes} episodes", "{frames} frames"),
    ),
    "train-generator": (
        "Train the generator",
        "First a video tokenizer, then one model with two streams that denoises video and actions together.",
        (
            "tokenizer trained for {tokenizer.steps} steps",
            "reconstruction PSNR of training clips {tokenizer.training_psnr} dB",
            "of their first frame, repeated, {tokenizer.still_psnr} dB",
            "both streams trained for {generator.steps} steps",
            "last loss {generator.loss}",
            "on held-out episodes {held_out.last_loss}",
            "at best {held_out.best_loss}",
            "at step {held_out.best_step}",
            "{generator.parameters} parameters",
        ),
    ),
    "evaluate-generator": (
        "Evaluate the generator",
        "Generated pairs against recorded episodes that start in the same scene, which training has not seen.",
        ("{seconds_per_pair} s per pair", "{function_evaluations} model evaluations each"),
    ),
    "benchmark generators": (
        "Generators side by side",
        "Several systems are trained alike, and sampled and replayed on the same unseen scenes.",
        (),
    ),
    "score": (
        "Score",
        "Every generated episode gets numbers that say how far it can be trusted.",
        (),
    ),
    "gate": (
        "Does it pass?",
        "Generated episodes are scored beside baselines. Policies learn with them, without, and with wrong actions.",
        (),
    ),
    "ablate": (
        "Does synthetic data help?",
        "Policies trained on real and synthetic episodes in many ways, in equally many steps, on the same scenes. What "
        "counts is the distance to the few real episodes alone, and to all that the generator has seen.",
        (),
    ),
    "benchmark policies": (
        "Policies side by side",
        "Several policies on the same scenes, ranked; those whose difference may be nothing share a rank.",
        (),
    ),
    "synthesize": (
        "Synthesize",
        "One picture, one state and an instruction go in; a video with matching actions and states comes out.",
        (
            "{episodes} episodes",
            "{seconds_per_episode} s each",
            "{function_evaluations} model evaluations per episode",
        ),
    ),
    "replay": (
        "Replay",
        "The actions of each episode run open loop in the simulator, from the scene the episode starts in.",
        (),
    ),
    "pretrain": (
        "Pretrain",
        "A new policy learns from recorded episodes, generated ones or a mixture.",
        (
            "{policy}",
            "{steps} steps",
            "last loss {loss}",
            "synthetic fraction {synthetic_fraction}",
            "{parameters} parameters",
        ),
    ),
    "finetune": (
        "Fine-tune",
        "A pretrained policy goes on learning, usually from the few recorded episodes.",
        ("{policy}", "{steps} steps", "last loss {loss}", "synthetic fraction {synthetic_fraction}"),
    ),
    "generator-policy": (
        "The generator as a policy",
        "The generator itself becomes a policy checkpoint. Nothing is trained: it makes actions from the present "
        "picture, executes some of them and makes new ones.",
        ("a {sample} of {horizon} steps", "{n_action_steps} executed before the next"),
    ),
    "evaluate": (
        "Evaluate",
        "Policies act in closed loop on scenes they have not seen.",
        ("{policy}", "arm {arm}"),
    ),
}
ARMS = {
    "real_few": "trained on the few recorded episodes only",
    "real_few_augmented": "the few recorded episodes with image augmentation",
    "synthetic_only": "trained on generated episodes only",
    "pretrain_finetune": "pretrained on generated episodes, then fine-tuned on the few recorded ones",
    "cotrain": "trained on recorded and generated episodes together",
    "real_all": "trained on all recorded episodes",
    "cotrain_shuffled": "the same, generated videos with the actions of other episodes of their task: a control",
    "pretrain_finetune_shuffled": "the same, pretrained with the actions of other episodes of their task: a control",
    "cotrain_augmented": "the same with image augmentation",
    "generator": "no policy: the generator itself acts in closed loop",
    "vag": "video and actions generated together",
    "vag_grid": "video and actions in step, a U-Net that reads the video pooled to a grid",
    "vag_published": "the same with the published bridge, one pooled cell",
    "two_stage_temporal": "the video first, then inverse dynamics on all of its latents",
    "two_stage_resnet": "the video first, then inverse dynamics frame by frame",
    "action_only": "actions without a video",
    "recorded": "the operator's own actions: what open-loop replay can reach",
}
SHOWN = {  # keys of a result that the page already tells; the rest goes into a generic table
    *(
        "dataset",
        "checkpoint",
        "media",
        "tasks",
        "metrics",
        "systems",
        "suites",
        "stages",
        "policies",
        "runs",
        "features",
        "problems",
        "warnings",
        "found",
        "fixed",
    ),
    *("generator", "tokenizer", "steps", "loss", "generator_id"),
    *("rows", "comparisons", "cells", "failed", "scores", "validity_cards", "replay", "success_curve", "scenes"),
    *("leaderboards", "notes", "trust", "still", "verdict"),
}
