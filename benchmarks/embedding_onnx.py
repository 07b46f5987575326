"""The peers of embedding.py that ONNX Runtime runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor


def onnx_peers(
    lengths: Sequence[int], tables: Sequence[Tensor], ids: Tensor, expected: Tensor
) -> dict[str, Callable[[], object]]:
    """ONNX Runtime on the workload as an exporter's Loop over bags writes it, and as Gather and ReduceSum."""
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as e:
        print("no ONNX Runtime:", e)
        return {}
    feeds = {"ids": ids.numpy()}
    found: dict[str, Callable[[], object]] = {}
    for name in ("ort loop", "ort gather"):
        nodes, outs = [], []
        inits = [numpy_helper.from_array(t.numpy(), f"t{n}") for n, t in enumerate(tables)]
        constants = {"one": [1], "zero": [0]}
        column = 0
        for n, length in enumerate(lengths):
            constants |= {f"b{n}": [column], f"e{n}": [column + length]}
            nodes.append(helper.make_node("Slice", ["ids", f"b{n}", f"e{n}", "one"], [f"i{n}"]))
            if name == "ort gather" or length == 1:
                nodes.append(helper.make_node("Gather", [f"t{n}", f"i{n}"], [f"r{n}"]))
                nodes.append(helper.make_node("ReduceSum", [f"r{n}", "one"], [f"o{n}"], keepdims=0))
            else:  # a bag a step, as both exporters write nn.EmbeddingBag
                body = helper.make_graph(
                    [
                        helper.make_node("Gather", [f"i{n}", f"k{n}"], [f"bag{n}"]),
                        helper.make_node("Gather", [f"t{n}", f"bag{n}"], [f"rows{n}"]),
                        helper.make_node("ReduceSum", [f"rows{n}", "zero"], [f"sum{n}"], keepdims=0),
                        helper.make_node("Identity", [f"c{n}"], [f"d{n}"]),
                    ],
                    f"body{n}",
                    [
                        helper.make_tensor_value_info(f"k{n}", TensorProto.INT64, []),
                        helper.make_tensor_value_info(f"c{n}", TensorProto.BOOL, []),
                    ],
                    [
                        helper.make_tensor_value_info(f"d{n}", TensorProto.BOOL, []),
                        helper.make_tensor_value_info(f"sum{n}", TensorProto.FLOAT, None),
                    ],
                )
                inits.append(helper.make_tensor(f"count{n}", TensorProto.INT64, [], [ids.shape[0]]))
                inits.append(helper.make_tensor(f"go{n}", TensorProto.BOOL, [], [True]))
                nodes.append(helper.make_node("Loop", [f"count{n}", f"go{n}"], [f"o{n}"], body=body))
            outs.append(f"o{n}")
            column += length
        nodes.append(helper.make_node("Concat", outs, ["out"], axis=1))
        inits += [helper.make_tensor(k, TensorProto.INT64, [len(v)], v) for k, v in constants.items()]
        graph = helper.make_graph(
            nodes, "bags", [helper.make_tensor_value_info("ids", TensorProto.INT64, list(ids.shape))],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)], inits,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        torch.testing.assert_close(torch.from_numpy(session.run(None, feeds)[0]), expected)
        found[name] = partial(session.run, None, feeds)
    return found
