"""A planner as one ONNX graph: observation and noise in, plan and first action in environment units out.

Everything lies inside: normaliser, pinned entries, noise levels, solver, ∇ρ and the choice of the best candidate. One
file holds up to three graphs beside each other, of which only the one that is run is computed: the plan from noise,
the plan refined from the one before (``warm_start``), and a learned controller. The scale of guidance can be one more
input, a number for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rrpolicy.agents.inverse_dynamics import LearnedController
from rrpolicy.common.device import CPU
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import FARTHEST, Normalizer
from rrpolicy.diffusion.score_model import pinned_on
from rrpolicy.envs.controller import PDController
from rrpolicy.export.assembly import inlined, joined, shared
from rrpolicy.export.batching import batch_products
from rrpolicy.export.graphs import N_EXAMPLES, Part, onnx_model, read_from, traced
from rrpolicy.rewards.relative_reward import RelativeReward

if TYPE_CHECKING:
    from onnx import ModelProto

STEPS = "guided_noise"
SOURCES, LATE = ("observation", "warm_observation"), ("noise", "warm_noise", "previous")
VALUES = "values"
_STANDS_FOR = ("predict", "plan", "sampled", "pinned_at", "_plan", "_denoise", "_shift", "_act")
"""Methods of a planner that its graphs, and what runs them, do in its place."""


@usual_torch()
def plan_model(planner: Any, scale_input: bool = False) -> ModelProto:
    """
    The graphs of a planner.

    :param planner: an `agents.planning.Planner` on the CPU
    :param scale_input: whether the scale of guidance, (rows,), is an input ``scale`` (``warm_scale``) of the graphs, in
        place of the planner's own
    :return: with inputs ``observation``, ``noise`` and outputs ``window``, ``plan``, ``action``; where plans are
        refined also ``warm_observation``, ``warm_noise``, ``previous`` and ``warm_window``; where a network follows
        them also ``control_observation``, ``control_target`` and ``control_action``
    :raises ValueError: for a planner on another device, or something in it that cannot be exported, naming it
    """
    _check(planner)
    if scale_input and not hasattr(planner, "_denoiser_at"):
        raise ValueError(f"scale_input is True, and a {type(planner).__name__} has no scale of guidance")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the examples that are traced
        return _model(planner, scale_input)


def _check(planner: Any) -> None:
    if planner.device != CPU:
        raise ValueError(f"the planner is on {planner.device}, wanted the CPU: planner.to('cpu')")
    for name in _STANDS_FOR:
        home = getattr(type(planner), name).__module__
        if not home.startswith("rrpolicy.agents."):
            raise ValueError(f"{type(planner).__name__} has a {name} of its own, which an exported one would lack")
    if (kind := type(planner.controller)) not in (type(None), PDController, LearnedController):
        raise ValueError(f"controller is a {kind.__name__}, wanted None, a PDController or a learned one")


def _model(planner: Any, scale_input: bool) -> ModelProto:
    pinned_on(planner.layout, CPU)  # kept from now on, not made while a graph is traced
    source = planner.with_planning()  # whose counters may be spoilt
    if isinstance(reward := getattr(source, "reward", None), RelativeReward):
        source.reward = reward.unchecked
    parts = {STEPS: _steps(source, scale_input)}
    if planner.planning.n_candidates > 1:
        parts[VALUES] = _values(source)
    models = [_graph(source, parts, False, scale_input)]
    if planner.planning.warm_start is not None:
        models.append(_graph(source, parts, True, scale_input))
    if isinstance(planner.controller, LearnedController):
        models.append(_control(planner.controller.network, planner.normalizer))
    model = joined(models)
    shared(model)
    batch_products(model, SOURCES, LATE)
    return model


def _graph(planner: Any, parts: Mapping[str, ModelProto], warm: bool, scale_input: bool) -> ModelProto:
    layout, normalizer, options = planner.layout, planner.normalizer, planner.planning
    draws, events = planner.n_draws, (N_EXAMPLES, *layout.event_shape)
    steps, values = Part(STEPS), Part(VALUES, scalar=True)
    levels = planner._levels(warm)

    def window(observation: Tensor, noise: Tensor, previous: Tensor | None, *scale: Tensor) -> Tensor:
        known, left, drawn = _pinned(observation, layout, normalizer), iter(levels), iter(noise)
        current, *each = (one.repeat_interleave(options.n_candidates, dim=0) for one in (known, *scale))
        return planner.sampled(
            known,
            previous,
            lambda like: next(drawn).flatten(0, 1),
            denoiser=lambda x_t, t: steps(x_t, current, torch.tensor([next(left)]), *each),
            value=values,
        )

    def everything(observation: Tensor, noise: Tensor, *scale: Tensor) -> tuple[Tensor, ...]:
        found = window(observation, noise, None, *scale)
        units = normalizer.packed(layout).denormalize(found)
        action = _first_action(planner, observation.flatten(1)[:, -layout.observation_dim :], found)
        return found, layout.observations_of(units), action

    rows = (layout.n_observation_rows,) if layout.n_observation_rows > 1 else ()
    observation = torch.zeros(N_EXAMPLES, *rows, layout.observation_dim)
    noise = torch.randn(draws, N_EXAMPLES, options.n_candidates, *layout.event_shape)
    scales = {("warm_scale" if warm else "scale"): torch.ones(N_EXAMPLES)} if scale_input else {}
    if warm:
        inputs = {"warm_observation": observation, "warm_noise": noise, "previous": torch.randn(events), **scales}
        model = onnx_model(window, inputs, ["warm_window"], {"warm_noise": 1})
    else:
        inputs = {"observation": observation, "noise": noise, **scales}
        model = onnx_model(everything, inputs, ["window", "plan", "action"], {"noise": 1})
    inlined(model, parts)
    return model


def _steps(planner: Any, scale_input: bool) -> ModelProto:
    """The noise predictor, in which a level stands for all rows."""
    shape = (N_EXAMPLES, *planner.layout.event_shape)
    x_t, known, level = torch.randn(shape), torch.randn(shape), torch.tensor([planner.process.n_diffusion_steps // 2])
    inputs = {"x_t": x_t, "known": known, "level": level, **({"scale": torch.ones(N_EXAMPLES)} if scale_input else {})}

    def denoiser(x_t: Tensor, t: Tensor, *scale: Tensor) -> Tensor:
        return (planner._denoiser_at(*scale) if scale else planner._denoiser())(x_t, t)

    one_serves = _one_level_serves(planner._denoiser(), x_t, level)  # what is computed of it alone is then a constant
    made = traced(
        lambda x_t, known, level, *scale: denoiser(x_t, level if one_serves else level.expand(x_t.shape[0]), *scale),
        tuple(inputs.values()),
    )
    read_from(made, 0, 1, torch.tensor(planner.layout.pinned))
    return onnx_model(made, inputs, ["eps"], {"level": None})


def _one_level_serves(denoiser: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, level: Tensor) -> bool:
    """Whether a noise predictor takes one level (1,) for all rows."""
    each = denoiser(x_t, level.expand(len(x_t)))
    try:
        return torch.allclose(denoiser(x_t, level), each, rtol=1e-4, atol=1e-5)
    except (RuntimeError, ValueError, IndexError):  # an own network or reward that wants a level for each row
        return False


def _values(planner: Any) -> ModelProto:
    """The values of candidates."""
    plans = torch.randn(N_EXAMPLES, *planner.layout.event_shape)
    planner._value(plans)  # what it draws once and keeps is drawn outside of the graph
    return onnx_model(traced(lambda plans: planner._value(plans), (plans,)), {"plans": plans}, ["values"], {})


def _pinned(observation: Tensor, layout: TrajectoryLayout, normalizer: Normalizer) -> Tensor:
    """As `Planner.pinned_at`."""
    units = normalizer.observations.normalize(observation).clamp(-FARTHEST, FARTHEST)
    rows = units.reshape(observation.shape[0], layout.n_observation_rows, -1)[..., list(layout.columns)]
    below = layout.horizon - layout.n_observation_rows
    return nn.functional.pad(rows, (layout.observation_slice.start, 0, 0, below))


def _first_action(planner: Any, observation: Tensor, windows: Tensor) -> Tensor:
    """The action at the present, (B, act_dim) within the action space, as `PlanFollower` takes it."""
    layout, controller = planner.layout, planner.controller
    place = min(layout.present + (0.0 if controller is None else planner.planning.lookahead), layout.horizon - 1)
    row = int(place)
    below = min(row + 1, layout.horizon - 1)
    target = windows[:, row] * (1 - (place - row)) + windows[:, below] * (place - row)
    units = planner.normalizer.packed(layout).denormalize(target)
    if controller is None:
        action = layout.actions_of(units)
    elif isinstance(controller, PDController):
        position, velocity = (
            observation[:, list(columns)] for columns in (controller.position_columns, controller.velocity_columns)
        )
        action = (controller.kp * (layout.observations_of(units) - position) - controller.kd * velocity).clamp(-1, 1)
    else:
        action = _follow(controller.network, planner.normalizer, observation, layout.observations_of(units))
    low, high = (torch.as_tensor(bound) for bound in (planner.action_space.low, planner.action_space.high))
    return action.clamp(low, high)


def _follow(network: Any, normalizer: Normalizer, observation: Tensor, target: Tensor) -> Tensor:
    """Inverse dynamics in environment units, as `LearnedController.action`."""
    units = normalizer.observations
    current = units.normalize(observation).clamp(-FARTHEST, FARTHEST)
    wanted = units.select(tuple(network.columns)).normalize(target).clamp(-FARTHEST, FARTHEST)
    return normalizer.actions.denormalize(network(current, wanted))


def _control(network: Any, normalizer: Normalizer) -> ModelProto:
    inputs = {
        "control_observation": torch.zeros(N_EXAMPLES, normalizer.observations.width),
        "control_target": torch.zeros(N_EXAMPLES, len(network.columns)),
    }
    return onnx_model(
        lambda observation, target: _follow(network, normalizer, observation, target), inputs, ["control_action"], {}
    )
