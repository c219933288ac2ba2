"""The command ``rrpolicy images audit``: a page about a folder of pictures and a reward."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from rrpolicy import zoo
from rrpolicy.cli import images_options as inputs
from rrpolicy.cli import options
from rrpolicy.cli.images_options import check_levels, load_reward, parse_levels, parse_scales
from rrpolicy.cli.images_pairs import ExpertOptions, models_to_draw
from rrpolicy.cli.images_scoring import (
    Scored,
    denoiser_of,
    echo_left_out,
    echo_nothing,
    echo_unlike,
    label_rows,
    labels_of,
    name_below,
    null_of,
    scores_of,
    write_left_out,
    write_scores,
)
from rrpolicy.cli.label_files import Labelled, read_labels
from rrpolicy.cli.options import report
from rrpolicy.cli.program import echo
from rrpolicy.cli.prompt_files import read_prompts
from rrpolicy.common.messages import printable
from rrpolicy.common.stats import auroc
from rrpolicy.common.typing import Array
from rrpolicy.common.version import __version__
from rrpolicy.evaluation import Row
from rrpolicy.experiments import plain_row
from rrpolicy.experiments.results import estimate_row
from rrpolicy.images.audit import write_audit
from rrpolicy.images.audited import UNLABELLED
from rrpolicy.images.evidence import Evidence
from rrpolicy.images.folders import Found, ReadAgain, counted, find_pictures
from rrpolicy.images.null import Null, spread
from rrpolicy.images.parts import is_single_file
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import ImageModel, sample_images

N_NOISINGS = 2  # of each picture at each level of the audit
N_STEPS, N_STEPS_OF_PROMPTS = 25, 50  # of the samples that are shown


def audit(
    pictures: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures; sub-folders are labels.")],
    reward: inputs.Reward,
    out: options.Out,
    pipeline: inputs.Pipeline = None,
    config: inputs.Config = None,
    unwanted: Annotated[
        list[str] | None, typer.Option("--unwanted", help="Label that should score low; repeatable.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option("--levels", help="Noise levels to look at; default: nine from clean to noise.")
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="CSV with path or filename, and label, for sub-folders."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "--base", help="Show samples of this model, steered and not.")
    ] = None,
    expert: inputs.Expert = None,
    expert_unet: inputs.ExpertUNet = None,
    expert_lora: inputs.ExpertLora = None,
    safety: inputs.ExpertSafety = None,
    class_label: inputs.ClassLabel = None,
    guidance_scale: inputs.GuidanceScale = None,
    scales: Annotated[str, typer.Option("--scales", help="Strengths of the steering to show.")] = "0,1,2",
    prompts: inputs.Prompts = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples at each strength.")] = 8,
    seed: options.Seed = 0,
    denoising: Annotated[
        bool | None,
        typer.Option(
            "--denoising/--no-denoising", help="Flag pictures by --model's error, too; default: without prompts."
        ),
    ] = None,
    null: inputs.Nulls = None,
    resize: inputs.Resize = False,
    strict: inputs.Strict = False,
    device: options.Device = "auto",
    dtype: inputs.Dtype = inputs.Precision.float32,
    progress: options.Progress = True,
) -> None:
    """
    Write a page about a folder of pictures: ranked, the highest and the lowest, by label and by noise level.

    One HTML file that loads nothing. With --unwanted it has the AUROC at each noise level; with --model, samples of
    the model steered by the reward beside its own, and those of an expert that is named as for record; with --null,
    whether ρ spreads further than between two trainings of one model. Every picture stands in scores.csv. Files that
    cannot be read are listed, also in left_out.csv.

    \b
    Examples:
      rrpolicy images audit photos --reward runs/reward/reward.zip --out runs/audit
      rrpolicy images audit photos --reward runs/reward/reward.zip --labels labels.csv --unwanted gore --out runs/audit
      rrpolicy images audit photos --reward runs/reward/reward.zip --model models/all --out runs/audit
      rrpolicy images audit photos --reward runs/reward/reward.zip --unwanted harmful --out runs/audit
    """
    strengths, asked = parse_scales(scales), None if levels is None else parse_levels(levels)
    shown = ExpertOptions.of(expert, expert_unet, expert_lora, safety)
    bare = guidance_scale is None and class_label is None and (config is None or pipeline is not None)
    _check_model(model, shown.given, bool(denoising), bare)
    judges = model is not None and (prompts is None if denoising is None else denoising)
    found, table = _labelled(find_pictures([pictures], strict), labels_file, pictures)
    _check_unwanted(unwanted or (), found, labels_file or pictures)
    scorer = _reward(reward, pipeline or (model if prompts else None), model, config, device)
    check_levels(chosen := _nine_levels(scorer) if asked is None else asked, scorer)
    drawn = (shown, prompts, n, guidance_scale, class_label, device, dtype, config)
    sources, n = ([], 0) if model is None else models_to_draw(model, *drawn)
    denoiser = denoiser_of(scorer, zoo.card(reward), sources[0]) if judges else None
    scored = scores_of(scorer, found, [([scorer.level], 0), (chosen, N_NOISINGS)], resize, strict, progress, denoiser)
    (rho,), at_levels = scored.rho
    null_scores = null_of(null or (), scorer, scored.pictures, resize, progress)
    samples = _side_by_side(scorer, sources, n, N_STEPS_OF_PROMPTS if prompts else N_STEPS, strengths, seed)
    labels = labels_of(scored.pictures, UNLABELLED if table is None else None) or [None] * len(rho)
    low = set(unwanted or ()) & set(labels)  # those that are left
    names = [name_below(one.path, pictures) for one in scored.pictures]
    told = ("sub-folders" if any(labels) else "none") if table is None else table.told
    facts = _facts(reward, pictures, resize, told, model, shown)
    echo_nothing(scorer, null_scores, rho, ~scored.unlike)
    page = write_audit(
        out,
        ReadAgain(scored.pictures, scorer.codec.image_shape, resize),
        rho,
        names=names,
        labels=labels if any(labels) else None,
        unwanted=low,
        per_level=(chosen, at_levels),
        samples=samples,
        prompts=read_prompts(prompts)[:n] if prompts and model else (),
        **_apart(scored, found, pictures),
        null=null_scores,
        evidence=Evidence.of(scorer, zoo.card(reward), denoiser is not None, **facts),
    )
    write_scores(out, scored, names, rho)
    _tell(out, scored, found)
    report(_rows(scored, rho, labels, low, zip(chosen, at_levels, strict=True), null_scores), out)
    echo(f"written: {page}")


def _reward(name: str, latents: str | None, model: str | None, config: Path | None, device: str) -> ImageReward:
    """The reward, with the autoencoder of a pipeline where it is one of latents."""
    own = config if latents is not None and (model is None or is_single_file(latents)) else None
    return load_reward(name, latents, device, own)


def _facts(
    reward: str, pictures: Path, resize: bool, labels: str, model: str | None, shown: ExpertOptions
) -> dict[str, Any]:
    """Facts of this audit for the page's evidence, beside those of the reward's card."""
    of_models = None if model is None else " and ".join([model, *([shown.describe(model)] * shown.given)])
    return {
        "archive": reward,
        "pictures": pictures,
        "sizes": "brought to the model's by resizing" if resize else "the model's own",
        "labels": labels,
        **({} if of_models is None else {"samples_of": of_models}),
        "audited_on": datetime.date.today().isoformat(),
        "version_of_rrpolicy": __version__,
    }


def _apart(scored: Scored, found: Found, pictures: Path) -> dict[str, Any]:
    """Arguments of `write_audit` about pictures that are not ranked with the others."""
    left_out = [(name_below(one.path, pictures), one.reason) for one in scored.left_out]
    return {"left_out": left_out, "not_read": counted(found.others), "unlike": scored.unlike}


def _tell(out: Path, scored: Scored, found: Found) -> None:
    """Report what was left out and what is unlike the models' data, on the screen and beside the page."""
    write_left_out(out, scored.left_out)
    echo_left_out(scored.left_out, found.others)
    echo_unlike(scored)


def _check_model(model: str | None, has_expert: bool, denoising: bool, bare: bool) -> None:
    """:raises ValueError: for options of a model that is not given, naming what is needed"""
    if model is not None:
        return
    if has_expert:
        raise ValueError("an expert's samples are shown beside the base's: give --model, the base, too")
    if denoising:
        raise ValueError("--denoising needs the base: give --model, too")
    if not bare:
        raise ValueError("--guidance-scale, --class-label and --config are for --model, which is not given")


def _labelled(found: Found, labels_file: Path | None, pictures: Path) -> tuple[Found, Labelled | None]:
    """The pictures with the labels of a file, where there is one."""
    if labels_file is None:
        return found, None
    table = read_labels(labels_file, pictures, found.pictures)
    echo(table.told)
    return found._replace(pictures=table.pictures), table


def _check_unwanted(unwanted: Collection[str], found: Found, source: Path) -> None:
    """:raises ValueError: for a label that no picture has, naming those that there are"""
    labels = set(labels_of(found.pictures) or [])
    if missing := sorted(set(unwanted) - labels):
        known = printable(", ".join(sorted(label for label in labels if label)) or "none", 150)
        raise ValueError(f"--unwanted {missing[0]} is no label of {source}, there are: {known}")


def _nine_levels(scorer: ImageReward) -> list[int]:
    """Noise levels from the cleanest to eight tenths of all."""
    last = scorer.reward.process.n_diffusion_steps - 1
    return sorted({round(last * i / 10) for i in range(9)})


def _rows(
    scored: Scored,
    rho: Array,
    labels: Sequence[str | None],
    low: Collection[str],
    per_level: Iterable[tuple[int, Array]],
    null_scores: Null | None,
) -> list[Row]:
    """Means by label, AUROC where there are wanted and unwanted pictures, and spreads where there is a null."""
    rows, kept = label_rows(scored, rho), ~scored.unlike
    judged = kept & np.array([label is not None for label in labels])
    wanted = np.array([label not in low for label in labels])[judged]
    if wanted.any() and not wanted.all():
        rows.append(estimate_row("wanted", "auroc", auroc(rho[judged], wanted)))
        rows += [estimate_row("wanted", f"auroc_t{level}", auroc(at[judged], wanted)) for level, at in per_level]
    if null_scores is not None:
        rows.append(plain_row("rho", "spread", spread(rho[kept])))
        rows += [plain_row(f"null {i + 1}", "spread", one) for i, one in enumerate(null_scores.spreads(kept))]
    return rows


def _side_by_side(
    reward: ImageReward, sources: Sequence[ImageModel], n: int, n_steps: int, scales: Sequence[float], seed: int
) -> dict[str, Array]:
    """Samples of the base at each strength of steering and of the expert where it is given, from the same noise."""
    drawn = {}
    for i, model in enumerate(sources):
        steps = min(n_steps, model.process.n_diffusion_steps)
        for scale in (0.0,) if i else scales:
            name = "expert" if i else f"scale {scale:g}" if scale else "model alone"
            drawn[name] = sample_images(model, n, n_sampling_steps=steps, reward=reward, scale=scale, seed=seed)
    return drawn
