"""Robots in the zoo: what a build leaves, that it goes on and starts anew when it should, page, list and commands."""

import json
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest
from helpers import robots
from helpers.program import invoke
from helpers.robots import BASE, ENV_ID, EXPERT, REWARD, robot_zoo

from rrpolicy import DiffusionAgent, RelativeReward, experiments, zoo
from rrpolicy.experiments import DEFAULT_RECIPE, Task
from rrpolicy.experiments.scoring import with_episodes
from rrpolicy.experiments.zoo_build import robot_unit


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with robots.built_zoo(tmp_path_factory.mktemp("built") / "zoo") as folder:
        yield folder


def means(name: str) -> dict[tuple[str, str], float]:
    return {(row["agent"], row["metric"]): row["mean"] for row in zoo.info(name)["results"]}


def test_names_give_agents_and_a_reward_that_fit_together() -> None:
    base, reward = zoo.load(BASE), zoo.load(REWARD)
    assert isinstance(base, DiffusionAgent) and isinstance(zoo.load(EXPERT), DiffusionAgent)
    assert isinstance(reward, RelativeReward)
    steered = experiments.steer(base, reward, robots.RECIPE)
    env = Task(ENV_ID).make()
    action, _ = steered.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(action)
    env.close()


def test_cards_say_what_was_made_and_measured(built: Path) -> None:
    both = {("agent", "return"), ("agent", "normalized_score"), ("data", "return"), ("data", "normalized_score")}
    assert set(means(BASE)) == set(means(EXPERT)) == both
    reward = means(REWARD)
    for agent in ("steered", "steered-1", "steered-2", "discriminator"):
        assert {(agent, "return"), (agent, "normalized_score"), (f"{agent}-base", "normalized_score")} <= set(reward)
    assert reward["steered-base", "normalized_score"] == pytest.approx(
        reward["steered", "normalized_score"] - means(BASE)["agent", "normalized_score"]
    )
    assert zoo.info(REWARD)["steering"] == robots.RECIPE["steering"]
    assert ("reward", "r2_guided_t0") in reward
    for name in (BASE, EXPERT, REWARD):
        card = zoo.info(name)
        assert (card["case"], card["seed"], card["recipe"], card["goal"]) == ("noisy", 0, "hopper", None)
        assert card["bytes"] == zoo.find(name).stat().st_size
        card.pop("bytes")
        assert json.loads(json.dumps(zoo.card(name))) == card


def test_cards_tell_how_data_were_collected() -> None:
    data = zoo.info(BASE)["data"]
    assert data["n_transitions"] == 400 and data["action_noise"] == 0.5 and data["n_episodes"] > 1
    assert [one["name"] for one in data["agents"]] == ["sb3/sac-Hopper-v3"]
    assert "returns" not in data["agents"][0] and zoo.info(EXPERT)["data"]["action_noise"] == 0


def test_every_entry_has_a_small_video_in_real_time(built: Path) -> None:
    for name in (BASE, EXPERT, REWARD):
        path = built / "agents" / name / zoo.info(name)["video"]
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
        assert frames > 10 and 0.3 < seconds < 0.7 and path.stat().st_size < 3e5  # ends of episodes are shown, too


def test_the_page_and_the_list_show_scores(built: Path) -> None:
    page = zoo.table()
    assert (built / "README.md").read_text(encoding="utf-8") == page
    rows = [line for line in page.partition("## Robots")[2].splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [BASE, EXPERT, REWARD]
    assert all(row.count("|") == len(zoo.page.ROBOT_COLUMNS) + 1 for row in rows)
    assert f"(agents/{BASE}/video.mp4)" in rows[0] and "| noisy |" in rows[0]
    listed = invoke(["zoo", "list"]).output.splitlines()
    assert f"score {means(BASE)['agent', 'normalized_score']:.1f}" in listed[0]
    assert "normalized_score" in invoke(["zoo", "info", REWARD]).output


def test_the_share_of_the_gap_stands_below_the_score(tmp_path: Path) -> None:
    def row(agent: str, metric: str, mean: float) -> dict[str, object]:
        return {"agent": agent, "metric": metric, "mean": mean, "ci_low": mean - 1, "ci_high": mean + 1, "n": 3}

    results = [row("steered-1", "normalized_score", 50), row("steered-1", "gap_closed", 0.75)]
    card = {"name": REWARD, "kind": "reward", "environment": ENV_ID, "results": results, "bytes": 2**20}
    entry = tmp_path / "agents" / REWARD
    entry.mkdir(parents=True)
    (entry / zoo.CARD).write_text(json.dumps(card))
    assert "| 50.0 [49.0, 51.0]<br>0.75 of the gap |" in zoo.table(tmp_path)


def test_a_finished_build_has_nothing_to_do_and_a_stopped_one_does_not_train_again(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    robot_zoo(built, log=said.append).run()
    assert said == [f"{ENV_ID}: there already"]
    before = {path: path.read_bytes() for path in (built / "agents").rglob("*.*")}
    (built / "agents" / EXPERT / zoo.CARD).unlink()  # as if stopped before the expert was finished
    for name in ("train_expert", "extract_on_policy", "discriminate"):
        monkeypatch.setattr(experiments, name, pytest.fail)
    robot_zoo(built, log=said.append).run()
    assert f"{ENV_ID}: building" in said
    assert [path for path, content in before.items() if path.read_bytes() != content] == []


def test_other_data_or_a_wish_are_reasons_to_build(built: Path) -> None:
    kinds = {"base": "agent", "expert": "agent", "reward": "reward"}
    assert all(robot_zoo(built).entries.finished(name, kind) for name, kind in kinds.items())
    assert not any(robot_zoo(built, case="mixture").entries.finished(name, kind) for name, kind in kinds.items())
    assert with_episodes(robots.RECIPE, 3)["evaluation"] == {"n_eval_episodes": 3}


def test_the_command(built: Path, tmp_path: Path) -> None:
    folder = built.parent
    given = [
        "zoo",
        "build",
        ENV_ID,
        "--agents",
        folder / "agents",
        "--work",
        folder / "work",
        "--n-episodes",
        3,
        "--out",
        tmp_path,
        "--date",
        "2026-01-03",
    ]
    result = invoke(given)
    assert result.exit_code == 0, result.output
    cards = {card["name"]: card for card in zoo.entries(tmp_path)}
    assert set(cards) == {BASE, EXPERT, REWARD} and cards[BASE]["date"] == "2026-01-03"
    assert {row["n"] for row in cards[REWARD]["results"][:4]} == {3}
    assert zoo.load_agent(tmp_path / "agents" / BASE).fingerprint() == zoo.load_agent(BASE).fingerprint()


def test_what_a_build_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recipe 'default' does not say how demonstrations in Ant-v5 are made"):
        robot_unit("Ant-v5", DEFAULT_RECIPE)
    result = invoke(["zoo", "build", ENV_ID, "--case", "none"])
    assert result.exit_code == 1 and "case must be one of noisy, replay, mixture, got 'none'" in result.stderr
    result = invoke(["zoo", "build", "Ant-v5"])
    assert result.exit_code == 1 and "no recipe for 'Ant-v5', there are fashion_mnist, halfcheetah" in result.stderr
    result = invoke(["zoo", "build", "PointMaze_UMaze-v3"])
    assert result.exit_code == 2 and "is needed in a maze" in result.stderr
