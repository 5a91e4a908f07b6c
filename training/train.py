"""Train `sam2-micro` on synthetic episodes. The same command starts, continues and resumes.

    python -m training.train RUN_FOLDER --steps 20000

The run folder holds `state.pt` (everything a resumed run needs, tensors and plain values only) and
`log.txt`. `python -m training.export RUN_FOLDER` writes the averaged weights for the package.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from medretrieval.segmentation.micro import MICRO, build_micro, set_image_size
from training.episodes import Episode, make_episode
from training.network import Pass, few_shot, hard_dice, prompt_loss, prompted, training_loss
from training.sampling import draw_batch

VALIDATION_SEED = 987_654_321
VALIDATION_EPISODES = 64
# How prompts are given in the steps that have them, and how often.
PROMPTS = {
    "clicks-and-mask": 0.5,
    "clicks": 0.1,
    "box": 0.1,
    "box-and-mask": 0.1,
    "alone": 0.2,
}
SHOTS = (1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 8)  # supports, as often


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the result of a training; a run folder refuses to continue under others.

    Attributes:
        steps: length of the learning-rate schedule; may be raised before the cooldown has begun.
        rate: peak learning rate of AdamW.
        cooldown: the last part of the steps in which the rate falls to zero along a cosine.
        small, large: the two picture sizes in pixels; `large_part` of the steps use the large one.
        batch: episodes of a step at the small size; half of them at the large one.
        tasks: structures asked for in each episode.
        window: episodes in memory to draw from; each step makes `fresh` new ones.
        prompted: part of the steps in which the decoder runs again with points or a box.
        seed: of episodes, draws and initial weights.
    """

    steps: int = 20000
    rate: float = 4e-4
    warmup: int = 200
    cooldown: float = 0.4
    small: int = 128
    large: int = 192
    large_part: float = 0.3
    batch: int = 2
    tasks: int = 4
    fresh: int = 1
    window: int = 256
    subjects: int = 10
    picture: int = 144
    average: float = 0.998
    prompted: float = 0.4
    seed: int = 1


class Episodes(Dataset[Episode]):
    """The endless sequence of episodes, by number."""

    def __init__(self, seed: int, count: int, size: int, bank: Path | None) -> None:
        self.seed, self.count, self.size, self.bank = seed, count, size, bank

    def __getitem__(self, number: int) -> Episode:
        return make_episode(self.seed, number, count=self.count, size=self.size, bank=self.bank)


def _unchanged(episode: Any) -> Any:
    return episode


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)  # workers share the cores with the training


def stream(dataset: Dataset[Episode], first: int, last: int, workers: int) -> Iterator[Episode]:
    """Episodes first..last-1 in order, made ahead of need in `workers` processes."""
    loader: DataLoader[Episode] = DataLoader(
        dataset,
        sampler=range(first, last),
        batch_size=None,
        collate_fn=_unchanged,
        worker_init_fn=_one_thread,
        num_workers=workers,
        prefetch_factor=12 if workers else None,
        multiprocessing_context="spawn" if workers else None,
    )
    return iter(loader)


def rate_at(step: int, settings: Settings) -> float:
    """Learning rate of a step: linear warm-up, a plateau, a cosine to zero."""
    begin = settings.steps * (1 - settings.cooldown)
    fall = min(1.0, max(0.0, (step - begin) / (settings.steps - begin + 1)))
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.rate * warm * 0.5 * (1 + math.cos(math.pi * fall))


class Run:
    """A training in its folder: network, running average, optimiser and step."""

    def __init__(
        self, folder: Path, settings: Settings, *, device: str, initial: Path | None
    ) -> None:
        self.folder, self.settings, self.device = folder, settings, torch.device(device)
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.model: Any = build_micro(image_size=settings.small)
        # Reads a mask from the conditioned features themselves: a training signal that does not
        # pass through the mask decoder. It is not part of the exported network.
        self.auxiliary = torch.nn.Conv2d(MICRO.d_model, 16, 1)
        if initial is not None:
            self.model.load_state_dict({k: v.float() for k, v in load_file(initial).items()})
        # Convolutions of this size are quicker that way on a CPU.
        self.model.train().to(self.device, memory_format=torch.channels_last)
        self.auxiliary.to(self.device)
        self.parameters = [*self.model.parameters(), *self.auxiliary.parameters()]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=settings.rate, weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.averaged = [p.detach().clone() for p in self.model.parameters()]
        self.step = 0
        if self.state_file.exists():
            self._resume()

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    def say(self, text: str) -> None:
        print(text, flush=True)
        with open(self.folder / "log.txt", "a", encoding="utf-8") as log:
            log.write(text + "\n")

    def save(self) -> None:
        """Write the state beside the old one, then take its place: a kill loses nothing."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "averaged": self.averaged,
            "optimiser": self.optimiser.state_dict(),
        }
        partial = self.folder / "state.partial"
        torch.save(state, partial)
        os.replace(partial, self.state_file)

    def _resume(self) -> None:
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        before, now = state["settings"], asdict(self.settings)
        free = {"steps"}  # the plateau has no memory of how long it will be
        if state["step"] > before["steps"] * (1 - before["cooldown"]):
            free = set()
        changed = [k for k in now if k not in free and before.get(k) != now[k]]
        if changed:
            raise SystemExit(
                f"{self.folder} was trained with other settings: "
                + ", ".join(f"{k} {before.get(k)} (now {now[k]})" for k in changed)
                + "; continue with those, or train in a new folder"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.averaged = state["averaged"]
        self.optimiser.load_state_dict(state["optimiser"])

    def train_step(self, window: Sequence[Episode]) -> tuple[float, float]:
        """One optimiser step on a batch from the window; its mask loss and its mean Dice."""
        s = self.settings
        rng = np.random.default_rng((s.seed, 1, self.step))
        large = rng.random() < s.large_part
        size, batch = (s.large, max(1, s.batch // 2)) if large else (s.small, s.batch)
        chosen = [window[i] for i in rng.choice(len(window), batch, replace=len(window) < batch)]
        shots = int(rng.choice(SHOTS))
        drawn = draw_batch(rng, chosen, size=size, tasks=s.tasks, shots=min(shots, s.subjects - 1))
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.step, s)
        set_image_size(self.model, size)
        done = self._forward(drawn)
        logits, truth = done.logits, done.truth
        direct = F.pixel_shuffle(self.auxiliary(done.conditioned), 4)
        loss, mask = training_loss(logits, done.overlap, direct, truth)
        if rng.random() < s.prompted:
            kind = str(rng.choice(list(PROMPTS), p=list(PROMPTS.values())))
            clicks = int(rng.integers(1, 5))
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            again, overlap = prompted(self.model, done, generator, kind=kind, clicks=clicks)
            loss = loss + prompt_loss(again, overlap, truth)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(s.average, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, list(self.model.parameters()), 1 - keep)
            full = F.interpolate(logits, size=truth.shape[-2:], mode="bilinear")
            dice = hard_dice(full > 0, truth > 0.5).mean()
        return float(mask.detach()), float(dice)

    def _forward(self, batch: Any) -> Pass:
        return few_shot(
            self.model,
            batch.images.to(self.device),
            batch.masks.to(self.device),
            shots=batch.shots,
            shift=batch.shift,
        )

    @torch.no_grad()
    def validate(self, episodes: Sequence[Episode], size: int) -> tuple[float, float]:
        """Mean Dice of the averaged weights with 7 supports, and of the mean support mask.

        Queries that do not show the structure count as 1 if nothing is predicted, else 0.
        """
        current = [p.detach().clone() for p in self.model.parameters()]
        for p, a in zip(self.model.parameters(), self.averaged, strict=True):
            p.copy_(a)
        set_image_size(self.model.eval(), size)
        rng = np.random.default_rng(VALIDATION_SEED)
        ours, baseline = [], []
        for first in range(0, len(episodes), 4):
            batch = draw_batch(
                rng, episodes[first : first + 4], size=size, tasks=2, shots=7, color=False
            )
            done = self._forward(batch)
            logits, truth = done.logits, done.truth
            full = F.interpolate(logits, size=(size, size), mode="bilinear")
            ours.append(hard_dice(full > 0, truth > 0.5))
            rolled = torch.stack(
                [batch.masks[:, t].roll(-t * batch.shift, 1) for t in range(batch.masks.shape[1])],
                1,
            )
            mean = rolled[:, :, : batch.shots].mean(2, keepdim=True)
            mean = mean.expand(-1, -1, rolled.shape[2] - batch.shots, -1, -1)
            mean = mean.flatten(0, 2)[:, None]
            baseline.append(hard_dice(mean.to(self.device) > 0.5, truth > 0.5))
        for p, c in zip(self.model.parameters(), current, strict=True):
            p.copy_(c)
        self.model.train()
        return float(torch.cat(ours).mean()), float(torch.cat(baseline).mean())

    def train(
        self,
        *,
        until: int,
        bank: Path | None = None,
        workers: int = 1,
        every: int = 100,
        validate_every: int = 1000,
    ) -> None:
        """Go on to step `until`, saving every `every` steps and at the end.

        Args:
            bank: slices of phantoms that some episodes show, see `training.anatomy`.
        """
        s = self.settings
        dataset = Episodes(s.seed, s.subjects, s.picture, bank)
        # After s steps the window holds the latest of the s * fresh + start episodes made so far.
        start = min(s.window, 24)
        made = start + self.step * s.fresh
        fresh = stream(dataset, max(0, made - s.window), start + until * s.fresh, workers)
        window = [next(fresh) for _ in range(min(s.window, made))]
        held_out = (
            [
                make_episode(VALIDATION_SEED, i, count=s.subjects, size=s.picture)
                for i in range(VALIDATION_EPISODES)
            ]
            if validate_every
            else []
        )
        losses: list[tuple[float, float]] = []
        clock = time.monotonic()
        while self.step < until:
            losses.append(self.train_step(window))
            window.extend(next(fresh) for _ in range(s.fresh))
            del window[: max(0, len(window) - s.window)]
            if self.step % every == 0:
                loss, dice = np.mean(losses, axis=0)
                seconds = (time.monotonic() - clock) / len(losses)
                self.say(
                    f"step {self.step} rate {rate_at(self.step, s):.1e} loss {loss:.4f} "
                    f"dice {dice:.4f} {seconds:.2f} s/step"
                )
                losses, clock = [], time.monotonic()
                self.save()
            if validate_every and self.step % validate_every == 0:
                for size in (s.small, s.large):
                    dice, mean = self.validate(held_out, size)
                    self.say(
                        f"validation step {self.step} size {size} dice {dice:.4f} "
                        f"mean mask {mean:.4f}"
                    )
                clock = time.monotonic()
        self.save()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the training; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder, made if absent")
    defaults = Settings()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--initial", type=Path, help="safetensors weights to start a new run from")
    parser.add_argument("--bank", type=Path, help="phantoms, as training.anatomy writes them")
    parser.add_argument("--until", type=int, help="stop after this step (default: all steps)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the training")
    parser.add_argument("--workers", type=int, default=1, help="processes that make episodes")
    parser.add_argument("--validate-every", type=int, default=1000)
    options = vars(parser.parse_args(arguments))
    settings = Settings(**{name: options[name] for name in asdict(defaults)})
    torch.set_num_threads(options["threads"])
    torch.set_flush_denormal(True)
    run = Run(options["folder"], settings, device=options["device"], initial=options["initial"])
    run.say(f"at step {run.step}: {settings}")
    until = settings.steps if options["until"] is None else min(options["until"], settings.steps)
    run.train(
        until=until,
        bank=options["bank"],
        workers=options["workers"],
        validate_every=options["validate_every"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
