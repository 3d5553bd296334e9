"""Clean, describe and rewrite ONNX files, without the exporters' debugging notes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from trainables.files import write_bytes

PAD_BYTES = 1024


def pad(text: str) -> str:
    """A JSON text, padded with blanks to a multiple of `PAD_BYTES`.

    Files of one architecture then have one size, whatever their recipes say.
    """
    return text + " " * (-len(text.encode()) % PAD_BYTES)


def strip(proto: Any) -> None:
    """Remove exporters' debugging notes: stack traces with paths of this machine, 4 to 15 % of the file."""

    def clean(message: Any) -> None:
        for name in ("metadata_props", "doc_string"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)

    def clean_graph(graph: Any) -> None:
        graph.ClearField("value_info")  # shapes of intermediate values; runtimes infer them again
        for part in (graph, *graph.input, *graph.output, *graph.initializer):
            clean(part)
        clean_nodes(graph.node)

    def clean_nodes(nodes: Any) -> None:
        for node in nodes:
            clean(node)
            for attribute in node.attribute:
                clean(attribute)
                for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                    clean_graph(graph)

    clean(proto)
    clean_graph(proto.graph)
    for function in proto.functions:
        function.ClearField("value_info")
        clean(function)
        clean_nodes(function.node)


def about(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file: class names, image size, recipe, as JSON texts."""
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def describe(path: Path, changes: Mapping[str, str]) -> None:
    """Change entries of a file's metadata, in place."""
    proto = onnx.load(path)
    kept = {entry.key: entry.value for entry in proto.metadata_props} | dict(changes)
    del proto.metadata_props[:]
    for key, value in kept.items():
        proto.metadata_props.add(key=key, value=value)
    write_bytes(path, proto.SerializeToString())
