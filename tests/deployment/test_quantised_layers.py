"""Which layers stay float: those that hurt, those that are named, and softmax and norms of a transformer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from medloom.deployment import quantize as networks
from medloom.deployment.export import onnx_bytes
from medloom.deployment.openvino_ir import ir_of
from medloom.deployment.quantize import onnx_layers, prepared_onnx, quantise_onnx, quantise_openvino, with_fallback
from medloom.deployment.runtime import Runtime
from medloom.models.registry import create_model


def test_the_layers_that_hurt_stay_float() -> None:
    """Of eleven layers two are bad, in different groups: those groups, and no others, are left out."""
    layers = [f"layer{k}" for k in range(16)]
    bad = {"layer3", "layer12"}

    def quantise(left: Sequence[str]) -> frozenset[str]:
        return frozenset(layers) - frozenset(left)

    found = with_fallback(
        quantise,
        layers,
        judge=lambda network: (not network & bad, len(network & bad)),
        error=lambda network: len(network & bad) + 0.01 * len(network),
    )
    assert found.judged == (True, 0)
    assert set(found.float_layers) == {"layer2", "layer3", "layer12", "layer13"}


def test_a_network_that_never_holds_is_given_up_before_most_of_it_is_float() -> None:
    layers = [f"layer{k}" for k in range(16)]
    found = with_fallback(tuple, layers, judge=lambda network: (False, None), error=lambda network: 0.0)
    assert not found.judged[0]
    assert len(found.float_layers) <= 8


def test_of_networks_that_never_hold_the_best_is_kept_and_not_the_last() -> None:
    """Groups of two. What four float layers gain, six and eight lose again, as roundings of several layers can."""
    layers = [f"layer{k}" for k in range(16)]
    errors = {0: 5.0, 2: 4.0, 4: 1.0, 6: 3.0, 8: 2.0}
    tried: list[int] = []

    def judge(left: tuple[str, ...]) -> tuple[bool, int]:
        tried.append(len(left))
        return False, len(left)

    found = with_fallback(tuple, layers, judge=judge, error=lambda left: errors[len(left)])
    assert tried == [0, 2, 4, 6, 8]
    assert len(found.network) == len(found.float_layers) == found.judged[1] == 4


def test_layers_are_named_where_they_are_quantised() -> None:
    """A product and the sum behind it become one layer of another name, which can be left in float like any other."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    constants = {"weight": draw.normal(size=(64, 2)), "bias": draw.normal(size=2), "shape": np.array([-1, 64])}
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "weight"], ["product"], "product"),
        helper.make_node("Add", ["product", "bias"], ["logits"], "sum"),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["batch", 1, 8, 8]), ("logits", ["batch", 2]))
    ]
    stored = [
        numpy_helper.from_array(value.astype(np.int64 if name == "shape" else np.float32), name)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    x_NCHW = draw.normal(size=(4, 1, 8, 8)).astype(np.float32)
    ready = prepared_onnx(data)
    (layer,) = onnx_layers(ready)
    assert layer not in onnx_layers(data)
    assert "QuantizeLinear" in {n.op_type for n in onnx.load_from_string(quantise_onnx(ready, x_NCHW)).graph.node}
    kept = quantise_onnx(ready, x_NCHW, (layer,))
    assert "QuantizeLinear" not in {n.op_type for n in onnx.load_from_string(kept).graph.node}
    np.testing.assert_allclose(Runtime(kept).logits(x_NCHW), Runtime(data).logits(x_NCHW), atol=1e-5)
    with pytest.raises(ValueError, match="product"):
        quantise_onnx(ready, x_NCHW, onnx_layers(data))


def test_softmax_and_norms_stay_float_in_a_transformer() -> None:
    torch.manual_seed(0)
    model = create_model("vit_tiny", num_classes=2, in_chans=1, image_size=32, patch_size=16).eval()
    ir = ir_of(onnx_bytes(model, in_chans=1, size=(32, 32)))
    x_NCHW = np.random.default_rng(0).normal(size=(4, 1, 32, 32)).astype(np.float32)
    network = networks._network(quantise_openvino(ir, x_NCHW))
    seen = set()
    for op in network.get_ordered_ops():
        if op.get_type_name() in ("Softmax", "MVN", "ScaledDotProductAttention"):
            seen.add(op.get_type_name())
            source = op.input_value(0).get_node().get_type_name()
            assert op.get_type_name() == "ScaledDotProductAttention" or source != "FakeQuantize"
    assert seen
    assert any(op.get_type_name() == "FakeQuantize" for op in network.get_ordered_ops())
