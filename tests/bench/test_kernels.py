"""The kernels' budgets: what is read from machine code, and what breaks a budget."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
bench = pytest.importorskip("sorl_fast.bench.kernels")

from sorl_fast.bench import aot  # noqa: E402
from sorl_fast.bench.cli import main  # noqa: E402

from sorl_fast.errors import BadInput  # noqa: E402

USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function product:
  REG:96 STACK:56 SHARED:1024 LOCAL:0 CONSTANT[0]:572 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'product' for 'sm_90a'
ptxas info    : Function properties for product
    56 bytes stack frame, 48 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 56 bytes cumulative stack size
"""
SERIAL = (
    "ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized "
    "due to insufficient register resources for the wgmma pipeline in the function 'product'\n"
)
SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0020*/         {         HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R4, R8, RZ ;
        /*0040*/              @!UP0 FFMA R4, R4, R8, RZ ;
        /*0050*/                   UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR12], idesc[UR13], UP0 ;
        .byte 0x00
"""
AMDGCN = """
	v_mfma_f32_32x32x8_bf16 a[0:15], v[2:3], v[4:5], a[0:15]
	v_mfma_f32_32x32x8_bf16 a[0:15], v[2:3], v[4:5], a[0:15]
	v_smfmac_f32_16x16x32_f16 v[0:3], v[4:5], v[6:9], v1
	v_fma_f32 v1, v2, v3, v4
; v_mfma in a comment
amdhsa.kernels:
    .group_segment_fixed_size: 0
    .private_segment_fixed_size: 20
    .sgpr_spill_count: 1
    .vgpr_count:     128
    .vgpr_spill_count: 4
"""
ROW = {
    "kernel": "actor/bf16/65536/rollout",
    "target": "sm_90",
    "registers": 168,
    "stack_bytes": 0,
    "spill_bytes": 0,
    "shared_bytes": 98304,
    "mma": {"HGMMA": 66},
    "serialized": False,
    "needs_mma": True,
    "seconds": 1.0,
}
BUDGETS = bench.budgets_of([ROW], {}, [])


def test_nvidia_machine_code_is_read():
    read = aot.nvidia_resources(USAGE, LOG, SASS, 98304)
    assert read == (96, 56, 88, 99328, {"HGMMA": 2, "HMMA": 1, "UTCHMMA": 1}, False)


def test_serialised_products_are_seen():
    assert aot.nvidia_resources(USAGE, SERIAL + LOG, SASS, 0).serialized


@pytest.mark.parametrize("which", range(3), ids=["usage", "log", "sass"])
def test_unknown_output_is_no_figure(which):
    texts = [USAGE, LOG, SASS]
    texts[which] = "another version prints otherwise"
    with pytest.raises(ValueError, match=["cuobjdump", "ptxas", "nvdisasm"][which]):
        aot.nvidia_resources(*texts, 0)


def test_amd_metadata_is_read():
    read = aot.amd_resources(AMDGCN, 24576)
    mma = {"v_mfma_f32_32x32x8_bf16": 2, "v_smfmac_f32_16x16x32_f16": 1}
    assert read == (128, 20, 16, 24576, mma, False)
    with pytest.raises(ValueError, match="vgpr_count"):
        aot.amd_resources(AMDGCN.replace("vgpr_count", "v"), 0)


@pytest.mark.parametrize(
    ("dot", "needs"),
    [
        (
            "%5 = tt.dot %a, %b, %c : tensor<16x64xbf16> * tensor<64x64xbf16> -> tensor<16xf32>",
            True,
        ),
        ("%5 = tt.dot %a, %b, %c : tensor<16x64xf16> * tensor<64x64xf16> -> tensor<16xf32>", True),
        (
            "%5 = tt.dot %a, %b, %c, inputPrecision = tf32 : tensor<16x64xf32> * tensor<6x6xf32>",
            True,
        ),
        ("%5 = tt.dot %a, %b, %c : tensor<16x64xf32> * tensor<64x64xf32> -> tensor<16xf32>", False),
        ("%5 = arith.addf %a, %b : tensor<16x64xbf16>", False),
    ],
    ids=["bf16", "fp16", "tf32", "fp32", "no product"],
)
def test_only_reduced_precision_must_be_on_the_matrix_units(dot, needs):
    assert aot.needs_mma(dot) is needs


def test_a_row_at_its_budget_is_within_it():
    assert bench.judge([ROW], BUDGETS)[0]["within_budget"] is True


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"registers": 176}, "registers 176: the budget is 168"),
        ({"stack_bytes": 8}, "stack_bytes 8: the budget is 0"),
        ({"spill_bytes": 4}, "spill_bytes 4: the budget is 0"),
        ({"shared_bytes": 98320}, "shared_bytes 98320: the budget is 98304"),
        ({"mma": {"HMMA": 66}}, "HGMMA: not one left"),
        ({"mma": {}}, "do without matrix instructions"),
        ({"serialized": True}, "wgmma serialized"),
        ({"kernel": "actor/bf16/65536/new"}, "no budget"),
        ({"target": "sm_80"}, "no budget"),
        ({"error": "CompilationError: what"}, "CompilationError"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_a_broken_budget_fails(change, why):
    row = bench.judge([{**ROW, **change}], BUDGETS)[0]
    assert row["within_budget"] is False
    assert why in " ".join(row["faults"])
    assert "NOT WITHIN BUDGET" in bench.table([row])


@pytest.mark.parametrize("target", aot.TARGETS)
def test_no_budget_allows_more_shared_memory_than_the_part_has(target):
    row = {**ROW, "target": target, "shared_bytes": aot.SHARED_LIMIT[target] + 16}
    assert "has" in bench.faults(row, bench.budgets_of([row], {}, [])[row["kernel"]][target])[0]


def test_budgets_round_registers_up_and_leave_errors_out():
    rows = [{**ROW, "registers": 97}, {"kernel": "a/b/1/c", "target": "sm_80", "error": "no"}]
    assert bench.budgets_of(rows, {}, []) == {
        ROW["kernel"]: {
            "sm_90": {
                "registers": 104,
                "stack_bytes": 0,
                "spill_bytes": 0,
                "shared_bytes": 98304,
                "mma": ["HGMMA"],
            }
        }
    }


def test_budgets_of_what_was_not_compiled_stay():
    wanted = bench.jobs(["actor"], ["sm_90"])
    other = {"critic/bf16/256/forward": {"sm_90": {"registers": 8}}}
    gone = {"actor/bf16/256/gone": {"sm_90": {"registers": 8}, "sm_80": {"registers": 16}}}
    merged = bench.budgets_of([ROW], {**other, **gone}, wanted)
    assert merged.keys() == {ROW["kernel"], *other, *gone}
    assert merged["actor/bf16/256/gone"] == {"sm_80": {"registers": 16}}


def test_a_budget_without_a_kernel_is_named():
    wanted = bench.jobs(["actor"], ["sm_90"])
    gone = {
        "actor/bf16/256/gone": {"sm_90": {}, "sm_80": {}},
        "critic/bf16/256/forward": {"sm_90": {}},
        "no_such_file/bf16/256/forward": {"sm_90": {}},
    }
    assert bench.forgotten([ROW], wanted, {**BUDGETS, **gone}) == [
        "actor/bf16/256/gone on sm_90",
        "no_such_file/bf16/256/forward on sm_90",
    ]


def test_budgets_survive_their_file(tmp_path):
    path = tmp_path / "budgets.json"
    assert bench.read_budgets(path) == {}
    bench.write_budgets(path, BUDGETS)
    assert bench.read_budgets(path) == BUDGETS
    path.write_text(path.read_text().replace(bench.TRITON, "3.1.0"))
    with pytest.raises(BadInput, match=r"triton 3\.1\.0.*--write-budgets"):
        bench.read_budgets(path)
    path.write_text("{")
    with pytest.raises(BadInput, match="--write-budgets"):
        bench.read_budgets(path)


def test_the_checked_in_budgets_are_of_every_target():
    budgets = bench.read_budgets(bench.BUDGETS)
    assert {job.module.rpartition(".")[2] for job in bench.jobs(bench.KERNELS, aot.TARGETS)} == {
        kernel.partition("/")[0] for kernel in budgets
    }
    for kernel, by_target in budgets.items():
        _, precision, rows, _ = kernel.split("/")
        known = next(c[2] for c in bench.CASES if c[:2] == (precision, int(rows)))
        assert by_target.keys() == set(known), kernel
    assert bench.CASES[0][2] == aot.TARGETS  # every kernel is there for every target


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "--aot"),
        (["--aot", "--targets", "sm_12"], "--targets is 'sm_12'"),
        (["--aot", "--kernels", "actor,x"], "--kernels is 'x'"),
    ],
    ids=["no way", "target", "kernel"],
)
def test_wrong_arguments(argv, why, capsys):
    assert main(["kernels", *argv]) == 2
    assert why in capsys.readouterr().err


def test_the_budgets_are_of_the_triton_that_ci_installs():
    constraints = Path(__file__).parents[2] / "constraints.txt"
    assert f"triton=={bench.TRITON}" in constraints.read_text().split()


@pytest.mark.parametrize("found", ["3.1.0", None], ids=["another", "none"])
def test_another_triton_is_refused(found, monkeypatch, capsys):
    def version(name):
        if found is None:
            raise bench.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(bench, "version", version)
    assert main(["kernels", "--aot"]) == 2
    assert f"pip install triton=={bench.TRITON}" in capsys.readouterr().err


def test_exit_code_and_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "version", lambda name: bench.TRITON)
    monkeypatch.setattr(bench, "compile_all", lambda wanted: [dict(ROW)])
    argv = ["kernels", "--aot", "--kernels", "actor", "--targets", "sm_90"]
    argv += ["--budgets", str(tmp_path / "b.json"), "--json", str(tmp_path / "rows.json")]
    assert main(argv) == 1
    assert "it has no budget" in capsys.readouterr().out
    assert main([*argv, "--write-budgets"]) == 0
    assert main(argv) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row.keys() >= {
        *("kernel", "target", "registers", "stack_bytes", "spill_bytes"),
        *("shared_bytes", "mma", "within_budget"),
    }
    monkeypatch.setattr(bench, "compile_all", lambda wanted: [{**ROW, "spill_bytes": 8}])
    assert main(argv) == 1
    monkeypatch.setattr(bench, "compile_all", lambda wanted: [])
    assert main(argv) == 1
    assert "not compiled any more" in capsys.readouterr().out


def toy(target, precision):
    return bench.Job("toy_kernels", target, precision, 65536, ())


@pytest.mark.slow
def test_a_toy_is_compiled_and_one_that_fails_is_a_row():
    pytest.importorskip("triton")
    wanted = [
        toy("sm_80", "bf16"),
        toy("sm_90", "bf16"),
        toy("sm_100", "bf16"),
        toy("gfx942", "bf16"),
        toy("sm_90", "fp32"),
        toy("sm_90", "fp16"),
        toy("sm_90", "tf32"),
        toy("sm_89", "bf16"),
        toy("sm_89", "tf32"),
        toy("sm_89", "fp32"),
    ]
    rows = bench.compile_all(wanted, say=lambda _: None, path=str(Path(__file__).parent))
    assert [row["target"] for row in rows] == [job.target for job in wanted]
    assert [list(row["mma"]) if "mma" in row else row["error"].split(":")[0] for row in rows] == [
        ["HMMA"],
        ["HGMMA"],
        ["UTCHMMA"],
        ["v_mfma_f32_32x32x8_bf16"],
        [],
        "ValueError",
        "the compiler died",
        ["HMMA"],
        "the compiler died",
        [],
    ]
    for row in rows:
        if "error" not in row:
            assert 16 <= row["registers"] <= 256
            assert row["shared_bytes"] >= 16384
            assert row["stack_bytes"] == row["spill_bytes"] == 0
            assert row["needs_mma"] == bool(row["mma"])


def test_the_main_case_is_built_for_every_target():
    main, every = (
        bench.jobs(bench.KERNELS, bench.TARGETS, main=True),
        bench.jobs(bench.KERNELS, bench.TARGETS),
    )
    assert set(main) < set(every)
    assert {job.target for job in main} == set(bench.TARGETS)
    assert {(job.precision, job.rows) for job in main} == {bench.CASES[0][:2]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kernel_is_within_its_budget(capsys):
    """In the main precision on one target, but for best_of_n, whose builds take minutes.

    `sorl-bench kernels --aot`, before a release, takes all.
    """
    if bench.version("triton") != bench.TRITON:
        pytest.skip(f"the budgets are of triton {bench.TRITON}")
    quick = ",".join(name for name in bench.KERNELS if name != "best_of_n")
    code = main(["kernels", "--aot", "--main", "--targets", "sm_90", "--kernels", quick])
    assert code == 0, capsys.readouterr().out
