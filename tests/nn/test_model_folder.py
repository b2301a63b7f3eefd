# SPDX-License-Identifier: Apache-2.0
"""Networks as folders of config.json and model.safetensors."""

from __future__ import annotations

import json

import pytest
import torch

from tvm_involution import UserError
from tvm_involution.nn import build_model, from_pretrained, save_pretrained
from tvm_involution.nn.build import with_classes
from tvm_involution.zoo import get_model


def test_a_network_comes_back(tmp_path):
    model = build_model(with_classes(get_model("rednet26"), 3), seed=5)
    save_pretrained(model, tmp_path / "net", "rednet26", classes=("a", "b", "c"))
    again = from_pretrained(tmp_path / "net").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert config["architecture"] == "rednet26" and config["label_names"] == ["a", "b", "c"]
    assert config["num_features"] == 2048 and config["pretrained_cfg"]["crop_pct"] == 0.875
    assert config["pretrained_cfg"]["mean"] == pytest.approx([0.485, 0.456, 0.406], abs=1e-3)


def test_what_does_not_fit(tmp_path):
    model = build_model(with_classes(get_model("rednet26"), 3))
    with pytest.raises(UserError, match="not the parameters of rednet38"):
        save_pretrained(model, tmp_path, "rednet38")
    with pytest.raises(UserError, match="2 names, the model has 3 classes"):
        save_pretrained(model, tmp_path, "rednet26", classes=("a", "b"))
    with pytest.raises(UserError, match=r"expected a folder of config.json"):
        from_pretrained(tmp_path / "none")
    for text, words in (("{", "no JSON"), ("[]", "no object"), ('{"architecture": 1}', "architecture must be a name")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            from_pretrained(tmp_path)
