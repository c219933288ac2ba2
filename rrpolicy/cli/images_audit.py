"""The command that audits: a folder of pictures, a reward, and a page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from rrpolicy import zoo
from rrpolicy.cli import images_options as inputs
from rrpolicy.cli import options
from rrpolicy.cli.images_options import check_levels, image_model, load_reward, parse_levels, parse_scales
from rrpolicy.cli.images_scoring import (
    label_rows,
    labels_of,
    name_below,
    null_of,
    scores_of,
    tell_left_out,
    tell_unlike,
    write_left_out,
    write_scores,
)
from rrpolicy.cli.label_files import read_labels
from rrpolicy.cli.options import report
from rrpolicy.cli.program import echo
from rrpolicy.cli.prompt_files import read_prompts
from rrpolicy.common.messages import printable
from rrpolicy.common.typing import Array
from rrpolicy.common.version import __version__
from rrpolicy.experiments import plain_row
from rrpolicy.experiments.image_scores import estimate_row
from rrpolicy.images.audit import write_audit
from rrpolicy.images.audited import UNLABELLED
from rrpolicy.images.evidence import Evidence
from rrpolicy.images.folders import ReadAgain, counted, find_pictures
from rrpolicy.images.metrics import auroc
from rrpolicy.images.null import NO_DIFFERENCE, NOTHING_BEYOND, spread
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import ImageModel, sample_images

N_NOISINGS = 2  # of each picture at each level of the audit


def audit(
    pictures: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures; sub-folders are labels.")],
    reward: inputs.Reward,
    out: options.Out,
    pipeline: inputs.Pipeline = None,
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
    model: Annotated[str | None, typer.Option("--model", help="Show samples of this model, steered and not.")] = None,
    expert: Annotated[str | None, typer.Option("--expert", help="Show the expert's samples beside them.")] = None,
    scales: Annotated[str, typer.Option("--scales", help="Strengths of the steering to show.")] = "0,1,2",
    prompts: inputs.Prompts = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples at each strength.")] = 8,
    seed: options.Seed = 0,
    null: Annotated[
        list[Path] | None,
        typer.Option("--null", help="Reward between two trainings of one model, or a folder of some; repeatable."),
    ] = None,
    resize: inputs.Resize = False,
    strict: inputs.Strict = False,
    device: inputs.Device = "cpu",
    progress: options.Progress = True,
) -> None:
    """
    Write a page about a folder of pictures: ranked, the highest and the lowest, by label and by noise level.

    One HTML file that loads nothing. With --unwanted it has the AUROC at each noise level; with --model, samples of
    the model steered by the reward beside its own; with --null, whether ρ spreads further than between two trainings of
    one model. Every picture stands in scores.csv. Files that cannot be read are listed, also in left_out.csv.

    \b
    Examples:
      rrpolicy images audit photos --reward runs/reward/reward.zip --out runs/audit
      rrpolicy images audit photos --reward runs/reward/reward.zip --labels labels.csv --unwanted gore --out runs/audit
      rrpolicy images audit photos --reward runs/reward/reward.zip --model models/all --out runs/audit
      rrpolicy images audit photos --reward runs/reward/reward.zip --unwanted harmful --out runs/audit
    """
    strengths, asked = parse_scales(scales), None if levels is None else parse_levels(levels)
    if expert is not None and model is None:
        raise ValueError("--expert shows samples of the expert beside the base's: give --model, the base, too")
    found, table = find_pictures([pictures], strict), None
    if labels_file is not None:
        table = read_labels(labels_file, pictures, found.pictures)
        found = found._replace(pictures=table.pictures)
        echo(table.told)
    labels = labels_of(found.pictures) or []
    if missing := sorted(set(unwanted or ()) - set(labels)):
        known = printable(", ".join(sorted(label for label in set(labels) if label)) or "none", 150)
        raise ValueError(f"--unwanted {missing[0]} is no label of {labels_file or pictures}, there are: {known}")
    scorer = load_reward(reward, pipeline or (model if prompts else None), device)
    last = scorer.reward.process.n_diffusion_steps - 1
    chosen = sorted({round(last * i / 10) for i in range(9)}) if asked is None else asked
    check_levels(chosen, scorer)
    sources = [image_model(name, prompts, n, None, device, "float32") for name in (model, expert) if name is not None]
    scored = scores_of(scorer, found, [([scorer.level], 0), (chosen, N_NOISINGS)], resize, strict, progress)
    (rho,), at_levels = scored.rho
    null_scores = null_of(null or (), scorer, scored.pictures, resize, progress)
    samples = _side_by_side(scorer, sources, 50 if prompts else 25, strengths, seed)
    labels = labels_of(scored.pictures, UNLABELLED if table is None else None) or [None] * len(rho)
    low = set(unwanted or ()) & set(labels)  # those that are left
    names = [name_below(one.path, pictures) for one in scored.pictures]
    evidence = Evidence.of(
        scorer,
        zoo.card(reward),
        archive=reward,
        pictures=pictures,
        sizes="brought to the model's by resizing" if resize else "the model's own",
        labels=("sub-folders" if any(labels) else "none") if table is None else table.told,
        **({} if model is None else {"samples_of": " and ".join(filter(None, (model, expert)))}),
        audited_on=datetime.date.today().isoformat(),
        version_of_rrpolicy=__version__,
    )
    if not evidence.difference:
        echo(f"{NO_DIFFERENCE}: their scores mean nothing")
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
        left_out=[(name_below(one.path, pictures), one.reason) for one in scored.left_out],
        not_read=counted(found.others),
        unlike=scored.unlike,
        null=null_scores,
        evidence=evidence,
    )
    write_left_out(out, scored.left_out)
    tell_left_out(scored.left_out, found.others)
    tell_unlike(scored)
    write_scores(out, scored, names, rho)
    rows, kept = label_rows(scored, rho), ~scored.unlike
    judged = kept & np.array([label is not None for label in labels])
    wanted = np.array([label not in low for label in labels])[judged]
    if wanted.any() and not wanted.all():
        rows.append(estimate_row("wanted", "auroc", auroc(rho[judged], wanted)))
        rows += [
            estimate_row("wanted", f"auroc_t{level}", auroc(at[judged], wanted))
            for level, at in zip(chosen, at_levels, strict=True)
        ]
    if null_scores is not None:
        rows.append(plain_row("rho", "spread", spread(rho[kept])))
        rows += [plain_row(f"null {i + 1}", "spread", one) for i, one in enumerate(null_scores.spreads(kept))]
        echo(NOTHING_BEYOND if null_scores.covers(rho, kept) else "rho spreads beyond the null")
    report(rows, out)
    echo(f"written: {page}")


def _side_by_side(
    reward: ImageReward, sources: Sequence[tuple[ImageModel, int]], n_steps: int, scales: Sequence[float], seed: int
) -> dict[str, Array]:
    """Samples of the base at each strength of steering and of the expert where it is given, from the same noise."""
    drawn = {}
    for i, (model, n) in enumerate(sources):
        steps = min(n_steps, model.process.n_diffusion_steps)
        for scale in (0.0,) if i else scales:
            name = "expert" if i else f"scale {scale:g}" if scale else "model alone"
            drawn[name] = sample_images(model, n, n_sampling_steps=steps, reward=reward, scale=scale, seed=seed)
    return drawn
