from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.errors import ConfigError
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import Manifest
from edgekd.values.codec import decode, did_you_mean, encode, fingerprint, plain
from edgekd.values.job import Job
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import ProbeReply, SampleReply
from edgekd.values.preprocess import Features, Preprocess, Recipe, Spectrogram, Text
from edgekd.values.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Leaf:
    count: int
    share: float
    name: str
    on: bool = False


@dataclass(frozen=True, kw_only=True)
class Tree:
    leaves: tuple[Leaf, ...]
    pair: tuple[int, str]
    by_name: dict[str, float]
    precision: Precision
    maybe: Leaf | None = None
    nested: dict[str, tuple[int, ...]] = field(default_factory=dict)
    where: Path | None = None


finite = st.floats(allow_nan=False, allow_infinity=False)
leaf_values = st.builds(Leaf, count=st.integers(), share=finite, name=st.text(), on=st.booleans())
trees = st.builds(
    Tree,
    leaves=st.lists(leaf_values, max_size=4).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    by_name=st.dictionaries(st.text(), finite, max_size=4),
    precision=st.sampled_from(Precision),
    maybe=st.none() | leaf_values,
    nested=st.dictionaries(st.text(), st.lists(st.integers(), max_size=3).map(tuple), max_size=3),
    where=st.none() | st.just(Path("a/b.onnx")),
)


def strategy_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type, as our nouns use them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{one.name: strategy_of(hints[one.name]) for one in dataclasses.fields(kind)})
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return st.lists(strategy_of(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=4), strategy_of(arguments[1]), max_size=2)
    if kind is Any:  # plain JSON
        return st.booleans() | st.lists(st.text(max_size=4), max_size=2)
    if arguments:  # X | None
        return st.none() | strategy_of(next(one for one in arguments if one is not type(None)))
    scalars = {
        Path: st.sampled_from([Path("a"), Path("/b/c.onnx")]),
        float: finite,
        int: st.integers(),
        str: st.text(max_size=4),
        bool: st.booleans(),
    }
    return scalars[kind] if kind in scalars else st.sampled_from(kind)


@given(trees)
def test_a_value_survives_being_written_and_read(tree: Tree) -> None:
    assert decode(Tree, json.loads(encode(tree))) == tree


@pytest.mark.parametrize("kind", [Trial, Engine, Model, Manifest, ProbeReply, SampleReply])
def test_every_noun_that_is_kept_or_sent_survives_it(kind: type) -> None:
    @given(strategy_of(kind))
    def survives(value: object) -> None:
        assert decode(kind, json.loads(encode(value))) == value

    survives()


@given(trees)
def test_equal_values_have_equal_fingerprints_and_others_do_not(tree: Tree) -> None:
    again = decode(Tree, json.loads(encode(dataclasses.replace(tree, where=None))))
    other = dataclasses.replace(again, pair=(again.pair[0] + 1, again.pair[1]))
    assert fingerprint(again) == fingerprint(dataclasses.replace(tree, where=None))
    assert fingerprint(again) != fingerprint(other)


def test_a_fingerprint_takes_an_artifact_by_content_and_refuses_a_bare_path() -> None:
    here, there = (Artifact(path=Path(place), sha256="ab") for place in ("here", "there"))
    assert fingerprint(here) == fingerprint(there)
    with pytest.raises(TypeError, match="wrap"):
        fingerprint(Path("here"))


def test_a_fingerprint_does_not_depend_on_the_order_of_a_table() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_an_unknown_key_is_refused_with_the_known_one() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(Job, {"teecher": {"model": "m.py:f"}}, "job.toml")
    assert "'teecher'" in caught.value.what
    assert "did you mean 'teacher'?" in caught.value.mend


@pytest.mark.parametrize(
    ("change", "place", "wanted"),
    [
        ({"leaves": [{"count": "3", "share": 1, "name": ""}]}, "leaves[0].count", "a whole number"),
        ({"leaves": {"count": 3}}, "leaves", "a list"),
        ({"leaves": [{"count": True, "share": 1, "name": ""}]}, "leaves[0].count", "a whole number"),
        ({"leaves": [{"count": 1, "share": "x", "name": ""}]}, "leaves[0].share", "a number"),
        ({"leaves": [{"count": 1, "share": True, "name": ""}]}, "leaves[0].share", "a number"),
        ({"leaves": [{"count": 1, "share": 1, "name": 2}]}, "leaves[0].name", "a string"),
        ({"leaves": [{"count": 1, "share": 1, "name": "", "on": 1}]}, "leaves[0].on", "true or false"),
        ({"by_name": {"x": float("nan")}}, "by_name.x", "a finite number"),
        ({"by_name": {"x": 10**400}}, "by_name.x", "a finite number"),
        ({"by_name": [1]}, "by_name", "a table"),
        ({"pair": [1]}, "pair", "2 items"),
        ({"maybe": 3}, "maybe", "a table"),
        ({"where": 3}, "where", "a path"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place(
    change: dict[str, Any], place: str, wanted: str
) -> None:
    good = {"leaves": [], "pair": [1, "a"], "by_name": {}, "precision": "int8"}
    decode(Tree, good)
    with pytest.raises(ConfigError) as caught:
        decode(Tree, {**good, **change})
    assert caught.value.what == f"{place} must be {wanted}"


def test_a_choice_that_is_not_one_lists_the_choices() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(Precision, "fp23", "profile")
    assert "'fp23'" in caught.value.what
    assert "did you mean 'fp32'?" in caught.value.mend


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="'share' is missing in \\[leaf\\]"):
        decode(Leaf, {"count": 1, "name": ""}, "leaf")


def test_a_whole_number_serves_as_a_number() -> None:
    leaf = decode(Leaf, {"count": 1, "share": 2, "name": ""})
    assert isinstance(leaf.share, float)


def test_what_has_no_plain_form_is_refused() -> None:
    with pytest.raises(TypeError, match="set has no plain form"):
        plain({1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"x": float("nan")})


def test_did_you_mean_lists_the_known_even_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["beta", "alpha"]) == "known: alpha, beta"
    assert did_you_mean("alhpa", ["beta", "alpha"]).startswith("did you mean 'alpha'?")


RECIPES = [
    Preprocess(height=8, width=8, mean=(0.5,), std=(0.25,)),
    Spectrogram(
        sample_rate=16000,
        samples=16000,
        bins=32,
        frames=32,
        window=512,
        hop=496,
        floor=1e-6,
        mean=0.5,
        std=2.0,
    ),
    Features(names=("a", "b"), mean=(0.0, 1.0), std=(1.0, 2.0)),
    Text(alphabet="abc "),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda one: one.kind)
def test_the_kind_that_data_names_picks_the_dataclass(recipe: Any) -> None:
    kept = json.loads(encode(recipe))
    assert next(iter(kept)) == "kind"
    assert decode(Recipe, kept) == recipe
    assert decode(Recipe | None, None) is None


def test_data_without_a_kind_is_of_the_first() -> None:
    kept = json.loads(encode(RECIPES[0]))
    del kept["kind"]
    assert decode(Recipe, kept) == RECIPES[0]


@pytest.mark.parametrize("kind", ["txet", 3, None, ["text"]])
def test_a_kind_that_does_not_exist_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="not possible") as caught:
        decode(Recipe, {"kind": kind, "alphabet": "ab"}, "preprocess.json")
    assert "text" in caught.value.mend


def test_a_key_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'alphabet'"):
        decode(Recipe, {"kind": "image", "alphabet": "ab"})
