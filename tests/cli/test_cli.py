"""The command line, in a process of its own or through main()."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.support import flows
from tests.support.warm import VGRAD, WarmProcess
from vgrad_torch.cli.parser import main


def vgrad(*arguments: str) -> subprocess.CompletedProcess[str]:
    process = WarmProcess(VGRAD, arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_a_run_ends_with_its_table_its_result_and_the_next_commands(tmp_path: Path) -> None:
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
        (["--hidden", "a"], "widths must be whole numbers like 512,256,128, not 'a'"),
        (["--lr", "-1"], "lr must be a positive number, not -1.0"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--data", "mnist", "--data-dir", "/nonexistent"], "/nonexistent does not exist"),
        (["--monitor", "("], "is not a regular expression"),
        (["--name", "a/b"], "without a slash"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_bad_input_gives_one_sentence_and_exit_code_2(
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["board", "--runs", "nowhere"], ["board", "--port", "99999"], [], ["trian"], ["board", "--runs", ""],
        ["train", "--runs", ""], ["predict", "--gain", "1e-300"], ["predict", "--gain", "1e110"],
    ],
)  # fmt: skip
def test_other_commands_reject_in_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_predict_shows_the_profile_and_explains_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--act", "sigmoid", "--init", "uniform", "--widths", "784,512,256,128,64,32,16,10"]
    assert main(["predict", *arguments, "--mean-square", "0.112"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"fc1 784x512 0\.54 6\.8e-09 [█#]+[·.]+ 5\.2e-06 1\.3e-08 0\.094 fc2 512x256", printed)
    assert re.search(r"fc7 16x10 0\.12 9\.4e-03 [█#]{16} 1\.0e\+00 2\.7e-02 - ", printed)
    assert "The gradient falls from fc7 to fc1: fc1 is expected to receive 5.2e-06 of the gradient that fc7" in printed
    assert "receives. One network in three differs from this by more than a factor of 1.1" in printed
    assert "xi is 0.25 layers, and about 6 xi = 1.5 layers can be trained" in printed
    assert "chi_1 would be 1 at sigma_w^2 = 103 (weights 18 times as large)." in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--init", "he"],
            ["The gradient keeps its size", "This is critical: a gradient passes through any number of layers."],
        ),
        (["--init", "he", "--gain", "3"], ["The gradient grows from fc7 to fc1", "the signal grows without bound"]),
        (["--act", "gelu"], ["4 for small signals (weights", ", 2 for large signals (weights"]),
        (["--widths", "5,1"], ["A single layer passes no gradient to others."]),
        (["--bias=-0.5"], ["the signal vanishes", "With this bias no weights are critical."]),
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
def test_predict_rejects_in_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *arguments]) == 2
    assert words in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_predict_loads_no_torch() -> None:
    code = "import sys; from vgrad_torch.cli.parser import main; main(['predict']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("vgrad_torch 0.")


def test_a_log_with_a_write_error_is_reported_at_the_end(tmp_path: Path) -> None:
    code = (
        "import shutil, sys; from vgrad_torch import cli\n"
        "from vgrad_torch.training import runner; train = runner.train\n"
        f"def without_folder(*args, **kwargs): shutil.rmtree({str(tmp_path)!r}); train(*args, **kwargs)\n"
        "runner.train = without_folder; sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--epochs", "1", "--runs", str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "The layers at step 0" in done.stdout
    assert re.search(
        r"vgrad: the log is not complete: cannot log to .*: No such file or directory, since step 0", done.stderr
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
    ("with_make", "expected"), [(True, "make train ACT=relu LR=0.1"), (False, "vgrad train --act relu")]
)
def test_the_next_commands_repeat_the_given_options(
    with_make: bool, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGRAD_MAKE", "1") if with_make else monkeypatch.delenv("VGRAD_MAKE", raising=False)
    runs = tmp_path / "a b"
    assert main(["train", "--act", "sigmoid", "--lr", "0.1", "--epochs", "1", "--runs", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert expected in printed
    assert f"'{runs}'" in printed


# --- preflight ------------------------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
    batch = torch.randn(16, 8), torch.arange(16) % 3
    return nn.Sequential(*layers, nn.Linear(8, 3)), nn.functional.cross_entropy, batch

def with_adam():
    model, loss_fn, batch = make()
    return model, loss_fn, batch, torch.optim.Adam(model.parameters())

def wrong():
    return make()[0]

def no_batch():
    return (*make()[:2], torch.zeros(3))

def raises():
    raise KeyError("no data")

def leaves():
    raise SystemExit(0)

def misfit():
    return (*make()[:2], (torch.randn(16, 9), torch.zeros(16)))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a user's own package."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "model.py").write_text(MODEL)
    (tmp_path / "mine" / "broken.py").write_text("import nothing_like_it\n")
    (tmp_path / "mine" / "wrong.py").write_text("def make(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_preflight_of_a_recipe_and_the_best_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "--act", "relu", "--gain", "0.3", "--what-if"]) == 0
    printed = words(capsys)
    assert printed.startswith("weight activation update layer size gradient expected gain gain dead ratio state fc1")
    assert "vanishing: fc1 receives " in printed
    assert "What if change gradient drive spread verdict unchanged" in printed
    command = re.search(r"Or: (vgrad train .*)$", printed)
    assert command is not None
    assert "--gain" not in command[1]
    assert main(["preflight", *command[1].split()[2:]]) == 0
    assert "healthy: The gradient reaches the first layer." in words(capsys)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--act", "sigmoid", "--fail-on", "dead"], 0),
        (["--act", "sigmoid", "--fail-on", "vanishing,exploding"], 3),
        (["--act", "sigmoid", "--optimizer", "adam", "--norm", "batch", "--fail-on", "vanishing"], 0),
        (["--data", "circles", "--bias", "-1", "--act", "relu", "--fail-on", "dead"], 3),
        (["--init", "he", "--gain", "40", "--hidden", "64,64,64,64", "--fail-on", "exploding, non-finite"], 3),
        (["--hidden", "8", "--fail-on", "no-gradient,non-finite"], 0),
        (["--act", "sigmoid", "--fail-on", "Vanishing,"], 3),
        (["--act", "sigmoid", "--fail-on", "any"], 3),
        (["--hidden", "8", "--fail-on", "any"], 0),
    ],
)
def test_fail_on_is_exit_code_3(arguments: list[str], code: int) -> None:
    assert main(["preflight", *arguments]) == code


def test_preflight_of_a_users_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "mine.model:make", "--what-if", "--fail-on", "vanishing"]) == 3
    printed = words(capsys)
    assert "No optimizer was given, so the verdict is for SGD." in printed
    assert "setattr(model.get_submodule(parent), child, nn." in printed
    assert "Or:" not in printed
    assert main(["preflight", "mine.model:with_adam"]) == 0
    assert words(capsys).startswith("weight activation update layer gradient expected gain gain dead saturated ratio ")


def test_some_layers_of_a_users_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "mine.model:make", "--layers", "^(36|40)$"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.split("\n\n")[0].splitlines()] == ["layer", "36", "40"]


def test_preflight_fits_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["preflight", "--act", "sigmoid"]) == 0
    _, *paragraphs = capsys.readouterr().out.split("\n\n")
    assert 50 < max(len(line) for text in paragraphs for line in text.splitlines()) <= 60


def test_a_name_too_long_for_a_folder_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--runs", str(tmp_path), "--name", "n" * 300]) == 2
    assert "argument --name: the name of a folder has at most 250 bytes, this one has 300" in capsys.readouterr().err


def test_weights_beyond_float32_are_trained_without_a_warning(tmp_path: Path) -> None:
    done = vgrad("train", "--gain", "1e30", "--epochs", "1", "--runs", str(tmp_path))
    assert "RuntimeWarning: overflow" not in done.stderr


def test_no_other_activation_is_suggested_for_a_net_without_hidden_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--hidden", "", "--epochs", "1", "--runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Next:" in printed
    assert "the same with sigmoid" not in printed


def test_a_users_model_is_found_in_the_current_folder_by_the_installed_command(folder: Path) -> None:
    code = "import sys; sys.path = [p for p in sys.path if p]; from vgrad_torch.cli import main; sys.exit(main())"
    arguments = ["preflight", "mine.model:make", "--fail-on", "vanishing"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.model"], "'mine.model' is not of the form package.module:function"),
        (["yours.model:make"], "there is no module yours.model, neither in this folder nor installed"),
        (["mine.yours:make"], "there is no module mine.yours, neither in this folder nor installed"),
        (["mine.broken:make"], "importing mine.broken raised ModuleNotFoundError: No module named 'nothing_like_it'"),
        (["mine.wrong:make"], "importing mine.wrong raised SyntaxError: "),
        (["mine.model:mak"], "the module mine.model has no function 'mak'; did you mean 'make'?"),
        (["mine.model:wrong"], "mine.model:wrong must return a model, a loss function, a batch (x, y) and "
         "optionally an optimizer; it returned Sequential"),
        (["mine.model:no_batch"], "it returned Sequential, function, Tensor"),
        (["mine.model:raises"], "mine.model:raises raised KeyError: 'no data'"),
        (["mine.model:leaves"], "mine.model:leaves raised SystemExit: 0"),
        (["mine.model:make", "--layers", "conv"], "the model has no layer that matches 'conv'"),
        (["mine.model:misfit"], "the model or loss function of mine.model:misfit raised RuntimeError: mat1 and mat2"),
        (["mine.model:make", "--act", "relu"], "--act is for built-in networks; mine.model:make brings its own"),
        (["--fail-on", "vanished"], "unknown verdict 'vanished'. Choose from: any, no gradient, non-finite, "),
        (["--act", "tahn"], "did you mean 'tanh'?"),
        (["--residual"], "residual needs a hidden layer as wide as the one before it"),
    ],
)  # fmt: skip
def test_preflight_rejects_in_one_sentence(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preflight", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_network_options_reach_the_run_and_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--hidden", "8,8", "--norm", "batch", "--residual", "--gain", "2", "--bias", "-0.5", "--clip", "1"]
    assert main(["train", *options, "--epochs", "1", "--runs", str(tmp_path)]) == 0
    printed = words(capsys)
    assert "uniform weights, batch norm, residual, gain 2, biases -0.5, gradient clipped to 1.0, sgd" in printed
    assert "--norm batch --residual --gain 2.0 --bias -0.5" in printed
    assert "digits-relu-uniform-batchnorm-residual-gain2-bias-0.5-clip1-s0" in [
        path.name for path in tmp_path.iterdir()
    ]


def test_make_passes_every_network_option() -> None:
    makefile = ROOT / "Makefile"
    given = ["NORM=batch", "RESIDUAL=1", "GAIN=2", "BIAS=-0.5", "CLIP=1"]
    for target in ("train", "preflight"):
        command = ["make", "-n", "-f", str(makefile), target, *given]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        for flag in ["--residual", "--norm=", "--gain=", "--bias=", *(["--clip="] if target == "train" else [])]:
            assert flag in shown
        off = subprocess.run([*command, "RESIDUAL=0"], capture_output=True, text=True, check=True, cwd=ROOT)
        assert "--residual" not in off.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "verdicts"),
    [
        (["--act", "sigmoid"], 3, ["vanishing"]),
        (["--act", "relu", "--init", "he"], 0, ["healthy"]),
        (["--act", "relu", "--init", "he", "--lr", "1e20"], 3, []),
    ],
)
def test_fail_on_ends_a_training_with_3_if_its_last_verdict_is_listed(
    arguments: list[str], code: int, verdicts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["train", "--epochs", "2", "--runs", str(tmp_path), "--fail-on", "vanishing,non-finite"]
    assert main([*options, *arguments]) == code
    printed = capsys.readouterr().out
    assert re.findall(r"^verdict at step 0: (\w+)\. ", printed, re.M) == verdicts
    assert re.findall(r"^The verdict is (\w+): ", printed, re.M) == verdicts


def test_a_finished_run_that_is_resumed_fails_on_its_verdict_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = ["--fail-on", "vanishing"]
    assert main(["train", "--act", "sigmoid", "--epochs", "1", "--name", "a", "--runs", str(tmp_path), *guard]) == 3
    assert main(["train", "--resume", str(tmp_path / "a"), *guard]) == 3
    assert main(["train", "--resume", str(tmp_path / "a")]) == 0
    assert "is finished after 1 epochs" in capsys.readouterr().out


def test_a_name_in_a_log_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flows.write(tmp_path / "run", [(0, flows.typical())], layers=["1-a\x1b]0;owned\x07-2x2", *flows.LAYERS[1:]])
    assert main(["report", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "a?]0;owned?" in printed
    assert "\x1b" not in printed


def test_a_port_in_use_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["board", "--runs", str(tmp_path), "--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"vgrad: port {port} is in use; choose another: --port {port + 1}")
