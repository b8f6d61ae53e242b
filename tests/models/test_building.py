"""How a model runs: settings that do not go together are refused, those that do reach the model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pictures import create_tiny, pictures_config
from torch import nn

from fedhess.base.errors import UsageError
from fedhess.jobs.directory import job_directory
from fedhess.models import create_model
from fedhess.models.building import check_execution, set_execution
from tests.conftest import Outcome

IMAGES = (3, 12, 12)


def tiny():
    torch.manual_seed(0)
    return create_tiny(input_shape=IMAGES, outputs=4, pretrained=False)


RGB_ONLY = "--augment domainbed: expected RGB images .* use --augment none"


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"precision": "bf16", "dtype": "float64"}, IMAGES, "--precision bf16: it needs --dtype float32, got float64"),
        ({"precision": "bf16", "device": "mps"}, IMAGES, "--precision bf16: expected --device cpu or cuda, got mps"),
        ({"precision": "bf16", "device": "cuda:0"}, IMAGES, "cuda:0 computes no bfloat16; use --precision float32"),
        ({}, (1280,), RGB_ONLY),
        ({}, (2, 14, 14), RGB_ONLY),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, str], shape: tuple[int, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    check_execution(pictures_config(precision="bf16", device="cpu"), IMAGES)
    check_execution(pictures_config(augment="none"), shape)
    with pytest.raises(UsageError, match=message):
        check_execution(pictures_config(**changes), shape)


def test_a_model_without_batch_norms_has_none_to_average() -> None:
    model = create_model("mlp", input_shape=(4,), outputs=2, seed=0)
    with pytest.raises(UsageError, match="--batchnorm averaged: mlp has no batch norm; leave the option out"):
        set_execution(model, pictures_config(model="mlp", batchnorm="averaged"))


def test_batch_norms_are_frozen_unless_they_are_averaged() -> None:
    frozen, averaged = (set_execution(tiny(), pictures_config(batchnorm=name)) for name in ("frozen", "averaged"))
    assert [model.train().featurizer.norm.training for model in (frozen, averaged)] == [False, True]
    assert [model.eval().featurizer.norm.training for model in (frozen, averaged)] == [False, False]


def test_float32_is_computed_in_float32() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    set_execution(tiny(), pictures_config())
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("name", ["resnet18", "lite0"])
def test_convolutions_keep_the_order_of_their_inputs(name: str) -> None:
    model = create_model(name, input_shape=(3, 32, 32), outputs=2, seed=0, pretrained=False)
    seen: list[bool] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.register_forward_hook(
                lambda _, given, result: seen.append(result.is_contiguous(memory_format=torch.channels_last))
            )
    model.features(torch.rand(2, 3, 64, 64))
    assert len(seen) > 15
    assert all(seen)


# -- Compilation -------------------------------------------------------------------------------------------------------


def test_the_featurizer_alone_is_compiled_and_names_stay() -> None:
    plain, compiled = (set_execution(tiny(), pictures_config(compile=flag)) for flag in (False, True))
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert compiled.featurizer._compiled_call_impl is not None
    assert compiled._compiled_call_impl is compiled.head._compiled_call_impl is None
    assert plain.featurizer._compiled_call_impl is None
    pictures = torch.rand(3, *IMAGES)
    with torch.compiler.set_stance("force_eager"):  # compiling takes half a minute
        assert torch.equal(compiled.features(pictures), plain.features(pictures))


def test_a_failing_compiler_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: object) -> None:
        raise RuntimeError("\n backend='inductor' raised:\n CppCompileError: no header")

    monkeypatch.setattr(torch, "compile", fail)
    reason = r"\(backend='inductor' raised: CppCompileError: no header\)"
    with pytest.raises(UsageError, match=rf"--compile: torch cannot compile here {reason}; install a C\+\+ compiler"):
        check_execution(pictures_config(compile=True), IMAGES)
    check_execution(pictures_config(), IMAGES)


@pytest.mark.slow
def test_a_missing_compiler_is_named_before_training() -> None:
    code = (
        "from pictures import pictures_config; from fedhess.models.building import check_execution; "
        "import torch._inductor.config as inductor; inductor.cpp.cxx = ('/nonexistent',); "
        "check_execution(pictures_config(compile=True), (3, 12, 12))"
    )
    here = str(Path(__file__).resolve().parents[1] / "support")
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r}); {code}"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert "fedhess.base.errors.UsageError: --compile: torch cannot compile here (InvalidCxxCompiler" in done.stderr
    assert "; install a C++ compiler (on a GPU also Triton), or leave the option out" in done.stderr


@pytest.mark.slow
def test_compiled_features_are_the_features() -> None:
    check_execution(pictures_config(compile=True), IMAGES)
    plain, compiled = (set_execution(tiny(), pictures_config(compile=flag)) for flag in (False, True))
    pictures = torch.rand(3, *IMAGES)
    torch.testing.assert_close(compiled.features(pictures), plain.features(pictures))


# -- Resuming ----------------------------------------------------------------------------------------------------------


def test_where_images_come_from_may_change_when_a_job_goes_on(tmp_path: Path) -> None:
    begun = {"settings": {"images": "cached", "image_cache_gb": None, "augment": "none"}}
    with job_directory(tmp_path / "job", begun, resume=False):
        pass
    streamed = {"settings": begun["settings"] | {"images": "streamed", "image_cache_gb": 3.0}}
    with job_directory(tmp_path / "job", streamed, resume=True):
        pass
    with (
        pytest.raises(UsageError, match=r"settings\.augment: 'none' there, 'domainbed' now"),
        job_directory(tmp_path / "job", {"settings": begun["settings"] | {"augment": "domainbed"}}, resume=True),
    ):
        pass


def test_the_header_says_how_a_model_is_fed_and_run(command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    outcome: Outcome = command("--domains", "Toy", "--precision", "bf16", "--rounds", 1, "--trials", 1)
    assert outcome.status == 0, outcome.err
    assert "model       mlp, bf16\n" in outcome.out
    assert asked == []
    outcome = command("--domains", "Toy", "--deterministic", "--rounds", 1, "--trials", 1)
    assert outcome.status == 0, outcome.err
    assert "model       mlp, deterministic\n" in outcome.out
    assert set(asked) == {True}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "as the user set it"
