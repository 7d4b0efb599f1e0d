"""Training: one loop in plain PyTorch, resumable to the bit. Accelerate, when present, carries several processes."""

from dcn_plugin.checkpoint.train_config import Engine, NormStatistics, TrainConfig, smoothing_for
from dcn_plugin.checkpoint.weights import load_network, load_weights, save_network
from dcn_plugin.support.old_paths import keep_old_paths
from dcn_plugin.support.randomness import isolated_rng
from dcn_plugin.surgery.gradual import GradualDefects
from dcn_plugin.training.adversarial import StepImages, madry
from dcn_plugin.training.baselines import BASELINES, Baseline, apply_baseline, training_config, training_hook
from dcn_plugin.training.data import Batch, HeldImages, Shard, StreamedImages, TrainData, plan_epoch
from dcn_plugin.training.distillation import Distillation, distill_source
from dcn_plugin.training.history import EpochRecord, History
from dcn_plugin.training.loop import TrainResult, train
from dcn_plugin.training.pubdef_config import pubdef
from dcn_plugin.training.pubdef_images import public_images
from dcn_plugin.training.split import part_of, split_off

__all__ = [
    "BASELINES",
    "Baseline",
    "Batch",
    "Distillation",
    "Engine",
    "EpochRecord",
    "GradualDefects",
    "HeldImages",
    "History",
    "NormStatistics",
    "Shard",
    "StepImages",
    "StreamedImages",
    "TrainConfig",
    "TrainData",
    "TrainResult",
    "apply_baseline",
    "distill_source",
    "isolated_rng",
    "load_network",
    "load_weights",
    "madry",
    "part_of",
    "plan_epoch",
    "pubdef",
    "public_images",
    "save_network",
    "smoothing_for",
    "split_off",
    "train",
    "training_config",
    "training_hook",
]

keep_old_paths(__name__, pubdef="dcn_plugin.training.pubdef_config")
