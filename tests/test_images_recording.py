"""Recordings: what both models said, on disk; stopped at any point they go on and end up the same, byte for byte."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.agents import same_tensors
from helpers.pipelines import write_ddpm, write_stable_diffusion

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.images import recording
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.recording import PromptPair, explained_rows, record_prompts, record_samples
from rrpolicy.images.safety import SafetyConfig
from rrpolicy.images.stable_diffusion import SafeModel, StableDiffusion
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards import recorded
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.recorded import RecordedPairs, record
from rrpolicy.rewards.targets import Targets, make_targets

PROCESS = DiffusionProcess(20, "cosine", "eps")
CODEC = PixelCodec((1, 4, 4))
MEANS, MOVED = 0.5 * torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
BASE, EXPERT = (
    GaussianMixtureModel(means, 0.1, torch.tensor(weights), PROCESS)
    for means, weights in ((MEANS, [0.5, 0.5]), (MEANS + 0.4 * MOVED, [0.2, 0.8]))
)
RANDOM = torch.Generator().manual_seed(1)
PROMPTS = ["a cat", "a dog", "a photo of blood", "hate", "weapons"]
EAGER = SafetyConfig(2000, 1, 0.025, 0.5, 0.7)  # with a warm-up that a few steps leave behind


def record_mixtures(folder: Path, **kwargs: Any) -> RecordedPairs:
    options = {"n_samples": 10, "n_noisings": 3, "n_sampling_steps": 5, "shard_size": 8}
    return record_samples(BASE, EXPERT, CODEC, folder, **{**options, **kwargs})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusion:
    return StableDiffusion.from_pretrained(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---------------------------------------------------------------------- what is recorded


def test_samples_of_both_models_are_noised_again(tmp_path: Path) -> None:
    pairs = record_mixtures(tmp_path)
    assert [rows for _, rows in pairs.shards] == [24, 24, 12] and len(pairs) == 60
    assert pairs.model.process == PROCESS and pairs.model.event_shape == (1, 4, 4)
    for i in range(3):
        shard = pairs.shard(i)
        wanted = BASE.eps(shard.x_t, shard.t) - EXPERT.eps(shard.x_t, shard.t)
        torch.testing.assert_close(shard.eps_difference, wanted)
        assert shard.value is not None and shard.x0 is None and 0 <= shard.t.min() <= shard.t.max() < 20
    assert record_mixtures(tmp_path / "gradients", n_value_draws=0).shard(0).value is None


@pytest.mark.parametrize("kind", ["safety", pytest.param("checkpoints", marks=pytest.mark.slow)])
def test_prompts_are_followed_along_the_denoising_of_the_base(
    kind: str, pipeline: StableDiffusion, tmp_path: Path
) -> None:
    pair = PromptPair(pipeline, safety=EAGER)
    if kind == "checkpoints":
        pair = PromptPair(pipeline, StableDiffusion.from_pretrained(write_stable_diffusion(tmp_path / "other", 1)))
    pairs = record_prompts(pair, PROMPTS, tmp_path / "pairs", 4, n_noisings=0, n_value_draws=0, shard_size=2)
    assert [rows for _, rows in pairs.shards] == [8, 8, 4]
    shard = pairs.shard(1)
    assert shard.t.tolist() == [999, 999, 666, 666, 333, 333, 0, 0] and shard.value is None
    base, expert, _ = pair.models(PROMPTS[2:4])
    steps = shard.x_t.view(4, 2, 4, 8, 8)
    path = expert.path() if isinstance(expert, SafeModel) else expert.eps
    for i, t in enumerate(shard.t.view(4, 2)):
        eps = base.eps(steps[i], t)
        difference = eps - path(steps[i], t)
        torch.testing.assert_close(shard.eps_difference.view_as(steps)[i], difference, rtol=1e-3, atol=1e-3)
        if i < 3:  # DDIM to the next level, with what the base says
            alpha, sigma = pipeline.process.alpha(int(t[0])), pipeline.process.sigma(int(t[0]))
            following = int(shard.t.view(4, 2)[i + 1, 0])
            x0 = (steps[i] - sigma * eps) / alpha
            wanted = pipeline.process.alpha(following) * x0 + pipeline.process.sigma(following) * eps
            torch.testing.assert_close(steps[i + 1], wanted, rtol=1e-3, atol=1e-3)
    differs = shard.eps_difference.view(4, -1).abs().amax(dim=1) > 1e-4
    assert differs.tolist() == [kind == "checkpoints", True, True, True]  # the warm-up is one step


@pytest.mark.slow  # by default: test_by_default_prompts_leave_values_and_samples_of_both_models
def test_values_can_be_recorded_for_prompts(pipeline: StableDiffusion, tmp_path: Path) -> None:
    pair = PromptPair(pipeline, safety=EAGER)
    pairs = record_prompts(pair, PROMPTS[:2], tmp_path, 3, n_noisings=0, n_value_draws=4, half=True)
    value = pairs.shard(0).value
    assert value is not None and value.shape == (6,) and value[:2].abs().max() < 0.01  # at pure noise
    assert value[2:].abs().min() > 0


def test_half_the_precision_is_half_the_space(tmp_path: Path) -> None:
    many = {"n_samples": 256, "shard_size": 512}
    exact, rounded = (record_mixtures(tmp_path / str(half), half=half, **many) for half in (False, True))
    sizes = [(pairs.folder / pairs.shards[0][0]).stat().st_size for pairs in (exact, rounded)]
    assert sizes[1] < 0.6 * sizes[0]
    torch.testing.assert_close(exact.shard(0).x_t, rounded.shard(0).x_t, rtol=1e-3, atol=1e-3)
    assert rounded.shard(0).x_t.dtype == torch.float32


# ---------------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_stopped_and_resumed_equals_uninterrupted(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_mixtures(tmp_path / "whole")
    made: list[int] = []

    def stopping(*arguments: Any) -> Targets:
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append(0)
        return make_targets(*arguments)

    monkeypatch.setattr(recording, "make_targets", stopping)
    with pytest.raises(KeyboardInterrupt):
        record_mixtures(tmp_path / "stopped")
    with pytest.raises(FileNotFoundError, match="holds an unfinished recording: record it again to go on"):
        RecordedPairs.open(tmp_path / "stopped")
    monkeypatch.setattr(recording, "make_targets", lambda *arguments: made.append(1) or make_targets(*arguments))
    record_mixtures(tmp_path / "stopped")
    assert made == [0] * stop_at + [1] * (3 - stop_at)  # nothing twice
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_stop_while_a_shard_is_written_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def stopping(path: Path, content: bytes) -> None:
        write(path, content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", stopping)
        with pytest.raises(KeyboardInterrupt):
            record_mixtures(tmp_path / "stopped")
    assert list(contents(tmp_path / "stopped")) == ["settings.json"]
    record_mixtures(tmp_path / "whole"), record_mixtures(tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_truncated_shard_is_named_and_made_again(tmp_path: Path) -> None:
    pairs = record_mixtures(tmp_path)
    before = contents(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors: is a truncated, damaged or missing shard"):
        pairs.draw(50, torch.Generator())
    record_mixtures(tmp_path)
    assert contents(tmp_path) == before


def test_other_settings_need_another_folder(tmp_path: Path, pipeline: StableDiffusion) -> None:
    record_mixtures(tmp_path)
    with pytest.raises(ValueError, match=r"other settings: about\.seed is 1, there it was 0; choose another folder"):
        record_mixtures(tmp_path, seed=1)
    with pytest.raises(ValueError, match="holds a recording with other settings"):
        record_prompts(PromptPair(pipeline, safety="weak"), PROMPTS, tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is not valid JSON"):
        record_mixtures(tmp_path)


# ---------------------------------------------------------------------- memory


SHARD_BYTES = 4 * 4 * (4 * 8 * 8) * 4 * 2  # prompts, steps, latents x_t and Δε in single precision


def live_bytes() -> int:
    """Bytes of all tensors that are alive."""
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) is torch.Tensor
    }
    return sum(storages.values())


def peak(monkeypatch: pytest.MonkeyPatch, place: str, run: Callable[[], object]) -> int:
    """Most bytes alive, over what was there before, at any call of ``safetensors.torch.<place>``."""
    gc.collect()  # what earlier tests left would count before, and no more when it is collected meanwhile
    before, seen, function = live_bytes(), [0], getattr(recorded.safetensors.torch, place)
    with monkeypatch.context() as patch:
        patch.setattr(recorded.safetensors.torch, place, lambda *a: seen.append(live_bytes() - before) or function(*a))
        run()
    return max(seen)


def test_memory_is_flat_in_the_number_of_prompts(
    pipeline: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = PromptPair(pipeline, safety=EAGER)

    def recorded_prompts(n: int) -> RecordedPairs:
        return record_prompts(pair, ["a cat"] * n, tmp_path / str(n), 2, n_noisings=2, n_value_draws=0, shard_size=4)

    few, many = (peak(monkeypatch, "save", lambda n=n: recorded_prompts(n)) for n in (4, 12))
    assert few >= SHARD_BYTES and many <= 1.05 * few  # x_t and Δε of one shard, and no more with more
    monkeypatch.setattr(recorded, "N_SHARDS_PER_DRAW", 3)
    few, many = (
        peak(monkeypatch, "load_file", lambda n=n: RecordedPairs.open(tmp_path / str(n)).draw(16, RANDOM))
        for n in (4, 12)
    )
    assert few > 0 and many <= few + SHARD_BYTES  # the drawn pairs and one shard


# ---------------------------------------------------------------------- learning from them


def make_extractor(model: Any, **kwargs: Any) -> RewardExtractor:
    options = {
        "heads": ("window",),
        "window_kwargs": {"network": "conv", "width": 8, "multipliers": (1, 1)},
        "batch_size": 8,
        "buffer_size": 32,
        "n_epochs": 1,
        "seed": 0,
    }
    return RewardExtractor(model, model, **{**options, **kwargs})


def test_every_pair_is_drawn_equally_often(tmp_path: Path) -> None:
    def make(shard: int) -> Targets:
        n = 4 ** (shard + 1)
        rows = 100 * shard + torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, 4, 4)
        return Targets(None, rows, torch.arange(n) % 20, rows.clone(), None)

    pairs = record(tmp_path, BASE, {}, 3, make)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([pairs.draw(84, generator).x_t[:, 0, 0, 0] for _ in range(100)])
    counts = torch.stack([((drawn >= 100 * i) & (drawn < 100 * i + 100)).float().mean() for i in range(3)])
    torch.testing.assert_close(counts, torch.tensor([4, 16, 64]) / 84, rtol=0, atol=0.02)
    assert len(drawn.unique()) == 84


def test_a_recording_is_not_its_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the models: learn from it, or load them"):
        record_mixtures(tmp_path).model.eps(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64))


@pytest.mark.slow  # a fit; a few steps are taken below
def test_a_reward_is_learned_from_a_recording_alone(tmp_path: Path) -> None:
    def make(shard: int) -> Targets:
        generator = torch.Generator().manual_seed(shard)
        x0 = torch.cat([model.sample(400, generator) for model in (BASE, EXPERT)])
        return replace(make_targets(BASE, EXPERT, x0, generator, 4), x0=None)

    pairs = record(tmp_path, BASE, {}, 12, make)
    train, held_out = pairs.split()
    assert [one for one, _ in held_out.shards] == ["shard-00000.safetensors"] and len(train.shards) == 11
    kwargs = {"network": "conv", "width": 16, "multipliers": (1, 2)}
    extractor = make_extractor(pairs.model, buffer_size=4096, batch_size=64, n_epochs=4, window_kwargs=kwargs)
    reward = extractor.learn(train, 150).reward
    x_t, t = torch.cat([BASE.sample(200, RANDOM), EXPERT.sample(200, RANDOM)]), torch.zeros(400, dtype=torch.int64)
    with torch.no_grad():
        exact, rho = EXPERT.log_prob(x_t, t) - BASE.log_prob(x_t, t), reward(x_t, t)
    assert float(torch.corrcoef(torch.stack([exact, rho]))[0, 1]) > 0.97
    assert abs(float((rho - exact).mean())) < 0.15 * float(exact.std())
    explained = dict(explained_rows(reward, held_out, 500))
    assert list(explained) == ["r2", "r2_t0-4", "r2_t5-9", "r2_t10-14", "r2_t15-19"] and explained["r2"] > 0.9


def test_learning_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    pairs = record_mixtures(tmp_path / "pairs", n_samples=40)
    whole = make_extractor(pairs.model).learn(pairs, 14)
    make_extractor(pairs.model).learn(
        pairs, 14, callback=lambda local, _: local["self"].num_timesteps < 6, checkpoint_path=tmp_path / "stopped"
    )
    resumed = RewardExtractor.load(tmp_path / "stopped", base=pairs.model, expert=pairs.model)
    assert resumed.num_timesteps == 6
    resumed.learn(pairs, 8, reset_num_timesteps=False)
    assert same_tensors(whole.get_parameters(), resumed.get_parameters())


def test_levels_that_were_not_recorded_take_after_the_nearest(tmp_path: Path) -> None:
    process = DiffusionProcess(100, "cosine", "eps")
    model = GaussianMixtureModel(MEANS, 0.05, process=process)

    def make(shard: int) -> Targets:
        t = torch.tensor([0, 50, 99]).repeat(8)
        return Targets(None, torch.randn(24, 1, 4, 4), t, (t + 1.0).view(-1, 1, 1, 1).expand(24, 1, 4, 4), None)

    pairs = record(tmp_path, model, {}, 1, make)
    assert pairs.split() == (pairs, pairs)
    scale = make_extractor(pairs.model).learn(pairs, 1).reward.gradient_scale
    assert bool((scale > 0).all()) and bool(torch.isfinite(scale).all())
    x0_per_eps = process.sigma(torch.arange(100)) / process.alpha(torch.arange(100))
    rms = scale * process.sigma(torch.arange(100)) * x0_per_eps  # of Δx̂0, which neighbouring levels share
    assert rms[20] == pytest.approx(float(rms[0]), rel=1e-4) and rms[30] == pytest.approx(float(rms[50]), rel=1e-4)


def test_recordings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pairs = record_mixtures(tmp_path / "pairs")
    other = GaussianMixtureModel(MEANS, 0.05, process=DiffusionProcess(30))
    with pytest.raises(ValueError, match=r"data was recorded with .*, base and expert are"):
        make_extractor(other).learn(pairs, 1)
    flat = record(tmp_path / "flat", GaussianMixtureModel(torch.zeros(2, 3, 2)), {}, 1, lambda _: _flat())
    with pytest.raises(ValueError, match=r"without clean events, which a step head needs: pass heads=\('window',\)"):
        RewardExtractor(flat.model, flat.model, heads=["step"], batch_size=2, buffer_size=4).learn(flat, 1)


def _flat() -> Targets:
    return Targets(None, torch.randn(4, 3, 2), torch.tensor([0, 10, 20, 49]), torch.randn(4, 3, 2), None)


def test_bad_settings_are_refused(tmp_path: Path, pipeline: StableDiffusion) -> None:
    for name in ("n_samples", "n_noisings"):
        with pytest.raises(ValueError, match=f"{name} is 0, it must be positive"):
            record_mixtures(tmp_path, **{name: 0})
    with pytest.raises(ValueError, match="there are 0 prompts and shard_size is 4"):
        record_prompts(PromptPair(pipeline, safety="weak"), [], tmp_path)
    for arguments in ({}, {"expert": pipeline, "safety": "weak"}):
        with pytest.raises(ValueError, match="give either an expert pipeline or a strength of safety guidance"):
            PromptPair(pipeline, **arguments)
    with pytest.raises(ValueError, match="safety is 'huge'"):
        PromptPair(pipeline, safety="huge")
    small = StableDiffusion.from_pretrained(write_stable_diffusion(tmp_path / "small", size=4))
    with pytest.raises(ValueError, match=r"differ in event_shape: base has \(4, 8, 8\), expert has \(4, 4, 4\)"):
        PromptPair(pipeline, small)
    broken = UNetScoreModel.from_pretrained(write_ddpm(tmp_path / "ddpm"))
    next(broken.unet.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="the models' x_t holds NaN or inf"):
        record_samples(broken, broken, broken.codec, tmp_path / "nan", n_samples=2, shard_size=2)


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "format": lambda manifest: manifest.update(format=2),
    "shards": lambda manifest: manifest.update(shards=[["../shard", 3]]),
    "space": lambda manifest: manifest["about"].pop("space"),
    "process": lambda manifest: manifest["about"]["space"].update(process={"schedule": "square"}),
}


@pytest.mark.parametrize("fault", MANIFESTS)
def test_damaged_recordings_are_refused(fault: str, tmp_path: Path) -> None:
    record_mixtures(tmp_path, n_samples=1)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    MANIFESTS[fault](manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json: is not a valid manifest"):
        RecordedPairs.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no recording"):
        RecordedPairs.open(tmp_path / "nowhere")


def test_foreign_shards_are_refused(tmp_path: Path) -> None:
    pairs = record_mixtures(tmp_path, n_samples=1)
    whole = recorded.safetensors.torch.load_file(tmp_path / "shard-00000.safetensors")
    for tensors, message in (
        ({name: whole[name] for name in ("x_t", "t")}, "lacks eps_difference"),
        ({**whole, "t": whole["t"] + 20}, r"t lies outside 0\.\.19"),
        ({**whole, "value": torch.zeros(2)}, r"value has shape \(2,\), wanted \(6,\)"),
    ):
        recorded.safetensors.torch.save_file(tensors, tmp_path / "shard-00000.safetensors")
        with pytest.raises(ValueError, match=message):
            pairs.shard(0)
