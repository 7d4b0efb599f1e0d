"""The loop: plain PyTorch, one epoch after another, each of which can be the last one before a kill."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Generator, Tensor, nn

from dcn_plugin.checkpoint.class_names import name_classes, telling
from dcn_plugin.checkpoint.train_config import TrainConfig
from dcn_plugin.data import ImageFiles, ImageSet, LabelledImages
from dcn_plugin.errors import ModelOutputError, SpecError
from dcn_plugin.evaluate.predictions import correct_on
from dcn_plugin.support.atomic_file import check_output
from dcn_plugin.support.model_state import device_of, training_flags
from dcn_plugin.support.onednn import check_channels_last
from dcn_plugin.support.progress import log_line, progress_bar
from dcn_plugin.support.randomness import derived_seed, isolated_rng
from dcn_plugin.surgery.gradual import GradualDefects
from dcn_plugin.training.adversarial import StepImages, describe
from dcn_plugin.training.checks import (
    check_arguments,
    check_fit,
    check_masks,
    check_parts,
    masks_hash,
    structure,
)
from dcn_plugin.training.data import Batch, TrainData, as_train_data, files_hash
from dcn_plugin.training.engine import Stepper, check_engine, stepper
from dcn_plugin.training.heads import main_head
from dcn_plugin.training.history import EpochRecord, History
from dcn_plugin.training.precision import autocast, compute_dtype
from dcn_plugin.training.processes import Accelerated, Alone
from dcn_plugin.training.run_folder import Snapshot, TrainFolder
from dcn_plugin.training.schedule import learning_rate
from dcn_plugin.training.split import part_of

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What came of a training run; the weights are in the model.

    Args:
        history: every epoch, those of earlier sessions included.
        steps: number of optimiser steps of the whole run.
        seconds: wall time of this session.
        best: file of the best epoch's network, None without a folder or a choice.
    """

    history: History
    steps: int
    seconds: float
    best: Path | None = None

    @property
    def losses(self) -> tuple[float, ...]:
        """Mean training loss of each epoch."""
        return tuple(record.loss for record in self.history.epochs)


def train(
    model: nn.Module,
    data: LabelledImages | TrainData,
    config: TrainConfig | None = None,
    *,
    val: ImageSet | ImageFiles | None = None,
    test: ImageSet | ImageFiles | None = None,
    out: str | os.PathLike[str] | None = None,
    step_images: StepImages | None = None,
    accelerator: Any = None,
    about: Mapping[str, str] | None = None,
    workers: int = 4,
    progress: bool = False,
    name: str = "",
) -> TrainResult:
    """Train a model in place.

    With ``out``, the end of every epoch is kept there, and a run that was stopped at any moment goes on from the last
    one when it is started again with the same arguments. On a CPU, and with the same versions and number of threads,
    its weights are bit-equal to those of a run that was left alone.

    Where the data tell what their classes are called, the network knows it afterwards
    (:func:`dcn_plugin.checkpoint.class_names.class_names_of`), and so do its files.

    Args:
        model: images in [0, 1] -> logits, on any one device. Its training flags are restored afterwards. It ends with
            the weights of the last epoch, or with their average under ``config.ema_decay``. One with auxiliary heads
            (several outputs in training) is trained with its main head alone, in one process, and the log says so.
        data: the training images. :class:`TrainData` brings its own augmentation; others get that of ``config``.
        config: see :class:`TrainConfig`; its defaults when absent.
        val: validation set, measured after every epoch; the best epoch is chosen on it.
        test: test set; needed for, and used by, ``config.select = "test"`` alone.
        out: folder of the run; see :mod:`dcn_plugin.training.run_folder` for its files.
        step_images: changes each batch before the model sees it; :func:`madry` is one.
        accelerator: an ``accelerate.Accelerator``, which carries devices and processes. Each process calls this
            function with the same arguments and takes its part of every batch; the first one writes, the others read
            the same folder when a run goes on. Trackers that it has started get the record of every epoch.
        about: further facts that the run depends on, e.g. how the model was made: recorded, and a folder whose run has
            others is refused.
        workers: processes that decode image files, where they are streamed.
        progress: show a progress bar on stderr, or a line an epoch where that is no terminal.
        name: shown beside the bar.

    Returns:
        The record of the run.

    Raises:
        SpecError: too little data, a batch that cannot be shared out, masks that are at their goal already, ...
        ClassesError: a class count that is not the model's, or validation or test images of other classes than the
            training images, by number, name or order.
        InputSizeError, MaskShapeError: the model, or its masks, are made for other images.
        MaskStateError: processes have different masks; with ``config.gradual``, masks that a state dict brought.
        NotDefectiveError: ``config.gradual`` for a network without masks.
        MaskLostError: the masks do not act any more at the end, or are other masks.
        ModelOutputError: the model does not return two logits or more, or in training several outputs of which none
            is the main one; the loss stopped being a number.
        CheckpointError: ``out`` holds a run with other settings.
        DataError, OutputError: ``out`` is a file, or files cannot be written into it.

    Example:
        >>> result = train(net, data, TrainConfig(epochs=1, batch_size=8))
        >>> len(result.history.epochs)
        1
    """
    config = config or TrainConfig()
    processes = Alone(device_of(model)) if accelerator is None else Accelerated(accelerator)
    if out is not None:
        check_output(out)
    check_arguments(config, len(data), processes.team.size, test)
    check_engine(config, processes)
    if config.channels_last:
        check_channels_last(model, processes.device)
    check_fit(model, data.shape, data.num_classes)
    check_parts(data, val=val, test=test)
    head = main_head(model, data.shape)
    if head is not None and processes.team.size > 1:
        raise SpecError(
            "A network with auxiliary heads is trained with its main head alone, and several processes cannot share "
            "a network of which parts get no gradient.",
            processes.team.size,
            "one process",
            "switch its auxiliary heads off, e.g. aux_logits=False",
        )
    masks = masks_hash(model)
    check_masks(masks, processes.team.gather([masks]))
    source = as_train_data(data, config, workers=workers)
    chosen_on = {"val": val, "test": test if config.select == "test" else None}
    plan = {} if out is None else _plan(config, model, masks, source, chosen_on, step_images, processes, about or {})
    selected_by = config.select if chosen_on.get(config.select) is not None else None
    name_classes(model, telling(getattr(data, "class_names", None)))  # before the copies that _Run makes
    run = _Run(model, source, config, processes, step_images, History(plan, selected_by), head)
    folder = None if out is None else TrainFolder(out, plan, writes=processes.team.leads)
    start = time.perf_counter()
    with contextlib.ExitStack() as undo:
        undo.enter_context(training_flags(model))
        undo.callback(model.zero_grad)
        undo.callback(run.finish_masks)
        previous = None if folder is None else folder.read()
        if previous is not None:
            run.resume(*previous)
        if len(run.history.epochs) < config.epochs:
            engine = run.begin(data.shape)
            run.history.begin(processes.device, compute_dtype(config.amp, processes.device), engine)
            if engine:
                log_line(f"{name} engine {engine}".strip(), show=progress and processes.team.leads)
        bar = progress_bar(run.steps, name, show=progress, unit="step", team=processes.team)
        with bar:
            bar.update(len(run.history.epochs) * run.steps_per_epoch)
            while len(run.history.epochs) < config.epochs:
                run.epoch(chosen_on, bar.update)
                if folder is not None:
                    folder.write(run.snapshot, run.history, run.network)
                _tell(run.history.epochs[-1], bar, processes, name)
                log_line(_line(run.history.epochs[-1], config.epochs, name), show=progress and processes.team.leads)
        processes.release(model)
        if run.network is not model:
            model.load_state_dict(run.network.state_dict())
    check_masks(masks, [masks_hash(model)], model, data.shape)
    if folder is not None:
        folder.finish(run.history, model)
    best = folder.best() if folder is not None and selected_by is not None else None
    return TrainResult(run.history, run.steps, time.perf_counter() - start, best)


class _Run:
    """A run in progress: the model and everything that changes with it."""

    def __init__(
        self,
        model: nn.Module,
        source: TrainData,
        config: TrainConfig,
        processes: Alone,
        step_images: StepImages | None,
        history: History,
        head: Callable[[Any], Tensor] | None,
    ) -> None:
        self.config, self.history = config, history
        self._source, self._processes, self._step_images, self._head = source, processes, step_images, head
        self.steps_per_epoch = max(1, len(source) // config.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self._gradual = _gradual(model, config, self.steps)  # first: it may refuse the network
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        model.to(processes.device)
        self._model = model
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        # V3: the earlier versions average masks as if they were numbers.
        self._average = None if config.ema_decay is None else ModelEmaV3(model, config.ema_decay, use_warmup=True)
        averaged = None if self._average is None else self._average.module
        if self._gradual is not None and averaged is not None:
            self._gradual.follow(averaged)
        self.snapshot = Snapshot(model, optimizer, averaged, Generator().manual_seed(config.seed))
        self._prepared, self._optimizer = processes.prepare(model, optimizer)
        self._steps = Stepper(self._prepared)

    def begin(self, input_size: tuple[int, int, int]) -> str:
        """Choose what computes the steps, as an earlier session of this run did; returns it in words."""
        self._model.train()
        arguments = (self._model, self._prepared, self.config, self._processes, input_size, self.snapshot.rows)
        share = None if self._gradual is None else self._gradual.share
        self.finish_masks()  # what is fast is chosen for the masks that will stay
        self._steps = stepper(*arguments)
        if self._gradual is not None and share is not None:
            self._gradual.set(share)
        self.snapshot.rows = self._steps.rows
        return self._steps.text

    @property
    def network(self) -> nn.Module:
        """What is validated and saved: the average where there is one, the model itself otherwise."""
        average = self.snapshot.average
        return self._model if average is None else average

    def resume(self, tensors: Mapping[str, Tensor], history: History) -> None:
        """Take up the state after the last finished epoch."""
        self.history = history
        if self._gradual is not None:  # first: the masks of the state are then those that the network expects
            self._gradual.jump(len(history.epochs) * self.steps_per_epoch)
        self.snapshot.restore(tensors)

    def finish_masks(self) -> None:
        """Leave the masks at their goal, also of a run that was stopped: the same network can then go on."""
        if self._gradual is not None and not self._gradual.done:
            self._gradual.set(1.0)

    def epoch(self, chosen_on: Mapping[str, ImageSet | ImageFiles | None], done: Callable[[], object]) -> None:
        """Train for one epoch, measure, and add the record to the history."""
        number, start = len(self.history.epochs), time.perf_counter()
        loss, right = self._train_epoch(number, done)
        if not math.isfinite(loss):
            raise ModelOutputError(
                f"The training loss is no number any more after epoch {number + 1}.",
                loss,
                "a finite loss",
                "lower lr, set clip_norm, or check the images",
            )
        self._processes.align(self._model)
        if self.network is not self._model:
            self._processes.align(self.network)
        accuracy = {kind: None if data is None else self._accuracy(data) for kind, data in chosen_on.items()}
        last = (number + 1) * self.steps_per_epoch - 1
        record = EpochRecord(
            epoch=number,
            lr=learning_rate(self.config, last, self.steps_per_epoch),
            loss=loss,
            train_accuracy=right,
            val_accuracy=accuracy["val"],
            test_accuracy=accuracy["test"],
            seconds=round(time.perf_counter() - start, 3),
            mask_progress=None if self._gradual is None else self._gradual.share,
        )
        self.history.epochs.append(record)

    def _train_epoch(self, number: int, done: Callable[[], object]) -> tuple[float, float]:
        """Train for one epoch; returns the mean loss and the share of images that were right."""
        config, processes, device = self.config, self._processes, self._processes.device
        optimizer, rank = self.snapshot.optimizer, processes.team.rank
        own_draws, noise = (derived_seed(config.seed, what, number, rank) for what in ("model", "step_images"))
        generator = Generator().manual_seed(noise)
        # Sums stay on the device: reading one would wait for it.
        loss_sum, right, seen = torch.zeros(3, dtype=torch.float64, device=device).unbind()
        step = number * self.steps_per_epoch
        self._model.train()
        with isolated_rng(own_draws, device=device):
            for batch in self._source.epoch(
                config.batch_size, generator=self.snapshot.generator, device=device, shard=processes.team
            ):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step, self.steps_per_epoch)
                if self._gradual is not None:
                    self._gradual.step()
                with autocast(config.amp, device):
                    if self._step_images is not None:
                        batch = self._step_images(self._model, batch, generator)
                    images = batch.images
                    if config.channels_last:
                        images = images.contiguous(memory_format=torch.channels_last)
                    output = self._forward(images)
                    logits: Tensor = output if self._head is None else self._head(output)
                    loss = _loss(logits, batch, config.label_smoothing)
                self._optimizer.zero_grad()
                processes.backward(loss)
                if config.clip_norm is not None:
                    processes.clip(self._model.parameters(), config.clip_norm)
                self._optimizer.step()
                step += 1
                if self._average is not None:
                    self._average.update(self._model, step)
                with torch.no_grad():
                    loss_sum += loss
                    right += (logits.argmax(1) == batch.labels).sum()
                    seen += len(batch.labels)
                done()
        sums = processes.total(torch.stack([loss_sum, right, seen])).tolist()
        return sums[0] / (self.steps_per_epoch * processes.team.size), sums[1] / sums[2]

    def _forward(self, images: Tensor) -> Any:
        # The engine lays its lists out anew for other masks: while they change, the network itself is faster.
        changing = self._gradual is not None and not self._gradual.done and self._steps.rows
        return self._prepared(images) if changing else self._steps.forward(images)

    def _accuracy(self, data: ImageSet | ImageFiles) -> float:
        """Share of the images that the network has right, measured by all processes together."""
        team = self._processes.team
        rows = torch.arange(len(data))[team.rows]
        part = data if team.size == 1 else part_of(data, rows)
        right = correct_on(self.network, part).sum() if len(rows) else torch.zeros((), dtype=torch.int64)
        return float(self._processes.total(right.to(self._processes.device))) / len(data)


def _gradual(model: nn.Module, config: TrainConfig, steps: int) -> GradualDefects | None:
    """The way of the masks from ``config.gradual_start`` to what they are, where there is one."""
    if config.gradual is None:
        return None
    return GradualDefects(
        model,
        max(1, round(config.gradual_share * steps)),
        start=config.gradual_start,
        schedule=config.gradual,
        order=config.gradual_order,
        total_steps=steps,
    )


def _loss(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
    if batch.weights is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    losses = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="none")
    return (losses * batch.weights).mean()


def _plan(
    config: TrainConfig,
    model: nn.Module,
    masks: str,
    source: TrainData,
    chosen_on: Mapping[str, ImageSet | ImageFiles | None],
    step_images: StepImages | None,
    processes: Alone,
    about: Mapping[str, str],
) -> dict[str, Any]:
    """What the run depends on, as JSON values; two runs with the same plan are one."""
    return {
        "config": json.loads(config.to_json()),
        "model": {"structure": structure(model), "masks": masks},
        "data": {"name": source.name, "images": len(source), "fingerprint": source.fingerprint},
        **{kind: None if data is None else _described(data) for kind, data in chosen_on.items()},
        "step_images": describe(step_images),
        "processes": {"count": processes.team.size, "precision": processes.precision},
        "about": dict(about),
    }


def _described(data: ImageSet | ImageFiles) -> dict[str, Any]:
    # The content of files is not read: that would take minutes at every start of a large run.
    content = data.content_hash if isinstance(data, ImageSet) else files_hash(data)
    return {"name": data.name, "images": len(data), "fingerprint": content}


def _tell(record: EpochRecord, bar: Any, processes: Alone, name: str) -> None:
    values = {"loss": record.loss, "train_accuracy": record.train_accuracy, "lr": record.lr, "seconds": record.seconds}
    for key in ("val_accuracy", "test_accuracy"):
        if getattr(record, key) is not None:
            values[key] = getattr(record, key)
    processes.log(values, step=record.epoch)
    shown = ", ".join(f"{key} {values[key]:.3f}" for key in ("loss", "val_accuracy", "test_accuracy") if key in values)
    bar.set_description(f"{name} epoch {record.epoch + 1}: {shown}".strip())


def _line(record: EpochRecord, epochs: int, name: str) -> str:
    """An epoch in a line of a log."""
    shares = {"train": record.train_accuracy, "val": record.val_accuracy, "test": record.test_accuracy}
    right = "".join(f", {part} {value:.2%}" for part, value in shares.items() if value is not None)
    if record.mask_progress is not None and record.mask_progress < 1:
        right += f", masks {record.mask_progress:.0%} of their way"
    return (
        f"{name} epoch {record.epoch + 1} of {epochs}: loss {record.loss:.4f}{right}, {record.seconds:.1f} s".lstrip()
    )
