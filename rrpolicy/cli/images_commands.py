"""Commands for image models: record the predictions of two models, extract a reward, score, sample and audit."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from rrpolicy import zoo
from rrpolicy.cli import images_options as inputs
from rrpolicy.cli import options
from rrpolicy.cli.images_audit import audit
from rrpolicy.cli.images_options import check_levels, load_reward, parse_levels
from rrpolicy.cli.images_pairs import ExpertOptions, lone_model, models_to_draw, prompt_pair, unet_pair
from rrpolicy.cli.images_scoring import (
    TOLD,
    denoiser_of,
    echo_left_out,
    echo_nothing,
    echo_unlike,
    label_rows,
    null_of,
    scores_of,
    write_left_out,
    write_scores,
)
from rrpolicy.cli.options import report
from rrpolicy.cli.program import echo
from rrpolicy.cli.prompt_files import echo_cut, read_prompts
from rrpolicy.common.computing import check_as_before
from rrpolicy.common.folders import sole_use
from rrpolicy.common.jobs import Jobs
from rrpolicy.common.options import ComputingOptions
from rrpolicy.common.processes import current
from rrpolicy.common.version import __version__
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible
from rrpolicy.evaluation import RESULTS_FILE, Row, result_row
from rrpolicy.experiments import plain_row
from rrpolicy.experiments.demos import ImagesDemo
from rrpolicy.experiments.runs import begin_anew
from rrpolicy.images.codec import Codec
from rrpolicy.images.folders import find_pictures, write_pictures
from rrpolicy.images.null import models_differ
from rrpolicy.images.parts import is_single_file, quiet
from rrpolicy.images.recording import codec_of, explained_rows, finished_reward, record_prompts, record_samples
from rrpolicy.images.reward import NO_DIFFERENCE, ImageReward
from rrpolicy.images.sampling import sample_images
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.recorded import RecordedPairs

images_app = typer.Typer(help="What one image diffusion model prefers over another.", **options.SETTINGS)
BUFFER_BYTES = 2**28  # of recorded events in memory while a reward is learned
MAX_BUFFER = 16_384


@images_app.callback()
def images() -> None:
    """What one image diffusion model prefers over another."""
    quiet()


@images_app.command()
def record(
    base: Annotated[str, typer.Option("--base", help="The weak model: folder, hub name, or one file of weights.")],
    out: options.Out,
    expert: inputs.Expert = None,
    expert_unet: inputs.ExpertUNet = None,
    expert_lora: inputs.ExpertLora = None,
    safety: inputs.ExpertSafety = None,
    config: inputs.Config = None,
    class_label: inputs.ClassLabel = None,
    prompts: inputs.Prompts = None,
    n_samples: Annotated[int, typer.Option("--n-samples", min=1, help="Of each model, without prompts.")] = 1500,
    n_noisings: Annotated[
        int, typer.Option("--n-noisings", min=0, help="Of each sample; 0, with prompts: along the denoising.")
    ] = 11,
    n_value_draws: Annotated[
        int | None, typer.Option("--n-value-draws", min=0, help="Per value; default: 2, with prompts 1; 0: none.")
    ] = None,
    n_sampling_steps: inputs.SamplingSteps = None,
    guidance_scale: inputs.GuidanceScale = None,
    half: Annotated[bool, typer.Option("--half", help="Store events in half precision.")] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: inputs.Dtype = inputs.Precision.float32,
    progress: options.Progress = True,
    jobs: options.NumberOfJobs = 1,
    scheduler: options.Scheduler = None,
) -> None:
    """
    Write the predictions of two models to disk, in shards; called again, a stopped recording is continued.

    Without prompts: two DDPMPipeline or UNet2DModel folders at their own samples. With prompts: Stable Diffusion along
    its denoising, against another checkpoint (--expert), itself with a changed network (--expert-unet, --expert-lora)
    or itself with safety guidance (--safety).

    \b
    Examples:
      rrpolicy images record --base models/all --expert models/harmless --out runs/pairs
      rrpolicy images record --base models/sd-1.4 --safety strong --prompts prompts.txt --out runs/sld --device cuda
      rrpolicy images record --base models/sd-1.4 --expert models/sd-1.5 --prompts prompts.csv --out runs/checkpoints
      rrpolicy images record --base models/sd-1.5 --expert-lora erased.safetensors --prompts prompts.txt --out runs/lora
    """
    chosen = ExpertOptions.of(expert, expert_unet, expert_lora, safety)
    about = {
        "base": base,
        "expert": chosen.describe(base),
        "dtype": dtype.value,
        **({} if class_label is None else {"class_label": class_label}),
    }
    kept: dict[str, Any] = {"half": half, "seed": seed, "progress_bar": progress, "about": about}
    kept["jobs"] = Jobs(jobs, scheduler)
    if prompts is None:
        unets = unet_pair(base, chosen, class_label, device, dtype, config)
        draws, steps = 2 if n_value_draws is None else n_value_draws, n_sampling_steps or 25
        with sole_use(out):
            pairs = record_samples(*unets, unets[0].codec, out, n_samples, n_noisings, draws, steps, **kept)
    else:
        texts = read_prompts(prompts)
        pair = prompt_pair(base, chosen, class_label, guidance_scale, device, dtype, config)
        echo_cut(texts, pair.base)
        if pair.base.note is not None:
            echo(f"note: {pair.base.note}")
            about["note"] = pair.base.note
        draws, steps = 1 if n_value_draws is None else n_value_draws, n_sampling_steps or 50
        with sole_use(out):
            pairs = record_prompts(pair, texts, out, steps, n_noisings, draws, **kept)
    echo(f"{len(pairs)} pairs in {len(pairs.shards)} shards: {out}")


@images_app.command()
def extract(
    recording: Annotated[Path, typer.Option("--recording", metavar="DIR", help="What `images record` has written.")],
    out: options.Out,
    total_timesteps: Annotated[int, typer.Option("--total-timesteps", min=0, help="Gradient steps.")] = 3000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pairs per gradient step.")] = 64,
    start_from: Annotated[
        str | None, typer.Option("--start-from", metavar="FOLDER", help="Base whose U-Net the reward begins with.")
    ] = None,
    width: Annotated[int, typer.Option("--width", min=8, help="Channels of a network that begins anew.")] = 48,
    value_coef: Annotated[
        float, typer.Option("--value-coef", min=0, callback=options.finite, help="Weight of value matching.")
    ] = 0.3,
    seed: options.Seed = 0,
    checkpoint_freq: Annotated[int, typer.Option("--checkpoint-freq", min=1, help="Steps per checkpoint.")] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    progress: options.Progress = True,
    precision: options.Precision = None,
    accumulate: options.Accumulate = None,
    fast_noise: options.FastNoise = None,
    device: options.Device = "auto",
) -> None:
    """
    Learn the reward that explains a recording; leaves reward.zip, checkpoint.zip and R² on held-out pairs.

    \b
    Examples:
      rrpolicy images extract --recording runs/pairs --out runs/reward
      rrpolicy images extract --recording runs/pairs --start-from models/all --out runs/reward
      rrpolicy images extract --recording runs/pairs --out runs/reward --resume
    """
    pairs = RecordedPairs.open(recording)
    codec, (train, held_out) = codec_of(pairs), pairs.split()
    how = {"precision": precision, "accumulate": accumulate, "fast_noise": fast_noise}
    with sole_use(out):
        checkpoint = out / "checkpoint.zip"
        resume = resume and checkpoint.exists()
        if resume:
            extractor = RewardExtractor.load(checkpoint, base=pairs.model, expert=pairs.model)
            check_as_before(extractor, how)
        else:
            given: Any = {name: value for name, value in how.items() if value is not None}
            extractor = _new_extractor(pairs, start_from, width, batch_size, value_coef, seed, given)
            if current().is_main:
                begin_anew(out, ("reward.zip", "checkpoint.zip", RESULTS_FILE), extractor)
        remaining = max(total_timesteps - extractor.num_timesteps, 0)
        extractor.learn(
            train,
            remaining,
            reset_num_timesteps=not resume,
            progress_bar=progress,
            checkpoint_path=checkpoint,
            checkpoint_freq=checkpoint_freq,
            fit_dataset=held_out,
        )
        if current().is_main:
            report(_finish_reward(extractor, pairs, held_out, codec, out, seed), out)


def _finish_reward(
    extractor: RewardExtractor, pairs: RecordedPairs, held_out: RecordedPairs, codec: Codec, out: Path, seed: int
) -> list[Row]:
    """Write the calibrated reward with its card, and print the results."""
    explained, differ = explained_rows(extractor.reward, held_out), models_differ(pairs)
    r2 = round(dict(explained).get("r2", 0.0), 4)
    reward, found = finished_reward(extractor, pairs, held_out, codec, differ, r2)
    facts = {
        "recording": {name: value for name, value in pairs.about.items() if name not in ("prompts", "space", "codec")},
        "n_prompts": len(pairs.about.get("prompts") or ()) or None,
        "pairs": len(pairs),
        "steps": extractor.num_timesteps,
        "seed": seed,
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "difference": differ,
        "r2": r2,
        **found,
    }
    reward.save(out / "reward.zip", card=facts)
    echo(
        f"scores are {'in nats' if reward.in_nats else 'an order: the recording has no values'}"
        + (f", zero from {facts['calibration']}" if "calibration" in facts else "")
    )
    if not differ:
        echo(f"{NO_DIFFERENCE}: base and expert predict the same at all {len(pairs)} recorded pairs")
        return [plain_row("models", "difference", 0.0)]
    if reward.nothing:
        echo(reward.nothing)
    echo(f"{reward.reward.fit or ''}")
    return [plain_row("reward", name, value) for name, value in explained]


def _new_extractor(
    pairs: RecordedPairs,
    start_from: str | None,
    width: int,
    batch_size: int,
    value_coef: float,
    seed: int,
    how: ComputingOptions,
) -> RewardExtractor:
    base: ScoreModel = pairs.model
    if start_from is not None:  # a model with class labels was recorded with one of them
        models = pairs.about.get("models")
        label = models.get("class_label") if isinstance(models, dict) else None
        base = UNetScoreModel.from_pretrained(start_from, class_label=label).without_labels()
    check_compatible(pairs.model, base)
    network = {"network": "conv", "width": width} if start_from is None else {"network": "unet-encoder"}
    size = min(MAX_BUFFER, max(batch_size, BUFFER_BYTES // (8 * int(np.prod(pairs.model.event_shape)))))
    return RewardExtractor(
        base,
        base,
        ["window"],
        batch_size=batch_size,
        buffer_size=size,
        value_coef=value_coef,
        value_units=value_coef > 0 and bool(pairs.about["n_value_draws"]),
        window_kwargs=network,
        seed=seed,
        **how,
    )


@images_app.command()
def score(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURES...", help="Files and folders.")],
    reward: inputs.Reward,
    pipeline: inputs.Pipeline = None,
    config: inputs.Config = None,
    levels: Annotated[
        str | None, typer.Option("--levels", help="Noise levels to average over: 0,20,40; default: the reward's.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The recorded base: flag pictures by its denoising error, too.")
    ] = None,
    class_label: inputs.ClassLabel = None,
    dtype: inputs.Dtype = inputs.Precision.float32,
    null: inputs.Nulls = None,
    resize: inputs.Resize = False,
    strict: inputs.Strict = False,
    out: options.MaybeOut = None,
    device: options.Device = "auto",
    progress: options.Progress = True,
) -> None:
    """
    Score pictures; the table shows the mean of each label (sub-folder), scores.csv every picture.

    Files that cannot be read are left out and listed, with --out in left_out.csv. Pictures unlike anything that the two
    models make are flagged in scores.csv, and no mean is about them. Where base and expert do not differ, or with
    --null no more than two trainings of one model, a line is printed.

    \b
    Examples:
      rrpolicy images score photos --reward runs/reward/reward.zip --out runs/scores
      rrpolicy images score one.png two.png --reward runs/reward/reward.zip --pipeline models/sd-1.4 --resize
    """
    asked, found = None if levels is None else parse_levels(levels), find_pictures(pictures, strict)
    if base is None and not (class_label is None and (config is None or pipeline)):
        raise ValueError("--class-label and --config are for --base, which is not given")
    own = config if base is None or (pipeline is not None and is_single_file(pipeline)) else None
    scorer = load_reward(reward, pipeline, device, own)
    chosen = [scorer.level] if asked is None else asked
    check_levels(chosen, scorer)
    denoiser = None
    if base is not None:
        denoiser = denoiser_of(scorer, zoo.card(reward), lone_model(base, class_label, device, dtype, config))
    scored = scores_of(scorer, found, [(chosen, 0)], resize, strict, progress, denoiser)
    rho = scored.rho[0].mean(axis=0)
    null_scores = null_of(null or (), scorer, scored.pictures, resize, progress, chosen)
    for one, value in zip(scored.pictures, rho, strict=True) if len(rho) <= TOLD else ():
        echo(f"{value:+.3f}  {one.path}")
    echo_left_out(scored.left_out, found.others)
    echo(f"rho: {scorer.unit}")
    echo_nothing(scorer, null_scores, rho, ~scored.unlike)
    echo_unlike(scored)
    rows = label_rows(scored, rho)
    if out is not None:
        write_scores(out, scored, (str(one.path) for one in scored.pictures), rho)
        write_left_out(out, scored.left_out)
    report(rows, out)


@images_app.command()
def sample(
    model: Annotated[
        str, typer.Option("--model", "--base", help="Folder, hub name or file of the model to sample from.")
    ],
    out: options.Out,
    expert: inputs.Expert = None,
    expert_unet: inputs.ExpertUNet = None,
    expert_lora: inputs.ExpertLora = None,
    safety: inputs.ExpertSafety = None,
    reward: Annotated[str | None, typer.Option("--reward", help="Steer the model with this image reward.")] = None,
    config: inputs.Config = None,
    class_label: inputs.ClassLabel = None,
    scale: Annotated[
        float, typer.Option("--scale", min=0, callback=options.finite, help="Strength of the steering.")
    ] = 1.0,
    prompts: inputs.Prompts = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Pictures; with prompts, of the first so many.")] = 16,
    n_sampling_steps: inputs.SamplingSteps = None,
    guidance_scale: inputs.GuidanceScale = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: inputs.Dtype = inputs.Precision.float32,
) -> None:
    """
    Draw pictures, from the same noise for the same seed, whatever steers; of the expert where one is named.

    \b
    Examples:
      rrpolicy images sample --model models/all --out runs/base
      rrpolicy images sample --model models/all --reward runs/reward/reward.zip --scale 2 --out runs/steered
      rrpolicy images sample --model models/sd-1.4 --prompts prompts.txt --reward runs/sld/reward.zip --out runs/safe
      rrpolicy images sample --model models/sd-1.4 --safety strong --prompts prompts.txt --out runs/expert
    """
    chosen = ExpertOptions.of(expert, expert_unet, expert_lora, safety)
    models, n = models_to_draw(model, chosen, prompts, n, guidance_scale, class_label, device, dtype, config)
    source = models[-1]
    scorer = None if reward is None else ImageReward.load(zoo.find(reward), device=device, codec=source.codec)
    steps = n_sampling_steps or min(50 if prompts else 25, source.process.n_diffusion_steps)
    with sole_use(out):
        drawn = sample_images(source, n, n_sampling_steps=steps, reward=scorer, scale=scale, seed=seed)
        paths = write_pictures(drawn, out, "sample")
        echo(f"{len(paths)} pictures: {out}")
        if scorer is not None:
            report([result_row(f"scale {scale:g}", "rho", scorer.predict(drawn))], out)


images_app.command()(audit)


@images_app.command()
def demo(
    out: options.Out = Path("runs/images_demo"),
    seed: options.Seed = 0,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder of real images; default: Fashion-MNIST's.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each model.")] = 512,
    device: options.Device = "auto",
) -> None:
    """
    Demo: the zoo's base, its expert, and the base steered by the reward extracted from the two.

    Counts samples of held-out classes with the zoo's classifier and scores real images with the reward, where
    Fashion-MNIST is installed, else the base's own samples. Leaves results.json, samples.png and the audit page
    index.html.

    \b
    Examples:
      rrpolicy images demo --out runs/images_demo
      rrpolicy images demo --seed 1 --n 1000 --data photos --out runs/images_demo
    """
    with sole_use(out):
        ImagesDemo(out, seed, data, n, echo).run()
