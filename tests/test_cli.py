"""The command line as a user meets it: in a process of its own, or through main()."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vgrad_torch.cli import main


def vgrad(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vgrad_torch", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_run_ends_with_its_table_its_result_and_what_to_type_next(tmp_path: Path) -> None:
    done = vgrad("train", "--act", "sigmoid", "--epochs", "2", "--runs", str(tmp_path), "--monitor", "fc1.*gradient")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"run {tmp_path / 'digits-sigmoid-uniform-s0'}: digits, hidden layers 512-256")
    assert sum(line.startswith("epoch ") for line in lines) == 3
    assert re.search(r"^step +44  fc1\.weight_gradient +\d\.\d+e-08$", done.stdout, re.MULTILINE)
    assert not re.search(r"^step .*fc2", done.stdout, re.MULTILINE)
    for layer in ("fc1 64x512", "fc7 16x10"):
        assert re.search(rf"{layer} +\S+ +\S+ +\S+ +\S+ +\S+ +\S+", done.stdout)
    assert "guessing gives 10%" in done.stdout
    assert "times smaller than fc7's" in done.stdout
    assert re.search(rf"^  vgrad train --act relu --epochs 2 --runs {tmp_path} +the same with relu$", done.stdout, re.M)
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--act", "tahn"], "unknown activation 'tahn'; did you mean 'tanh'? Choose from: sigmoid, tanh, relu"),
        (["--init", "hee"], "unknown initializer 'hee'; did you mean 'he'?"),
        (["--data", "mnits"], "unknown data set 'mnits'; did you mean 'mnist'?"),
        (["--optimizer", "sdg"], "unknown optimizer 'sdg'; did you mean 'sgd'?"),
        (["--hidden", "5,0,5"], "hidden widths must be between 1 and 1000000000, not 0"),
        (["--hidden", "a"], "widths are whole numbers like 512,256,128, not 'a'"),
        (["--lr", "-1"], "lr must be a positive number, not -1.0"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--data", "mnist", "--data-dir", "/nonexistent"], "/nonexistent does not exist"),
        (["--monitor", "("], "is not a regular expression"),
        (["--name", "a/b"], "without a slash"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--runs", str(tmp_path), *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("vgrad: ")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_runs_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", "--epochs", "1", "--runs", str(tmp_path / "file" / "runs")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_a_nan_loss_is_one_sentence_with_step_and_layer_and_keeps_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--lr", "1e20", "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"vgrad: the loss became nan at step 1: .* output of fc\d, .*the log up to there is kept.*\n", error
    )
    assert list(tmp_path.glob("*/*tfevents*"))


@pytest.mark.parametrize("arguments", [["board", "--runs", "nowhere"], ["board", "--port", "99999"], [], ["trian"]])
def test_other_commands_refuse_in_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_predict_shows_the_profile_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--act", "sigmoid", "--init", "uniform", "--widths", "784,512,256,128,64,32,16,10"]
    assert main(["predict", *arguments, "--mean-square", "0.112"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"fc1 784x512 0\.54 6\.8e-09 [█#]+[·.]+ 5\.2e-06 1\.3e-08 0\.094 fc2 512x256", printed)
    assert re.search(r"fc7 16x10 0\.12 9\.4e-03 [█#]{16} 1\.0e\+00 2\.7e-02 - ", printed)
    assert "The gradient vanishes: at fc1 its norm is 5.2e-06 of that at fc7; one net in three is off by" in printed
    assert "xi is 0.25 layers, and about 6 xi = 1.5 layers can be trained" in printed
    assert "chi_1 would be one at sigma_w^2 = 103 (gain 18 times this one)." in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--init", "he"], ["The gradient keeps its size", "critical, a gradient crosses any number of layers"]),
        (["--init", "he", "--gain", "3"], ["The gradient explodes", "the signal grows without bound"]),
        (["--act", "gelu"], ["4 for small signals (gain", ", 2 for large ones (gain"]),
        (["--widths", "5,1"], ["A single layer hands no gradient down."]),
        (["--bias=-0.5"], ["the signal dies out", "No weights are critical with this bias."]),
    ],
)
def test_predict_in_words(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *arguments]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--act", "tahn"], "unknown activation 'tahn'; did you mean 'tanh'?"),
        (["--widths", "5"], "an MLP needs at least 2 widths"),
        (["--gain", "0"], "gain multiplies the weights and must be a positive number"),
        (["--mean-square", "-1"], "mean_square must be a number from 0 up"),
    ],
)
def test_predict_refuses_in_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *arguments]) == 2
    assert words in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_predict_loads_no_torch() -> None:
    code = "import sys; from vgrad_torch.cli import main; main(['predict']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("vgrad_torch 0.")


def test_a_log_that_breaks_off_is_said_at_the_end(tmp_path: Path) -> None:
    code = (
        "import shutil, sys; from vgrad_torch import cli, training; keep = training.train\n"
        f"def train(*args, **kwargs): shutil.rmtree({str(tmp_path)!r}); keep(*args, **kwargs)\n"
        "training.train = train; sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--epochs", "1", "--runs", str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "The layers at step 0" in done.stdout
    assert re.search(
        r"vgrad: the log is not whole: cannot log to .*: No such file or directory, since step 0", done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_terminal_without_unicode_or_width_gets_the_whole_picture(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vgrad_torch", "train", "--epochs", "1", "--runs", str(tmp_path), "--name", "ä"],
        capture_output=True, timeout=120, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(rb"fc7 16x10[ |]+\S+e-\d\d[ |]+\S+e-\d\d[ |]+\S+e-\d\d", done.stdout)


@pytest.mark.parametrize(
    ("made", "expected"), [(True, "make train ACT=relu LR=0.1"), (False, "vgrad train --act relu")]
)
def test_what_to_type_next_repeats_what_was_given(
    made: bool, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGRAD_MAKE", "1") if made else monkeypatch.delenv("VGRAD_MAKE", raising=False)
    runs = tmp_path / "a b"
    assert main(["train", "--act", "sigmoid", "--lr", "0.1", "--epochs", "1", "--runs", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert expected in printed
    assert f"'{runs}'" in printed
