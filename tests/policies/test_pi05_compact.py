"""The six ingredients of a pi0.5-style policy, each with a test that fails without it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks
from torch import Tensor

from policies.factory import PolicyObjective
from policies.pi05_compact.modeling_pi05_compact import AdaptiveRMSNorm, Pi05Compact, rms_norm
from policies.pi05_compact.training_draws import training_draws
from toolkit.base.errors import UserError

Batch = dict[str, Any]


def prepared(objective: PolicyObjective, batch: Batch) -> Batch:
    return objective.preprocessor(batch)


def flow_loss(objective: PolicyObjective, batch: Batch, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return objective.loss(batch)[0]


# ----------------------------------------------------------------------------------------- 1, 2: prefix, expert


def test_prefix_holds_image_words_and_one_token_per_state_dimension(pi05: PolicyObjective, batch: Batch) -> None:
    model: Pi05Compact = pi05.policy.model
    cache, mask = pi05.policy.encode_prefix(prepared(pi05, batch))
    image, words, state = 4, 4, 4  # 32 x 32 pixels; "open the small door"
    assert len(cache) == len(model.expert_layers) == 2
    assert mask.shape == (4, image + words + state)
    assert mask[0].tolist() == [True] * (image + 3) + [False] + [True] * state  # "push the puck"
    assert mask[1].all()


def test_prefix_never_sees_actions(pi05: PolicyObjective, batch: Batch) -> None:
    seen: list[list[Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: seen[-1].extend([out[0], *out[1]]))
        for layer in pi05.policy.model.prefix_layers
    ]
    for shift in (0.0, 1.0):
        seen.append([])
        flow_loss(pi05, {**batch, "action": batch["action"] + shift})
    for hook in hooks:
        hook.remove()
    assert len(seen[0]) == 6
    for before, after in zip(*seen, strict=True):
        assert torch.equal(before, after)


def test_prefix_is_bidirectional_and_padding_is_not_attended(pi05: PolicyObjective, batch: Batch) -> None:
    inputs = prepared(pi05, batch)
    (_, first_layer_of_last), _ = pi05.policy.encode_prefix(inputs)
    changed = {**inputs, "observation.state": -inputs["observation.state"]}
    (_, other), _ = pi05.policy.encode_prefix(changed)
    # State tokens come last; the first image token of the next layer knows them.
    assert not torch.allclose(first_layer_of_last[0][:, :, 0], other[0][:, :, 0])
    ids = inputs["observation.language.tokens"].clone()
    ids[0, 3] = 9  # a padded place of the short instruction
    (_, padded), _ = pi05.policy.encode_prefix({**inputs, "observation.language.tokens": ids})
    assert torch.equal(first_layer_of_last[0][0, :, :4], padded[0][0, :, :4])


@pytest.mark.parametrize("part", ["image", "state", "task"])
def test_actions_depend_on_every_part_of_the_prefix(pi05: PolicyObjective, batch: Batch, part: str) -> None:
    changed = {
        "image": {"observation.image": 1 - batch["observation.image"]},
        "state": {"observation.state": -batch["observation.state"]},
        "task": {"task": batch["task"][::-1]},
    }[part]
    chunks = []
    for observation in (batch, {**batch, **changed}):
        torch.manual_seed(0)
        chunks.append(pi05.predict_action_chunk(observation))
    assert not torch.allclose(chunks[0], chunks[1], atol=1e-4)


def test_gradient_of_the_expert_reaches_the_prefix(pi05: PolicyObjective, batch: Batch) -> None:
    flow_loss(pi05, batch).backward()
    model = pi05.policy.model
    for parameters in (
        model.image_encoder.backbone.parameters(),
        [model.word_embedding.weight, model.state_embedding.weight],
        model.prefix_layers.parameters(),
        model.expert_layers.parameters(),
    ):
        for parameter in parameters:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0


def test_two_passes_equal_one_pass_with_a_block_mask(pi05: PolicyObjective, batch: Batch) -> None:
    """Reference: pi0.5's own formulation, one joint attention over both streams under `make_att_2d_masks`."""
    model = pi05.policy.model
    inputs = prepared(pi05, batch)
    x_t, t = torch.randn(4, 8, 3), torch.rand(4)
    step_is_pad = torch.zeros(4, 8, dtype=torch.bool)
    step_is_pad[1, 4:] = True
    step_is_pad[2, 6:] = True
    cache, prefix_mask = pi05.policy.encode_prefix(inputs)
    ours = model.denoise(x_t, t, cache, prefix_mask, step_is_pad)

    words = (inputs["observation.language.tokens"], inputs["observation.language.attention_mask"])
    prefix, _ = model.embed_prefix([inputs["observation.image"]], *words, inputs["observation.state"])
    steps = F.pad(x_t, (0, 29))  # as wide as the weights
    suffix = model.action_in(steps.reshape(4, 2, 4 * 32)) + model.action_position  # two tokens of four steps
    condition = model.embed_time(t)
    blocks = torch.tensor([0] * prefix.shape[1] + [1] + [0])[None].expand(4, -1)
    token_is_real = ~step_is_pad[:, ::4]
    mask = make_att_2d_masks(torch.cat([prefix_mask, token_is_real], 1), blocks)[:, None]
    for seen, acting in zip(model.prefix_layers, model.expert_layers, strict=True):
        normed = [seen.attention_norm(prefix)]
        hidden, gate = acting.attention_norm(suffix, condition)
        normed.append(hidden)
        streams = (seen.attention, acting.attention)
        keys, values = (
            torch.cat(parts, 2)
            for parts in zip(*(s.keys_values(x) for s, x in zip(streams, normed, strict=True)), strict=True)
        )
        queries = [torch.zeros(4, prefix.shape[1], 32) if seen.is_last else seen.attention.query(normed[0])]
        queries.append(acting.attention.query(hidden))
        query = torch.cat(queries, 1).unflatten(-1, (2, 16)).transpose(1, 2)
        # A row that may attend to nothing (padding) would be NaN; it is not compared below.
        answer = F.scaled_dot_product_attention(
            query, keys, values, mask | ~mask.any(-1, keepdim=True), enable_gqa=True
        )
        answer = answer.transpose(1, 2).flatten(2)
        suffix = suffix + gate * acting.attention.output(answer[:, prefix.shape[1] :])
        hidden, gate = acting.mlp_norm(suffix, condition)
        suffix = suffix + gate * acting.mlp(hidden)
        if not seen.is_last:
            prefix = prefix + seen.attention.output(answer[:, : prefix.shape[1]])
            prefix = prefix + seen.mlp(seen.mlp_norm(prefix))
    reference = model.action_out(model.final_norm(suffix, condition)[0]).reshape(4, 8, 32)[..., :3]
    torch.testing.assert_close(ours[~step_is_pad], reference[~step_is_pad], atol=1e-5, rtol=1e-4)


def test_image_of_another_size_is_refused_in_training_and_resized_in_rollouts(
    pi05: PolicyObjective, batch: Batch
) -> None:
    inputs = prepared(pi05, batch)
    with pytest.raises(ValueError, match=r"\(3, 48, 48\): expected \(3, 32, 32\)"):
        pi05.policy.encode_prefix({**inputs, "observation.image": torch.rand(4, 3, 48, 48)})
    noise = torch.randn(4, 8, 3)
    sizes = [F.interpolate(inputs["observation.image"][..., :4, :4], size, mode="bilinear") for size in (32, 64)]
    expected, chunk = (
        pi05.policy.predict_action_chunk({**inputs, "observation.image": image}, noise=noise) for image in sizes
    )
    assert torch.allclose(chunk, expected, atol=0.05)


# ------------------------------------------------------------------------------------------------ 3: adaRMS


def test_ada_rms_treats_all_times_alike_at_the_start() -> None:
    norm = AdaptiveRMSNorm(8)
    x = torch.randn(2, 3, 8)
    normed, gate = norm(x, torch.randn(2, 8))
    torch.testing.assert_close(normed, rms_norm(x))
    torch.testing.assert_close(normed, F.rms_norm(x, (8,), eps=1e-6))
    assert (gate == 1).all()


def test_time_changes_the_velocity(pi05: PolicyObjective, batch: Batch) -> None:
    cache, mask = pi05.policy.encode_prefix(prepared(pi05, batch))
    x_t = torch.randn(4, 8, 3)
    early, late = (pi05.policy.model.denoise(x_t, torch.full((4,), t), cache, mask) for t in (0.1, 0.9))
    assert not torch.allclose(early, late)


# ----------------------------------------------------------------------------------------- 4: flow matching


def test_times_follow_the_beta_distribution(pi05: PolicyObjective) -> None:
    torch.manual_seed(0)
    t = pi05.policy.model.sample_time(20_000, torch.device("cpu"))
    assert t.min() >= 0.001
    assert t.max() <= 1
    assert abs(t.mean() - (0.999 * 0.6 + 0.001)) < 0.01  # Beta(1.5, 1) has mean 0.6


def test_loss_is_that_of_the_velocity(pi05: PolicyObjective, batch: Batch) -> None:
    model = pi05.policy.model
    inputs = prepared(pi05, batch)
    cache, mask = pi05.policy.encode_prefix(inputs)
    actions, noise, t = inputs["action"], torch.randn(4, 8, 3), torch.rand(4)
    got = model.flow_matching_loss(cache, mask, actions, batch["action_is_pad"], noise, t)
    x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * actions
    torch.testing.assert_close(got, F.mse_loss(model.denoise(x_t, t, cache, mask), noise - actions))


def test_several_draws_share_one_prefix(make_policy: Callable[..., PolicyObjective], batch: Batch) -> None:
    calls = []
    objective = make_policy("pi05_compact", flow_samples=3)
    objective.policy.model.prefix_layers[0].register_forward_hook(lambda _, x, __: calls.append(len(x[0])))
    loss = flow_loss(objective, batch)
    assert calls == [4]
    assert torch.isfinite(loss)


# ----------------------------------------------------------------------------------------------- 5: KV cache


def test_cached_prefix_gives_the_same_actions(pi05: PolicyObjective, batch: Batch) -> None:
    policy = pi05.policy
    inputs = prepared(pi05, batch)
    noise = torch.randn(4, 8, 3)
    calls = []
    hook = policy.model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    cached = policy.predict_action_chunk(inputs, noise=noise)
    hook.remove()
    assert len(calls) == 1
    with torch.no_grad():
        recomputed = euler_integrate(lambda x, t: policy.model.denoise(x, t, *policy.encode_prefix(inputs)), noise, 10)
    assert torch.equal(cached, recomputed)


# ------------------------------------------------------------------------------------ 6: quantiles and padding


def test_quantiles_map_to_one_and_back(pi05: PolicyObjective, batch: Batch) -> None:
    inputs = prepared(pi05, {**batch, "action": torch.tensor([-1.0, 1.0, 3.0])[None, :, None].expand(4, 3, 3)})
    torch.testing.assert_close(inputs["action"][0, :, 0], torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(pi05.postprocessor(inputs["action"])[0, :, 0], torch.tensor([-1.0, 1.0, 3.0]))


def test_state_bins_are_clamped_and_ordered(pi05: PolicyObjective) -> None:
    embed = pi05.policy.model.state_embedding
    tokens = embed(torch.tensor([[-5.0], [-1.0], [0.0], [0.0077], [0.009], [1.0], [5.0]]))[:, 0]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[5], tokens[6])
    assert torch.equal(tokens[2], tokens[3])  # the same of 256 bins
    assert not torch.equal(tokens[3], tokens[4])  # the next one
    assert (tokens[3] - tokens[4]).norm() < 0.2 * (tokens[1] - tokens[5]).norm()


def test_padded_steps_do_not_change_the_loss(pi05: PolicyObjective, batch: Batch) -> None:
    batch["action_is_pad"][:, 5:] = True
    other = {**batch, "action": batch["action"].clone()}
    other["action"][:, 5:] += 10
    assert torch.equal(flow_loss(pi05, batch), flow_loss(pi05, other))
    other["action"][:, 4] += 1
    assert not torch.equal(flow_loss(pi05, batch), flow_loss(pi05, other))


def test_dimensions_that_a_robot_lacks_do_not_change_the_loss(pi05: PolicyObjective, batch: Batch) -> None:
    lacking = torch.zeros(4, 3, dtype=torch.bool)
    everything = flow_loss(pi05, {**batch, "action_dim_is_pad": lacking})
    torch.testing.assert_close(everything, flow_loss(pi05, batch))
    lacking[:2, 2] = True
    batch = {**batch, "action_dim_is_pad": lacking}
    other = {**batch, "action": batch["action"].clone()}
    other["action"][:2, :, 2] += 10
    assert torch.equal(flow_loss(pi05, batch), flow_loss(pi05, other))
    other["action"][2, :, 2] += 1
    assert not torch.equal(flow_loss(pi05, batch), flow_loss(pi05, other))


@pytest.mark.parametrize("flow_samples", [1, 3])
def test_the_mean_over_the_parts_of_a_batch_is_the_whole(
    make_policy: Callable[..., PolicyObjective], batch: Batch, flow_samples: int
) -> None:
    """Of parts with unlike numbers of padded steps and dimensions."""
    objective = make_policy("pi05_compact", flow_samples=flow_samples).eval()
    batch["action_is_pad"][0, 2:] = True
    batch["action_dim_is_pad"] = torch.tensor([[False, True, True], *[[False] * 3] * 3])
    pads = {key: batch[key] for key in ("action_is_pad", "action_dim_is_pad")}
    losses = []
    for part in range(2):
        own = {key: value[part::2] for key, value in batch.items()}
        own |= {"whole": {"rows": range(part, 4, 2), "size": 4, **pads}, "rng": torch.Generator().manual_seed(5)}
        losses.append(objective.loss(own)[0])
    whole, _ = objective.loss({**batch, "rng": torch.Generator().manual_seed(5)})
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
    times = training_draws(objective.config, {**batch, "rng": torch.Generator().manual_seed(6)})["time"]
    assert times.shape == (4 * flow_samples,)
    assert ((times > 0) & (times <= 1)).all()


def test_both_token_streams_keep_the_precision_of_the_weights_under_bf16(pi05: PolicyObjective, batch: Batch) -> None:
    seen = set()
    network = pi05.policy.model
    for layer in (*network.prefix_layers, *network.expert_layers):
        layer.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        pi05.loss(batch)
    assert seen == {torch.float32}


def test_padded_dimensions_do_not_change_the_loss(pi05: PolicyObjective, batch: Batch) -> None:
    before = flow_loss(pi05, batch)
    model = pi05.policy.model
    with torch.no_grad():
        model.action_in.weight.unflatten(1, (4, 32))[..., 3:] += 1  # of each of the four steps of a token
        model.action_out.weight.unflatten(0, (4, 32))[:, 3:] += 1
        model.action_out.bias.unflatten(0, (4, 32))[:, 3:] += 1
        model.state_embedding.weight[4:] += 1
    assert torch.equal(before, flow_loss(pi05, batch))


# ------------------------------------------------------------------------------------------------- together


def test_overfits_one_batch_and_samples_it(make_policy: Callable[..., PolicyObjective], batch: Batch) -> None:
    objective = make_policy("pi05_compact", flow_samples=8)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for _ in range(200):
        loss, _ = objective.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chunk = objective.predict_action_chunk(batch)
    error = (chunk - batch["action"][:, :4]).abs().mean()
    spread = (batch["action"][:, :4] - batch["action"][:, :4].mean(0)).abs().mean()
    assert error < 0.25 * spread, (error, spread, loss)


def test_select_action_replays_the_chunk(pi05: PolicyObjective, batch: Batch) -> None:
    inputs = prepared(pi05, batch)
    noise = torch.randn(4, 8, 3)
    chunk = pi05.policy.predict_action_chunk(inputs, noise=noise)
    pi05.policy.reset()
    steps = [pi05.policy.select_action(inputs, noise=noise) for _ in range(5)]
    for step in range(4):
        assert torch.equal(steps[step], chunk[:, step])
    assert torch.equal(steps[4], chunk[:, 0])


def test_a_lower_temperature_brings_samples_together(make_policy: Callable[..., PolicyObjective], batch: Batch) -> None:
    def spread(temperature: float) -> Tensor:
        policy = make_policy("pi05_compact", sampling_temperature=temperature)
        return torch.stack([policy.predict_action_chunk(batch) for _ in range(8)]).std(0).mean()

    assert spread(0) == 0 < spread(0.3) < 0.5 * spread(1)
    with pytest.raises(UserError, match="sampling_temperature is -1"):
        make_policy("pi05_compact", sampling_temperature=-1.0)


# --------------------------------------------------------------------------------------------- all together


@pytest.mark.parametrize(
    ("kind", "batch_size"),
    [("pi05_compact", 32), pytest.param("diffusion", 16, marks=pytest.mark.long), ("diffusion_compact", 16)],
)
def test_a_policy_learns_to_look(make_policy: Callable[..., PolicyObjective], kind: str, batch_size: int) -> None:
    """Find a dot in the picture. Wiring that loses the picture passes every test above and fails this one."""
    generator = torch.Generator().manual_seed(0)

    def dots(size: int) -> Batch:
        place = torch.randint(3, 29, (size, 2), generator=generator)
        image = torch.full((size, 3, 32, 32), 0.4)
        for picture, (x, y) in zip(image, place.tolist(), strict=True):
            picture[:, y - 2 : y + 3, x - 2 : x + 3] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
        action = torch.cat([1 + (place - 16) / 8, torch.zeros(size, 1)], dim=1)
        return {
            "observation.image": image,
            "observation.state": torch.rand(size, 4, generator=generator) * 4 - 2,
            "action": action[:, None].repeat(1, 8, 1),
            "action_is_pad": torch.zeros(size, 8, dtype=torch.bool),
            "task": ["find the dot"] * size,
        }

    objective = make_policy(kind, **({"width": 64} if kind == "pi05_compact" else {"down_dims": (64, 128)}))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, betas=(0.9, 0.95))
    for _ in range(80 if kind == "pi05_compact" else 50):
        optimizer.zero_grad()
        objective.loss(dots(batch_size))[0].backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
    test = dots(64)
    found = objective.predict_action_chunk(test)[:, 0, :2]
    always_centre = (test["action"][:, 0, :2] - 1).norm(dim=-1).mean()
    assert (found - test["action"][:, 0, :2]).norm(dim=-1).mean() < always_centre / 2
