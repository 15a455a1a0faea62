"""Fifteen real architectures, small, with random weights and made data that can be learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import timm
import torch
from peft import LoraConfig, get_peft_model
from timm.layers import ClassifierHead
from timm.models.mlp_mixer import MlpMixer
from timm.models.vgg import VGG, ConvMlp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

TOKENS, LENGTH, BATCH, CLASSES = 40, 16, 16, 4


@dataclass(frozen=True)
class Training:
    """A model, the loss of one step on fixed data, and its optimizer."""

    model: nn.Module
    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer


def trained_by(model: nn.Module, loss: Callable[[], Tensor], rate: float, kind: str = "AdamW") -> Training:
    """With the parameters that require a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = getattr(torch.optim, kind)(trained, lr=rate)
    return Training(model, loss, optimizer)


# --- images ----------------------------------------------------------------------------------------------------------


def images(size: int = 32) -> tuple[Tensor, Tensor]:
    """The class of an image is the quarter that is bright."""
    x, y = torch.randn(BATCH, 3, size, size) / 2, torch.arange(BATCH) % CLASSES
    half = size // 2
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, label // 2 * half :, label % 2 * half :][:, :half, :half] += 1
    return x, y


def vision(name: str, rate: float = 1e-3, kind: str = "AdamW", size: int = 32, **options: object) -> Training:
    model = timm.create_model(name, num_classes=CLASSES, **options)
    x, y = images(size)
    return trained_by(model, lambda: cross_entropy(model(x), y), rate, kind)


def resnet18() -> Training:
    return vision("resnet18", 0.02, "SGD")


def vgg11() -> Training:
    """The layers of VGG-11, an eighth as wide, with a small head."""
    widths = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"]
    model = VGG(widths, num_classes=CLASSES)
    model.pre_logits = ConvMlp(64, 64, 7, drop_rate=0.0)
    model.head = ClassifierHead(64, CLASSES)
    x, y = images()
    return trained_by(model, lambda: cross_entropy(model(x), y), 1e-3)


def convnext() -> Training:
    return vision("convnext_atto", 1e-3, depths=(1, 1, 2, 1), dims=(8, 16, 32, 64))


def vit() -> Training:
    return vision("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=6, embed_dim=48, num_heads=3)


def mixer() -> Training:
    model = MlpMixer(CLASSES, img_size=32, patch_size=8, num_blocks=6, embed_dim=48)
    x, y = images()
    return trained_by(model, lambda: cross_entropy(model(x), y), 3e-3)


class UNet(nn.Module):
    """Two levels down and up again, with skips that are concatenated."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            )  # fmt: skip

        self.down1, self.down2 = block(3, width), block(width, 2 * width)
        self.bottom = block(2 * width, 4 * width)
        self.raise2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = block(4 * width, 2 * width)
        self.raise1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = block(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        deep = self.bottom(nn.functional.max_pool2d(two, 2))
        deep = self.up2(torch.cat([two, self.raise2(deep)], 1))
        answer: Tensor = self.head(self.up1(torch.cat([one, self.raise1(deep)], 1)))
        return answer


def unet() -> Training:
    model, (x, _) = UNet(), images(16)
    wanted = x.mean(1, keepdim=True)
    return trained_by(model, lambda: mse_loss(model(x), wanted), 1e-3)


# --- text ------------------------------------------------------------------------------------------------------------


def text() -> Tensor:
    """Each token is the one before plus a step that the first token tells."""
    start = torch.randint(TOKENS, (BATCH, 1))
    return (start + torch.arange(LENGTH) * (1 + start % 3)) % TOKENS


def language(model: nn.Module, rate: float = 3e-3) -> Training:
    x = text()
    return trained_by(model, lambda: model(input_ids=x, labels=x).loss, rate)


def gpt2() -> Training:
    sizes = {"n_embd": 48, "n_layer": 4, "n_head": 3, "n_positions": LENGTH}
    sizes |= {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    return language(GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, bos_token_id=0, eos_token_id=0, **sizes)))


def small_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=TOKENS, max_position_embeddings=LENGTH, **sizes))


def llama() -> Training:
    return language(small_llama())


def lora() -> Training:
    return language(get_peft_model(small_llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])), 1e-2)


def mamba() -> Training:
    return language(MambaForCausalLM(MambaConfig(vocab_size=TOKENS, hidden_size=32, num_hidden_layers=4, state_size=8)))


def t5() -> Training:
    sizes = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 3, "num_heads": 4, "dropout_rate": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=TOKENS, decoder_start_token_id=0, **sizes))
    return language(model)


def bert() -> Training:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    model = BertForSequenceClassification(BertConfig(vocab_size=TOKENS, num_labels=CLASSES, **sizes))
    x = text()
    return trained_by(model, lambda: model(input_ids=x, labels=x[:, 0] % CLASSES).loss, 1e-3)


# --- sequences -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Two recurrent layers and a head on the last time step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(8, 32, num_layers=2, batch_first=True)
        self.middle = nn.Linear(32, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(torch.relu(self.middle(self.rnn(x)[0][:, -1])))
        return answer


def sequences(kind: str) -> Training:
    model = Recurrent(kind)
    x = torch.randn(BATCH, LENGTH, 8)
    y = x[:, -4:, :CLASSES].sum(1).argmax(1)
    return trained_by(model, lambda: cross_entropy(model(x), y), 1e-2)


def lstm() -> Training:
    return sequences("LSTM")


def gru() -> Training:
    return sequences("GRU")


class Translator(nn.Module):
    """torch's own encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 32)
        self.transformer = nn.Transformer(32, 4, 2, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.transformer(self.embed(x), self.embed(x)))
        return answer


def transformer() -> Training:
    model, x = Translator(), text()
    return trained_by(model, lambda: cross_entropy(model(x).flatten(0, 1), x.flatten()), 1e-3)


ARCHITECTURES: Mapping[str, Callable[[], Training]] = {
    make.__name__: make
    for make in (
        resnet18, vgg11, convnext, vit, mixer, gpt2, llama, bert, t5, mamba, lora, lstm, gru, transformer, unet,
    )
}  # fmt: skip


def made(name: str, seed: int = 0) -> Training:
    """A training of this architecture; none has dropout."""
    torch.manual_seed(seed)
    return ARCHITECTURES[name]()
