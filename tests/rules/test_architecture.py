"""House rules on the package's shape: who imports whom, how long a module may be, what its texts may not say."""

from __future__ import annotations

import ast
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kqgen"

# From the ground up. A module imports only modules that stand before it.
ORDER = (
    # ground
    "version", "errors", "fixed_tflite", "fixed", "doubling", "unary", "bits", "assets", "blocks",
    # vocabulary
    "ir", "options", "goal", "intweights", "intgraph", "index_check", "compare", "plan", "board", "shared_tables", "sizes",
    # stages on the graph
    "frontend_names", "frontend_call", "frontend_axes", "frontend_moves", "frontend_maps", "frontend_arithmetic",
    "frontend_layers",
    "frontend_activations", "frontend_table", "frontend_refusals", "frontend",
    "simplify_rewrite", "simplify_affine", "simplify_spatial", "simplify_values", "simplify_channels",
    "simplify_phases", "simplify_pins",
    "simplify_twins",
    "simplify", "floatexec",
    "tflite_options", "tflite_read", "tflite_names", "tflite_ends", "tflite_window", "tflite_build",
    "tflite_layers", "tflite_module",
    "samples", "pt2_check", "pt2",
    "onnx_tensor", "onnx_file", "onnx_patterns", "onnx_site", "onnx_modules", "onnx_layers", "onnx_maps", "onnx_pools",
    "onnx_quantise", "onnx_table",
    "onnx_import", "loading", "floatmodel",
    "calibrate", "cluster", "cluster_pairs", "kq_uniform", "kq_runs", "kq_layers", "kq_moments", "kq_fit",
    "kq_simulate", "kq_blocks",
    "post_training", "planned", "sensitivity", "kq_curves", "allocate_mixes", "allocate",
    "lower_checks", "lower_conv", "lower_maps", "lower", "tables_tflite", "nodes_tflite", "oracle_maps",
    "oracle_tflite", "oracle", "dequantised",
    "check_fields", "check_maps", "graph_check", "tflite_site", "tflite_maps", "tflite_integers", "operators", "store", "fuse",
    "prune_ranges", "prune", "prune_float", "prune_record",
    "conv_shape", "form_portable", "form_packed", "form_dsp", "form_mve", "form_reuse", "form_winograd",
    "form_depthwise", "form_dilated", "forms", "schedule",
    "stream_jobs", "lifetimes", "memory", "reorder", "plan_check", "stream_ways", "stream", "planner",
    # training
    "train_modules", "train_assign", "train_graph", "train_blueprint", "train_integers", "train_model",
    "train_prepare", "train_data",
    "checkpoint", "train_loop",
    # text
    "views_text", "views_maps", "views_params", "views_tables", "views_steps", "views_stream", "views_selftest",
    "views_project", "views", "render",
    "emit",
    # world
    "elf", "thumb_insn", "thumb_v81", "thumb", "cycles_m0", "cycles_m34", "cycles_m33", "cycles_m55", "cycles_m7",
    "cycles", "callgraph",
    "stack",
    "toolchain", "harness", "image", "hostlib", "semihost", "blockcount", "blockcount_native", "blockcount_qemu",
    "emulate", "qemu",
    # judgement
    "report", "capacity", "verify", "peer", "bench", "firmware", "targets", "net", "deliver", "fidelity",
    "training", "train_job", "train_fidelity", "kq",
    "picture_layout", "picture",
    # order
    "pipeline", "console_allocation", "cli_options", "assess", "console", "cli_inspect", "cli_train", "cli",
)  # fmt: skip

MAX_LINES = 400


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__"))


def imported(path: Path) -> set[str]:
    """Names of kqgen modules that `path` imports, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "kqgen":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kqgen."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kqgen.")}
    return names


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in modules())


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_a_module_imports_only_from_those_above_it(path: Path) -> None:
    place = ORDER.index(path.stem)
    later = {name for name in imported(path) if ORDER.index(name) >= place}
    assert later == set(), f"{path.stem} imports {later}, which stand below it"


def sources() -> list[Path]:
    folders = chain(PACKAGE.glob("*.py"), (ROOT / "runtime_c").rglob("*.[ch]"), (ROOT / "templates").rglob("*.j2"))
    return sorted(folders)


def test_no_source_is_longer_than_one_can_read() -> None:
    long = {path.name: count for path in sources() if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES}
    assert long == {}


def test_no_source_holds_unfinished_work() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b")
    unfinished = [path.name for path in sources() if marks.search(path.read_text(encoding="utf-8"))]
    assert unfinished == []


def test_no_tracked_text_names_a_machine() -> None:
    """Paths of a developer's machine have no place in the project."""
    pattern = re.compile(r"/(?:work|tmp|root|home)/[a-z]")
    others = (ROOT.glob("*.md"), (ROOT / "docs").glob("*.md"), (ROOT / "examples").rglob("*.py"), (ROOT / "boards").glob("*"))
    texts = chain(sources(), *others)
    named = [path.name for path in texts if path.is_file() and pattern.search(path.read_text(encoding="utf-8"))]
    assert named == []
