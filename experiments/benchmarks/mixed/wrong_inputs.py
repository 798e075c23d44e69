"""Malformed requests whose HTTP is right: the JSON, and the numbers behind it."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .right import packed, tensors
from .wire import request

X = np.arange(12, dtype=np.float32).reshape(2, 6)
KIND = np.array([1, 3], np.int32)


def bodies() -> dict[str, bytes]:
    """Requests by what is wrong with them."""
    return _tensors() | _numbers() | _json() | _parameters()


def changed(change: Callable[[dict[str, Any]], object], binary: bool = False) -> bytes:
    """A right request after a change of its JSON."""
    inputs, rest = tensors(X, KIND, binary)
    asked: dict[str, Any] = {"id": "w", "inputs": inputs, "parameters": {}}
    change(asked)
    return packed(asked, rest if binary else None)


def given(binary: bool = False, **changes: Any) -> bytes:
    """A right request with other entries of its first input; None removes one."""

    def change(asked: dict[str, Any]) -> None:
        first = asked["inputs"][0] | changes
        asked["inputs"][0] = {k: v for k, v in first.items() if v is not None}

    return changed(change, binary)


def _second(**changes: Any) -> bytes:
    return changed(lambda asked: asked["inputs"][1].update(changes))


def _tensors() -> dict[str, bytes]:
    data = X.reshape(-1).tolist()
    return {
        # dtype
        "dtype: integers for floats": given(datatype="INT32"),
        "dtype: doubles": given(datatype="FP64"),
        "dtype: unknown": given(datatype="FLOAT"),
        "dtype: BYTES": given(datatype="BYTES"),
        "dtype: a number": given(datatype=5),
        "dtype: none": given(datatype=None),
        "dtype: binary": given(binary=True, datatype="FP16"),
        "dtype: fractions for integers": _second(data=[0.5, 1.5]),
        "dtype: words": given(data=["a"] * 12),
        "dtype: booleans": given(data=[True] * 12),
        "dtype: null": given(data=[None] * 12),
        "dtype: too large an integer": _second(data=[2**31, 0]),
        # shape
        "shape: another axis": given(shape=[2, 7], data=[*data, 1, 2]),
        "shape: an axis too few": given(shape=[12]),
        "shape: an axis too many": given(shape=[2, 6, 1]),
        "shape: negative": given(shape=[-2, -6]),
        "shape: free": given(shape=[-1, 6]),
        "shape: a fraction": given(shape=[2.0, 6]),
        "shape: a word": given(shape="2x6"),
        "shape: none": given(shape=None),
        "shape: huge": given(shape=[2**62, 6]),
        "shape: no rows": changed(_no_rows),
        "shape: too many rows": packed(
            {"inputs": tensors(np.ones((5, 6), "f4"), np.ones(5, "i4"), False)[0]}, None
        ),
        "shape: rows that differ": _second(shape=[3], data=[1, 2, 3]),
    }


def _no_rows(asked: dict[str, Any]) -> None:
    for each in asked["inputs"]:
        each["shape"][0], each["data"] = 0, []


def _numbers() -> dict[str, bytes]:
    nan, infinite = X.copy(), X.copy()
    nan[1, 2], infinite[0, 0] = np.nan, -np.inf
    inputs, rest = tensors(X, KIND, True)

    def binary(x: np.ndarray) -> bytes:
        return packed({"inputs": inputs}, x.tobytes() + KIND.tobytes())

    def sized(size: Any) -> bytes:
        return given(binary=True, parameters={"binary_data_size": size})

    both = {"parameters": {"binary_data_size": 48}, "data": [0.0] * 12}
    return {
        # size
        "size: a number too few": given(data=[1.0] * 11),
        "size: a number too many": given(data=[1.0] * 13),
        "size: lists of other lengths": given(data=[[1.0, 2.0], [1.0]]),
        "size: no data": given(data=None),
        "size: data no list": given(data=7),
        "size: binary, too small": sized(44),
        "size: binary, too large": sized(4800),
        "size: binary, negative": sized(-48),
        "size: binary, a word": sized("48"),
        "size: binary, huge": sized(2**70),
        "size: binary and data": given(binary=True, **both),
        "size: bytes left over": packed({"inputs": inputs}, rest + b"more"),
        "size: bytes missing": packed({"inputs": inputs}, rest[:-1]),
        # NaN
        "NaN: binary": binary(nan),
        "NaN: binary infinity": binary(infinite),
        "NaN: as JSON": given(data=[float("nan")] * 12),
        "NaN: Infinity as JSON": given(data=[float("inf")] * 12),
        "NaN: 1e39, too large for the type": given(data=[1e39] * 12),
        "NaN: 1e999": request(
            packed({"inputs": tensors(X, KIND, False)[0]}, None)
            .partition(b"\r\n\r\n")[2]
            .replace(b"11.0", b"1e999")
        ),
    }


def _json() -> dict[str, bytes]:
    good = json.dumps({"inputs": tensors(X, KIND, False)[0]}).encode()
    return {
        "JSON: cut": request(good[:-5]),
        "JSON: nothing": request(b""),
        "JSON: words": request(b"hello"),
        "JSON: a list": request(b"[" + good + b"]"),
        "JSON: two": request(good + good),
        "JSON: no UTF-8": request(good.replace(b'"x"', b'"\xff\xfe"')),
        "JSON: too deep": request(b"[" * 20_000),
        "JSON: a huge integer": request(good.replace(b"11.0", b"9" * 6000)),
        "JSON: an unknown key": changed(lambda asked: asked.update(input=[])),
        "JSON: no inputs": changed(lambda asked: asked.pop("inputs")),
        "JSON: inputs no list": changed(lambda asked: asked.update(inputs={})),
        "JSON: an input no object": changed(lambda asked: asked["inputs"].append(1)),
        "JSON: an unknown key of an input": given(shapes=[2, 6]),
        "JSON: outputs no list": changed(lambda asked: asked.update(outputs="y")),
        "JSON: id a number": changed(lambda asked: asked.update(id=5)),
    }


def _parameters() -> dict[str, bytes]:
    def with_(**parameters: Any) -> bytes:
        return changed(lambda asked: asked.update(parameters=parameters))

    return {
        "parameter: unknown": with_(timout=5),
        "parameter: no object": changed(lambda asked: asked.update(parameters=[])),
        "parameter: a sequence": with_(sequence_id=1),
        "parameter: timeout negative": with_(timeout=-1),
        "parameter: timeout a word": with_(timeout="1s"),
        "parameter: timeout huge": with_(timeout=2**80),
        "parameter: priority a fraction": with_(priority=0.5),
        "parameter: a rate that there is not": with_(rate=0.3),
        "parameter: rate a word": with_(rate="full"),
        "parameter: least rate above all": with_(min_rate=1.5),
        "parameter: both rates": with_(rate=0.25, min_rate=0.5),
        "parameter: binary a number": with_(binary_data_output=1),
        "parameter: shared memory": given(
            data=None, parameters={"shared_memory_region": "here"}
        ),
    }
