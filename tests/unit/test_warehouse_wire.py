"""Splitting statements from their data, and encodings of many frames: where the embedded warehouse could lose rows."""

from __future__ import annotations

import gzip
import zlib

import lz4.frame
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.warehouse_sql import Kind, MalformedStatement, parse
from deploy.local.warehouse_wire import (
    Decoder,
    WireError,
    choose_encoding,
    encoder,
    engine_error,
    exception_trailer,
    http_status,
)

FRAMES = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
    "identity": bytes,
}


@pytest.mark.parametrize(
    ("body", "sql", "fmt", "data"),
    [
        (b"INSERT INTO t FORMAT Native\n\x00\xff", "INSERT INTO t ", "Native", b"\x00\xff"),
        (b"insert into t (a, b) format CSV\r\n1,2", "insert into t (a, b) ", "CSV", b"1,2"),
        (b"INSERT INTO t FORMAT RowBinary\n\n\n", "INSERT INTO t ", "RowBinary", b"\n\n"),
        (b"INSERT INTO t FORMAT CSV  1,2", "INSERT INTO t ", "CSV", b"1,2"),
        (b"INSERT INTO t SETTINGS a = 1 FORMAT TSV\nx", "INSERT INTO t SETTINGS a = 1 ", "TSV", b"x"),
        (b"INSERT INTO db.format (values) VALUES (1)", "INSERT INTO db.format (values) ", "Values", b" (1)"),
        (b"INSERT INTO values FORMAT CSV\n1", "INSERT INTO values ", "CSV", b"1"),
        (b"INSERT INTO `FORMAT x` VALUES(';')", "INSERT INTO `FORMAT x` ", "Values", b"(';')"),
        (b"/* FORMAT a */ INSERT INTO TABLE t -- FORMAT b\nFORMAT CSV\n1", None, "CSV", b"1"),
        (b"INSERT INTO FUNCTION file('x', 'CSV') FORMAT CSV\n1", None, "CSV", b"1"),
        (b"INSERT INTO t FORMAT CSV", "INSERT INTO t ", "CSV", b""),
    ],
)
def test_inserts_are_cut_where_their_data_begins(body: bytes, sql: str | None, fmt: str, data: bytes) -> None:
    """Each spelling of an insert gives its text, its format and every byte of its data."""
    statement = parse(body)
    assert (statement.kind, statement.format) == (Kind.INSERT, fmt)
    assert statement.data_at is not None
    assert body[statement.data_at :] == data
    assert sql is None or statement.sql == sql


@given(st.binary(max_size=300))
def test_binary_data_is_never_looked_at(data: bytes) -> None:
    """Whatever follows the newline after FORMAT belongs to the data, quotes and semicolons included."""
    head = b"INSERT INTO t (a) FORMAT Native\n"
    assert parse(head + data).data_at == len(head)


@pytest.mark.parametrize(
    ("body", "kind", "fmt"),
    [
        (b"SELECT 1", Kind.SELECT, None),
        (b"SELECT 1 FORMAT JSON", Kind.SELECT, "JSON"),
        (b"SELECT 1\n FORMAT Native;", Kind.SELECT, "Native"),
        (b"SELECT 1 FORMAT CSV SETTINGS max_threads = 1", Kind.SELECT, "CSV"),
        (b"SELECT format FROM t", Kind.SELECT, None),
        (b"SELECT 'FORMAT CSV'", Kind.SELECT, None),
        (b"SELECT (SELECT 1 FORMAT CSV)", Kind.SELECT, None),
        (b"(SELECT 1) UNION ALL (SELECT 2)", Kind.SELECT, None),
        (b"-- c\nWITH 1 AS a SELECT a", Kind.SELECT, None),
        (b"SELECT $$ ; FORMAT CSV $$", Kind.SELECT, None),
        (b"SHOW TABLES", Kind.READ, None),
        (b"DESCRIBE t FORMAT JSON", Kind.READ, "JSON"),
        (b"CREATE TABLE t (a Int8) ENGINE = Memory;", Kind.COMMAND, None),
        (b"INSERT INTO t SELECT 1", Kind.COMMAND, None),
        (b"INSERT INTO t (a) WITH 1 AS x SELECT x", Kind.COMMAND, None),
    ],
)
def test_other_statements(body: bytes, kind: Kind, fmt: str | None) -> None:
    """Each kind of statement is told apart, and only a FORMAT clause of the whole statement counts."""
    statement = parse(body)
    assert (statement.kind, statement.format) == (kind, fmt)


@pytest.mark.parametrize("body", [b"", b"  -- only a comment", b"SELECT 1; SELECT 2", b"SELECT '\xff'"])
def test_malformed_statements(body: bytes) -> None:
    """Nothing, several statements, or text that is not UTF-8 is refused."""
    with pytest.raises(MalformedStatement):
        parse(body)


def test_an_unclosed_quote_is_read_in_linear_time() -> None:
    """A hostile statement does not hang the tokenizer."""
    assert parse(b"SELECT '" + b"a\\" * 200_000).kind is Kind.SELECT


@given(st.sampled_from(sorted(FRAMES)), st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 64))
def test_decoders_read_every_frame(encoding: str, pieces: list[bytes], step: int) -> None:
    """Many concatenated frames, fed in pieces of any size, come out whole."""
    body = b"".join(FRAMES[encoding](piece) for piece in pieces)
    decoder = Decoder(encoding)
    decoded = b"".join(decoder.feed(body[at : at + step]) for at in range(0, len(body), step))
    decoder.finish()
    assert decoded == b"".join(pieces)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd"])
def test_a_frame_cut_short_is_refused(encoding: str) -> None:
    """A body that ends inside a frame is an error, not a shorter body."""
    body = FRAMES[encoding](b"row\n" * 1000)
    decoder = Decoder(encoding)
    decoder.feed(body[:-3])
    with pytest.raises(WireError) as refused:
        decoder.finish()
    assert (refused.value.code, refused.value.status) == (271, 400)


@pytest.mark.parametrize("encoding", ["gzip", "lz4", "zstd"])
def test_damaged_frames_are_refused(encoding: str) -> None:
    """Bytes that are no frame at all are an error with the encoding's name."""
    with pytest.raises(WireError, match=encoding):
        Decoder(encoding).feed(b"this is not compressed at all")


@given(st.sampled_from(["", "gzip", "deflate", "lz4", "zstd"]), st.lists(st.binary(max_size=200), max_size=5))
def test_encoders_round_trip(encoding: str, blocks: list[bytes]) -> None:
    """What an encoder writes block by block, a decoder reads."""
    compressor = encoder(encoding)
    body = b"".join(compressor.feed(block) for block in blocks) + compressor.finish()
    decoder = Decoder(encoding)
    assert decoder.feed(body) == b"".join(blocks)
    decoder.finish()


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [("lz4,zstd,gzip", "lz4"), ("br, gzip", "gzip"), ("gzip;q=0, zstd", "zstd"), ("", ""), ("identity", "")],
)
def test_the_clients_order_decides(accepted: str, chosen: str) -> None:
    """The first encoding of the client's list that we write is used."""
    assert choose_encoding(accepted) == chosen


def test_engine_errors_read_like_a_servers() -> None:
    """Text before the code is dropped, the version is there once; a message without a code gets 1002."""
    code, text = engine_error(
        "Streaming insert failed: Code: 60. DB::Exception: no t. (UNKNOWN_TABLE)", "26.9"
    )
    assert (code, text) == (60, "Code: 60. DB::Exception: no t. (UNKNOWN_TABLE) (version 26.9)\n")
    assert engine_error(text, "26.9") == (code, text)
    assert engine_error("out of luck", "26.9")[0] == 1002


def test_statuses() -> None:
    """The statuses clients branch on."""
    assert [http_status(code) for code in (62, 60, 516, 48, 241)] == [400, 404, 403, 501, 500]


def test_the_trailer_is_what_the_client_looks_for() -> None:
    """clickhouse-connect finds our message in a body that broke off."""
    from clickhouse_connect.driver.transform import extract_exception_with_tag

    body = b"\x01\x02rows" + exception_trailer("abcdef", "Code: 395. DB::Exception: thrown")
    assert extract_exception_with_tag(body, "abcdef") == "Code: 395. DB::Exception: thrown"
