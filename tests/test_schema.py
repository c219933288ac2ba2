"""What files may say: JSON is read strictly, fields are allowed by name, type and bound, messages are short."""

import copy
import io
import json
import os
import pickle  # to write what must not be read
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import make_agent
from torch import nn

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.common.kinds import KINDS, CardFields, PlaceFields, check_config, check_network
from rrpolicy.common.messages import at, printable
from rrpolicy.common.pickles import MAX_INSTRUCTIONS, Node, traced
from rrpolicy.common.schema import MAX_DEPTH, check_depth, checked, from_json, plain, read_small
from rrpolicy.common.torch_files import read_weights
from rrpolicy.common.weights import check_weights, moments, set_generator_state, set_moments
from rrpolicy.common.zips import member_names, read_members

# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("plain", "plain"),
        ("two\nlines\tand  more", "two lines and more"),
        ("\x1b[31mred\x07", "?[31mred?"),
        (ValueError("fault"), "fault"),
        (KeyError(), "KeyError"),
        ([1] * 1000, "[1, 1, 1, 1, ...]"),
    ],
)
def test_messages_are_one_printable_line(value: Any, wanted: str) -> None:
    assert printable(value) == wanted


def test_messages_are_cut_and_name_their_file() -> None:
    assert len(printable("x" * 10**7)) == 120 and printable("x" * 10**7).endswith("...")
    assert len(at("a.zip", "y" * 1000)) == 300 and at("a.zip", "y").startswith("a.zip: ")
    long = "d/" * 150 + "a.zip"
    assert at(long, "the fault").endswith("a.zip: the fault")


# ---------------------------------------------------------------------- JSON


@pytest.mark.parametrize("text", ["{", "NaN", "[Infinity]", "1e999", '{"a": 1, "a": 2}', "[" * 10**5, b"\xff", ""])
def test_json_that_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        from_json(text)


def test_json_reads_back_what_numpy_wrote() -> None:
    values = {"a": np.int64(3), "b": (np.float32(0.5), True), "c": np.bool_(False), "d": torch.tensor(2.0)}
    assert plain(values) == {"a": 3, "b": [0.5, True], "c": False, "d": 2.0}
    for value in ({"a": float("nan")}, {"a": np.float64("inf")}):
        with pytest.raises(ValueError):
            plain(value)
    for other in ({"a": object()}, {"a": np.zeros(2)}):
        with pytest.raises(TypeError, match="is no JSON value"):
            plain(other)


def test_depth_is_bounded() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    check_depth(value, "it")
    with pytest.raises(ValueError, match="nested more than 12 levels deep"):
        check_depth({"a": value}, "it")


def test_only_small_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_small(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_small(tmp_path / "a", 4)
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(ValueError, match="no regular file"):
            read_small(name)


# ---------------------------------------------------------------------- fields


def test_every_kind_has_a_schema() -> None:
    assert {"agent", "reward", "planner", "extractor", "image-reward"} <= set(KINDS)
    check_config("somebody's own", {"anything": [1]})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("layout.horizon", 5 * 10**7),
        ("layout.observation_dim", 10**5),
        ("process.n_diffusion_steps", 10**7),
        ("process.n_diffusion_steps", 10.0),
        ("process.n_diffusion_steps", True),
        ("policy_kwargs.width", 20_000),
        ("policy_kwargs.n_blocks", 10**6),
        ("policy_kwargs.path", "/etc/passwd"),
        ("training.tensorboard_log", "/tmp/log"),
        ("training.device", "cuda"),
        ("training.batch_size", "16"),
        ("planning.clip", -1),
        ("planning.clip", 0),
        ("planning.n_candidates", 10**9),
        ("controller", {"kp": 1.0}),
        ("training.batch_size", 2**21),
        ("observation_space.dtype", "object"),
        ("num_timesteps", -1),
        ("env", "evil:Env-v0"),
    ],
)
def test_an_agent_says_nothing_else(place: str, value: Any, tmp_path: Path) -> None:
    make_agent().save(tmp_path / "agent")
    config = copy.deepcopy(read_archive(tmp_path / "agent").config)
    check_config("agent", config)
    target = config
    *folders, name = place.split(".")
    for folder in folders:
        target = target[folder]
    target[name] = value
    with pytest.raises(ValueError, match=place):
        check_config("agent", config)


@pytest.mark.parametrize("change", [("planning", "n_candidates", 2**14), ("training", "batch_size", 2**15)])
def test_sizes_are_bounded_together(change: tuple[str, str, int], tmp_path: Path) -> None:
    section, name, value = change
    make_agent().save(tmp_path / "agent")
    config = copy.deepcopy(read_archive(tmp_path / "agent").config)
    config["layout"]["horizon"] = 2**14
    check_config("agent", config)
    config[section][name] = value
    with pytest.raises(ValueError, match=f"{name} {value} with windows of {2**14 * 6} numbers"):
        check_config("agent", config)


@pytest.mark.parametrize(
    "card",
    [
        {"environment": "evil_mod:Env-v0"},
        {"environment": "../Env-v0"},
        {"environment": 3},
        {"env_id": "evil_mod:Env-v0"},
        {"maze": "/dev/zero"},
        {"maze": [["#"]]},
        {"goal": [1.0]},
        {"goal": "1,1"},
        {"version": "\x1b[2J"},
        {"video": "../../video.mp4"},
        {"results": [{"agent": "a"}]},
        {"cpu_seconds": -1.0},
    ],
)
def test_cards_that_are_refused(card: dict[str, Any]) -> None:
    checked(CardFields, {"environment": "PointMaze_UMaze-v3", "own": {"fact": [1]}, "goal": [1, 2.5]}, "card")
    with pytest.raises(ValueError, match=f"card: {next(iter(card))}"):
        checked(CardFields, card, "card")


def test_a_message_never_repeats_megabytes() -> None:
    with pytest.raises(ValueError) as caught:
        checked(PlaceFields, {"environment": "x" * 10**6}, "card")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("arguments", [{"width": -1}, {"width": 2.5}, {"n_blocks": 10**6}, {"multipliers": []}])
def test_sizes_of_networks(arguments: dict[str, Any]) -> None:
    check_network({"width": np.int64(8), "multipliers": (1, 2), "own_argument": object()}, "policy_kwargs")
    with pytest.raises(ValueError, match=f"policy_kwargs: {next(iter(arguments))}"):
        check_network(arguments, "policy_kwargs")


# ---------------------------------------------------------------------- weights


def test_weights_are_compared_without_memory() -> None:
    stored = nn.Linear(3, 2).state_dict()
    check_weights(lambda: nn.Linear(3, 2), stored)
    with pytest.raises(RuntimeError, match=r"weight has shape \(2, 3\), wanted \(100000, 1000000\)"):
        check_weights(lambda: nn.Linear(10**6, 10**5), stored)
    with pytest.raises(RuntimeError, match="has no tensor bias"):
        check_weights(lambda: nn.Linear(3, 2), {"weight": stored["weight"]})
    with pytest.raises(RuntimeError, match="unknown tensor extra"):
        check_weights(lambda: nn.Linear(3, 2), {**stored, "extra": torch.zeros(1)})
    for dtype in (torch.int64, torch.float64):  # 1e300 is finite in double precision alone
        with pytest.raises(RuntimeError, match=f"bias is of type {dtype}"):
            check_weights(lambda: nn.Linear(3, 2), {**stored, "bias": torch.zeros(2, dtype=dtype)})


def trained() -> torch.optim.Optimizer:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda state: state.pop("0.exp_avg"), "parameter 0 lacks exp_avg"),
        (lambda state: state.update({"1.exp_avg": torch.zeros(3)}), "1.exp_avg"),
        (lambda state: state.update({"1.exp_avg_sq": torch.full((2,), -1.0)}), "1.exp_avg_sq is negative"),
        (lambda state: state.update({"7.step": torch.tensor(1.0)}), "unknown entry 7.step"),
        (lambda state: state.update({"0.momentum": torch.tensor(1.0)}), "unknown entry 0.momentum"),
        (lambda state: state.update({"0.step": torch.tensor([1.0, 2.0])}), "0.step"),
        (lambda state: state.update({"0.step": torch.tensor(1)}), "0.step"),
        (lambda state: state.update({"-1.step": torch.tensor(1.0)}), "unknown entry"),
    ],
)
def test_states_of_optimisers(change: Any, fault: str) -> None:
    state = moments(trained())
    fresh = torch.optim.AdamW(nn.Linear(3, 2).parameters(), lr=0.1)
    set_moments(fresh, state)
    assert all(torch.equal(value, moments(fresh)[name]) for name, value in state.items())
    change(state)
    with pytest.raises(ValueError, match=fault):
        set_moments(fresh, state)


def test_states_of_generators() -> None:
    generator = torch.Generator().manual_seed(3)
    set_generator_state(generator, torch.Generator().manual_seed(5).get_state())
    assert torch.rand(1, generator=generator) == torch.rand(1, generator=torch.Generator().manual_seed(5))
    for state in (torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), None):
        with pytest.raises(ValueError, match="random state"):
            set_generator_state(generator, state)


# ---------------------------------------------------------------------- zip files, pickles, torch files


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(compression: int) -> None:
    assert read_members(zipped({"a": b"1", "b": b"2"}), 2, lambda name: name == "b") == {"b": b"2"}
    with pytest.raises(ValueError, match="compressed"):
        read_members(zipped({"a": b"1" * 100}, compression), 2)


def test_members_are_counted_before_the_directory_is_parsed() -> None:
    many = zipped({f"member-{i}": b"" for i in range(20_000)})
    with pytest.raises(ValueError, match="has 20000 members, at most 64"):
        member_names(many, 64)
    for data in (b"", b"P", b"noise" * 10, zipped({"a": b"1"}).getvalue()[:-1], zipped({"a": b"1"}).getvalue() + b"\0"):
        with pytest.raises(ValueError, match="zip file"):
            member_names(io.BytesIO(data), 64)


def test_a_pickle_is_followed_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    bomb = b"\x80\x02cos\nsystem\nq\x00X" + len(str(victim)).to_bytes(4, "little") + str(victim).encode() + b"\x85R."
    node = traced(bomb)
    assert isinstance(node, Node) and node.name == "os system" and not victim.exists()
    assert traced(pickle.dumps({"a": [1, 2.5, None, (True, "x")]}, 4)) == {"a": [1, 2.5, None, (True, "x")]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"noise",
        b"\x80\x04.",
        b"\x80\x04\x85.",
        b"\x80\x04\x8c\x01a\x94h\x00h\x00\x93\x94h\x01h\x01\x93.",  # a name that is joined with itself again
        b"\x80\x04\x8c\xc0" + b"a" * 192 + b"\x94h\x00h\x00\x93.",
        b"\x80\x04" + b"N0" * 10 + b"N.",  # an instruction that is not known
        b"\x80\x04" + b"N" * (MAX_INSTRUCTIONS + 1) + b".",
    ],
)
def test_pickles_that_cannot_be_followed(data: bytes) -> None:
    with pytest.raises(ValueError, match="no pickle that can be followed"):
        traced(data)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_weights_of_torch_files() -> None:
    whole = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.zeros(0),
        "c": nn.Parameter(torch.ones(2, 1)),
        "d": torch.tensor(3),
        "e": torch.arange(9.0)[3:6],
    }
    read = read_weights(saved(whole))
    assert list(read) == list(whole) and all(torch.equal(read[name], whole[name].detach()) for name in whole)
    assert not read["c"].requires_grad


def test_a_record_of_other_counts_is_not_followed() -> None:
    """In the format for more members, another record holds the counts that are read."""
    plain_zip = zipped({"a": b"1"}).getvalue()
    start, size = len(plain_zip) - 22 - 47, 47

    def with_counts(count: int, n_bytes: int) -> io.BytesIO:
        record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, n_bytes, start)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size, 1)
        return io.BytesIO(plain_zip[:-22] + record + locator + plain_zip[-22:])

    assert read_members(with_counts(1, size), 64) == {"a": b"1"}  # as torch writes
    with pytest.raises(ValueError, match="has 1000000 members, at most 64"):
        read_members(with_counts(10**6, size), 64)
    with pytest.raises(ValueError, match="its directory does not lie where"):
        read_members(with_counts(1, 10**6), 64)
    with pytest.raises(ValueError, match="its directory does not lie where"):
        read_members(io.BytesIO(b"PK" + b"x" * 100 + plain_zip), 64)


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    for card, tensors, fault in (
        ({"x": "a" * 5_000_000}, {}, "card has .* bytes as JSON, at most"),
        ({}, {"model": {"w": torch.zeros([1] * 9)}}, "has 9 dimensions"),
        ({}, {"model": {"w": torch.zeros(2, dtype=torch.complex64)}}, "of type torch.complex64"),
        ({}, {"model": {"w": torch.zeros(2, dtype=torch.float8_e5m2)}}, "of type torch.float8_e5m2"),
        ({}, {"model": {str(i): torch.zeros(1) for i in range(5000)}}, "has 5000 tensors, at most"),
    ):
        with pytest.raises(ValueError, match=fault):
            write_archive(tmp_path / "a", "example", {}, tensors, card)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"actor.latent_pi.0.weight": torch.zeros(20_000_000, 0)}, r"has shape \(20000000, 0\) and no numbers"),
        ([1.0], "holds a list, wanted named tensors"),
        ({"a": 1.0}, "a is no tensor"),
        ({"a": nn.Linear(1, 1)}, "would be built by torch.nn.modules.linear Linear, wanted a tensor"),
        ({"a": torch.zeros(1).expand(20_000, 20_000)}, "no contiguous tensor that the file holds"),
        ({"a": torch.zeros(3, 2).T}, "no contiguous tensor"),
        ({"a": torch.zeros(2, dtype=torch.bfloat16)}, "no tensor that can be read"),
    ],
)
def test_torch_files_that_are_refused(value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read_weights(saved(value))


def test_names_that_hold_themselves_many_times_over_are_not_spelled_out(tmp_path: Path) -> None:
    """A tuple of itself and itself, again and again: its text doubles with every four bytes."""
    doubled = b"\x8c\x01a\x94" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(40))
    text = printable(traced(b"\x80\x04" + doubled + b"."))
    assert len(text) <= 120
    assert len(repr(Node("a b", traced(b"\x80\x04" + doubled + b".")))) < 200


def test_tensors_that_share_a_storage_do_not_grow() -> None:
    shared = torch.zeros(100_000)
    with pytest.raises(ValueError, match="more bytes than the file"):
        read_weights(saved({f"tensor-{i}": shared for i in range(20)}))


def test_what_a_card_says_is_checked_when_it_is_written(tmp_path: Path) -> None:
    agent = make_agent()
    with pytest.raises(ValueError, match=r"agent\.zip: card: environment"):
        agent.save(tmp_path / "agent", card={"environment": "evil_mod:Env-v0"})
    assert not list(tmp_path.iterdir())
    agent.save(tmp_path / "agent", card={"seed": np.int64(3), "note": "ρ"})
    assert json.loads(zipfile.ZipFile(tmp_path / "agent.zip").read("card.json")) == {"note": "ρ", "seed": 3}
