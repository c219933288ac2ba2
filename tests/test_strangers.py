"""Files of strangers, each made by hand: nothing that one says is believed, run, opened, or built before it is checked.

Each is judged as the fuzzers judge theirs (``tests/fuzz``), in a child process whose imports, files, memory and time are
watched, and with tighter bounds: what is not acceptable is refused at once, by one short line that names the file.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fuzz.archives import SMALL, one_archive
from fuzz.harness import LATE, REFUSED, Outcome, run
from fuzz.hostile import EVIL_MODULE, outside
from fuzz.pickles import DOUBLINGS, doubling, nested_deflate, torch_saved
from fuzz.target import Target
from fuzz.targets import made
from fuzz.tensors import Raw, edited
from fuzz.zips import METHODS, members_of, packed
from small import DATASET, make_agent
from typer.testing import CliRunner

from rrpolicy import DiffusionAgent, RelativeReward, pipeline, zoo
from rrpolicy.cli import app
from rrpolicy.pipeline import Task

Change = Callable[[dict[str, Any], dict[str, dict[str, torch.Tensor]]], Any]
CPU_SECONDS, MEMORY = 0.5, 100 * 2**20
DEEP = Raw("[" * 100_000 + "]" * 100_000)
LEARNERS = ("checkpoint", "extractor", "discriminator", "image-diffusion", "image-judge")
target = cache(made)


def judged(one: Target, content: bytes, name: str | None = None) -> Outcome:
    """What becomes of a target whose file holds this."""
    file = name or next(iter(one.mutators))
    (found,) = run(replace(one, mutators={file: lambda *_: (content, "by hand")}), [0]).outcomes
    return found


def refused(one: Target, content: bytes, name: str | None = None) -> Outcome:
    """A refusal that costs next to nothing."""
    found = judged(one, content, name)
    assert found.verdict == REFUSED, found
    assert found.cpu_seconds < CPU_SECONDS and found.memory < MEMORY, found
    return found


def changed(name: str, change: Change, **parts: Any) -> bytes:
    """The archive of a target with other values."""
    return edited(target(name).files["a.zip"], change, **parts)


def at(path: str, value: Any) -> Change:
    """Sets one value of a config, ``"layout.horizon"``."""

    def change(config: dict[str, Any], tensors: Any) -> None:
        *holders, last = path.split(".")
        for key in holders:
            config = config[key]
        config[last] = value

    return change


# ---------------------------------------------------------------------- cards and the command line


@cache
def program(*arguments: str) -> Target:
    """``rrpolicy`` with an archive, whose fault is the one line that it prints."""
    card = {"environment": "PointMaze_UMaze-v3", "maze": ["#####", "#...#", "#####"], "goal": [1.0, 3.0]}

    def invoke(path: Path) -> float:
        result = CliRunner().invoke(app, [part.replace("ARCHIVE", str(path)) for part in arguments])
        lines = result.stderr.splitlines()
        if result.exit_code == 1 and len(lines) == 1 and lines[0].startswith("rrpolicy: error: "):
            raise ValueError(lines[0].removeprefix("rrpolicy: error: "))
        if result.exit_code:
            raise RuntimeError(f"exit code {result.exit_code}: {result.output} {result.exception!r}")
        return 0.0

    agent = make_agent(**SMALL)
    return one_archive("program", lambda path: agent.save(path, resumable=False, card=card), invoke, float, temporary=True)


ENJOY = ("enjoy", "ARCHIVE", "--n-episodes", "1", "--no-progress")
MAZE = "PointMaze_UMaze-v3"


@pytest.mark.parametrize("card", [
    {"environment": f"{EVIL_MODULE}:Env-v0"},
    {"environment": f"{EVIL_MODULE}:{MAZE}"},
    {"environment": "PointMaze_\x1b[31m-v3"},
    {"environment": "x" * 10**6},
    {"environment": [MAZE]},
    {"environment": MAZE, "maze": "/dev/zero"},
    {"environment": MAZE, "maze": str(outside() / "secret.txt")},
    {"environment": MAZE, "maze": ["/dev/zero"]},
    {"environment": MAZE, "maze": {"#####": 1}},
    {"environment": MAZE, "maze": ["#" * 2000] * 2000},
    {"environment": MAZE, "maze": 3},
    {"environment": MAZE, "goal": [1]},
    {"environment": MAZE, "goal": ["1", "3"]},
    {"environment": MAZE, "goal": [Raw("1e999"), 1]},
    {"environment": MAZE, "goal": {"1": 2}},
    {"environment": MAZE, "goal": [10**400, 1]},
    {"environment": MAZE, "maze": DEEP},
], ids=lambda card: str(card)[:60])  # fmt: skip
def test_cards_run_no_code_and_open_no_file(card: dict[str, Any]) -> None:
    one = program(*ENJOY)
    refused(one, edited(one.files["a.zip"], lambda *_: None, card=card))


@pytest.mark.parametrize("env", ["FrankaKitchen-v1", f"{EVIL_MODULE}:Env-v0", "\x1b[31m", "Nowhere-v0", ""])
def test_environments_that_cannot_be_made_are_one_line(env: str) -> None:
    result = CliRunner().invoke(app, ["enjoy", "PointMaze_UMaze-v3/base", "--env", env, "--n-episodes", "1"])
    lines = result.stderr.splitlines()
    assert result.exit_code in (1, 2) and lines[-1].isprintable() and "Traceback" not in result.output
    assert result.exit_code == 2 or len(lines) == 1


# ---------------------------------------------------------------------- fields that no archive may set


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("field", ["tensorboard_log", "verbose", "device", "callback"])
def test_no_archive_says_where_to_write_or_compute(name: str, field: str) -> None:
    value = {"tensorboard_log": str(outside() / "tb"), "verbose": 1, "device": "meta", "callback": None}[field]
    refused(target(name), changed(name, at(f"training.{field}", value)))
    assert not (outside() / "tb").exists()


def test_no_planner_says_where_to_write() -> None:
    refused(target("planner"), changed("planner", at("agent.training.tensorboard_log", str(outside() / "tb"))))
    assert not (outside() / "tb").exists()


# ---------------------------------------------------------------------- small files, large machines


@pytest.mark.parametrize(("name", "path", "value"), [
    ("agent", "process.n_diffusion_steps", 10**7),
    ("agent", "process.n_diffusion_steps", 2**62),
    ("agent", "layout.horizon", 5 * 10**7),
    ("agent", "layout.observation_columns", [0, 1, 2, 3] * 10**5),
    ("agent", "policy_kwargs.width", 20_000),
    ("agent", "policy_kwargs.n_blocks", 10**6),
    ("agent", "policy_kwargs.n_fourier_features", 10**7),
    ("agent", "planning.n_candidates", 10**9),
    ("agent-unet", "policy_kwargs.width", 10**5),
    ("agent-unet", "policy_kwargs.multipliers", [1] * 1000),
    ("agent-transformer", "policy_kwargs.n_blocks", 10**5),
    ("agent-transformer", "policy_kwargs.width", 20_000),
    ("agent-inverse", "controller_kwargs.width", 20_000),
    ("agent-inverse", "controller_kwargs.n_blocks", 10**6),
    ("reward", "process.n_diffusion_steps", 10**7),
    ("reward", "event_shape", [10**5, 10**5]),
    ("reward", "window_kwargs.width", 20_000),
    ("reward", "step_kwargs.n_blocks", 10**6),
    ("planner", "reward.process.n_diffusion_steps", 10**7),
    ("planner", "agent.layout.horizon", 5 * 10**7),
    ("planner", "planning.n_candidates", 10**9),
    ("extractor", "reward.window_kwargs.width", 20_000),
    ("discriminator", "window_kwargs.n_blocks", 10**6),
    ("trained-policy", "net_arch", [10**5, 10**5]),
    ("trained-policy", "net_arch", [4] * 10**5),
    ("trained-policy", "dims", [[10**9], [1]]),
    ("offline-policy", "net_arch", [10**5, 10**5]),
    ("image-diffusion", "unet_kwargs.block_out_channels", [20_000, 20_000]),
    ("image-diffusion", "unet_kwargs.layers_per_block", 10**5),
    ("image-diffusion", "n_diffusion_steps", 10**7),
    ("image-diffusion", "codec.shape", [1, 10**6, 10**6]),
    ("image-reward", "reward.event_shape", [1, 10**5, 10**5]),
    ("image-judge", "width", 8 * 10**4),
    ("image-judge", "shape", [1, 10**6, 10**6]),
])  # fmt: skip
def test_sizes_are_compared_with_the_file_before_anything_is_built(name: str, path: str, value: Any) -> None:
    refused(target(name), changed(name, at(path, value)))


# ---------------------------------------------------------------------- zip files and JSON


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["agent", "reward", "sb3-ppo"])
def test_only_stored_members_are_read(name: str, method: str) -> None:
    one = target(name)
    members = members_of(next(iter(one.files.values())))
    for chosen in ([next(iter(members))], list(members)):
        refused(one, packed(members, dict.fromkeys(chosen, METHODS[method])))


@pytest.mark.parametrize("name", ["agent", "sb3-ppo"])
def test_members_are_counted_before_they_are_listed(name: str) -> None:
    one = target(name)
    members = members_of(next(iter(one.files.values())))
    refused(one, packed({**members, **{f"m{i}.safetensors": b"" for i in range(100_000)}}))


@pytest.mark.parametrize("raw", ["1e999", "-1e999", "NaN", "1" * 5000, DEEP], ids=lambda raw: raw[:6])
@pytest.mark.parametrize("path", ["num_timesteps", "layout.horizon", "planning.clip", "unheard_of"])
def test_json_beyond_numbers_is_refused(path: str, raw: str) -> None:
    refused(target("agent"), changed("agent", at(path, Raw(raw))))


@pytest.mark.parametrize("name", ["zoo-card", "results-json", "minari", "recording", "unet-folder"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, DEEP, "1" * 5000, "1e999", '"' + "x" * 10**6 + '"'],
                         ids=lambda text: text[:4] + str(len(text)))  # fmt: skip
def test_json_files_that_nest_or_run_on_are_refused(name: str, text: str) -> None:
    one = target(name)
    file = next(file for file in one.mutators if file.endswith(".json"))
    refused(one, text.encode(), file)


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "x = " + "9" * 5000, "x." * 50_000 + "y = 1", "x = 1979-13-99"],
                         ids=lambda text: text[:8] + str(len(text)))  # fmt: skip
def test_toml_that_nests_or_runs_on_is_refused(text: str) -> None:
    refused(target("recipe"), text.encode())


def test_what_an_archive_says_of_its_version_is_printed_harmlessly() -> None:
    for schema in (2, "\x1b[31m", ["\x07"] * 10**5):
        refused(target("agent"), changed("agent", lambda *_: None, version="\x1b[2J\n\x07" * 1000, schema=schema))


# ---------------------------------------------------------------------- tensors


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16, torch.int64])
@pytest.mark.parametrize(("name", "group", "tensor"), [
    ("agent", "averaged", "network.leave.bias"), ("agent", "normalizer", "action_scale"), ("agent", "starts", "rows"),
    ("checkpoint", "weights", "network.leave.bias"), ("reward", "weights", "gradient_scale"),
])  # fmt: skip
def test_numbers_of_other_types_are_refused(name: str, group: str, tensor: str, dtype: torch.dtype) -> None:
    def change(config: Any, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        tensors[group][tensor] = tensors[group][tensor].to(dtype)

    refused(target(name), changed(name, change))


OPTIMISERS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "without exp_avg": lambda state: state.pop("0.exp_avg"),
    "without step": lambda state: state.pop("0.step"),
    "of a parameter that there is not": lambda state: state.update({"9999.step": torch.zeros(())}),
    "of another name": lambda state: state.update({"0.momentum": torch.zeros(3)}),
    "without a number": lambda state: state.update({"step": torch.zeros(())}),
    "of another shape": lambda state: state.update({"0.exp_avg_sq": torch.zeros(7)}),
    "that was below zero": lambda state: state["0.exp_avg_sq"].fill_(-1.0),
    "of half a parameter": lambda state: [state.pop(key) for key in ("1.step", "1.exp_avg", "1.exp_avg_sq")],
}


@pytest.mark.parametrize("what", OPTIMISERS)
@pytest.mark.parametrize("name", LEARNERS)
def test_optimisers_that_could_not_go_on_are_refused(name: str, what: str) -> None:
    refused(target(name), changed(name, lambda config, tensors: OPTIMISERS[what](tensors["optimizer"])))


@pytest.mark.parametrize("what", OPTIMISERS)
def test_optimisers_of_sac_that_could_not_go_on_are_refused(what: str) -> None:
    def change(config: Any, tensors: dict[str, Any]) -> None:
        group = tensors["critic-optimizer"]
        first = min(int(key.split(".")[0]) for key in group)
        own = {f"{int(key.split('.')[0]) - first}.{key.split('.')[1]}": value for key, value in group.items()}
        OPTIMISERS[what](own)
        group.clear()
        group.update({f"{int(key.split('.')[0]) + first}.{key.split('.')[1]}" if "." in key else key: value
                      for key, value in own.items()})  # fmt: skip

    refused(target("replay"), changed("replay", change))


@pytest.mark.parametrize("shape", [(0, 6), (3, 7), (6,), (1, 1, 6), ()])
@pytest.mark.parametrize("name", ["agent", "planner"])
def test_starts_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    group = "starts" if name == "agent" else "agent-starts"
    refused(target(name), changed(name, lambda config, tensors: tensors[group].update(rows=torch.zeros(shape))))


@pytest.mark.parametrize(("path", "values"), [
    ("planning.clip", [-1, 0, "1", [1.0]]),
    ("planning.n_action_steps", [0, -1, 1.5, True, "2"]),
    ("planning.n_sampling_steps", [0, 1.5, 10**9]),
    ("planning.lookahead", ["1", None, []]),
    ("planning.sampler", ["euler", ["ddim"], 1]),
    ("training.batch_size", [0, 1.5, "4", 10**12]),
    ("training.ema_decay", [-1, 1, "0.9"]),
    ("training.first_action_weight", [-1, "1"]),
    ("training.seed", [-1, 1.5, 2**70, "1"]),
    ("num_timesteps", [-1, 1.5, "2", 2**70]),
])  # fmt: skip
def test_options_out_of_range_are_refused(path: str, values: list[Any]) -> None:
    for value in values:
        refused(target("agent"), changed("agent", at(path, value)))


@pytest.mark.parametrize(("path", "values"), [("max_shift", [-1, "1", []]), ("scale", [-1, "1", None, []]),
                                              ("planning.clip", [-1, "1"])])  # fmt: skip
def test_options_of_planners_out_of_range_are_refused(path: str, values: list[Any]) -> None:
    for value in values:
        refused(target("planner"), changed("planner", at(path, value)))


@pytest.mark.parametrize("field", ["x_t", "eps_difference", "value", "t"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pairs_that_are_not_finite_are_refused(field: str, value: float) -> None:
    one = target("recording")
    name = next(file for file in one.mutators if file.endswith(".safetensors"))
    tensors = dict(safetensors.torch.load(one.files[name]))
    for index in (0, -1):
        flat = tensors[field].float().reshape(-1)
        flat[index] = value
        refused(one, safetensors.torch.save({**tensors, field: flat.reshape(tensors[field].shape)}), name)


# ---------------------------------------------------------------------- Stable-Baselines3


@pytest.mark.parametrize("shape", [(20_000, 3), (20_000, 20_000), (4, 3)])
def test_weights_with_stride_zero_are_refused(shape: tuple[int, int]) -> None:
    one = target("sb3-ppo")
    members = members_of(next(iter(one.files.values())))
    weights = torch.load(__import__("io").BytesIO(members["policy.pth"]), weights_only=True)
    for name in ("mlp_extractor.policy_net.0.weight", "another.weight"):
        hostile = torch_saved({**weights, name: torch.zeros(1).expand(shape)})
        refused(one, packed({**members, "policy.pth": hostile}))


@pytest.mark.parametrize("name", ["policy.pth", "data"])
def test_zip_files_in_zip_files_do_not_grow(name: str) -> None:
    one = target("sb3-ppo")
    refused(one, nested_deflate(next(iter(one.files.values())), name, 10**8))


@pytest.mark.parametrize("program", [
    b"cos\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"ctorch.hub\nload\n(tR.", b"cevil_mod\nf\n(tR.",
    b"\x80\x02ctorch\nLongTensor\n(K\x01tR.", b"\x80\x02ccollections\nOrderedDict\n(" + b"]" * 10**6 + b"tR.",
], ids=repr)  # fmt: skip
def test_pickles_with_other_names_are_refused(program: bytes) -> None:
    one = target("sb3-ppo")
    members = members_of(next(iter(one.files.values())))
    inner = members_of(members["policy.pth"])
    name = next(name for name in inner if name.endswith("data.pkl"))
    refused(one, packed({**members, "policy.pth": packed({**inner, name: program[:200_000]})}))
    refused(one, packed({**members, "policy.pth": program[:200_000]}))


@pytest.mark.parametrize("name", DOUBLINGS)
@pytest.mark.parametrize("n", [25, 40, 2000])
def test_statistics_that_double_with_every_instruction_are_refused(name: str, n: int) -> None:
    refused(target("statistics"), doubling(DOUBLINGS[name], n))


def test_statistics_that_hold_themselves_are_refused() -> None:
    for content in (b"\x80\x04]\x94(h\x00h\x00h\x00e.", b"\x80\x04]\x94(" + b"h\x00" * 1000 + b"e" + b"(h\x00h\x00e" * 50 + b".",
                    b"\x80\x04}\x94(\x8c\x01ah\x00u.", b"\x80\x04\x8c\x01a\x94\x8c\x01b\x93\x94h\x01b."):  # fmt: skip
        refused(target("statistics"), content)


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize("width", ["-1", "0", "1.5", "\"8\"", "nan", "100000"])
def test_recipes_out_of_range_are_refused(width: str, tmp_path: Path) -> None:
    text = target("recipe").files["tiny.toml"].decode().replace('"width" = 16', f'"width" = {width}')
    found = judged(target("recipe"), text.encode())
    assert found.verdict in (REFUSED, LATE), found
    assert found.cpu_seconds < CPU_SECONDS and found.memory < MEMORY, found
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="width"):
        pipeline.new_agent(Task.create(), zoo.read_recipe(tmp_path / "tiny.toml"), 0)


# ---------------------------------------------------------------------- what is given to those who were loaded


@cache
def agents() -> list[DiffusionAgent]:
    return [make_agent(**SMALL), make_agent(**SMALL, warm_start=3)]


@pytest.mark.parametrize("value", [1e10, 1e20, -1e20, 1e30, 1e38, -3.4e38])
def test_actions_are_finite_however_large_an_observation_is(value: float) -> None:
    for agent in agents():
        for column in range(4):
            observation = DATASET.observations[0].astype(np.float64)
            observation[column] = value
            try:
                action, _ = agent.predict(observation, deterministic=True)
            except ValueError as error:
                assert str(error).isprintable() and "observation" in str(error)
            else:
                assert np.isfinite(action).all(), (column, action)


STATES: dict[str, Callable[[Any, Any], Any]] = {
    "NaN plans": lambda plans, age: (np.full_like(plans, np.nan), age),
    "infinite plans": lambda plans, age: (np.full_like(plans, np.inf), age),
    "lists": lambda plans, age: (plans.tolist(), age.tolist()),
    "a list of lists": lambda plans, age: [plans.tolist(), age],
    "plans alone": lambda plans, age: (plans,),
    "three things": lambda plans, age: (plans, age, age),
    "an array": lambda plans, age: plans,
    "texts": lambda plans, age: (np.full(plans.shape, "x"), age),
    "complex plans": lambda plans, age: (plans.astype(np.complex64), age),
    "objects": lambda plans, age: (plans.astype(object), age),
    "NaN ages": lambda plans, age: (plans, np.full(len(age), np.nan)),
    "ages that are texts": lambda plans, age: (plans, np.array(["1"] * len(age))),
    "ages far below zero": lambda plans, age: (plans, np.full(len(age), -(10**9))),
    "ages of another width": lambda plans, age: (plans, age[:, None]),
}


@pytest.mark.parametrize("what", STATES)
def test_states_of_something_else_are_refused_or_acted_upon(what: str) -> None:
    observations = DATASET.observations[:2]
    for agent in agents():
        _, (plans, age) = agent.predict(observations, deterministic=True)
        try:
            action, _ = agent.predict(observations, STATES[what](plans, age), deterministic=True)
        except ValueError as error:
            assert str(error).isprintable() and "state" in str(error)
        else:
            assert action.shape == (2, 2) and np.isfinite(action).all() and what not in ("NaN plans", "NaN ages")


@pytest.mark.parametrize("levels", [[], [-1], [10**9], [6], [1.5], ["a"], [None], [True], [np.nan], 3, [[0]]])
def test_levels_that_there_are_not_are_refused(levels: Any) -> None:
    reward = target_reward()
    for arrays in ((DATASET.observations[:3], DATASET.actions[:3]),
                   (DATASET.observations[:4][None], DATASET.actions[:4][None])):  # fmt: skip
        with pytest.raises(ValueError, match="levels"):
            reward.predict(*arrays, levels=levels)


@cache
def target_reward() -> RelativeReward:
    agent = agents()[0]
    small = SMALL["policy_kwargs"]
    return RelativeReward.for_model(agent, window_kwargs=small, step_kwargs=small)


def test_a_megabyte_in_a_field_is_said_shortly() -> None:
    for path in ("policy", "layout.horizon", "process.schedule", "planning.sampler", "controller", "policy_kwargs.network"):
        for value in ("x" * 10**6, [0] * 10**5, {"x" * 10**5: "\x1b[31m"}):
            refused(target("agent"), changed("agent", at(path, value)))


def test_valid_files_are_still_accepted() -> None:
    """What refuses everything would pass all the tests above."""
    for name in ("agent", "reward", *LEARNERS):
        found = judged(target(name), changed(name, lambda *_: None, card={"note": json.dumps({"a": 1})}))
        assert found.verdict == "accepted", found
