"""Starting from a file: what is converted is told, what does not fit is refused by name, pickles are not opened."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medloom.errors import MedloomError, ModelError, UsageError
from medloom.models.registry import create_model
from medloom.models.weights import load_weights

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}


def vit(**changes: Any) -> nn.Module:
    return create_model("vit", **{"num_classes": 2, "in_chans": 1, "image_size": 32, **SMALL, **changes}).eval()


def saved(model: nn.Module, path: Path, **changes: torch.Tensor) -> Path:
    save_file({**model.state_dict(), **changes}, path)
    return path


def refusal(model: nn.Module, path: Path, **options: Any) -> MedloomError:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises((ModelError, UsageError)) as refused:
        load_weights(model, path, **options)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()), "half filled"
    return refused.value


def test_equal_weights_give_equal_answers_without_notice(tmp_path: Path) -> None:
    source, target = vit(), vit()
    assert load_weights(target, saved(source, tmp_path / "model.safetensors")) == ()
    x_BCHW = torch.rand(2, 1, 32, 32)
    assert torch.equal(source(x_BCHW), target(x_BCHW))
    assert load_weights(vit(), tmp_path) == (), "the folder stands for its model.safetensors"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("canary"), "boom")


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "model.bin", "model.pkl", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "zip"])
def test_C501_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "pickle":
        Path(name).write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch":
        torch.save({"weight": Bomb()}, name)
    else:
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    assert refusal(vit(), Path(name)).code == "C501"
    assert not Path("canary").exists()


def test_C501_other_extension(tmp_path: Path) -> None:
    assert refusal(vit(), saved(vit(), tmp_path / "weights.dat")).code == "C501"


def test_C502_truncated_at_every_hundredth(tmp_path: Path) -> None:
    data = saved(vit(), tmp_path / "whole.safetensors").read_bytes()
    model, path = vit(), tmp_path / "cut.safetensors"
    for percent in range(100):
        path.write_bytes(data[: len(data) * percent // 100])
        with pytest.raises(ModelError) as refused:
            load_weights(model, path)
        assert refused.value.code == "C502"
        assert "\n" not in str(refused.value)


def test_C505_at_most_five_names_are_listed(tmp_path: Path) -> None:
    path = saved(vit(depth=3), tmp_path / "model.safetensors")
    error = refusal(vit(), path)
    assert error.code == "C505"
    assert "not in the model: blocks.1.attn.proj.bias" in str(error)
    assert str(error).count("blocks.") == 5
    assert "and 19 more" in str(error)
    assert "missing: blocks.1" in str(refusal(vit(depth=2), saved(vit(), tmp_path / "b.safetensors")))


def test_C505_other_shapes_are_named_with_both(tmp_path: Path) -> None:
    path = saved(vit(), tmp_path / "model.safetensors", **{"norm.weight": torch.ones(33)})
    assert "norm.weight 33, wanted 32" in str(refusal(vit(), path))


def test_C505_other_classes_need_a_word(tmp_path: Path) -> None:
    source, target = vit(num_classes=5), vit()
    path = saved(source, tmp_path / "model.safetensors")
    error = refusal(target, path)
    assert error.code == "C505"
    assert "model.new_head" in error.remedy
    head = target.head.weight.clone()
    assert load_weights(target, path, new_head=True) == ("the head starts fresh",)
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.cls_token, source.cls_token)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_C508_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = saved(vit(), tmp_path / "model.safetensors", **{"norm.bias": torch.full((32,), value)})
    error = refusal(vit(), path)
    assert error.code == "C508"
    assert "norm.bias" in str(error)


def test_C508_weights_that_are_all_zero(tmp_path: Path) -> None:
    zeros = {key: torch.zeros_like(value) for key, value in vit().state_dict().items()}
    assert refusal(vit(), saved(vit(), tmp_path / "model.safetensors", **zeros)).code == "C508"


def test_U209_nothing_there(tmp_path: Path) -> None:
    assert refusal(vit(), tmp_path / "model.safetensors").code == "U209"
    assert refusal(vit(), tmp_path).code == "U209"


def test_grey_images_keep_their_answer_between_one_and_three_channels(tmp_path: Path) -> None:
    x_BCHW = torch.rand(2, 1, 64, 64)
    one, three = (create_model("hatr_conv2d", num_classes=2, in_chans=n, image_size=64).eval() for n in (1, 3))
    notices = load_weights(one, saved(three, tmp_path / "three.safetensors"))
    assert "64x3x3x3 to 64x1x3x3" in notices[0]
    torch.testing.assert_close(one(x_BCHW), three(x_BCHW.expand(-1, 3, -1, -1)), atol=1e-5, rtol=0)
    load_weights(three, saved(one, tmp_path / "one.safetensors"))
    torch.testing.assert_close(one(x_BCHW), three(x_BCHW.expand(-1, 3, -1, -1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["vit_tiny", "hatr_conv2d"])
def test_positions_are_brought_to_the_new_size_with_notice(tmp_path: Path, name: str) -> None:
    small, large = (create_model(name, num_classes=2, in_chans=1, image_size=n).eval() for n in (64, 96))
    notices = load_weights(large, saved(small, tmp_path / "model.safetensors"))
    assert notices
    assert all("pos" in notice for notice in notices)
    x_BCHW = torch.rand(2, 1, 96, 96)
    torch.testing.assert_close(large(x_BCHW), small(x_BCHW), atol=1e-5, rtol=0)


def test_half_precision_is_converted_with_notice(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({key: value.bfloat16() for key, value in vit().state_dict().items()}, path)
    model = vit()
    assert load_weights(model, path) == ("values converted from bfloat16",)
    assert model.norm.weight.dtype == torch.float32


def test_a_file_with_timm_names_fits_a_timm_network(tmp_path: Path) -> None:
    model = create_model("timm/resnet10t", num_classes=2, image_size=64)
    path = tmp_path / "model.safetensors"
    save_file(model.network.state_dict(), path)
    assert load_weights(model, path) == ("weights have timm's own names",)
