"""Gate on the graph of each SavedModel: nothing that reaches out of it when it is loaded or asked.

A SavedModel is a program. It is looked at as its loader sees it: what a signature or the initializer reaches, through
functions too. Operations that save and restore variables are in every SavedModel and are its loader's, so they count
only where a request reaches them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from launchpad.release.candidate import Candidate, Finding, count

FOREIGN_CODE = r"PyFunc(Stateless)?|EagerPyFunc|CustomPyFunc|.*RemoteCall|.*CustomCall.*"
FILES = (
    r"(Read|Write)File|MatchingFiles(Dataset)?|ImmutableConst|.*SummaryFileWriter|.*SummaryDbWriter|Write.*Summary|"
    r".*(TextLine|TFRecord|FixedLengthRecord|WholeFile|LMDB)(Reader|Dataset)(V2)?|(Load|Save|Snapshot)Dataset.*|"
    r"ReaderRead.*|SqlDataset|CacheDataset(V2)?|DumpTensor|Debug(Identity|Nan|Numeric).*|FileSystemSetConfiguration"
)
NETWORK = r".*DataServiceDataset.*|BigQueryReader|BigtableDataset.*|GcsConfigure.*|.*Rpc(Call|Client|Server).*"
CHECKPOINTS = r"(Save|Restore)(V2|Slices|Slice)?|MergeV2Checkpoints"

EVER = re.compile(f"(?:{FOREIGN_CODE}|{FILES}|{NETWORK})")
WHEN_ASKED = re.compile(f"(?:{FOREIGN_CODE}|{FILES}|{NETWORK}|{CHECKPOINTS})")
"""Names of operations that are unsafe anywhere in a graph, and those that are where a request reaches them."""


def operations(candidate: Candidate) -> Finding:
    """No operation of a SavedModel reads or writes files, reaches the network or runs code from outside the graph."""
    found, looked_at, evidence = [], 0, []
    for name, model in candidate.pipeline.models.items():
        path = candidate.layout.version(name, model.version) / "saved_model.pb"
        evidence.append(path)
        graph, reached = read(path)
        looked_at += len(graph)
        found += [f"{name}: {operation}" for operation in unsafe(graph, reached)]
    finding = count("operations that reach out of the graph", found, evidence)
    return Finding(finding.gates, evidence, [*found, f"{looked_at} different operations looked at"])


def unsafe(graph: Iterable[str], reached: Iterable[str]) -> list[str]:
    """Return the unsafe ones of the operations in a graph, and of those that its signatures reach."""
    ever = {name for name in graph if EVER.fullmatch(name)}
    return sorted(ever | {name for name in reached if WHEN_ASKED.fullmatch(name)})


def read(path: Path) -> tuple[set[str], set[str]]:
    """Return the names of all operations of a SavedModel, and of those that its signatures reach.

    Raises EnvironmentFault if the file is not one.
    """
    from google.protobuf.message import DecodeError

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tensorflow.core.protobuf import saved_model_pb2

    from launchpad.errors import EnvironmentFault

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, FileNotFoundError) as error:
        raise EnvironmentFault(f"is no SavedModel: {error}", str(path), "run `invoke export`") from None
    everything, reached = set(), set()
    for meta in model.meta_graphs:
        functions = {function.signature.name: function.node_def for function in meta.graph_def.library.function}
        everything |= {node.op for node in meta.graph_def.node}
        everything |= {node.op for nodes in functions.values() for node in nodes}
        outputs = [tensor.name for signature in meta.signature_def.values() for tensor in signature.outputs.values()]
        reached |= set(_reach(meta.graph_def.node, functions, outputs))
    return everything - set(functions), reached - set(functions)


def _reach(nodes: Iterable[Any], functions: dict[str, Any], outputs: Iterable[str]) -> Iterator[str]:
    """Yield the operations that the outputs depend on; of a function that is called, all of them."""
    by_name = {node.name: node for node in nodes}
    due, seen, called = [_node(name) for name in outputs], set(), list[str]()
    while due:
        name = due.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        node = by_name[name]
        yield node.op
        called += _calls(node)
        due += [_node(given) for given in node.input]
    done = set()
    while called:
        function = called.pop()
        if function in done or function not in functions:
            continue
        done.add(function)
        for node in functions[function]:
            yield node.op
            called += _calls(node)


def _calls(node: Any) -> list[str]:
    """Return the functions that a node may call: its operation's own name, and those among its attributes."""
    named = [attribute.func.name for attribute in node.attr.values() if attribute.HasField("func")]
    listed = [function.name for attribute in node.attr.values() for function in attribute.list.func]
    return [node.op, *named, *listed]


def _node(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
