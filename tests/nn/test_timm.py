# SPDX-License-Identifier: Apache-2.0
"""RedNets in timm's registry, where timm is installed."""

from __future__ import annotations

import pytest
import torch

from tvm_involution.nn import build_model, from_pretrained, save_pretrained

timm = pytest.importorskip("timm")


@pytest.fixture(autouse=True, scope="module")
def registered():
    import tvm_involution.timm  # noqa: F401


def test_the_same_network(tmp_path):
    ours, x = build_model("rednet26", seed=3), torch.randn(1, 3, 64, 64)
    torch.save({"state_dict": ours.state_dict()}, tmp_path / "rednet26.pth")
    overlay = {"file": str(tmp_path / "rednet26.pth")}
    model = timm.create_model("rednet26.tvm_involution", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), ours(x))
        torch.testing.assert_close(model.forward_head(model.forward_features(x)), ours(x))
    assert list(model.state_dict()) == list(ours.state_dict())
    config = timm.data.resolve_model_data_config(model)
    assert config["crop_pct"] == 0.875 and config["interpolation"] == "bilinear"
    assert config["mean"] == pytest.approx((123.675 / 255, 116.28 / 255, 103.53 / 255))


def test_features_and_classes():
    x = torch.randn(1, 3, 64, 64)
    model = timm.create_model("rednet26", features_only=True, out_indices=(0, 2, 3)).eval()
    assert model.feature_info.channels() == [64, 512, 1024] and model.feature_info.reduction() == [2, 8, 16]
    with torch.no_grad():
        assert [tuple(f.shape[1:]) for f in model(x)] == [(64, 32, 32), (512, 8, 8), (1024, 4, 4)]
    model = timm.create_model("rednet26", num_classes=0, in_chans=1).eval()
    with torch.no_grad():
        assert model(x[:, :1]).shape == (1, 2048)
        model.reset_classifier(7)
        assert model(x[:, :1]).shape == (1, 7)
    assert {f"rednet{depth}" for depth in (26, 38, 50, 101, 152)} <= set(timm.list_models("rednet*"))


def test_activations_are_computed_again():
    model, x = timm.create_model("rednet26", num_classes=2).eval(), torch.randn(1, 3, 32, 32)
    weights, grads = [model.head.fc.weight, model.backbone.stem[0].conv.weight], []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        grads.append(torch.autograd.grad(model(x).sum(), weights))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_folders(tmp_path):
    model = timm.create_model("rednet26", num_classes=4).eval()
    x = torch.randn(1, 3, 32, 32)
    save_pretrained(model, tmp_path / "ours", "rednet26")
    timm.models.save_for_hf(model, tmp_path / "timms", safe_serialization=True)
    with torch.no_grad():
        for folder in ("ours", "timms"):
            torch.testing.assert_close(from_pretrained(tmp_path / folder)(x), model(x))
            torch.testing.assert_close(
                timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True).eval()(x), model(x)
            )
