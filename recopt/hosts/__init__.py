"""Host graphs: the interface (`base.py`), torch.export (`fx.py`), ONNX (`onnx.py`)."""

from .base import Array, Host, Node, Value, values_in

__all__ = ["Array", "Host", "Node", "Value", "values_in"]
