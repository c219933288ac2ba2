"""`diff` from end to end: what it says of different, equal and twice trained models, its page, and its exit codes."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import maze_planner, shorten
from helpers.browser import WIDTHS, browsed
from helpers.program import invoke
from helpers.recipes import RECIPE, toml

import rrpolicy
from rrpolicy import Comparison, DiffusionAgent, Normalizer, PlanningOptions, RelativeReward, TrajectoryDataset
from rrpolicy.comparison import Clip, Features, draw_samples, names_of_environment
from rrpolicy.comparison.clips import CLIP_FILE, MAX_EMBEDDED
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.envs import make_point_maze
from rrpolicy.experiments import Task

PROCESS = DiffusionProcess(20)
QUICK: dict[str, Any] = {
    "n_samples": 64,
    "total_timesteps": 30,
    "extraction": {"buffer_size": 256, "batch_size": 32, "window_kwargs": {"width": 16, "n_blocks": 1}},
}
EVIL = '"><img src="http://example.org/x.png" onerror="console.log(1)"><style>*{width:9999px}</style>&amp;\u202e'


def trained(seed: int, shift: float = 0.0) -> GaussianMixtureModel:
    """A mixture fitted to 400 events, as a training with another seed sees others."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 3, generator=generator) * (0.2 / 200) ** 0.5
    means = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.5, 0.0]]) + torch.tensor([shift, 0.0, 0.0])
    return GaussianMixtureModel(means + noise, 0.2, process=PROCESS)


@pytest.fixture(scope="module")
def found() -> Comparison:
    names = (EVIL, "unbroken" * 20)
    null = [trained(seed) for seed in range(1, 5)]
    columns = [EVIL, "unbroken" * 20, "last"]
    return rrpolicy.diff(trained(0), trained(9, 0.7), null=null, names=names, feature_names=columns, **QUICK)


def test_a_difference_is_found_and_located(found: Comparison) -> None:
    base, expert, t = trained(0), trained(9, 0.7), torch.zeros(4000, dtype=torch.int64)
    x0 = expert.sample(4000, torch.Generator().manual_seed(0))
    exact = float((expert.log_prob(x0, t) - base.log_prob(x0, t)).mean())
    assert found.forward.total.value == pytest.approx(exact, rel=0.15)
    assert found.null.beyond and found.null.p_value < 0.01 and max(found.null.null) < 0.1
    assert found.attribution is not None and found.attribution.carriers()[0] == 0
    assert found.attribution.completeness < 0.01 and found.fit is not None and found.fit.curl.value < 0.05
    assert "differ by more than two trainings of one model do" in found.verdict


class Planted:
    """Exact scores of a policy of two actions in the plane; ``change`` is added to the second one where x > 0.5."""

    process, event_shape = PROCESS, (1, 4)
    pinned = torch.tensor([[False, False, True, True]])

    def __init__(self, change: float = 0.0) -> None:
        self.change = change

    def eps(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        mean = torch.zeros_like(x_t)
        mean[..., 1] = self.change * (x_t[..., 2] > 0.5)
        alpha, sigma = self.process.levels(x_t, t)
        return torch.where(self.pinned, 0.0, sigma * (x_t - alpha * mean) / (0.1 * alpha**2 + sigma**2))

    def sample_pinned(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.where(self.pinned, 2 * torch.rand(n, 1, 4, generator=generator) - 1, 0.0)

    def fingerprint(self) -> str:
        return "planted"


def test_a_planted_change_of_one_action_in_one_region_is_named() -> None:
    sizes = {
        "buffer_size": 1024,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "window_kwargs": {"width": 32, "n_blocks": 1},
    }
    names, options = ["left", "right", "x", "y"], {"n_samples": 256, "n_rewards": 1, "total_timesteps": 200}
    found = rrpolicy.diff(Planted(), Planted(0.6), feature_names=names, extraction=sizes, **options)
    assert found.attribution is not None and found.regions is not None and found.regions.root.feature is not None
    assert found.attribution.carriers() == [1] and found.attribution.by_column()[1] > 0.8
    assert found.regions.names == ("x", "y") and found.regions.names[found.regions.root.feature] == "x"
    assert found.regions.root.threshold == pytest.approx(0.5, abs=0.05) and found.regions.fidelity > 0.9
    assert found.forward.total.value == pytest.approx(0.6**2 / 0.2 * 0.25, rel=0.25)


def test_equal_models_and_equal_trainings_are_no_difference() -> None:
    null = [trained(seed) for seed in range(1, 6)]
    same = rrpolicy.diff(trained(0), trained(0), null=null, n_samples=64)
    assert same.forward.total.value == same.null.effect == 0 and same.null.p_value == 1 and same.reward is None
    again = rrpolicy.diff(trained(0), trained(7), null=null, n_samples=64, n_rewards=0)
    assert again.null.effect > 0 and again.null.p_value > 0.05 and not again.null.beyond
    assert "no difference beyond what two trainings of one model show" in again.verdict
    assert again.passes(fail_above=0.5, require_null=0.05) == []


def test_checks_name_what_fails(found: Comparison) -> None:
    failed = found.passes(fail_above=0.5, require_null=0.05)
    assert len(failed) == 2 and "above 0.5" in failed[0] and "below 0.05" in failed[1]
    alone = rrpolicy.diff(trained(0), trained(9, 0.7), n_samples=64, n_rewards=0)
    assert alone.passes(require_null=0.05) == ["the p-value of the null test is not known without equal trainings"]
    assert "no equal trainings" in alone.verdict


def test_the_page_fits_and_asks_for_nothing(found: Comparison, tmp_path: Path) -> None:
    page = found.write(tmp_path / "out").read_text(encoding="utf-8")
    values = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert values["kl_expert_base"]["mean"] == found.forward.total.value and len(values["null"]["null"]) == 4
    assert values["fit"]["calibration"]["auroc"]["mean"] > 0.65 and values["verdict"] == found.verdict
    assert len(list((tmp_path / "out").glob("*.png"))) == page.count("<img class")
    report, console = browsed(page, tmp_path)
    assert console == "" and {390, 1280} <= set(WIDTHS)
    for width in WIDTHS:
        measured = report[str(width)]
        assert measured["scroll"] <= width and measured["widest"] <= width, (width, measured)
        assert (measured["broken"], measured["requests"]) == (0, 0) and measured["images"] > 8
        assert measured["smallest"] >= 12


def test_conditions_are_shared_and_episodes_known() -> None:
    rng = np.random.default_rng(0)
    lengths = [30, 20, 25]
    data = TrajectoryDataset.from_arrays(rng.normal(size=(75, 3)), rng.uniform(-2, 2, (75, 1)), episode_lengths=lengths)
    normalizer = Normalizer.fit(data)
    planning = PlanningOptions(clip=None)
    options: dict[str, Any] = {"horizon": 4, "normalizer": normalizer, "process": PROCESS, "planning": planning}
    models = [DiffusionAgent("MlpPolicy", "Pendulum-v1", seed=i, policy_kwargs={"width": 8}, **options) for i in (0, 1)]
    drawn = draw_samples(*models, 40, data)
    assert torch.equal(drawn.base[:, 0, 1:], drawn.expert[:, 0, 1:]) and not torch.equal(drawn.base, drawn.expert)
    assert drawn.groups is not None and set(drawn.groups) == {0, 1, 2}
    features = Features.of(models[0], ["cosine", "sine", "velocity", "torque"])
    assert features.columns == ("torque", "cosine", "sine", "velocity") and features.rows == (0, 1, 2, 3)
    starts = features.windows(drawn.base)[:, 0, 1:]
    first = np.array([np.abs(data.observations - start).max(axis=1).argmin() for start in starts])
    assert (np.searchsorted(np.cumsum(lengths), first, side="right") == drawn.groups).all()
    with pytest.raises(ValueError, match="feature_names has 3 names, wanted 4 different ones"):
        Features.of(models[0], ["a", "b", "c"])


def test_simulators_name_their_entries() -> None:
    names = []
    for env_id in ("Hopper-v5", "PointMaze_UMaze-v3", "Pendulum-v1"):
        env = Task.create(env_id).make()
        names.append(names_of_environment(env))
        env.close()
    assert names[0] is not None and len(names[0]) == 11 + 3
    assert (
        names[0][:2] == ("rootz", "rooty") and names[0][5] == "rootx velocity" and names[0][-1] == "foot_joint torque"
    )
    assert names[1] == ("x", "y", "x velocity", "y velocity", "x force", "y force") and names[2] is None


def test_other_spaces_and_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="base and expert differ in event_shape"):
        rrpolicy.diff(trained(0), GaussianMixtureModel(torch.zeros(1, 2), process=PROCESS))
    with pytest.raises(ValueError, match="n_samples is 3, it must be a whole number of at least 16"):
        rrpolicy.diff(trained(0), trained(1), n_samples=3)
    of_the_plane = RelativeReward.for_model(GaussianMixtureModel(torch.zeros(1, 2), process=PROCESS), heads=["window"])
    with pytest.raises(ValueError, match=r"base and reward differ in event shape: the base has \(3,\)"):
        rrpolicy.diff(trained(0), trained(1), reward=of_the_plane)
    coarser = RelativeReward.for_model(
        GaussianMixtureModel(torch.zeros(1, 3), process=DiffusionProcess(10)), heads=["window"]
    )
    with pytest.raises(
        ValueError, match="base and reward differ in n_diffusion_steps: the base has 20, the reward has 10"
    ):
        rrpolicy.diff(trained(0), trained(1), reward=coarser)
    with pytest.raises(ValueError, match="reward was given and n_rewards is 0"):
        rrpolicy.diff(trained(0), trained(1), reward=coarser, n_rewards=0)
    with pytest.raises(ValueError, match=r"events have shape \(1, 2, 2\), wanted vectors"):
        rrpolicy.diff(*[GaussianMixtureModel(torch.zeros(1, 1, 2, 2), process=PROCESS)] * 2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two agents as files."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    data = TrajectoryDataset.from_arrays(
        rng.normal(size=(60, 3)), rng.uniform(-2, 2, (60, 1)), episode_lengths=[20] * 3
    )
    normalizer, names = Normalizer.fit(data), []
    for seed in (0, 1):
        agent = DiffusionAgent(
            "MlpPolicy",
            "Pendulum-v1",
            horizon=4,
            normalizer=normalizer,
            process=PROCESS,
            planning=PlanningOptions(clip=None),
            policy_kwargs={"width": 8, "n_blocks": 1},
            seed=seed,
        )
        agent.learn(data, 5)
        agent.save(folder / f"{seed}.zip")
        names.append(str(folder / f"{seed}.zip"))
    return names


def test_a_clip_is_held_by_the_page_or_says_why_not(found: Comparison, tmp_path: Path) -> None:
    maze = make_point_maze(goal=(3, 1), max_episode_steps=4)
    agents = {"<base>": maze_planner(maze), "expert": maze_planner(maze)}
    clip = Clip.record(agents, lambda: make_point_maze(goal=(3, 1), max_episode_steps=4), seed=2)
    assert clip.missing == "" and clip.content[4:8] == b"ftyp" and "&lt;base&gt;, expert" in clip.html()
    page = replace(found, clip=clip).write(tmp_path).read_text(encoding="utf-8")
    assert page.count("<video") == 1 and "media-src data:" in page and 'src="data:video/mp4;base64,' in page
    assert (tmp_path / CLIP_FILE).read_bytes() == clip.content
    large = Clip(bytes(MAX_EMBEDDED + 1), ("a",), 0)
    assert "<video" not in large.html() and "2.0 MiB" in large.html()
    blind = Clip.record({"a": agents["expert"]}, "Blind-v0")
    assert blind.content == b"" and blind.html().startswith('<p class="note">No video: ')
    again = replace(found, clip=blind).write(tmp_path).read_text(encoding="utf-8")
    assert "<video" not in again and not (tmp_path / CLIP_FILE).exists()


def test_the_command_films_one_start_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_id, files = "PointMaze_UMaze-v3", []
    shorten(monkeypatch, env_id, 30)
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "recipe.toml").write_text(toml(RECIPE))
    for name, goal in (("base", None), ("expert", (3, 1))):
        with closing(Task.create(env_id, goal=goal).make()) as env:
            agent = maze_planner(env)
            for parameter in agent.averaged.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
            agent.save(tmp_path / f"{name}.zip", card=Task.create(env_id, goal=goal).to_card())
        files.append(str(tmp_path / f"{name}.zip"))
    sizes = ["--n-samples", "16", "--n-rewards", "1", "--total-timesteps", "2", "--no-progress"]
    recipe = ["--recipe", str(tmp_path / "recipe.toml")]
    command = ["diff", *files, "--null", files[0], *sizes, *recipe, "--out", str(tmp_path / "out")]
    done = invoke([*command, "--env", env_id])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("<video") == 1 and (tmp_path / "out" / CLIP_FILE).exists()
    assert "base, steered at 0.5, steered at 1, expert, all from its start of seed 0" in page


def test_the_command_leaves_its_files_and_an_exit_code(pair: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["diff", *pair, "--out", str(out), "--n-samples", "16", "--n-rewards", "0", "--no-progress"]
    done = invoke([*command, "--fail-above", "1e9"])
    assert done.exit_code == 0, done.output
    assert {one.name for one in out.iterdir()} >= {"index.html", "comparison.json", "results.json"}
    assert len(json.loads((out / "comparison.json").read_text(encoding="utf-8"))["null"]["null"]) == 4
    failed = invoke([*command, "--fail-above", "0", "--null", pair[0]])
    assert failed.exit_code == 3 and "KL(1‖0) is" in failed.output
    refused = invoke([*command, "--feature-names", "a,b"])
    assert refused.exit_code == 1 and "feature_names has 2 names, wanted 4 different ones" in refused.output
