"""What 0.1.0 offered is still there: names of the public packages, keywords, and the paths of its modules."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from types import ModuleType

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin import evaluate

NAMES = {
    "dcn_plugin": """
        CompactModel DefectMask2d DefectSpec DefectiveConv2d MaskSpec Normalized __version__ compact
        defect_spec defectify is_defective load_checkpoint sample_mask save_checkpoint summary undefectify
        verify
    """,
    "dcn_plugin.attacks": """
        Attack AttackResult AttackRun BoundaryAttack CW DecisionAttack EnsembleSource HopSkipJump PGD
        SampleStreams check_images check_labels check_logits warn_if_probabilities
    """,
    "dcn_plugin.data": """
        AmplitudeSwap CUE_CLASSES CueConflict DATA_SPECS DataPart EvalTransform ImageFiles ImageFolder
        ImageSet IndexedImages LabelledImages Splits amplitude_partners amplitude_swap load_cifar_c
        load_digits load_mnist_idx load_npz load_stl10 load_torchvision open_images paired_folders
        patch_permutations patch_shuffle random_shift read_class_names
    """,
    "dcn_plugin.engine": """
        CompactModel LayerPlan Plan compact
    """,
    "dcn_plugin.evaluate": """
        AdversarialBatch AdversarialSet Change Changed ExampleRow Examples Noise Relation Result ResultFile
        Rounding RunDirectory SCHEMA Scalar Spread Team add_noise add_results amplitude attack_key code_hash
        correct correct_on cue_conflict cue_decisions data_key gaussian hardware logits_of measure_changes
        measure_targets median_interval minimal_distance model_key package_versions predict progress_bar
        relation sanity shuffle spread stylized tapm transfer whitebox wilson
    """,
    "dcn_plugin.experiments": """
        BASELINE DemoOutcome DemoSpec Outcome PaperTable Plan RecipeSpec Verdict list_recipes load_recipe
        paper_numbers plan_recipe run_demo run_recipe verdict_of
    """,
    "dcn_plugin.models": """
        Regularizer VARIANTS Variant build_variant cifar_densenet cifar_resnet cifar_senet cifar_vgg
        densenet121_cifar paper_variant regularize resnet18_cifar resnet50_cifar senet18_cifar vgg19_cifar
        wrn32_4_cifar
    """,
    "dcn_plugin.pretrained": """
        PretrainedCard list_pretrained load_half load_pretrained pretrained_card register_pretrained save_half
    """,
    "dcn_plugin.report": """
        Cell Figure ImageGrid LATEX_PREAMBLE Matrix Report Section Table adversarial_grids cautions cells
        clean_cells distance_png examples_png findings grid_png heatmap_png latex_document load_run matrices
        percent rate_png records_csv render_html result_tables speed_png speed_table write_report
    """,
    "dcn_plugin.training": """
        BASELINES Baseline Batch EpochRecord HeldImages History Shard StepImages StreamedImages TrainConfig
        TrainData TrainResult apply_baseline isolated_rng load_network madry part_of plan_epoch pubdef
        public_images save_network smoothing_for split_off train training_config training_hook
    """,
    "dcn_plugin.adapters.art": """
        DcnAttack DcnBoundaryAttack DcnCW DcnHopSkipJump DcnPGD DefectiveClassifier DefectiveTransformer
    """,
    "dcn_plugin.adapters.torchattacks": """
        BoundaryAttack CW DcnAttack HopSkipJump TorchAttack modern_transfer_attacks paper_attacks
    """,
    "dcn_plugin.errors": """
        AlreadyDefectiveError BlockError CheckpointError ClassesError CompactError DataError DcnError
        DcnWarning DeadSiteWarning ImageRangeError InputSizeError LabelError MaskLostError MaskShapeError
        MaskStateError MissingExtraError MixedBatchWarning ModelOutputError NotDefectiveError OutputError
        OutputPermissionError PlacementWarning PretrainedError RecordError SiteError SpecError TraceError
        WeakAttackWarning warn_caller
    """,
    "dcn_plugin.specs": """
        DefectSpec Layout MASK_SCHEME MaskOrigin MaskSpec Mode Sampling SiteSpec Slot check_chw freeze_p
        plain_number
    """,
}
KEYWORDS = {
    "dcn_plugin.evaluate.transfer": "sources targets attacks data seed rounding batch_size store accelerator progress",
    "dcn_plugin.evaluate.tapm": "sources targets attacks data seed rounding batch_size store accelerator progress",
    "dcn_plugin.evaluate.whitebox": "targets attacks data seed rounding batch_size store accelerator progress",
    "dcn_plugin.evaluate.minimal_distance": "targets attack data seed count batch_size store accelerator progress",
    "dcn_plugin.evaluate.gaussian": "targets data levels seed noise noise_seed batch_size store accelerator progress",
    "dcn_plugin.evaluate.shuffle": """
        targets data ks seed shuffle_seed confidence batch_size store accelerator progress
    """,
    "dcn_plugin.evaluate.amplitude": "targets data seed partner_seed batch_size store accelerator progress",
    "dcn_plugin.evaluate.stylized": "targets original changed seed batch_size store accelerator progress",
    "dcn_plugin.evaluate.cue_conflict": "targets data seed class_map batch_size store accelerator progress",
    "dcn_plugin.evaluate.sanity": """
        model data eps steps sources queries seed attack_seed name batch_size store accelerator progress
    """,
    "dcn_plugin.evaluate.measure_changes": """
        protocol targets data changes seed confidence batch_size store accelerator progress
    """,
    "dcn_plugin.evaluate.measure_targets": "made targets seed clean bar",
    "dcn_plugin.evaluate.cue_decisions": "logits class_map num_cues",
    "dcn_plugin.defectify": "model blocks p mode input_size sampling seed span filter_fn example_inputs inplace",
    "dcn_plugin.DefectiveConv2d": """
        in_channels out_channels kernel_size stride padding dilation groups bias padding_mode device dtype
        output_size site p mode sampling seed span norm
    """,
    "dcn_plugin.compact": "model backend batch_size max_packed_bytes input_size",
    "dcn_plugin.save_checkpoint": "model path metadata",
    "dcn_plugin.load_checkpoint": "path model inplace",
    "dcn_plugin.training.train": "model data config val test out step_images accelerator about workers progress name",
}

# Path of a module in 0.1.0, and a name in it: those that its documentation shows, and those that pickled models name.
PATHS = {
    "dcn_plugin.checkpoint": "read_info read_spec CheckpointInfo",
    "dcn_plugin.classes": "class_names_in class_names_of name_classes",
    "dcn_plugin.convs": "MaskedConv2d _rebuild_masked_conv",
    "dcn_plugin.engine.capture": "instance_norm",
    "dcn_plugin.engine.plan": "LayerPlan Plan",
    "dcn_plugin.engine.snapshot": "CompactModel",
    "dcn_plugin.evaluate.amplitude": "amplitude",
    "dcn_plugin.evaluate.cue_conflict": "cue_conflict",
    "dcn_plugin.evaluate.distance": "minimal_distance",
    "dcn_plugin.evaluate.gaussian": "gaussian Noise",
    "dcn_plugin.evaluate.predict": "predict",
    "dcn_plugin.evaluate.records": "Relation Rounding Scalar",
    "dcn_plugin.evaluate.sanity": "sanity",
    "dcn_plugin.evaluate.shuffle": "shuffle",
    "dcn_plugin.evaluate.stylized": "stylized",
    "dcn_plugin.evaluate.tapm": "tapm",
    "dcn_plugin.evaluate.transfer": "transfer CleanAnswers",
    "dcn_plugin.evaluate.whitebox": "whitebox",
    "dcn_plugin.inspection": "Summary SummaryRow",
    "dcn_plugin.instance_norm": "InstanceNormAct2d",
    "dcn_plugin.models.cifar_densenet": "cifar_densenet",
    "dcn_plugin.models.cifar_resnet": "cifar_resnet _ThreeLayerResNet",
    "dcn_plugin.models.cifar_senet": "cifar_senet SEPreActBasic",
    "dcn_plugin.models.cifar_vgg": "cifar_vgg",
    "dcn_plugin.models.defective": "default_cfgs",
    "dcn_plugin.report.cautions": "cautions",
    "dcn_plugin.report.findings": "findings",
    "dcn_plugin.report.tables.table": "LATEX_PREAMBLE",
    "dcn_plugin.surgery": "_check_masks_in_state_dict",
    "dcn_plugin.training.pubdef": "pubdef",
    "dcn_plugin.weights": "load_weights read_weights",
}


@pytest.mark.parametrize("package", NAMES)
def test_a_package_still_offers_its_names(package: str) -> None:
    module = importlib.import_module(package)
    assert set(NAMES[package].split()) <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("path", KEYWORDS)
def test_a_function_still_takes_its_keywords(path: str) -> None:
    module, _, name = path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert set(KEYWORDS[path].split()) <= set(parameters)


@pytest.mark.parametrize("path", PATHS)
def test_a_module_is_still_imported_by_its_old_path(path: str) -> None:
    for name in PATHS[path].split():
        namespace: dict[str, object] = {}
        exec(f"from {path} import {name}", namespace)
        assert namespace[name] is not None
    parent, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(parent), name) is not None


def test_no_module_hides_the_function_that_a_package_offers_under_its_name() -> None:
    assert callable(evaluate.transfer) and not isinstance(evaluate.transfer, ModuleType)
    assert importlib.import_module("dcn_plugin.evaluate.transfer").transfer is evaluate.transfer


def test_a_whole_network_that_was_pickled_under_the_old_paths_is_read() -> None:
    convs = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    masked = dcn.defectify(nn.Sequential(convs, nn.Flatten(), nn.Linear(64, 2)), "all", input_size=(1, 8, 8))
    pickled = pickle.dumps(masked, protocol=0)  # the protocol that names modules in plain text
    for new, old in (
        ("surgery.masked_conv", "convs"),
        ("surgery.instance_norm", "instance_norm"),
        ("surgery.apply\n_check", "surgery\n_check"),
    ):
        assert f"cdcn_plugin.{new}".encode() in pickled, new
        pickled = pickled.replace(f"cdcn_plugin.{new}".encode(), f"cdcn_plugin.{old}".encode())
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(pickle.loads(pickled)(images), masked(images), rtol=0, atol=0)


def test_no_package_offers_a_name_that_is_a_module_of_its_own_folder() -> None:
    hidden = []
    folders = [module.name for module in pkgutil.walk_packages(dcn.__path__, "dcn_plugin.") if module.ispkg]
    for package in [dcn, *map(importlib.import_module, folders)]:
        for module in pkgutil.iter_modules(package.__path__):
            offered = vars(package).get(module.name)
            if offered is not None and not isinstance(offered, ModuleType):
                hidden.append(f"{package.__name__}.{module.name}")
    assert not hidden
