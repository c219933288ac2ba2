"""Files of strangers, each made by hand: nothing that one says is believed, run, opened, or built before it is checked.

Each is judged as the fuzzers judge theirs (``tests/fuzz``), in a child process whose imports, files, memory and time
are watched, and with tighter bounds: it is refused at once, by one short line that names the file.
"""

import io
import itertools
import json
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from fuzz.archives import SMALL, one_archive
from fuzz.by_hand import CPU_SECONDS, MEMORY, Change, at, changed, judged, refused, target
from fuzz.harness import ACCEPTED, LATE, REFUSED
from fuzz.hostile import EVIL_MODULE, outside
from fuzz.pickles import DOUBLINGS, doubling, nested_deflate, torch_saved
from fuzz.target import Target
from fuzz.tensors import Raw, edited
from fuzz.zips import METHODS, members_of, packed
from helpers.agents import make_agent
from helpers.program import invoke

from rrpolicy import experiments
from rrpolicy.experiments import Task
from rrpolicy.experiments.recipes import read_recipe

LEARNERS = ("checkpoint", "extractor", "discriminator", "image-diffusion", "image-judge")
DEEP = Raw("[" * 100_000 + "]" * 100_000)


# ---------------------------------------------------------------------- cards and the command line


@cache
def program(*arguments: str) -> Target:
    """``rrpolicy`` with an archive, whose fault is the one line that it prints."""
    card = {"environment": "PointMaze_UMaze-v3", "maze": ["#####", "#...#", "#####"], "goal": [1.0, 3.0]}

    def call(path: Path) -> float:
        result = invoke([part.replace("ARCHIVE", str(path)) for part in arguments])
        lines = result.stderr.splitlines()
        if result.exit_code == 1 and len(lines) == 1 and lines[0].startswith("rrpolicy: error: "):
            raise ValueError(lines[0].removeprefix("rrpolicy: error: "))
        if result.exit_code:
            raise RuntimeError(f"exit code {result.exit_code}: {result.output} {result.exception!r}")
        return 0.0

    agent = make_agent(**SMALL)
    save = partial(agent.save, resumable=False, card=card)
    return one_archive("program", save, call, float, temporary=True)


ENJOY = ("enjoy", "ARCHIVE", "--n-episodes", "1", "--no-progress")
MAZE = "PointMaze_UMaze-v3"


CARDS: list[dict[str, Any]] = [
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
]


def test_cards_run_no_code_and_open_no_file() -> None:
    one = program(*ENJOY)
    refused(one, *(edited(one.files["a.zip"], lambda *_: None, card=card) for card in CARDS))


@pytest.mark.parametrize("env", ["FrankaKitchen-v1", f"{EVIL_MODULE}:Env-v0", "\x1b[31m", "Nowhere-v0", ""])
def test_environments_that_cannot_be_made_are_one_line(env: str) -> None:
    result = invoke(["enjoy", "PointMaze_UMaze-v3/base", "--env", env, "--n-episodes", "1"])
    lines = result.stderr.splitlines()
    assert result.exit_code in (1, 2) and lines[-1].isprintable() and "Traceback" not in result.output
    assert result.exit_code == 2 or len(lines) == 1


# ---------------------------------------------------------------------- fields that no archive may set


@pytest.mark.parametrize("name", LEARNERS)
def test_no_archive_says_where_to_write_or_compute(name: str) -> None:
    fields = {"tensorboard_log": str(outside() / "tb"), "verbose": 1, "device": "meta", "callback": None}
    refused(target(name), *(changed(name, at(f"training.{field}", value)) for field, value in fields.items()))
    assert not (outside() / "tb").exists()


def test_no_planner_says_where_to_write() -> None:
    refused(target("planner"), changed("planner", at("agent.training.tensorboard_log", str(outside() / "tb"))))
    assert not (outside() / "tb").exists()


# ---------------------------------------------------------------------- small files, large machines


WIDE_BOX = {"low": [-1.0] * 2**16, "high": [1.0] * 2**16, "dtype": "float32"}
SIZES: dict[str, list[tuple[str, Any]]] = {
    "agent": [
        ("process.n_diffusion_steps", 10**7),
        ("process.n_diffusion_steps", 2**62),
        ("layout.horizon", 5 * 10**7),
        ("layout.observation_columns", [0, 1, 2, 3] * 10**5),
        ("policy_kwargs.width", 20_000),
        ("policy_kwargs.n_blocks", 10**6),
        ("policy_kwargs.n_fourier_features", 10**7),
        ("planning.n_candidates", 10**9),
    ],
    "agent-unet": [
        ("policy_kwargs.width", 10**5),
        ("policy_kwargs.multipliers", [1] * 1000),
    ],
    "agent-transformer": [
        ("policy_kwargs.n_blocks", 10**5),
        ("policy_kwargs.width", 20_000),
    ],
    "agent-inverse": [
        ("controller_kwargs.width", 20_000),
        ("controller_kwargs.n_blocks", 10**6),
    ],
    "reward": [
        ("process.n_diffusion_steps", 10**7),
        ("event_shape", [10**5, 10**5]),
        ("window_kwargs.width", 20_000),
        ("step_kwargs.n_blocks", 10**6),
        ("step_kwargs.n_clean_levels", None),
        ("step_kwargs.width", None),
    ],
    "planner": [
        ("reward.process.n_diffusion_steps", 10**7),
        ("agent.layout.horizon", 5 * 10**7),
        ("planning.n_candidates", 10**9),
    ],
    "extractor": [
        ("training.buffer_size", 10**7),
        ("reward.window_kwargs.width", 20_000),
    ],
    "discriminator": [
        ("window_kwargs.n_blocks", 10**6),
    ],
    "trained-policy": [
        ("observation_space", WIDE_BOX),
        ("action_space", WIDE_BOX),
        ("action_repeat", 2**40),
    ],
    "actor-critic": [
        ("observation_space", WIDE_BOX),
        ("action_space", WIDE_BOX),
    ],
    "offline-policy": [
        ("net_arch", [10**5, 10**5]),
        ("dims", [[10**9], [1]]),
        ("dims", [[2**16], [2**16]]),
    ],
    "image-diffusion": [
        ("unet_kwargs.block_out_channels", [20_000, 20_000]),
        ("unet_kwargs.layers_per_block", 10**5),
        ("n_diffusion_steps", 10**7),
        ("codec.shape", [1, 10**6, 10**6]),
        ("training.batch_size", 10**5),
    ],
    "image-reward": [
        ("reward.event_shape", [1, 10**5, 10**5]),
    ],
    "image-judge": [
        ("width", 8 * 10**4),
        ("training.batch_size", 10**5),
        ("shape", [1, 10**6, 10**6]),
    ],
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_compared_with_the_file_before_anything_is_built(name: str) -> None:
    refused(target(name), *(changed(name, at(path, value)) for path, value in SIZES[name]))


# ---------------------------------------------------------------------- zip files and JSON


@pytest.mark.parametrize("name", ["agent", "reward", "sb3-ppo"])
def test_only_stored_members_are_read(name: str) -> None:
    one = target(name)
    members = members_of(next(iter(one.files.values())))
    chosen = ([next(iter(members))], list(members)[-1:], list(members))
    refused(one, *(packed(members, dict.fromkeys(names, method)) for names in chosen for method in METHODS.values()))


@pytest.mark.parametrize("name", ["agent", pytest.param("sb3-ppo", marks=pytest.mark.slow)])
def test_members_are_counted_before_they_are_listed(name: str) -> None:
    one = target(name)
    members = members_of(next(iter(one.files.values())))
    refused(one, packed({**members, **{f"m{i}.safetensors": b"" for i in range(100_000)}}))


@pytest.mark.parametrize("path", ["num_timesteps", "layout.horizon", "planning.clip", "unheard_of"])
def test_json_beyond_numbers_is_refused(path: str) -> None:
    raws = ("1e999", "-1e999", "NaN", "1" * 5000, DEEP)
    refused(target("agent"), *(changed("agent", at(path, Raw(raw))) for raw in raws))


@pytest.mark.parametrize("name", ["zoo-card", "results-json", "minari", "recording", "unet-folder"])
def test_json_files_that_nest_or_run_on_are_refused(name: str) -> None:
    one = target(name)
    file = next(file for file in one.mutators if file.endswith(".json") and "index" not in file)
    texts = ("[" * 100_000, '{"a":' * 100_000, DEEP, "1" * 5000, "1e999", '"' + "x" * 10**6 + '"')
    refused(one, *(text.encode() for text in texts), file=file)


def test_toml_that_nests_or_runs_on_is_refused() -> None:
    texts = ("x = " + "[" * 100_000, "x = " + "9" * 5000, "x." * 50_000 + "y = 1", "x = 1979-13-99")
    refused(target("recipe"), *(text.encode() for text in texts))


def test_what_an_archive_says_of_its_version_is_printed_harmlessly() -> None:
    schemas = (2, "\x1b[31m", ["\x07"] * 10**5)
    refused(
        target("agent"),
        *(changed("agent", lambda *_: None, version="\x1b[2J\n\x07" * 1000, schema=schema) for schema in schemas),
    )


# ---------------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    ("name", "group", "tensor"),
    [
        ("agent", "averaged", "network.leave.bias"),
        ("agent", "normalizer", "action_scale"),
        ("agent", "starts", "rows"),
        ("checkpoint", "weights", "network.leave.bias"),
        ("reward", "weights", "gradient_scale"),
    ],
)
def test_numbers_of_other_types_are_refused(name: str, group: str, tensor: str) -> None:
    def to(dtype: torch.dtype) -> Change:
        return lambda config, tensors: tensors[group].update({tensor: tensors[group][tensor].to(dtype)})

    dtypes = (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16, torch.int64)
    refused(target(name), *(changed(name, to(dtype)) for dtype in dtypes))


OPTIMISERS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "without exp_avg": lambda state: state.pop("0.exp_avg"),
    "without step": lambda state: state.pop("0.step"),
    "of a parameter that there is not": lambda state: state.update({"9999.step": torch.zeros(())}),
    "of another name": lambda state: state.update({"0.momentum": torch.zeros(3)}),
    "without a number": lambda state: state.update({"step": torch.zeros(())}),
    "of another shape": lambda state: state.update({"0.exp_avg_sq": torch.zeros(7)}),
    "that was below zero": lambda state: state["0.exp_avg_sq"].fill_(-1.0),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_optimisers_that_could_not_go_on_are_refused(name: str) -> None:
    def to(damage: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
        return lambda config, tensors: damage(tensors["optimizer"])

    refused(target(name), *(changed(name, to(damage)) for damage in OPTIMISERS.values()))


def test_optimisers_of_sac_that_could_not_go_on_are_refused() -> None:
    def to(damage: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
        return lambda config, tensors: damage(tensors["entropy-optimizer"])  # of one parameter, number 0

    refused(target("replay"), *(changed("replay", to(damage)) for damage in OPTIMISERS.values()))


@pytest.mark.parametrize(("name", "group"), [("agent", "starts"), ("planner", "agent-starts")])
def test_starts_of_another_shape_are_refused(name: str, group: str) -> None:
    def to(shape: tuple[int, ...]) -> Change:
        return lambda config, tensors: tensors[group].update(rows=torch.zeros(shape))

    refused(target(name), *(changed(name, to(shape)) for shape in ((0, 6), (3, 7), (6,), (1, 1, 6), ())))


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("planning.clip", [-1, 0, "1", [1.0]]),
        ("planning.n_action_steps", [0, -1, 1.5, True, "2"]),
        ("planning.n_sampling_steps", [0, 1.5, 10**9]),
        ("planning.lookahead", ["1", None, []]),
        ("planning.sampler", ["euler", ["ddim"], 1]),
        ("training.batch_size", [0, 1.5, "4", 10**12]),
        ("training.ema_decay", [-1, 1, "0.9"]),
        ("training.first_action_weight", [-1, "1"]),
        ("training.seed", [1.5, 2**70, "1"]),
        ("num_timesteps", [-1, 1.5, "2", 2**70]),
    ],
)
def test_options_out_of_range_are_refused(path: str, values: list[Any]) -> None:
    refused(target("agent"), *(changed("agent", at(path, value)) for value in values))


@pytest.mark.parametrize(
    ("path", "values"), [("max_shift", [-1, "1", []]), ("scale", [-1, "1", None, []]), ("planning.clip", [-1, "1"])]
)
def test_options_of_planners_out_of_range_are_refused(path: str, values: list[Any]) -> None:
    refused(target("planner"), *(changed("planner", at(path, value)) for value in values))


@pytest.mark.parametrize("field", ["x_t", "eps_difference", "value", "t"])
def test_pairs_that_are_not_finite_are_refused(field: str) -> None:
    one = target("recording")
    name = next(file for file in one.mutators if file.endswith(".safetensors"))
    tensors = dict(safetensors.torch.load(one.files[name]))
    contents = []
    for value, index in itertools.product((math.nan, math.inf), (0, -1)):
        flat = tensors[field].float().reshape(-1).clone()
        flat[index] = value
        contents.append(safetensors.torch.save({**tensors, field: flat.reshape(tensors[field].shape)}))
    refused(one, *contents, file=name)


# ---------------------------------------------------------------------- Stable-Baselines3


def test_weights_with_stride_zero_are_refused() -> None:
    one = target("sb3-ppo")
    members = members_of(next(iter(one.files.values())))
    weights = torch.load(io.BytesIO(members["policy.pth"]), weights_only=True)
    hostile = [
        {**weights, name: torch.zeros(1).expand(shape)}
        for name in ("mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.2.weight", "another.weight")
        for shape in ((20_000, 3), (20_000, 20_000), (2**20, 2**20))
    ]
    refused(one, *(packed({**members, "policy.pth": torch_saved(one)}) for one in hostile))


def test_zip_files_in_zip_files_do_not_grow() -> None:
    one = target("sb3-ppo")
    refused(one, *(nested_deflate(next(iter(one.files.values())), name, 10**8) for name in ("policy.pth", "data")))


PROGRAMS = (
    b"cos\nsystem\n(S'true'\ntR.",
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"ctorch.hub\nload\n(tR.",
    b"cevil_mod\nf\n(tR.",
    b"\x80\x02ctorch\nLongTensor\n(K\x01tR.",
    b"\x80\x02ccollections\nOrderedDict\n(" + b"]" * 200_000 + b"tR.",
)


def test_pickles_with_other_names_are_refused() -> None:
    one = target("sb3-ppo")
    members = members_of(next(iter(one.files.values())))
    inner = members_of(members["policy.pth"])
    name = next(name for name in inner if name.endswith("data.pkl"))
    refused(one, *(packed({**members, "policy.pth": packed({**inner, name: text})}) for text in PROGRAMS))
    refused(one, *(packed({**members, "policy.pth": text}) for text in PROGRAMS))


def test_statistics_that_double_with_every_instruction_are_refused() -> None:
    one = target("statistics")
    refused(one, *(doubling(piece, n) for piece in DOUBLINGS.values() for n in (25, 40, 2000)))


def test_statistics_that_hold_themselves_are_refused() -> None:
    refused(
        target("statistics"),
        b"\x80\x04]\x94(h\x00h\x00h\x00e.",
        b"\x80\x04}\x94(\x8c\x01ah\x00u.",
        b"\x80\x04]\x94(" + b"h\x00" * 1000 + b"e" + b"(h\x00h\x00e" * 50 + b".",
        b"\x80\x04\x8c\x01a\x94\x8c\x01b\x93\x94h\x01b.",
    )


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize("width", ["-1", "0", "1.5", '"8"', "nan", "100000"])
def test_recipes_out_of_range_are_refused(width: str, tmp_path: Path) -> None:
    text = target("recipe").files["recipes.toml"].decode().replace('"width" = 16', f'"width" = {width}')
    (found,) = judged(target("recipe"), text.encode())
    assert found.verdict in (REFUSED, LATE), found
    assert found.cpu_seconds < CPU_SECONDS and found.memory < MEMORY, found
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="width"):
        experiments.new_agent(Task.create(), read_recipe(tmp_path / "tiny.toml"), 0)


# ---------------------------------------------------------------------- messages, and the other side


def test_a_megabyte_in_a_field_is_said_shortly() -> None:
    for path in ("policy", "layout.horizon", "process.schedule", "planning.sampler", "controller", "policy_kwargs.x"):
        values = ("x" * 10**6, [0] * 10**5, {"x" * 10**5: "\x1b[31m"})
        refused(target("agent"), *(changed("agent", at(path, value)) for value in values))


def test_valid_files_are_still_accepted() -> None:
    """What refuses everything would pass all the tests above."""
    for name in ("agent", "reward", *LEARNERS):
        (found,) = judged(target(name), changed(name, lambda *_: None, card={"note": json.dumps({"a": 1})}))
        assert found.verdict == ACCEPTED, found
