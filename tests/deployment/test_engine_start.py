"""What the import of OpenVINO leaves out, and that nobody misses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CODE = """
import sys
from medloom.deployment.runtime_engines import import_openvino
openvino = import_openvino()
assert import_openvino() is openvino
assert "openvino.tools.ovc" not in sys.modules
import onnx
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), sys.argv[1])
assert len(openvino.convert_model(sys.argv[1]).inputs) == 1
assert "openvino.tools.ovc" in sys.modules
"""


def test_the_converter_is_imported_when_it_is_asked_for(tmp_path: Path) -> None:
    code = [sys.executable, "-c", _CODE, str(tmp_path / "relu.onnx")]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
