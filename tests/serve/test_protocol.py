"""The protocol: bytes of requests and answers, built by hand."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from mslice_jax.serve import protocol, tensors
from mslice_jax.serve.signature import Tensor
from tests.serve.fakes import BOOL, F32, I32

X = Tensor("x", F32, (-1, 2))
IDS = Tensor("ids", I32, (-1,))
FLAG = Tensor("flag", BOOL, (-1,))
Y = Tensor("y", F32, (-1, 2))
Z = Tensor("z", np.dtype(ml_dtypes.bfloat16), (-1, 1))


def of(tensor, shape, **more):
    return {
        "name": tensor.name,
        "datatype": tensors.datatype(tensor),
        "shape": shape,
        **more,
    }


def read(head, rest=b"", length=..., inputs=(X,), outputs=(Y, Z)):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    if length is ...:
        length = str(len(text)) if rest else None
    return protocol.read(text + rest, length, inputs, outputs)


def test_json_in_one_list_and_nested():
    flat = read({"inputs": [of(X, [2, 2], data=[1, 2.5, -3, 4])]})
    nested = read({"inputs": [of(X, [2, 2], data=[[1, 2.5], [-3, 4]])]})
    for asked in (flat, nested):
        assert asked.inputs["x"].dtype == np.float32
        np.testing.assert_array_equal(asked.inputs["x"], [[1, 2.5], [-3, 4]])
        assert asked.id is None and asked.timeout_s is None and not asked.wishes
        assert [(w.name, w.binary) for w in asked.outputs] == [
            ("y", False),
            ("z", False),
        ]


def test_binary_tensors_follow_in_their_order():
    # A head of any length: what follows need not lie at a multiple of four bytes.
    for pad in range(4):
        head = {
            "id": "i" * pad,
            "inputs": [
                of(IDS, [2], parameters={"binary_data_size": 8}),
                of(FLAG, [2], data=[True, False]),
                of(X, [1, 2], parameters={"binary_data_size": 8}),
            ],
        }
        rest = struct.pack("<ii", 7, -8) + struct.pack("<ff", 0.5, -2)
        asked = read(head, rest, inputs=(X, IDS, FLAG))
        assert asked.id == "i" * pad
        np.testing.assert_array_equal(asked.inputs["ids"], [7, -8])
        np.testing.assert_array_equal(asked.inputs["x"], [[0.5, -2]])
        assert asked.inputs["flag"].tolist() == [True, False]
        assert all(x.flags.aligned for x in asked.inputs.values())


@pytest.mark.parametrize("name", tensors.DTYPES)
def test_every_dtype_there_and_back(name):
    dtype = tensors.DTYPES[name]
    tensor = Tensor("x", dtype, (-1,))
    x = np.array([0, 1, 1], dtype)
    given = of(tensor, [3], data=[False, True, True] if name == "BOOL" else [0, 1, 1])
    packed = of(tensor, [3], parameters={"binary_data_size": x.nbytes})
    for head, rest in ((given, b""), (packed, x.tobytes())):
        asked = read({"inputs": [head]}, rest, inputs=(tensor,), outputs=(tensor,))
        assert asked.inputs["x"].dtype == dtype
        np.testing.assert_array_equal(asked.inputs["x"], x)
    for binary in (False, True):
        asked = protocol.Asked(None, {}, [protocol.Wanted("x", binary)])
        body, size = protocol.write(asked, {"x": x}, {}, model="m", version="1")
        told = json.loads(body[:size])["outputs"][0]
        assert (told["datatype"], told["shape"]) == (name, [3])
        if binary:
            assert told["parameters"] == {"binary_data_size": x.nbytes}
            assert size is not None and body[size:] == x.tobytes()
        else:
            assert size is None and told["data"] == [0, 1, 1]


def test_parameters():
    asked = read(
        {
            "id": "7",
            "parameters": {
                "timeout": 1500,
                "priority": -2,
                "min_rate": 0.25,
                "rate": 1,
                "binary_data_output": True,
            },
            "inputs": [of(X, [1, 2], data=[1, 2])],
            "outputs": [
                {"name": "z", "parameters": {"binary_data": False}},
                {"name": "y"},
            ],
        }
    )
    assert asked.timeout_s == 0.0015
    assert asked.wishes == {"priority": -2, "min_rate": 0.25, "rate": 1.0}
    assert [(w.name, w.binary) for w in asked.outputs] == [("z", False), ("y", True)]
    none = read({"parameters": {"timeout": 0}, "inputs": [of(X, [1, 2], data=[1, 2])]})
    assert none.timeout_s is None


def test_an_answer():
    wanted = [protocol.Wanted("z", True), protocol.Wanted("y", False)]
    outputs = {
        "y": np.array([[1.5, np.nan], [-np.inf, 0]], np.float32),
        "z": np.array([[1], [-2]], ml_dtypes.bfloat16),
    }
    asked = protocol.Asked("q", {}, wanted)
    body, size = protocol.write(asked, outputs, {"rate": 0.5}, model="m", version="1")
    assert json.loads(body[:size]) == {
        "model_name": "m",
        "model_version": "1",
        "id": "q",
        "parameters": {"rate": 0.5},
        "outputs": [
            {
                "name": "z",
                "datatype": "BF16",
                "shape": [2, 1],
                "parameters": {"binary_data_size": 4},
            },
            # JSON has neither NaN nor infinity.
            {
                "name": "y",
                "datatype": "FP32",
                "shape": [2, 2],
                "data": [1.5, None, None, 0.0],
            },
        ],
    }
    # 1 and -2 of bfloat16 are the upper halves of those of single precision.
    assert body[size:] == b"\x80\x3f" + b"\x00\xc0"


GOOD = of(X, [1, 2], data=[1, 2])


def bad(**changes):
    return {"inputs": [{**GOOD, **changes}]}


def asks(**parameters):
    return {"inputs": [GOOD], "parameters": parameters}


def wants(**about):
    return {"inputs": [GOOD], "outputs": [{"name": "y", **about}]}


MALFORMED = {
    "empty": (b"", "is no JSON"),
    "no JSON": (b'{"inputs"', "is no JSON"),
    "no UTF-8": (b'{"id": "\xff"}', "is no JSON"),
    "a list": (b"[]", "expected a JSON object, got []"),
    "nested": (b"[" * 200_000, "nested too deeply"),
    "huge integer": (b'{"id": ' + b"9" * 5000 + b"}", "is no JSON"),
    "NaN": (b'{"inputs": [NaN]}', "NaN is not JSON"),
    "infinity": (b'{"inputs": [-Infinity]}', "-Infinity is not JSON"),
    "unknown key": ({"inputs": [GOOD], "input": 1}, "'input'] is unknown"),
    "id": ({"id": 3, "inputs": [GOOD]}, "id: expected a string, got 3"),
    "no inputs": ({}, "inputs: expected a list, got None"),
    "inputs no list": ({"inputs": {"x": 1}}, "inputs: expected a list"),
    "input no object": ({"inputs": [3]}, "an input: expected a JSON object"),
    "name": (
        bad(name="w"),
        "'w' is unknown; there are ['x']",
    ),
    "name no string": (bad(name=["x"]), "is unknown"),
    "missing": ({"inputs": []}, "inputs ['x'] are missing"),
    "twice": ({"inputs": [GOOD, GOOD]}, "input 'x' comes twice"),
    "dtype": (
        bad(datatype="FP64"),
        "datatype FP32, got 'FP64'",
    ),
    "bytes": (bad(datatype="BYTES"), "BYTES is not served"),
    "no dtype": ({"inputs": [{"name": "x"}]}, "expected datatype FP32, got None"),
    "no shape": (
        {"inputs": [{"name": "x", "datatype": "FP32"}]},
        "expected shape [-1, 2] (-1 is free), got None",
    ),
    "rank": (bad(shape=[2]), "expected shape [-1, 2]"),
    "size": (bad(shape=[1, 3]), "got [1, 3]"),
    "negative": (bad(shape=[-1, 2]), "got [-1, 2]"),
    "a boolean size": (bad(shape=[True, 2]), "got [True, 2]"),
    "a fraction": (bad(shape=[1.0, 2]), "got [1.0, 2]"),
    "other count": (
        {"inputs": [of(X, [2, 2], data=[1, 2])]},
        "has 4 numbers, data has 2",
    ),
    "huge shape": ({"inputs": [of(X, [10**30, 2], data=[1])]}, "data has 1."),
    "no data": ({"inputs": [of(X, [1, 2])]}, "expected data, a list"),
    "data no list": (bad(data=3), "expected data, a list"),
    "ragged": (
        {"inputs": [of(X, [1, 2], data=[[1], [2, 3]])]},
        "lists of other lengths",
    ),
    "words": (bad(data=["1", "2"]), "else than float32"),
    "null": (bad(data=[1, None]), "else than float32"),
    "booleans": (bad(data=[True, True]), "else than float32"),
    "too large": (bad(data=[1, 1e39]), "do not fit float32"),
    "infinite": (b'{"inputs": [1e999]}', "an input: expected a JSON object, got inf"),
    "infinite data": (
        json.dumps(bad(data=[1, 2])).replace("2]}", "1e999]}").encode(),
        "do not fit float32",
    ),
    "parameters": ({"inputs": [GOOD], "parameters": []}, "parameters: expected a JSON"),
    "a slip": (
        {"inputs": [GOOD], "parameters": {"min-rate": 1}},
        "['min-rate'] is unknown",
    ),
    "sequence": (asks(sequence_id=1), "no sequences"),
    "timeout": (
        asks(timeout=1.5),
        "an integer, got 1.5",
    ),
    "no timeout": (
        asks(timeout=-1),
        "microseconds, got -1",
    ),
    "priority": (asks(priority="high"), "got 'high'"),
    "min_rate": (
        asks(min_rate="1"),
        "a number, got '1'",
    ),
    "rate": (asks(rate=True), "a number, got True"),
    "output": (wants(name="w"), "output 'w' is unknown"),
    "output twice": ({"inputs": [GOOD], "outputs": [{"name": "y"}] * 2}, "comes twice"),
    "outputs": ({"inputs": [GOOD], "outputs": 1}, "outputs: expected a list"),
    "output no object": ({"inputs": [GOOD], "outputs": ["y"]}, "an output: expected"),
    "classes": (
        {
            "inputs": [GOOD],
            "outputs": [{"name": "y", "parameters": {"classification": 3}}],
        },
        "classification is not served",
    ),
    "binary flag": (
        {
            "inputs": [GOOD],
            "outputs": [{"name": "y", "parameters": {"binary_data": 1}}],
        },
        "expected a boolean, got 1",
    ),
    "shared memory": (
        {"inputs": [of(X, [1, 2], parameters={"shared_memory_region": "a"})]},
        "shared memory is not served",
    ),
    "input parameter": (
        bad(parameters={"a": 1}),
        "['a'] is unknown",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_told_in_one_line(case):
    head, says = MALFORMED[case]
    with pytest.raises(tensors.Unreadable) as told:
        read(head)
    text = str(told.value)
    assert says in text and "\n" not in text and len(text) < 300


@pytest.mark.parametrize("data", [[1, 2.5], [1, 2**31], [1, "3"]])
def test_integers_are_integers(data):
    with pytest.raises(tensors.Unreadable, match="int32"):
        read({"inputs": [of(IDS, [len(data)], data=data)]}, inputs=(IDS,))


def packed(size, shape=(1, 2), **more):
    return {"inputs": [of(X, [*shape], parameters={"binary_data_size": size}, **more)]}


@pytest.mark.parametrize(
    ("head", "rest", "length", "says"),
    [
        (packed(8), b"1234", ..., "binary_data_size is 8, but 4 bytes are left"),
        (packed(8), b"123456789", ..., "1 bytes of the body belong to no input"),
        (packed(4), b"1234", ..., "has 8 bytes, binary_data_size is 4"),
        (packed(-8), b"1234", ..., "binary_data_size is -8"),
        (packed("8"), b"12345678", ..., "expected an integer, got '8'"),
        (packed(8, (10**30, 2)), b"12345678", ..., "of shape"),
        (packed(8, data=[1, 2]), b"12345678", ..., "both data and binary_data_size"),
        ({"inputs": [GOOD]}, b"1234", ..., "4 bytes of the body belong to no input"),
        (packed(8), b"12345678", "9999", "Inference-Header-Content-Length: expected"),
        (packed(8), b"12345678", "-3", "Inference-Header-Content-Length: expected"),
        (packed(8), b"12345678", "1_0", "Inference-Header-Content-Length: expected"),
        (packed(8), b"12345678", "٣", "Inference-Header-Content-Length: expected"),
        (packed(8), b"12345678", "1" * 5000, "Inference-Header-Content-Length: exp"),
        (packed(8), b"12345678", "12", "is no JSON"),
        (packed(8), b"12345678", "0", "is no JSON"),
    ],
)
def test_malformed_binary_requests(head, rest, length, says):
    with pytest.raises(tensors.Unreadable) as told:
        read(head, rest, length)
    assert says in str(told.value) and len(str(told.value)) < 300


def test_a_boolean_is_zero_or_one():
    head = {"inputs": [of(FLAG, [2], parameters={"binary_data_size": 2})]}
    assert read(head, b"\x01\x00", inputs=(FLAG,)).inputs["flag"].tolist() == [
        True,
        False,
    ]
    with pytest.raises(tensors.Unreadable, match="a byte of 0 or 1"):
        read(head, b"\x01\x02", inputs=(FLAG,))


def test_metadata_and_dtypes_that_the_protocol_lacks():
    assert tensors.metadata(X) == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    with pytest.raises(ValueError, match="'c' has numbers of complex64"):
        tensors.datatype(Tensor("c", np.dtype("complex64"), (-1,)))
